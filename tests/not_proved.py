"""One line at the end of a run of the tests: what was skipped, why, and the command that proves it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# A reason, and the command; what the reason names may be used in it. The first that fits counts.
COMMANDS = (
    (r"no wheels? .*", "wheels", "SELFAUG_PROVE_ALL=1 python -m pytest tests/pins tests/patcher"),
    (r"ALL_FAULTS=1 runs it.*", "every fault", "ALL_FAULTS=1 python -m pytest tests/patcher/test_faults.py"),
    (r"ALL_LAYOUTS=1 .*", "every layout", "ALL_LAYOUTS=1 python -m pytest tests/distributed"),
    (r"could not import 'bitsandbytes'.*", "bitsandbytes", "nox -s \"stacks(stack='bitsandbytes')\""),
    (r"could not import '(torch|transformers|peft|accelerate)'.*", r"\1", "pip install -r requirements-dev.txt"),
    (r"could not import 'yaml'.*", "PyYAML", "pip install pyyaml"),
    (r"could not import '([\w-]+)[\w.]*'.*", r"\1", r"pip install \1"),
    (r"(git|strace|bash) is not installed", r"\1", r"apt-get install \1"),
    (r"needs (bash), .*", r"\1", r"apt-get install \1"),
    (r"(uv|datasets|datasketch|[\w-]+) is not installed(?: here)?", r"\1", r"pip install \1"),
    (r"([\w-]+) is not installed \((.*)\)", r"\1", r"\2"),
    (r"there is no Python ([\d.]+) here", r"Python \1", r"pyenv install \1"),
    (r"cannot install ([^:]*): .*", r"\1", "python -m pytest tests/patcher/test_real_environments.py, with a network"),
    (r".*no setpriv.*", "setpriv", "apt-get install util-linux"),
    (r"needs the right to mount.*|only root .*", "root", "sudo python -m pytest tests/patcher"),
    (r"peft without KaSA|Unknown|.*\binit_lora_weights\b.*", "a newer peft", "pip install -U peft"),
    (r"(?:this )?(peft|TRL)\b.*", r"a newer \1", r"pip install -U \1"),
    (
        r"(?:this release|this transformers|transformers until|what is placed here)\b.*",
        "a newer transformers",
        "pip install -r requirements-dev.txt",
    ),
    (r"sys\.stdlib_module_names .*", "Python 3.10", "python3.10 -m pytest tests"),
    (r"python -P came with 3\.11", "Python 3.11", "python3.11 -m pytest tests"),
    (r"there is no checkout here", "a checkout", "python -m pytest tests, in a checkout"),
    (r"needs (fork|signals).*|no named pipes here|Windows has .*", "POSIX", "python -m pytest tests, on Linux"),
    (r"only Linux .*", "Linux", "python -m pytest tests, on Linux"),
    (
        r"here is a GPU",
        "a machine without a GPU",
        "CUDA_VISIBLE_DEVICES= python -m pytest tests/test_benchmarks_gpu.py",
    ),
    (r"torch without torch\.distributed", "torch.distributed", "pip install torch==2.13.0"),
)


def cause(reason: str) -> tuple[str, str]:
    """(What was missing in a word, the command that proves what was skipped for want of it); the command is empty where
    nothing is known but the reason."""
    reason = reason.removeprefix("Skipped: ").strip()
    for form, what, command in COMMANDS:
        match = re.fullmatch(form, reason, re.DOTALL)
        if match:
            return match.expand(what), match.expand(command)
    return reason.splitlines()[0][:60], ""


def line(reasons: Iterable[str]) -> str:
    """The line for the skipped tests' reasons; empty if nothing was skipped."""
    counts = Counter(map(cause, reasons))
    if not counts:
        return ""
    causes = [
        f"{count} for want of {what}{command and f' ({command})'}" for (what, command), count in counts.most_common()
    ]
    return f"NOT proved by this run: {counts.total()} skipped: {'; '.join(causes)}"
