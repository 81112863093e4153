"""Which families of models are exact? The trial of each, and a step of TRL's SFTTrainer, with the packages of this
environment.

    python tests/family_runs.py                every family of selfaug_patcher/families.py that this transformers has
    python tests/family_runs.py llama qwen3    only these
    python tests/family_runs.py --docs         put the results into the table of docs/families.md
    python tests/family_runs.py --pin          pin what held in this release, and only that

Each family runs in a process of its own, forked from one that has imported torch and transformers. Its modelling file
is patched in memory. Results are kept in docs/families/RELEASE.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "trainers")]

from selfaug_patcher import families, memory, pins, seam  # noqa: E402
from selfaug_patcher.pins import Pin  # noqa: E402

RESULTS = ROOT / "docs" / "families"
PAGE = ROOT / "docs" / "families.md"
MARKS = ("<!-- table of families -->\n", "<!-- end of the table -->")
ERRORS = re.compile(r"relative errors: loss (\S+), KL (\S+), gradient (\S+?)(?:;|$)")
LIMIT_SECONDS = 300


def path_of(target: families.Target) -> Path:
    """The file of a target in this environment."""
    package = importlib.util.find_spec(target.package)
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent.parent / target.path


def sources(target: families.Target) -> dict[str, tuple[str, bytes]]:
    """Module name to path and patched text of a family's file, and of peft's."""
    table = pins.load()
    each = {t.module: t for t in (families.LAYER, families.MODELS[0], target)}.values()
    return {t.module: (str(path_of(t)), table.patched(t, path_of(t).read_bytes())) for t in each}


def trial(name: str) -> list[dict[str, Any]]:
    """The answers of `selfaug.trial` for one class."""
    sys.argv = ["selfaug.trial", "--json", name]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        runpy.run_module("selfaug.trial", run_name="__main__", alter_sys=True)
    return [json.loads(line) for line in printed.getvalue().splitlines() if line.startswith('{"')]


def trl_step(name: str) -> dict[str, float]:
    """The relative errors of one step of TRL's SFTTrainer: KL and gradient."""
    import parity
    import trl_stack

    from selfaug.trial import tiny

    cls = tiny.model_class(name)
    trl_stack.model = functools.partial(lambda: tiny.with_lora(tiny.base(cls)))
    with contextlib.redirect_stdout(io.StringIO()):
        answer = parity.compare(lambda: trl_stack.trainer("prompt", {}), trl_stack.model, base=tiny.base(cls))
    return {"kl": abs(answer["kl"] / answer["expected kl"] - 1), "gradient": answer["error"]}


def measure(target: families.Target) -> dict[str, Any]:
    """What came out for one family: the checks that failed, and the largest errors."""
    memory.install(sources(target), {"selfaug": str(ROOT / "Code")})
    stock = path_of(target).read_bytes()
    names = [f"{target.module}:{name}" for name in seam.class_names(target, stock)]
    results = [measure_class(name) for name in names]
    whole: dict[str, Any] = {
        "checks": sum(result["checks"] for result in results),
        "failed": {check: found for result in results for check, found in result["failed"].items()},
    }
    errors = ("loss", "kl", "gradient")
    whole.update({key: max(r[key] for r in results) for key in errors if all(key in r for r in results)})
    if all("trl" in result for result in results):
        whole["trl"] = {key: max(result["trl"][key] for result in results) for key in ("kl", "gradient")}
    return whole


def measure_class(name: str) -> dict[str, Any]:
    """The same for one class, ``module:class``."""
    answers = trial(name)
    checks = [answer for answer in answers if "ok" in answer]
    errors = [match.groups() for check in checks if (match := ERRORS.search(check["found"]))]
    failed = {check["name"]: check["found"] for check in checks if not check["ok"]}
    if not answers or answers[-1] != {"done": True}:
        failed["trial"] = "ended before its last check"
    result: dict[str, Any] = {"checks": len(checks), "failed": failed}
    if errors:
        result.update({key: max(float(e[i]) for e in errors) for i, key in enumerate(("loss", "kl", "gradient"))})
    if importlib.util.find_spec("trl") and not failed:
        result["trl"] = trl_step(name)
    return result


def in_a_fork(target: families.Target) -> dict[str, Any]:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_SECONDS)
        try:
            answer = measure(target)
        except BaseException as error:
            answer = {"checks": 0, "failed": {"trial": f"{type(error).__name__}: {str(error)[:200]}"}}
        with open(writable, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writable)
    with open(readable) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"checks": 0, "failed": {"trial": f"no end within {LIMIT_SECONDS} seconds"}}


def run(names: list[str]) -> int:
    import torch  # noqa: F401
    import transformers
    import transformers.modeling_utils  # nothing of this imports a modelling file

    file = RESULTS / f"{transformers.__version__}.json"
    versions = {name: _version(name) for name in ("transformers", "peft", "torch", "trl")}
    kept = json.loads(file.read_text())["families"] if file.exists() else {}
    for target in families.MODELS:
        if path_of(target).exists() and (not names or target.family in names):
            kept[target.family] = result = in_a_fork(target)
            print(f"{target.family}: {result}", flush=True)
            RESULTS.mkdir(exist_ok=True)
            data = {**versions, "families": dict(sorted(kept.items()))}
            file.write_text(json.dumps(data, indent=1) + "\n")
    return 1 if any(result["failed"] for result in kept.values()) else 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def pin() -> None:
    """Add a row for each family that held in the release that is installed here."""
    version = _version("transformers")
    held = {name for name, result in results()[version]["families"].items() if not result["failed"]}
    table = pins.load()
    rows = list(table.pins)
    for target in families.MODELS:
        if target.family in held and table.by_version(target.name, version) is None:
            stock = path_of(target).read_bytes()
            hashes = (hashlib.sha256(content).hexdigest() for content in (stock, table.patched(target, stock)))
            rows.append(Pin(target.name, version, *hashes))
    (table.root / pins.TABLE).write_text(pins.render(rows))


def results() -> dict[str, Any]:
    """By release of transformers, what its run found."""
    from packaging.version import Version

    files = sorted(RESULTS.glob("*.json"), key=lambda file: Version(file.stem), reverse=True)
    return {file.stem: json.loads(file.read_text()) for file in files}


def table() -> str:
    """The table of docs/families.md."""
    runs = results()
    lines = ["| family | class | since | proved in | loss | KL | gradient | TRL: KL | TRL: gradient |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for target in families.MODELS:
        held = {
            version: run["families"][target.family]
            for version, run in runs.items()
            if target.family in run["families"] and not run["families"][target.family]["failed"]
        }
        worst = [_worst(held.values(), key) for key in ("loss", "kl", "gradient")]
        trl = [
            _worst([result["trl"] for result in held.values() if "trl" in result], key) for key in ("kl", "gradient")
        ]
        cells = [f"`{target.family}`", ", ".join(target.class_names), target.since, ", ".join(held), *worst, *trl]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _worst(results: Any, key: str) -> str:
    values = [result[key] for result in results]
    return f"{max(values):.0e}" if values else "not run"


def page(text: str) -> str:
    """docs/families.md with the table as it is now."""
    before, _, rest = text.partition(MARKS[0])
    return before + MARKS[0] + "\n" + table() + "\n" + MARKS[1] + rest.partition(MARKS[1])[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--pin", action="store_true")
    options = parser.parse_args()
    if options.docs:
        PAGE.write_text(page(PAGE.read_text()))
    elif options.pin:
        pin()
    else:
        sys.exit(run(options.families))
