"""The model that writes: batches of prompts to texts, through ``transformers.generate`` or through vLLM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal, first_line, optional
from .chat import Ending
from .nucleus import NucleusSampler, Sampling, draws

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True)
class Request:
    """The turn to write. ``dialogue`` and ``turn`` choose its random numbers."""

    dialogue: int
    turn: int
    prompt: list[int]


class TransformersGenerator:
    """``AutoModelForCausalLM`` on ``device``. Stops, sampling and seeds are ours; the model's generation settings
    are not used, so that the manifest tells all."""

    name = "transformers"

    def __init__(
        self, model: str, dtype: str, device: str, revision: str | None, sampling: Sampling, seed: int
    ) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        with loading(model):
            self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
            self.model = load_model(model, dtype, device, revision)
        own = self.model.generation_config
        self.eos = listed(own.eos_token_id)
        self.pad = next(iter([*listed(self.tokenizer.pad_token_id), *listed(own.pad_token_id), *self.eos]), 0)
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
        """The new token ids of each request, up to ``tokens``, its end included, and padding after it."""
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
        return ids[:, longest:].tolist()


class VllmGenerator:
    """vLLM's offline engine, which batches by itself and takes a seed per request."""

    name = "vllm"

    def __init__(
        self, model: str, dtype: str, device: str, revision: str | None, sampling: Sampling, seed: int
    ) -> None:
        self.vllm = optional("vllm", "--backend vllm")
        with loading(model):
            self.engine = self.vllm.LLM(model=model, revision=revision, dtype=dtype, seed=seed)
        self.tokenizer = self.engine.get_tokenizer()
        self.eos = listed(self.tokenizer.eos_token_id)
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


BACKENDS = {"transformers": TransformersGenerator, "vllm": VllmGenerator}


def load_model(model: str, dtype: str, device: str, revision: str | None = None) -> Any:
    """A causal language model on ``device``, in eval mode. ``dtype``: a torch type by name, or auto for the
    checkpoint's own.
    """
    import torch
    import transformers
    from packaging.version import Version

    keyword = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, revision=revision, **{keyword: kind})
    return loaded.to(device).eval()


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Within, what transformers or vLLM cannot load is a :class:`Refusal` that names ``model``."""
    try:
        yield
    except Exception as error:  # both have errors of many kinds for files that are damaged
        expected = "a folder, or a name on the hub"
        raise Refusal("no-model", f"cannot load {model}", expected, first_line(error)) from None


def usable_device(given: str | None) -> str:
    """The device that is asked for, else the accelerator if there is one.

    Raises:
        Refusal: torch cannot put anything there.
    """
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=given).item()
    except Exception as error:  # torch has no error of its own for this
        what, expected = f"--device {given} cannot be used here", "cpu, cuda, cuda:1, mps …"
        raise Refusal("no-device", what, expected, first_line(error)) from None
    return given


def weights_hash(model: str) -> str | None:
    """sha256 over the weight files of a local folder, in the order of their names; None for a name on the hub."""
    if not Path(model).is_dir():
        return None
    files = sorted(path for pattern in WEIGHTS for path in Path(model).glob(pattern))
    if not files:
        raise Refusal("no-weights", "the folder has no weights", " ".join(WEIGHTS), model)
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                whole.update(block)
    return whole.hexdigest()


def listed(value: Any) -> list[int]:
    """Token ids, of which configs hold none, one or several."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
