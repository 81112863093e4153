"""Commands for the user to type, complete: with the interpreter that has selfaug_patcher, with the environment that is
meant, and with its installer."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass

AGAIN = ("--force-reinstall", "--no-deps")  # in place of what is there, and nothing else with it


@dataclass(frozen=True)
class Commands:
    """For one environment.

    Args:
        python: its interpreter.
        named: whether the user named that with ``--python``; else it is the running one.
        flags: switches of the running interpreter that decide what is imported.
        uv: whether uv filled the environment, which then may have no pip.
    """

    python: str
    named: bool = False
    flags: tuple[str, ...] = ()
    uv: bool = False

    def patcher(self, verb: str, arguments: str = "") -> str:
        """This patcher, for this environment."""
        here = self._here("python") or shlex.quote(sys.executable)
        option = ["--python", shlex.quote(self.python)] if self.named else []
        return " ".join([here, *self.flags, "-m", "selfaug_patcher", verb, *option, *filter(None, [arguments])])

    def install(self, requirement: str, *options: str) -> str:
        """Its installer, say with `AGAIN`."""
        return " ".join([self.installer, *options, f'"{requirement}"'])

    @property
    def installer(self) -> str:
        """What stands before a requirement."""
        python = shlex.quote(self.python)
        if self.uv:
            return f"uv pip install --python {python}"
        return "pip install" if not self.named and self._here("pip") else f"{python} -m pip install"

    def _here(self, name: str) -> str:
        """The name of a program, where the shell would find the one of the running interpreter's environment."""
        found = shutil.which(name)
        return name if found and os.path.dirname(os.path.abspath(found)) == os.path.dirname(sys.executable) else ""
