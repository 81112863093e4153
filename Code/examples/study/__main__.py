"""Run every experiment with every seed, and write the page and its raw figures: what is learned, what is kept, what it
costs.

    python Code/examples/study --output DIR [--arms NAME …] [--seeds 0 1 2] [--jobs 2]
    python Code/examples/study --report-only

An interrupted study continues where it stopped. Runs whose figures are in the results folder are not repeated, so a
later call adds experiments ("arms") or seeds. docs/results.md says what is measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import fields
from pathlib import Path

STUDY = Path(__file__).resolve().parent
sys.path.insert(1, str(STUDY.parent / "demo"))
sys.path.append(str(STUDY.parents[2]))  # the checkout, for Code.toolkit; at the end, so that it hides no package

import records  # noqa: E402
from experiments import ARMS, USUAL, Setting  # noqa: E402
from sandbox import StepFailed, too_old  # noqa: E402
from study import CHECKOUT, Given, Study  # noqa: E402

from Code.toolkit.errors import Refusal, message  # noqa: E402
from Code.toolkit.options import above_zero, positive  # noqa: E402


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python Code/examples/study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("--output", type=Path, default=Path("selfaug-study"), help="default: ./selfaug-study")
    whole.add_argument("--results", type=Path, default=CHECKOUT / "docs" / "results", help="default: docs/results; "
                       "the page is the file beside it with .md")  # fmt: skip
    whole.add_argument("--arms", nargs="+", choices=ARMS, default=USUAL, metavar="NAME",
                       help=f"default: {', '.join(USUAL)}; there are also "
                            f"{', '.join(name for name in ARMS if name not in USUAL)}")  # fmt: skip
    whole.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    whole.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="processes that share the cores (default: 1)"
    )
    whole.add_argument("--report-only", action="store_true", help="tables and plots from the raw figures; runs nothing")
    whole.add_argument("--here", action="store_true", help="use the packages of this Python, not an own environment")
    whole.add_argument("--model", help="a chat model, by name on the hub or by folder (default: SmolLM2-135M)")
    whole.add_argument("--task-train", type=Path, metavar="FILE", help="JSONL with messages, or prompt and answer")
    whole.add_argument("--task-test", type=Path, metavar="FILE")
    whole.add_argument("--code", type=Path, metavar="FILE", help="HumanEval.jsonl.gz, to be measured, too")
    setting = whole.add_argument_group("setting")
    for one in fields(Setting):
        option = "--" + one.name.replace("_", "-")
        kind = positive if isinstance(one.default, int) and one.name != "epochs" else above_zero
        setting.add_argument(option, type=kind, default=one.default, metavar="N", help=f"default: {one.default:g}")
    return whole


def main() -> int:
    whole = parser()
    args = whole.parse_args()
    results = args.results.resolve()
    if (args.task_train is None) != (args.task_test is None):
        whole.error("--task-train and --task-test go together")
    if not args.report_only and not args.here and too_old():
        whole.error(too_old())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the children, too
    try:
        if args.report_only:
            report(results)
            return 0
        setting = Setting(**{one.name: getattr(args, one.name) for one in fields(Setting)})
        task = (args.task_train.resolve(), args.task_test.resolve()) if args.task_train else None
        python = sys.executable if args.here else None
        code = args.code.resolve() if args.code else None
        given = Given(args.output.resolve(), results, args.arms, args.seeds, args.jobs, python, args.model, task, code)
        failed = Study(given, setting).run()
    except StepFailed as failure:
        print(f"\nfailed: {failure}", file=sys.stderr)
        return 1
    except (Refusal, OSError) as error:
        print(f"\n{message(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped. The same command continues from here.", file=sys.stderr)
        return 130
    for name, reason in failed.items():
        print(f"\nfailed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def report(results: Path) -> None:
    """Write study.json, the plots, and the block in the page, from the records."""
    runs = records.read(results / "runs")
    if not runs:
        raise StepFailed(f"{results / 'runs'} has no records: run the study first. Nothing was written.")
    records.check(runs, runs[0]["setting"], results / "runs")
    try:
        import chart
        import summary
        import tables
    except ImportError as missing:
        raise StepFailed(f"the report needs numpy and matplotlib: pip install matplotlib ({missing})") from None
    summed = summary.summarise(runs)
    page = results.with_name(f"{results.name}.md")
    tables.write(page, tables.block(summed, results.name))
    (results / "study.json").write_text(json.dumps(summed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    chart.draw(summed, results)
    for name in ("study.json", "study.png", "study.svg"):
        print(results / name)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
