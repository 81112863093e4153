"""nox: `nox -s lint tests site` is what README.md and CI run; `nox -s matrix` proves releases in real environments, and
`nox -s new-releases` finds new ones and pins them."""

import nox

nox.options.sessions = ["lint", "tests", "site"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types, by exact releases: another may format or infer otherwise. Types need torch and transformers."""
    session.install("ruff==0.17.6", "mypy==2.4.1", "packaging==26.3", "-r", "requirements.txt")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("mypy", "Code/examples/study/__main__.py")  # a second __main__ beside that of the demo


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, with the default set of requirements.txt, in up to four processes. Arguments go to pytest."""
    session.install("-r", "requirements-dev.txt")
    processes = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadgroup")
    session.run("pytest", *processes, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def site(session: nox.Session) -> None:
    """The project page in build/site, seen in headless Chromium where there is one. Arguments: --screenshots DIR."""
    session.install("-r", "docs/requirements.txt")
    session.run("mkdocs", "build", "--strict", "--clean", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("python", "tests/site/browser.py", "build/site", *session.posargs)


@nox.session
def matrix(session: nox.Session) -> None:
    """Pairs of releases in real environments (two hours). Arguments: transformers==X.Y.Z peft==X.Y.Z, --resume."""
    session.install("-r", "requirements.txt")
    session.run("python", "tests/matrix.py", *session.posargs)


@nox.session(name="new-releases")
def new_releases(session: nox.Session) -> None:
    """New releases of transformers and peft: each is proved and pinned, or stopped by a check. Argument: --dry-run."""
    session.install("-r", "requirements.txt")
    session.run("python", "tests/new_releases.py", *session.posargs)


@nox.session
@nox.parametrize("trl", ["1.16.0", "1.9.2", "1.6.0"])
def trainers(session: nox.Session, trl: str) -> None:
    """Rows of docs/trainers.md for one TRL: gradients and metrics, stock against SelfAug; then a script, unchanged."""
    session.install("-r", "requirements.txt", f"trl=={trl}", "pytest")
    session.run("python", "tests/trainers/trl_stack.py", env={"OMP_NUM_THREADS": "1"})
    session.run("python", "tests/trainers/installed.py", env={"OMP_NUM_THREADS": "1"})


STACKS = {
    "ms-swift": ("tests/trainers/swift_stack.py", ["ms-swift==4.6.0", "transformers==5.19.0", "peft==0.20.0"]),
    "LLaMA-Factory": ("tests/trainers/llamafactory_stack.py", ["llamafactory==0.9.5"]),
    "Liger": ("tests/trainers/liger_stack.py", ["-r", "requirements.txt", "liger-kernel==0.8.5", "triton==3.7.0"]),
    "DeepSpeed": ("tests/distributed/deepspeed_run.py", ["-r", "requirements.txt", "deepspeed==0.19.8"]),
    "bitsandbytes": ("-m pytest tests/trainers/test_quantised.py", ["-r", "requirements.txt", "bitsandbytes==0.50.2"]),
}


@nox.session
@nox.parametrize("stack", list(STACKS))
def stacks(session: nox.Session, stack: str) -> None:
    """The other rows of docs/trainers.md, each with its real package."""
    command, packages = STACKS[stack]
    session.install("torch==2.13.0", *packages, "pytest")
    # for pictures and sound, and only if built for this very torch
    session.run("python", "-m", "pip", "uninstall", "--yes", "torchvision", "torchaudio")
    session.run("python", *command.split(), env={"OMP_NUM_THREADS": "1"})
