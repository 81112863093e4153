"""The experiments of the study ("arms"), and the sizes of data, training and measurement that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

LORA, BASE, DEFAULT = "lora", "base", "selfaug-0.5"


@dataclass(frozen=True)
class Setting:
    """The values that all arms share. docs/results.md gives the reasons."""

    train: int = 96
    test: int = 200
    epochs: float = 1
    batch_size: int = 2
    lr: float = 1e-3
    rank: int = 16
    dialogues: int = 32  # a quarter of the mixture with 96 samples
    dialogue_tokens: int = 256
    inputs: int = 40  # test questions at whose input the shift is measured
    general: int = 40
    answer_limit: int = 64
    task_answer_limit: int = 16
    max_length: int = 2048  # tokens of a training sample; a longer one ends the run


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    settings: the SELFAUG_* variables of the training; None trains on stock packages.
    alpha_to: alpha at the last step, reached on a straight line; None keeps the alpha of ``settings``.
    lr, rank, epochs: factors on the values of the setting; rank 0 is full fine-tuning.
    layers: the layers that get LoRA, as train_lora.py takes them; None: all linear layers.
    dialogues: the part of the model's own dialogues that is mixed into the data (SA-SFT).
    anchors: these dialogues have no labels, and take SelfAug's KL in place of the NLL.
    scaled: nothing is trained; the adapter is LoRA's adapter times this factor.
    halfway: nothing is trained; the adapter is LoRA's adapter at half of its steps.
    cached: the reference comes from a cache that is filled before the training.
    unrelated: passages about other entities that make the context of each training sample longer; the test stays.
    """

    name: str
    title: str
    settings: Mapping[str, str] | None = None
    alpha_to: float | None = None
    lr: float = 1
    rank: float = 1
    epochs: float = 1
    layers: str | None = None
    dialogues: float = 0
    anchors: bool = False
    scaled: float | None = None
    halfway: bool = False
    cached: bool = False
    unrelated: int = 0

    @property
    def trained(self) -> bool:
        return self.name != BASE and self.scaled is None and not self.halfway


def selfaug(
    alpha: float = 0.5, positions: str = "input", direction: str = "base-tuned", **economy: str
) -> Mapping[str, str]:
    """Alpha, positions and direction even at their defaults, since defaults may change and results may not.

    economy: further settings by their keys, such as ``every="4"``.
    """
    given = {"SELFAUG_ALPHA": f"{alpha:g}", "SELFAUG_POSITIONS": positions, "SELFAUG_DIRECTION": direction}
    further = {f"SELFAUG_{key.upper()}": value for key, value in economy.items()}
    return MappingProxyType({**given, **further, "SELFAUG_STRICT": "1"})


FIRST = (
    Arm(LORA, "LoRA"),
    Arm(DEFAULT, "SelfAug, alpha 0.5", selfaug()),
    Arm("interpolation", "LoRA, adapter times 0.5", scaled=0.5),
    Arm("sasft", "SA-SFT", dialogues=1),
    Arm("sasft-selfaug-0.5", "SA-SFT + SelfAug 0.5", selfaug(), dialogues=1),
    Arm("strict-input", "SelfAug 0.5, strict-input", selfaug(positions="strict-input")),
    Arm("selfaug-0.3", "SelfAug, alpha 0.3", selfaug(0.3)),
)
THEN = (
    Arm("anchors", "SelfAug 0.5, dialogues as anchors", selfaug(anchors="1"), dialogues=1, anchors=True),
    Arm("early-stopping", "LoRA, half of the steps", halfway=True),
    Arm("lower-lr", "LoRA, lr / 3", lr=1 / 3),
    Arm("selfaug-lower-lr", "SelfAug 0.5, lr / 3", selfaug(), lr=1 / 3),
    Arm("lower-rank", "LoRA, rank / 4", rank=1 / 4),
    Arm("mlp-only", "LoRA on the MLP only", layers=r".*\.mlp\.\w+_proj"),
    Arm("selfaug-1.0", "SelfAug, alpha 1.0", selfaug(1.0)),
    Arm("selfaug-0.1", "SelfAug, alpha 0.1", selfaug(0.1)),
    Arm("falling", "SelfAug, alpha 1 to 0", selfaug(1.0), alpha_to=0),
    Arm("rising", "SelfAug, alpha 0 to 1", selfaug(0), alpha_to=1),
    Arm("output", "SelfAug 0.5, output", selfaug(positions="output")),
    Arm("all", "SelfAug 0.5, all", selfaug(positions="all")),
    Arm("tuned-base", "SelfAug 0.5, KL(tuned ‖ base)", selfaug(direction="tuned-base")),
)
CHEAPER = (
    *(Arm(f"every-{k}", f"SelfAug 0.5, every {k}", selfaug(every=f"{k}")) for k in (2, 4, 8)),
    *(
        Arm(f"{by}-{k}", f"SelfAug 0.5, 1/{k} by {by}", selfaug(sample=f"{1 / k:g}", sample_by=by))
        for by in ("shift", "uniform")
        for k in (4, 16)
    ),
    Arm("economy", "SelfAug 0.5, every 4, 1/4 by shift", selfaug(every="4", sample="0.25", sample_by="shift")),
)
SWEPT = (  # further points of the sweeps; run only where they are asked for
    Arm("middle-lr", "LoRA, lr * 2/3", lr=2 / 3),
    Arm("selfaug-middle-lr", "SelfAug 0.5, lr * 2/3", selfaug(), lr=2 / 3),
    Arm("sasft-lower-lr", "SA-SFT, lr / 3", lr=1 / 3, dialogues=1),
    Arm("sasft-half", "SA-SFT, half of the dialogues", dialogues=1 / 2),
)
FULL = (  # full fine-tuning, which the paper leaves open; run only where it is asked for
    Arm("full", "full fine-tuning, lr / 20", lr=1 / 20, rank=0),
    Arm("full-selfaug", "full fine-tuning, lr / 20, SelfAug 0.5", selfaug(), lr=1 / 20, rank=0, cached=True),
)
WHERE = tuple(  # Table 2 of the paper: other places to constrain than the logits; run only where they are asked for
    Arm(f"align-{align}", f"SelfAug 0.5, MSE of {title}", selfaug(align=align))
    for align, title in (
        ("q", "Q"), ("k", "K"), ("v", "V"), ("o", "O"), ("attention", "all attention"), ("ffn", "the FFN"),
        ("layers", "all layers"),
    )
)  # fmt: skip
LONGER = tuple(  # Table 3 of the paper, contexts of so many tokens, and Figure 2; run only where they are asked for
    Arm(f"{begin}{name}", f"{title}, {words}", settings, epochs=epochs, unrelated=unrelated)
    for name, words, epochs, unrelated in (
        ("context-0.5k", "context of 0.5K", 1, 15), ("context-1k", "context of 1K", 1, 35),
        ("context-2k", "context of 2K", 1, 74), ("epochs-3", "3 epochs", 3, 0), ("epochs-10", "10 epochs", 10, 0),
    )
    for begin, title, settings in (("", "LoRA", None), ("selfaug-", "SelfAug 0.5", selfaug()))
)  # fmt: skip
GROUPS = (FIRST, THEN, CHEAPER, SWEPT, FULL, WHERE, LONGER)
ARMS = {arm.name: arm for group in GROUPS for arm in group}
SAME = "same"  # stands for the arm of the same training without SelfAug
USUAL = [arm.name for group in (FIRST, THEN, CHEAPER) for arm in group]


def without_selfaug(name: str) -> str:
    """The arm of the same training on stock packages; empty if there is none."""
    if name not in ARMS:
        return ""
    stock = replace(ARMS[name], settings=None, alpha_to=None, anchors=False, cached=False)
    return next((arm.name for arm in ARMS.values() if replace(stock, name=arm.name, title=arm.title) == arm), "")


@dataclass(frozen=True)
class Sweep:
    """Arms that differ in one thing, in its order."""

    title: str
    arms: tuple[str, ...]


RATES = Sweep("LoRA, learning rate", ("lower-lr", "middle-lr", LORA))
SWEEPS = (
    RATES,
    Sweep("LoRA, rank", ("lower-rank", LORA)),
    Sweep("LoRA, factor on the adapter", ("interpolation", LORA)),
    Sweep("SelfAug, alpha", ("selfaug-1.0", DEFAULT, "selfaug-0.3", "selfaug-0.1", LORA)),
    Sweep("SelfAug 0.5, learning rate", ("selfaug-lower-lr", "selfaug-middle-lr", DEFAULT)),
    Sweep("SA-SFT, dialogues", ("sasft", "sasft-half", LORA)),
    Sweep("SA-SFT, learning rate", ("sasft-lower-lr", "sasft")),
)

# the order of the tables
ROWS = (
    BASE, LORA, "selfaug-0.1", "selfaug-0.3", "selfaug-0.5", "selfaug-1.0", "falling", "rising",
    "strict-input", "output", "all", "tuned-base",
    "every-2", "every-4", "every-8", "shift-4", "shift-16", "uniform-4", "uniform-16", "economy",
    "align-q", "align-k", "align-v", "align-o", "align-attention", "align-ffn", "align-layers",
    "sasft", "sasft-half", "sasft-lower-lr", "sasft-selfaug-0.5", "anchors",
    "lower-lr", "middle-lr", "selfaug-lower-lr", "selfaug-middle-lr", "lower-rank", "mlp-only",
    "interpolation", "early-stopping",
    *(arm.name for arm in LONGER),
    "full", "full-selfaug",
)  # fmt: skip
TITLES = {BASE: "base", **{arm.name: arm.title for arm in ARMS.values()}}


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.arm.name}-{self.seed}")


def runs(arms: Iterable[str], seeds: Sequence[int]) -> list[Run]:
    """The runs, the most important first: the main arms with every seed, then the others. One seed after another, so
    that in a stopped study all arms have equally many seeds.
    """
    chosen = set(arms)
    return [Run(arm, seed) for group in GROUPS for seed in seeds for arm in group if arm.name in chosen]


def training(arm: Arm, setting: Setting) -> list[str]:
    """The arguments of train_lora.py that depend on the setting and the arm."""
    given = {"--epochs": setting.epochs * arm.epochs, "--batch-size": setting.batch_size}
    rank = max(1, round(setting.rank * arm.rank)) if arm.rank else 0
    given |= {"--lr": setting.lr * arm.lr, "--rank": rank}
    numbers = [text for name, value in given.items() for text in (name, f"{value:g}")]
    return numbers if arm.layers is None else [*numbers, "--layers", arm.layers]
