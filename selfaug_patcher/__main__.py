# mypy: allow-untyped-defs, allow-untyped-calls

import os
import sys

if not __package__:  # started by its path or by a link to it: the package lies one folder above the real file
    _HERE = os.path.dirname(os.path.realpath(__file__))
    ADDED = os.path.dirname(_HERE)  # `run` takes it off again
    sys.path[:] = [ADDED] + [entry for entry in sys.path if os.path.realpath(entry) != _HERE]


def _stop(name, what, expected, seen, do):
    sys.stderr.write("error[" + name + "]: " + what + "\n")
    for label, text in (("expected: ", expected), ("found:    ", seen), ("do:       ", do)):
        sys.stderr.write("  " + label + text + "\n")
    sys.stderr.write("Nothing was changed.\n")
    sys.exit(1)


# Parsed by whatever interpreter the user has: no syntax here that is younger than Python 2.7.
if sys.version_info < (3, 9):  # noqa: UP036
    _stop(
        "old-python",
        "selfaug_patcher does not run on this interpreter",
        "Python 3.9 or later",
        "Python " + ".".join(map(str, sys.version_info[:2])) + " (" + sys.executable + ")",
        "run it with the interpreter of the environment that has transformers",
    )
try:
    import packaging.version  # noqa: F401
except ImportError as error:
    _stop(
        "no-packaging",
        "selfaug_patcher needs the package 'packaging', which comes with transformers",
        "an interpreter that can import it",
        str(error) + " (" + sys.executable + ")",
        "run it with the interpreter of the environment that has transformers, or "
        + sys.executable
        + " -m pip install packaging",
    )

from selfaug_patcher.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
