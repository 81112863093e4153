"""The base model, its tokenizer, and one adapter, or one tuned model's weights, at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..toolkit.chat import Chat, Ending
from ..toolkit.errors import Refusal, optional
from ..toolkit.files import sha256
from ..toolkit.models import load_model, load_tokenizer, loading, token_ids, weights_hash
from ..toolkit.tokens import begun
from . import vocabulary
from .prompts import Prompt
from .whole_model import ADAPTER_CONFIG, CONFIG, WholeModel, is_whole

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PROBE = 8  # tokens


class BaseModel:
    """The tokenizer loads at once, so that prompts can be checked. The weights load when they are first needed.

    Raises:
        Refusal: transformers cannot load the config or the tokenizer.
    """

    def __init__(self, base: str, dtype: str, device: str, template: str | None = None) -> None:
        from transformers import AutoConfig

        self.base, self.dtype, self.device = base, dtype, device
        with loading(base):
            self.config = AutoConfig.from_pretrained(base)
        self.tokenizer = load_tokenizer(base)
        self.eos = [*token_ids(self.config.eos_token_id), *_generation_eos(base)]
        self._template = template

    @cached_property
    def identity(self) -> list[str | None]:
        """What identifies this base model: a hash of the weights, a hash of the config, and the dtype."""
        revision = getattr(self.config, "_commit_hash", None)
        local = Path(self.base).is_dir()
        weights = weights_hash(self.base) if local else f"{self.base}@{revision}"
        return [weights, sha256(Path(self.base) / "config.json") if local else None, self.dtype]

    @cached_property
    def chat(self) -> Chat:
        return Chat(self.tokenizer, self._template, self.eos)

    @cached_property
    def ending(self) -> Ending:
        """What ends an answer: the marker of the chat template; without a template, the EOS tokens."""
        if self.tokenizer.chat_template or self._template:
            return self.chat.assistant_ending
        return Ending(tuple(sorted({*self.eos, *token_ids(self.tokenizer.eos_token_id)})))

    def encode(self, prompts: Sequence[Prompt], limit: int) -> list[list[int]]:
        """Token ids of each prompt. Conversations get the chat template; plain texts do not.

        Raises:
            Refusal: the chat template fails on a prompt, or a prompt has no tokens, or does not fit into the model
                together with an answer of ``limit`` tokens. The refusal names file and line.
        """
        window = getattr(self.config, "max_position_embeddings", None)
        encoded = [self._ids(prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, encoded):
            if not ids:
                raise Refusal("malformed-row", f"{prompt.where}: the prompt has no tokens")
            if window and len(ids) + limit > window:
                raise Refusal(
                    "too-long", f"{prompt.where or prompt.text()[:60]}: prompt and answer do not fit into the model",
                    f"at most {window} tokens", f"{len(ids)} and {limit}", "a shorter prompt, or a lower answer limit",
                )  # fmt: skip
        return encoded

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt.content, str):
            return begun(self.tokenizer, prompt.content)
        chat = self.chat  # what is wrong with the template as such is no fault of a row
        try:
            return chat.assistant_prompt(prompt.content, **prompt.arguments)
        except Refusal as refusal:
            raise refusal.at(prompt.where) from None

    @cached_property
    def model(self) -> Any:
        from transformers import GenerationConfig

        model = load_model(self.base, self.dtype, self.device)
        pad = (self.ending.tokens or (0,))[0]
        # a model's own sampling defaults and penalties must not enter a greedy answer
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=list(self.ending.tokens) or None, pad_token_id=pad
        )
        return model

    @contextmanager
    def tuned(self, folder: Path) -> Iterator[Any]:
        """Within the block, the base model with an adapter, or with the weights of a tuned model, which
        ``disable_adapter()`` switches off. Afterwards the base model is as it was.

        Args:
            folder: of the adapter, or of a model whose own weights were trained.

        Raises:
            Refusal: neither can be loaded, or it was not made from the base model.
        """
        with (self._whole if is_whole(folder) else self._adapter)(folder) as model:
            yield model

    @contextmanager
    def _whole(self, folder: Path) -> Iterator[Any]:
        tuned = WholeModel(self.model, load_model(str(folder), self.dtype, self.device), str(folder))
        try:
            yield tuned
        finally:
            tuned.unload()

    @contextmanager
    def _adapter(self, folder: Path) -> Iterator[Any]:
        """The adapter is removed afterwards; if that would leave changed weights, the next use loads the base model
        again.

        Raises:
            Refusal: peft cannot load the adapter, or the model differs from the base model even with the adapter
                switched off.
        """
        peft = optional("peft", "measuring an adapter")
        base = self.model
        self._same_vocabulary(base, folder)
        del self.__dict__["model"]  # if anything fails below, the next use must not get a half-changed model
        before, own = self._probe(base), dict(base.named_parameters())
        try:
            tuned = peft.PeftModel.from_pretrained(base, str(folder)).eval()
        except Exception as error:  # peft raises errors of many kinds for an adapter that does not fit
            raise Refusal(
                "no-adapter", f"cannot load {folder}", f"a PEFT adapter for {self.base}", _beginning(error)
            ) from error
        if tuned.active_peft_config.is_prompt_learning:
            raise Refusal(
                "other-adapter", f"{folder} is a prompt, not weights", "LoRA or another adapter of weights",
                str(tuned.active_peft_config.peft_type.value),
            )  # fmt: skip
        with tuned.disable_adapter():
            difference = (self._probe(tuned.get_base_model()) - before).abs().max().item()
        if difference > 1e-5 * before.abs().max().item():
            raise Refusal(
                "not-the-base", f"{folder}: with the adapter switched off, this is not the base model",
                f"the same logits as {self.base} without an adapter", f"logits that differ by up to {difference:.2g}",
                "measure an adapter that leaves the base weights alone (bias='none'; not PiSSA, OLoRA, LoftQ)",
            )  # fmt: skip
        yield tuned
        base = tuned.unload()
        after = dict(base.named_parameters())
        # peft leaves the trained copies of modules_to_save in the model
        if after.keys() == own.keys() and all(after[name] is own[name] for name in own):
            self.__dict__["model"] = base

    def _same_vocabulary(self, base: Any, folder: Path) -> None:
        """Raise Refusal if the adapter was trained on a model with more or fewer tokens than the base model."""
        rows = base.get_input_embeddings().weight.shape[0]
        tokens = vocabulary.of_adapter(folder, base)
        if tokens is None or tokens == rows:
            return
        change = f"by {abs(tokens - rows)} tokens, {'added' if tokens > rows else 'taken away'}"
        raise Refusal(
            "other-vocabulary", f"{folder}: the vocabulary was resized for this adapter, {change}",
            f"{rows} tokens, as {self.base} has", f"{tokens} tokens",
            f"--base FOLDER with the model as its training began: model.resize_token_embeddings({tokens}), then "
            "model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER), before LoRA. If it was not saved: "
            "PeftModel.from_pretrained(model, ADAPTER).unload() has the embeddings that the adapter was saved with",
        )  # fmt: skip

    @torch.no_grad()
    def _probe(self, model: Any) -> Tensor:
        logits: Tensor = model(input_ids=torch.arange(PROBE, device=model.device)[None]).logits.float()
        return logits


def tuned_hash(folder: Path) -> str:
    """A sha256 that covers the weights and the config of an adapter, or of a model of its own.

    Raises:
        Refusal: the folder holds neither.
    """
    if is_whole(folder):
        return _hash(weights_hash(str(folder)), sha256(folder / CONFIG))
    weights = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()]
    config = folder / ADAPTER_CONFIG
    if not weights or not config.is_file():
        raise Refusal(
            "no-adapter", f"{folder} holds no adapter and no model",
            f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS[0]}, or {CONFIG} and weights",
            "no such folder" if not folder.is_dir() else "neither or one of them",
            "the folder that model.save_pretrained wrote",
        )  # fmt: skip
    return _hash(*(sha256(file) for file in (weights[0], config)))


def _hash(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _beginning(error: Exception) -> str:
    """The first two lines of an error: torch lists the weights that do not fit from the second line on."""
    return f"{type(error).__name__}: {' '.join(line.strip() for line in str(error).strip().splitlines()[:2])}"


def _generation_eos(base: str) -> list[int]:
    from transformers import GenerationConfig

    try:
        return token_ids(GenerationConfig.from_pretrained(base).eos_token_id)
    except (OSError, ValueError):
        return []
