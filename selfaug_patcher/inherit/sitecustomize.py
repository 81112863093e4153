# mypy: allow-untyped-defs, allow-untyped-calls
"""Run first by every Python that `selfaug_patcher run` starts, since ``PYTHONPATH`` begins with this folder.

It takes the folder off ``sys.path`` again, so that a program sees the path that it would have without `run`, and then
imports the ``sitecustomize`` of the user's, if there is one. Two finders stay: one makes selfaug_patcher importable,
and one serves the patched modules once the program imports transformers, peft or selfaug. Interpreters as old as
Python 2.7 read this file, too.
"""

import os
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))
_BESIDE = os.path.dirname(os.path.dirname(_HERE))


class PatcherFinder:
    """The last finder: selfaug_patcher and what it needs, where this interpreter has none, and nothing else of the
    environment that selfaug_patcher was started from."""

    def find_spec(self, name, path=None, target=None):
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [_BESIDE]) if name in ("selfaug_patcher", "packaging") else None


class PatchedFinder:
    """The first finder: at the first import from one of the packages it has the patched modules served."""

    def __init__(self):
        import _thread

        self.lock = _thread.RLock()  # whoever imports in another thread waits until the patched modules are there
        self.served = False

    def find_spec(self, name, path=None, target=None):
        package, _, module = name.partition(".")
        if name != "selfaug" and not (module and package in ("transformers", "peft")):
            return None
        with self.lock:
            if self.served:
                return None
            self.served = True
            try:
                from selfaug_patcher.run import serve_child

                serve_child()
            except BaseException:
                self.served = False  # refused: no later import may find the stock files
                raise
        specs = (finder.find_spec(name, path, target) for finder in list(sys.meta_path))
        return next((spec for spec in specs if spec is not None), None)


sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != _HERE]
if sys.version_info >= (3, 9):  # noqa: UP036
    sys.meta_path.insert(0, PatchedFinder())
    sys.meta_path.append(PatcherFinder())
if __name__ == "sitecustomize":
    del sys.modules[__name__]
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  # the user's; `site` allows that there is none
