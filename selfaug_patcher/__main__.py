import sys

# Parsed by whatever interpreter the user has: no syntax here that is younger than Python 2.7.
if sys.version_info < (3, 9):  # noqa: UP036
    sys.stderr.write(
        "error[old-python]: selfaug_patcher does not run on this interpreter\n"
        "  expected: Python 3.9 or later\n"
        "  found:    Python " + ".".join(map(str, sys.version_info[:2])) + " (" + sys.executable + ")\n"
        "  do:       run it with the interpreter of the environment that has transformers\n"
        "Nothing was changed.\n"
    )
    sys.exit(1)

from selfaug_patcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
