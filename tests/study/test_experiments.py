from __future__ import annotations

import experiments
import pytest
from experiments import ARMS, BASE, ROWS, Setting, runs, training

from selfaug import config

SELFAUG = {name: arm for name, arm in ARMS.items() if arm.settings is not None}
ECONOMY = {  # every, sample, sample_by
    "every-2": (2, 1.0, "uniform"),
    "every-4": (4, 1.0, "uniform"),
    "every-8": (8, 1.0, "uniform"),
    "shift-4": (1, 0.25, "shift"),
    "shift-16": (1, 0.0625, "shift"),
    "uniform-4": (1, 0.25, "uniform"),
    "uniform-16": (1, 0.0625, "uniform"),
    "economy": (4, 0.25, "shift"),
}
WHERE = {f"align-{align}": align for align in config.ALIGNS if align != "logits"}
EXPECTED = {
    "selfaug-0.1": (0.1, "input", "base-tuned"),
    "selfaug-0.3": (0.3, "input", "base-tuned"),
    "selfaug-0.5": (0.5, "input", "base-tuned"),
    "selfaug-1.0": (1.0, "input", "base-tuned"),
    "falling": (1.0, "input", "base-tuned"),
    "rising": (0.0, "input", "base-tuned"),
    "strict-input": (0.5, "strict-input", "base-tuned"),
    "output": (0.5, "output", "base-tuned"),
    "all": (0.5, "all", "base-tuned"),
    "tuned-base": (0.5, "input", "tuned-base"),
    "sasft-selfaug-0.5": (0.5, "input", "base-tuned"),
    "selfaug-lower-lr": (0.5, "input", "base-tuned"),
    "selfaug-middle-lr": (0.5, "input", "base-tuned"),
    "anchors": (0.5, "input", "base-tuned"),
    "full-selfaug": (0.5, "input", "base-tuned"),
    "selfaug-context-0.5k": (0.5, "input", "base-tuned"),
    "selfaug-context-1k": (0.5, "input", "base-tuned"),
    "selfaug-context-2k": (0.5, "input", "base-tuned"),
    "selfaug-epochs-3": (0.5, "input", "base-tuned"),
    "selfaug-epochs-10": (0.5, "input", "base-tuned"),
    **dict.fromkeys((*ECONOMY, *WHERE), (0.5, "input", "base-tuned")),
}


def test_the_selfaug_arms_are_these():
    assert set(SELFAUG) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_runtime_reads_an_arms_settings_as_they_are_meant(name):
    read = config.read(environ=SELFAUG[name].settings)
    assert (read.alpha, read.positions, read.direction) == EXPECTED[name]
    assert (read.every, read.sample, read.sample_by) == ECONOMY.get(name, (1, 1.0, "uniform"))
    assert read.align == WHERE.get(name, "logits")
    assert read.strict, "a step that goes past SelfAug must stop the run"


def test_a_baseline_changes_one_thing():
    plain = training(ARMS["lora"], Setting())
    assert plain == ["--epochs", "1", "--batch-size", "2", "--lr", "0.001", "--rank", "16"]
    assert training(ARMS["lower-lr"], Setting()) == [*plain[:5], "0.000333333", *plain[6:]]
    assert training(ARMS["lower-rank"], Setting()) == [*plain[:7], "4"]
    assert training(ARMS["mlp-only"], Setting()) == [*plain, "--layers", r".*\.mlp\.\w+_proj"]
    assert training(ARMS["selfaug-lower-lr"], Setting()) == training(ARMS["lower-lr"], Setting())
    assert training(ARMS["epochs-10"], Setting(epochs=2)) == ["--epochs", "20", *plain[2:]]
    assert training(ARMS["context-1k"], Setting()) == plain
    assert all(training(arm, Setting()) == plain for arm in SELFAUG.values() if arm.lr == arm.epochs == 1)


def test_every_arm_has_a_row_and_a_style():
    pytest.importorskip("matplotlib")
    import chart

    assert sorted(ROWS) == sorted([BASE, *ARMS]) == sorted(chart.STYLES)
    assert len(set(map(str, chart.STYLES.values()))) == len(ROWS), "two arms look the same"


def test_the_main_arms_come_first_seed_after_seed():
    names = [run.name for run in runs(ARMS, [0, 1, 2])]
    assert len(names) == len(set(names)) == 3 * len(ARMS)
    main = 3 * len(experiments.FIRST)
    assert names[:3] == ["lora-0", "selfaug-0.5-0", "interpolation-0"]
    assert all(name.endswith("-0") for name in names[: main // 3])
    assert all(name.rpartition("-")[0] in {arm.name for arm in experiments.FIRST} for name in names[:main])
    assert names[main].endswith("-0")


def test_full_fine_tuning_has_no_lora_and_a_reference_from_a_cache():
    plain, ours = (ARMS[name] for name in ("full", "full-selfaug"))
    assert training(plain, Setting()) == training(ours, Setting())
    assert training(plain, Setting())[-4:] == ["--lr", "5e-05", "--rank", "0"]
    assert [arm.name for arm in ARMS.values() if arm.cached] == ["full-selfaug"]
    assert all(arm.cached for arm in SELFAUG.values() if not arm.rank), "without LoRA nothing else is a reference"


def test_what_belongs_to_a_single_question_runs_only_where_it_is_asked_for():
    groups = experiments.SWEPT, experiments.FULL, experiments.LONGER
    asked_for = {arm.name for group in groups for arm in group} | set(WHERE)
    assert set(experiments.USUAL) == set(ARMS) - asked_for
    assert len(WHERE) == 7


def test_a_sweep_moves_one_thing_in_one_direction():
    keys = ("lr", "rank", "scaled", "dialogues")
    for sweep in experiments.SWEEPS:
        arms = [ARMS[name] for name in sweep.arms]
        values = [tuple(arm.scaled or 1 if key == "scaled" else getattr(arm, key) for key in keys) for arm in arms]
        alphas = [float((arm.settings or {}).get("SELFAUG_ALPHA", 0)) for arm in arms]
        moved = [column for column in (*zip(*values), tuple(alphas)) if len(set(column)) > 1]
        assert len(moved) == 1, sweep.title
        assert list(moved[0]) in (sorted(moved[0]), sorted(moved[0], reverse=True)), sweep.title


def test_arms_and_seeds_can_be_chosen():
    assert [run.name for run in runs(["all", "lora"], [5])] == ["lora-5", "all-5"]
