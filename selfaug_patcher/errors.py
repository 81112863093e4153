"""What the patcher says when it refuses: every problem at once, then the state that things are in."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass

DONE = 0
FAILED = 1
USAGE = 2
UNSUPPORTED = 3
MODIFIED = 4
NOT_WRITABLE = 5

NOTHING_CHANGED = "Nothing was changed."


@dataclass(frozen=True)
class Problem:
    """One reason for a refusal.

    Args:
        id: stable, kebab-case; what scripts and documentation refer to.
        what: one sentence, lower case, without a full stop.
        expected: what would have been right.
        found: what is there. Further lines (a diff, say) may follow the first.
        do: the next thing to do, as a command where there is one.
        exit_code: what the process answers for it: 1 failed, 2 usage, 3 unsupported, 4 modified, 5 not writable.
    """

    id: str
    what: str
    expected: str = ""
    found: str = ""
    do: str = ""
    exit_code: int = FAILED

    def __str__(self) -> str:
        lines = [f"error[{self.id}]: {self.what}"]
        for label, text in (("expected", self.expected), ("found", self.found), ("do", self.do)):
            if text:
                first, *more = text.splitlines()
                lines.append(f"  {label + ':':<10}{first}")
                lines.extend(f"  {'':<10}{line}".rstrip() for line in more)
        return "\n".join(lines)


class PatcherError(Exception):
    """A refusal or a failure, with all problems. The text of the exception is what the user reads."""

    def __init__(self, *problems: Problem, state: str = NOTHING_CHANGED) -> None:
        self.problems = problems
        self.state = state
        super().__init__("\n".join([*(str(problem) for problem in problems), state]))

    @property
    def exit_code(self) -> int:
        """The highest exit code of all problems."""
        return max((problem.exit_code for problem in self.problems), default=FAILED)

    def as_json(self) -> dict[str, object]:
        problems = [
            {"id": p.id, "what": p.what, "expected": p.expected, "found": p.found, "do": p.do} for p in self.problems
        ]
        return {"error": {"problems": problems, "state": self.state}, "exit_code": self.exit_code}


@contextlib.contextmanager
def leaving(state: str) -> Iterator[None]:
    """Have a Ctrl-C or a system's error that ends this block carry the state of things, which `state_of` reads."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        error.__dict__.setdefault("state", state)
        raise


def state_of(error: BaseException) -> str:
    return str(getattr(error, "state", NOTHING_CHANGED))


def from_os_error(error: OSError, doing: str) -> Problem:
    """The problem behind a file system's refusal; permissions and read-only media answer with exit code 5."""
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    reason = error.strerror or str(error)
    if error.filename is not None:
        reason = f"{reason}: {error.filename}"
    hints = {
        errno.ENOSPC: "free some space, then run the same command again",
        errno.EXDEV: "the folders of the package lie on different file systems; reinstall it in one place",
    }
    again = "once the cause is gone, run the same command again"
    do = "run the command as the owner of these files" if denied else hints.get(error.errno or 0, again)
    return Problem(
        id="not-writable" if denied else "file-system",
        what=f"could not {doing}",
        found=reason,
        do=do,
        exit_code=NOT_WRITABLE if denied else FAILED,
    )
