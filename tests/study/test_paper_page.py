"""docs/paper.md: its tables are made of the paper's figures and of the study's summaries.

python tests/study/test_paper_page.py       writes the tables anew
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), *(str(ROOT / "Code" / "examples" / name) for name in ("study", "demo"))]

import experiments  # noqa: E402

from Code.toolkit.tables import between, markdown  # noqa: E402

PAGE = ROOT / "docs" / "paper.md"
MARKS = ("<!-- paper: written by python tests/study/test_paper_page.py -->\n", "<!-- end of paper -->")
SMALL, QWEN, SQUAD = "results", "results-qwen", "results-squad"
EXACT, KL, CODE = ("exact_match", 2), ("kl", 3), ("code", 3)
# by table: its title, the headings, and the rows: the paper's words and figures, then the arm that stands for them
TABLES = (
    (
        "Table 1: does it help?",
        ("", "paper: CRAG", "paper: IFEval", "paper: HumanEval"),
        (
            ("before", "-13.11", "71.90", "79.88", "base"),
            ("LoRA", "8.76", "48.80", "78.05", "lora"),
            ("SelfAug, alpha 0.5", "10.94", "62.11", "79.27", "selfaug-0.5"),
        ),
        ((SMALL, EXACT), (SMALL, KL), *((folder, one) for folder in (QWEN, SQUAD) for one in (EXACT, KL, CODE))),
    ),
    (
        "Table 2: where to constrain",
        ("", "paper: IFEval"),
        (
            ("nowhere (LoRA)", "48.80", "lora"),
            ("attention, Q", "47.13", "align-q"),
            ("attention, K", "50.09", "align-k"),
            ("attention, V", "48.24", "align-v"),
            ("attention, O", "47.50", "align-o"),
            ("attention, all", "50.46", "align-attention"),
            ("FFN", "51.02", "align-ffn"),
            ("all layers", "49.35", "align-layers"),
            ("logits of the input", "62.11", "selfaug-0.5"),
            ("logits of the output", "no figure", "output"),
            ("logits of both", "no figure", "all"),
        ),
        ((SMALL, EXACT), (SMALL, KL)),
    ),
    (
        "Table 3: the length of the context",
        ("", "paper: IFEval"),
        (
            ("2K, LoRA", "58.23", ""),
            ("2K, SelfAug", "63.03", ""),
            ("4K, LoRA", "56.19", ""),
            ("4K, SelfAug", "62.48", ""),
            ("6K, LoRA", "52.87", ""),
            ("6K, SelfAug", "55.82", ""),
            ("8K, LoRA", "50.28", ""),
            ("8K, SelfAug", "57.67", ""),
            ("0.15K, LoRA", "", "lora"),
            ("0.15K, SelfAug", "", "selfaug-0.5"),
            ("0.5K, LoRA", "", "context-0.5k"),
            ("0.5K, SelfAug", "", "selfaug-context-0.5k"),
            ("1K, LoRA", "", "context-1k"),
            ("1K, SelfAug", "", "selfaug-context-1k"),
            ("2K, LoRA", "", "context-2k"),
            ("2K, SelfAug", "", "selfaug-context-2k"),
        ),
        ((SMALL, EXACT), (SMALL, KL)),
    ),
    (
        "Figure 2: more epochs, a picture in the paper",
        ("",),
        (
            ("1, LoRA", "lora"),
            ("1, SelfAug", "selfaug-0.5"),
            ("3, LoRA", "epochs-3"),
            ("3, SelfAug", "selfaug-epochs-3"),
            ("10, LoRA", "epochs-10"),
            ("10, SelfAug", "selfaug-epochs-10"),
        ),
        ((SMALL, EXACT), (SMALL, KL)),
    ),
    (
        "Figure 3: more alpha, less forgetting",
        ("", "paper: IFEval"),
        (
            ("0 (LoRA)", "48.80", "lora"),
            ("0.1", "a picture", "selfaug-0.1"),
            ("0.3", "a picture", "selfaug-0.3"),
            ("0.5", "62.11", "selfaug-0.5"),
            ("1.0", "a picture", "selfaug-1.0"),
        ),
        ((SMALL, EXACT), (SMALL, KL), (QWEN, CODE)),
    ),
    (
        "Figure 4: LoRA's rank, a picture in the paper",
        ("", "paper"),
        (("16", "forgets more", "lora"), ("4", "forgets less", "lower-rank")),
        ((SMALL, EXACT), (SMALL, KL)),
    ),
    (
        "The direction of the KL (section 3.3, and the authors' code)",
        ("", "paper"),
        (
            ("KL(base \\|\\| tuned)", "the code", "selfaug-0.5"),
            ("KL(tuned \\|\\| base)", "the formula", "tuned-base"),
        ),
        ((SMALL, EXACT), (SMALL, KL)),
    ),
)
NAMES = {SMALL: "SmolLM2", QWEN: "Qwen2.5", SQUAD: "Qwen2.5 on SQuAD"}
SIZES = (  # Table 4 of the paper: IFEval before, of LoRA, and of SelfAug
    ("Qwen2.5-3B", "61.37", "49.54", "57.86"),
    ("Qwen2.5-7B", "71.90", "48.80", "62.11"),
    ("Qwen2.5-14B", "79.67", "45.84", "67.47"),
    ("Qwen2.5-32B", "77.45", "60.81", "75.60"),
    ("Qwen2.5-72B", "83.73", "52.87", "62.85"),
)
OURS = {SMALL: "SmolLM2-135M", QWEN: "Qwen2.5-Coder-0.5B"}
HEADS = {"exact_match": "exact match", "kl": "KL", "code": "HumanEval"}


def summary(folder: str) -> dict:
    return json.loads((ROOT / "docs" / folder / "study.json").read_text(encoding="utf-8"))["arms"]


def cell(arms: dict, arm: str, metric: str, digits: int) -> str:
    """A figure of the study; "not run" for an arm that has none; empty for a row of the paper alone, "" as its arm."""
    if not arm:
        return ""
    found = arms.get(arm, {}).get("estimates", {}).get(metric)
    if found is None:
        return "not run"
    error = f" ± {found['se']:.{digits}f}" if found["se"] else ""
    seeds = len(arms[arm]["seeds"])
    return f"{found['mean']:.{digits}f}{error}" + (f" ({seeds})" if arm != experiments.BASE and seeds != 3 else "")


def tables() -> str:
    arms, parts = {folder: summary(folder) for folder in NAMES}, []
    for title, headings, rows, columns in TABLES:
        ours = [f"{NAMES[folder]}: {HEADS[metric]}" for folder, (metric, _) in columns]
        lines = [[*row[:-1], *(cell(arms[folder], row[-1], *one) for folder, one in columns)] for row in rows]
        parts.append(f"### {title}\n\n{markdown([*headings, *ours], lines, align_right=True)}")
    parts.insert(3, sizes(arms))
    return "\n" + "\n\n".join(parts) + "\n\n"


def sizes(arms: dict) -> str:
    """Table 4: models of several sizes, a row each."""
    pair = ("lora", "selfaug-0.5")
    rows = [[*row, "", ""] for row in SIZES]
    rows += [[title, "", "", "", *(cell(arms[folder], arm, *KL) for arm in pair)] for folder, title in OURS.items()]
    heads = ["", "paper: IFEval, before", "paper: LoRA", "paper: SelfAug", "here: KL, LoRA", "here: KL, SelfAug"]
    return f"### Table 4: the model's size\n\n{markdown(heads, rows, align_right=True)}"


def test_the_tables_are_made_of_the_studys_summaries():
    text = PAGE.read_text(encoding="utf-8")
    assert between(text, MARKS, tables()) == text, "python tests/study/test_paper_page.py writes them anew"


def test_every_row_stands_for_an_arm_and_every_place_to_constrain_has_a_row():
    named = [row[-1] for _, _, rows, _ in TABLES for row in rows if row[-1]]
    assert set(named) <= {experiments.BASE, *experiments.ARMS}
    assert {arm.name for arm in experiments.WHERE} <= set(named)
    assert all(len(row) == len(headings) + 1 for _, headings, rows, _ in TABLES for row in rows)


def test_an_arm_without_a_run_is_said_not_to_be_run_and_fewer_seeds_are_counted():
    arms = {"lora": {"seeds": [0], "estimates": {"kl": {"mean": 0.5, "se": 0.25}}}}
    assert cell(arms, "lora", "kl", 3) == "0.500 ± 0.250 (1)"
    assert cell(arms, "lora", "code", 3) == cell(arms, "align-q", "kl", 3) == "not run"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), MARKS, tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
