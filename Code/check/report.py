"""An answer in words."""

from __future__ import annotations

import textwrap
from typing import Any

from ..config import ENVIRONMENT, Settings, shown
from .answer import Answer

WIDTH = 110
_STEPS = {"stock": "stock", "stock fused": "stock, fused head", "selfaug": "SelfAug"}
_SIZES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_COUNTS = ((" quadrillion", 1e15), (" trillion", 1e12), (" billion", 1e9), (" million", 1e6))


def text(answer: Answer, name: str, data: str) -> str:
    """The answer for the model ``name`` and the rows of ``data``, as text."""
    rows = [
        ("patched", "; ".join(map(_package, answer.packages))),
        ("LoRA on", f"{answer.model['lora']}, {_large(answer.model['lora_parameters'])} weights"),
        *_batch(answer, data),
        *_settings(answer),
        *[("refused", f"{one['why']}. {one['do']}".strip(". ") + ".") for one in answer.refused],
        *[("note", note) for note in answer.notes],
    ]
    size, dtype = _large(answer.model["parameters"]), answer.model["dtype"]
    acts = "acts" if answer.acts else "does not act"
    lines = [f"SelfAug {acts} on {name}: {answer.model['class']}, {size} weights in {dtype}."]
    for title, content in rows:
        wrapped = textwrap.wrap(content, WIDTH - 14, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {title if not n else '':<12}{line}" for n, line in enumerate(wrapped)]
    return "\n".join(lines + _costs(answer))


def _package(package: dict[str, Any]) -> str:
    release = f"{package['name']} {package['version']}"
    what = f"{package['family']} of {release}" if "family" in package else release
    return f"{what}, {package['trust']}" if package["patched"] else f"{what}, not patched"


def _batch(answer: Answer, data: str) -> list[tuple[str, str]]:
    batch, settings = answer.batch, answer.settings
    rows, positions = batch["rows"], batch["positions"]
    shape = f"{_number(rows, 'row')} of {data}, {positions // rows} tokens wide: {_number(positions, 'position')}"
    padding = f", {batch['padding']:,} of them padding" if batch["padding"] else ""
    share = batch["aligned"] / max(1, positions - batch["padding"])
    where = f"{settings['positions']['value']} positions"
    measure = Settings(align=settings["align"]["value"]).measure
    aligned = f"{_number(batch['aligned'], 'token')} at the {where}, {share:.0%} of what is not padding"
    if batch["computed"] != batch["aligned"]:
        aligned += (
            f"; the {measure} is computed at {batch['computed']:,} of them, drawn by {settings['sample_by']['value']}"
        )
    return [
        ("batch", shape + padding),
        ("supervised", f"{_number(batch['supervised'], 'token')}, which the NLL trains"),
        ("aligned", f"{aligned}: the {measure} holds the model there"),
    ]


def _settings(answer: Answer) -> list[tuple[str, str]]:
    """The settings that somebody gave, each with its source, and all others."""
    names = {key: variable for variable, key in ENVIRONMENT.items()}
    given, default = [], []
    for key, setting in answer.settings.items():
        value, source = shown(key, setting["value"]), setting["source"]
        if source == "default":
            default.append(f"{names[key]}={value}")
        else:
            given.append(f"{source}={value}{'' if source.startswith('model.') else ', from the environment'}")
    said = [("settings", "; ".join(given))] if given else []
    return [*said, ("by default", ", ".join(default))]


def _costs(answer: Answer) -> list[str]:
    """A table, if the costs are known."""
    if not answer.costs:
        return []
    table: list[tuple[str, ...]] = [
        ("a step", "operations", "of stock", "of fused", "memory above the weights", "of it logits")
    ]
    for name, title in _STEPS.items():
        one = answer.costs[name]
        ratios = [f"{one['flops'] / answer.costs[other]['flops']:.2f}" for other in ("stock", "stock fused")]
        table.append((title, _large(one["flops"]), *ratios, _size(one["peak"]), _size(one["logits"])))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [f"  {row[0]:<{widths[0]}}" for row in table]
    for column in range(1, len(widths)):
        lines = [f"{line}   {row[column]:>{widths[column]}}" for line, row in zip(lines, table)]
    return lines


def _large(number: int) -> str:
    word, unit = next(((word, unit) for word, unit in _COUNTS if number >= unit), ("", 1))
    return f"{number / unit:.3g}{word}" if word else f"{number:,}"


def _size(number: int) -> str:
    word, unit = next(((word, unit) for word, unit in _SIZES if number >= unit), ("bytes", 1))
    return f"{number / unit:.3g} {word}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
