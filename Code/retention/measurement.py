"""Measures the base model and each adapter, section by section. Skips what an earlier run has measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import drift, probes
from .answers import Answer, greedy, has_list, one_word
from .base_model import BaseModel, tuned_hash
from .drift import Stretch
from .items import Items, key
from .probes import Probe
from .prompts import Prompt, spread
from .scores import score


@dataclass(frozen=True)
class Plan:
    """What every model is asked, and how.

    batch_size: answers that are generated at a time.
    input_count: how many of the questions, spread evenly, have the drift at their input measured.
    """

    general: list[Prompt]
    task: list[Prompt]
    answer_limit: int
    task_answer_limit: int
    batch_size: int
    input_count: int
    probes: list[Probe] = field(default_factory=list)


class Measurement:
    """Measures one model after another. ``folder`` holds their items.

    Raises:
        Refusal: a prompt does not fit into the model.
    """

    def __init__(self, base_model: BaseModel, plan: Plan, folder: Path) -> None:
        self.base_model, self.plan, self.folder = base_model, plan, folder
        self.general = base_model.encode(plan.general, plan.answer_limit)
        self.task = base_model.encode(plan.task, plan.task_answer_limit)
        ending = base_model.ending
        common = [base_model.identity, ending.tokens, ending.strings]
        self._answers_key = key(common, self.general, plan.answer_limit)
        accepted = [prompt.accepted for prompt in plan.task]
        self._scores_key = key(common, self.task, plan.task_answer_limit, accepted)
        self.inputs = spread(range(len(self.task)), plan.input_count)
        self._input_key = key(common, self.task, self.inputs)
        self.probes = base_model.encode([probe.prompt for probe in plan.probes], probes.LIMIT)
        self._probes_key = key(common, self.probes, probes.LIMIT, probes.VERSION)
        folder.mkdir(parents=True, exist_ok=True)

    def base(self) -> Items:
        """Measure the base model. Every adapter is measured on the base model's answers."""
        items = Items(self.folder / "base.json")
        keys = {"answers": self._answers_key, "scores": self._scores_key, "probes": self._probes_key}
        items.keep({**keys, "drift": items.keys.get("drift", "") if items.has("answers", keys["answers"]) else ""})
        if not items.has("answers", keys["answers"]):
            answers = self._answer(self.base_model.model, self.general, self.plan.answer_limit, "base, instructions")
            rows = [{"prompt": prompt.text(), "ids": answer.ids} for prompt, answer in zip(self.plan.general, answers)]
            items.put("answers", keys["answers"], [{**row, **_answer_row(one)} for row, one in zip(rows, answers)])
        self._scores(items, keys["scores"], "base", lambda: self.base_model.model)
        self._probes(items, keys["probes"], "base", lambda: self.base_model.model)
        return items

    def adapter(self, name: str, folder: Path, base: Items) -> Items:
        """Measure an adapter: its answers, and how far it has moved from the base model."""
        items = Items(self.folder / f"{name}.json")
        own = tuned_hash(folder)
        ids = [row["ids"] for row in base.rows["general"]]
        keys = {
            "answers": key(own, self._answers_key),
            "drift": key(own, self._answers_key, ids),
            "scores": key(own, self._scores_key),
            "input": key(own, self._input_key),
            "probes": key(own, self._probes_key),
        }
        items.keep(keys if self.inputs else {**keys, "input": ""})
        wanted = ["answers", "drift", *(["scores"] if self.task else [])]
        wanted += ["input"] if self.inputs else []
        wanted += ["probes"] if self.probes else []
        if all(items.has(section, keys[section]) for section in wanted):
            print(f"{name}: measured before", flush=True)
            return items
        with self.base_model.tuned(folder) as model:
            if not items.has("answers", keys["answers"]):
                answers = self._answer(model, self.general, self.plan.answer_limit, f"{name}, instructions")
                items.put("answers", keys["answers"], [_answer_row(answer) for answer in answers])
            self._scores(items, keys["scores"], name, lambda: model)
            self._probes(items, keys["probes"], name, lambda: model)
            if not items.has("drift", keys["drift"]):
                stretches = [Stretch.of_answer(prompt, answer) for prompt, answer in zip(self.general, ids)]
                drifts = self._drift(model, stretches, f"{name}, drift")
                items.put("drift", keys["drift"], [_drift_row(figures) for figures in drifts])
            if "input" in wanted and not items.has("input", keys["input"]):
                stretches = [Stretch.of_input(self.task[index]) for index in self.inputs]
                rows: list[dict[str, Any]] = [{} for _ in self.task]
                for index, figures in zip(self.inputs, self._drift(model, stretches, f"{name}, task input")):
                    mean = figures.mean(0).tolist()
                    rows[index] = {"input_kl": mean[drift.KL], "input_top1": mean[drift.TOP1]}
                items.put("input", keys["input"], rows)
        return items

    def complete(self, base: Items, tuned: Items) -> None:
        """Copy the base model's likelihood of its own answers, which was measured together with an adapter."""
        known = key([row["ids"] for row in base.rows["general"]])
        if not base.has("drift", known):
            rows = [{"nll": row["base_nll"], "tokens": row["tokens"]} for row in tuned.rows["general"]]
            same = {"kl": 0.0, "reverse_kl": 0.0, "top1": 1.0}
            base.put("drift", known, [{**same, **row, "base_nll": row["nll"]} for row in rows])

    def _answer(self, model: Any, prompts: Sequence[list[int]], limit: int, label: str) -> list[Answer]:
        def progress(done: int) -> None:
            print(f"{label}: {done}/{len(prompts)}", flush=True)

        base, batch_size = self.base_model, self.plan.batch_size
        return list(greedy(model, base.tokenizer, prompts, limit, base.ending, batch_size, progress))

    def _scores(self, items: Items, key: str, name: str, model: Callable[[], Any]) -> None:
        if self.task and not items.has("scores", key):
            answers = self._answer(model(), self.task, self.plan.task_answer_limit, f"{name}, task")
            pairs = zip(self.plan.task, answers)
            rows = [{"answer": answer.text, **score(answer.text, prompt.accepted)} for prompt, answer in pairs]
            items.put("scores", key, rows)

    def _probes(self, items: Items, key: str, name: str, model: Callable[[], Any]) -> None:
        if not self.probes or items.has("probes", key):
            return
        base, rows = self.base_model, []
        answers = self._answer(model(), self.probes, probes.LIMIT, f"{name}, probes")
        for probe, answer in zip(self.plan.probes, answers):
            text, _, _ = base.chat.decode(answer.ids, base.ending)  # the marks of calls and thoughts may be special
            rows.append(
                {"probe": probe.name, "prompt": probe.prompt.text(), "answer": text, "figures": probe.check(text)}
            )
        items.put("probes", key, rows)

    def _drift(self, model: Any, stretches: Sequence[Stretch], label: str) -> list[Any]:
        measured: dict[int, Any] = {}
        for index, figures in drift.measure(model, stretches, max(1, self.plan.batch_size // 3)):
            measured[index] = figures
            print(f"{label}: {len(measured)}/{len(stretches)}", flush=True)
        return [measured[index] for index in range(len(stretches))]


def _answer_row(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "length": len(answer.ids),
        "ended": answer.ended,
        "list": has_list(answer.text),
        "one_word": one_word(answer.text),
    }


def _drift_row(figures: Any) -> dict[str, Any]:
    kl, reverse_kl, top1, base_nll, nll = figures.mean(0).tolist()
    by_position = [round(value, 6) for value in figures[:, drift.KL].tolist()]
    return {
        "kl": kl, "reverse_kl": reverse_kl, "top1": top1, "base_nll": base_nll, "nll": nll, "tokens": len(figures),
        "kl_by_position": by_position,
    }  # fmt: skip
