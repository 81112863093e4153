"""Loads models and tokenizers, for every tool in the same way, and tells what identifies a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import Refusal, first_line
from .files import sha256

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def load_model(model: str, dtype: str, device: str, revision: str | None = None, attention: str | None = None) -> Any:
    """A causal language model on ``device``, in eval mode.

    Args:
        model: a name on the hub, or a folder.
        dtype: the name of a torch type, or auto for the type of the checkpoint.
        attention: transformers' ``attn_implementation``; None for its own choice.

    Raises:
        Refusal: transformers cannot load the model.
    """
    import torch
    import transformers
    from packaging.version import Version

    keyword = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    given = {keyword: dtype if dtype == "auto" else getattr(torch, dtype)}
    given |= {} if attention is None else {"attn_implementation": attention}
    with loading(model):
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(model, revision=revision, **given)
        return loaded.to(device).eval()


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a model.

    Raises:
        Refusal: transformers cannot load the tokenizer.
    """
    from transformers import AutoTokenizer

    with loading(name):
        return AutoTokenizer.from_pretrained(name, revision=revision)


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Turn every error of the block into a :class:`Refusal` that names ``model``."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:  # transformers, tokenizers and vLLM raise errors of many kinds for damaged files
        expected = "a folder, or a name on the hub"
        raise Refusal("no-model", f"cannot load {model}", expected, first_line(error)) from None


def usable_device(given: str | None) -> str:
    """The given device; without one, the accelerator if there is one, else the CPU.

    Raises:
        Refusal: torch cannot put a tensor on the given device.
    """
    import torch

    if given is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=given).item()
    except Exception as error:  # torch raises errors of many kinds for this
        what, expected = f"--device {given} cannot be used here", "cpu, cuda, cuda:1, mps …"
        raise Refusal("no-device", what, expected, first_line(error)) from None
    return given


def weights_hash(model: str) -> str | None:
    """sha256 over the weight files of a local folder, in the order of their names. None for a name on the hub."""
    if not Path(model).is_dir():
        return None
    files = sorted(path for pattern in WEIGHTS for path in Path(model).glob(pattern))
    if not files:
        raise Refusal("no-weights", "the folder has no weights", " ".join(WEIGHTS), model)
    return sha256(*files)


def token_ids(value: Any) -> list[int]:
    """The token ids in a field of a config, which holds None, one id or a list of ids."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
