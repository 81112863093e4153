"""The model that writes turns, a batch of prompts at a time, through ``transformers.generate`` or through vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..toolkit.chat import Ending
from ..toolkit.errors import optional
from ..toolkit.models import load_model, load_tokenizer, loading, token_ids, weights_hash
from .sampling import NucleusSampler, Sampling, draws


@dataclass(frozen=True)
class Request:
    """A turn to write. The numbers of the dialogue and of the turn choose the random numbers."""

    dialogue: int
    turn: int
    prompt: list[int]


class TransformersGenerator:
    """``AutoModelForCausalLM`` on ``device``. Ignores the model's own generation settings, so that the manifest holds
    every setting.
    """

    name = "transformers"

    def __init__(
        self, model: str, dtype: str, device: str, revision: str | None, sampling: Sampling, seed: int
    ) -> None:
        from transformers import GenerationConfig

        self.tokenizer = load_tokenizer(model, revision)
        self.model = load_model(model, dtype, device, revision)
        own = self.model.generation_config
        self.eos = token_ids(own.eos_token_id)
        self.pad = next(iter([*token_ids(self.tokenizer.pad_token_id), *token_ids(own.pad_token_id), *self.eos]), 0)
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=self.pad)
        self.sampling, self.seed = sampling, seed
        self.limit = getattr(self.model.config, "max_position_embeddings", None)
        self.facts = {
            "model": model,
            "revision": getattr(self.model.config, "_commit_hash", None) or revision,
            "weights_sha256": weights_hash(model),
            "dtype": str(self.model.dtype).replace("torch.", ""),
            "device": self.model.device.type,
        }

    def write(self, requests: Sequence[Request], tokens: int, ending: Ending) -> list[list[int]]:
        """At most ``tokens`` new token ids for each request: the turn, the tokens that end the turn, then padding."""
        import torch

        longest = max(len(request.prompt) for request in requests)
        rows = [[self.pad] * (longest - len(request.prompt)) + request.prompt for request in requests]
        mask = [[0] * (longest - len(request.prompt)) + [1] * len(request.prompt) for request in requests]
        numbers = [draws(self.seed, request.dialogue, request.turn, tokens) for request in requests]
        strings = {"stop_strings": list(ending.strings), "tokenizer": self.tokenizer} if ending.strings else {}
        with torch.inference_mode():
            ids = self.model.generate(
                input_ids=torch.tensor(rows, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                max_new_tokens=tokens,
                eos_token_id=list(ending.tokens) or None,
                logits_processor=[NucleusSampler(self.sampling, numbers, longest)],
                **strings,
            )
        return [list(row) for row in ids[:, longest:].tolist()]


class VllmGenerator:
    """vLLM's offline engine, which makes its own batches and takes a seed per request."""

    name = "vllm"

    def __init__(
        self, model: str, dtype: str, device: str, revision: str | None, sampling: Sampling, seed: int
    ) -> None:
        self.vllm = optional("vllm", "--backend vllm")
        with loading(model):
            self.engine = self.vllm.LLM(model=model, revision=revision, dtype=dtype, seed=seed)
        self.tokenizer = self.engine.get_tokenizer()
        self.eos = token_ids(self.tokenizer.eos_token_id)
        self.sampling, self.seed = sampling, seed
        config = self.engine.llm_engine.model_config
        self.limit = config.max_model_len
        self.facts = {
            "model": model,
            "revision": getattr(config.hf_config, "_commit_hash", None) or revision,
            "weights_sha256": weights_hash(model),
            "dtype": str(config.dtype).replace("torch.", ""),
            "device": "vllm",
        }

    def write(self, requests: Sequence[Request], tokens: int, ending: Ending) -> list[list[int]]:
        settings = [
            self.vllm.SamplingParams(
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                max_tokens=tokens,
                seed=int(draws(self.seed, request.dialogue, request.turn, 1)[0] * 2**31),
                stop=list(ending.strings),
                stop_token_ids=list(ending.tokens),
                include_stop_str_in_output=True,
                skip_special_tokens=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": request.prompt} for request in requests]
        answers = self.engine.generate(prompts, settings, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]


BACKENDS: dict[str, Any] = {"transformers": TransformersGenerator, "vllm": VllmGenerator}
