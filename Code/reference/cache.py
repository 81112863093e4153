"""References whose hidden states are on disk, so that no state is computed twice.

    SELFAUG_CACHE=DIR python train.py               the first epoch fills DIR, later epochs read it

LoRA training reads and writes the folder of its own model, DIR/FINGERPRINT: see :class:`Cached`. A model can also train
in full, without LoRA, against a cache that ``python -m selfaug.reference_cache build`` has filled: see :class:`Built`.
In both, states and head are of one model, which :mod:`.fingerprint` identifies.
"""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

from .. import config, copies, family
from ..eager import eager
from ..head import is_sharded
from ..positions import Selection
from . import decoder, switch
from .entries import Entries
from .fingerprint import ShardedWeights, fingerprint, marks
from .lora_off import LoraOff
from .remembered import Remembered
from .samples import autocast_dtype, samples

_DOC = "See docs/performance.md"
_BUILD = "Fill it with `python -m selfaug.reference_cache build` from the model and the data that you train on"


class CacheError(RuntimeError):
    """The reference cannot come from this cache."""


class Folder:
    """The folder of one model: the contents of model.json, and the entries."""

    def __init__(self, path: Path, about: dict[str, Any], settings: config.Settings) -> None:
        self.path = path
        self.model: str = about["model"]
        self.fingerprint: str = about["fingerprint"]
        self.hidden_size: int = about["hidden_size"]
        self.entries = Entries(path, int(settings.reference_cache_gb * 1e9))

    @property
    def is_built(self) -> bool:
        """Whether `build` filled it."""
        return (self.path / "built").exists()

    @eager
    def read(self, keyed: list[tuple[bytes, Tensor]]) -> list[Tensor | None]:
        """The (n, H) hidden states of each sample, on the CPU; None for a sample that is missing."""
        return [self.entries.get(key, len(index), self.hidden_size) for key, index in keyed]


class Cached:
    """The model that trains, with LoRA off. The hidden states of each sample are computed once and then read."""

    def __init__(self, computed: LoraOff, folder: Folder) -> None:
        self.computed = computed
        self.folder = folder

    def __str__(self) -> str:
        return f"{self.computed}, their reference kept in {self.folder.path}"

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """From hidden states (n, H) to logits (n, V)."""
        return self.computed.head

    def states(self, arguments: dict[str, Any], chosen: Selection) -> Tensor:
        """As :meth:`.LoraOff.states`."""
        autocast = autocast_dtype(arguments, next(self.computed.model.parameters()).device)
        keyed = samples(arguments, chosen, self.folder.fingerprint, self.computed.fills_cache(arguments), autocast)
        if not keyed:
            return self.computed.states(arguments, chosen)
        stored = self.folder.read(keyed)
        states = _all_of(stored)
        if states is None:
            states = self.computed.all_states(arguments, chosen)
            self._write(keyed, stored, states, chosen, autocast)
        return states[copies.on_device(states.device, _sampled(chosen))[0]]

    @eager
    def _write(
        self,
        keyed: list[Any],
        stored: list[Tensor | None],
        states: Tensor,
        chosen: Selection,
        autocast: torch.dtype | None,
    ) -> None:
        states = states.cpu()
        for (key, index), old in zip(keyed, stored):
            if old is None:
                rows = torch.searchsorted(chosen.all_aligned, index)
                self.folder.entries.put(key, states[rows], autocast)


class Built:
    """The model that `build` read, which may be another one than training started from: its hidden states and its head,
    from disk. Nothing is computed, and nothing is written.
    """

    def __init__(self, folder: Folder, trained: Any) -> None:
        self.folder = folder
        self.trained = f"{title(trained)} trains in full"
        self.model = weakref.ref(trained)  # what is remembered of a model must not keep the model alive
        self.head = _load_head(folder, trained)

    def __str__(self) -> str:
        return f"full fine-tuning against the states and the head of {self.folder.model} in {self.folder.path}"

    def states(self, arguments: dict[str, Any], chosen: Selection) -> Tensor:
        """As :meth:`.LoraOff.states`.

        Raises:
            CacheError: a sample is missing, or the cache cannot hold this batch.
        """
        autocast = autocast_dtype(arguments, self.head.weight.device)
        keyed = samples(arguments, chosen, self.folder.fingerprint, fills_cache=False, autocast=autocast)  # as `build`
        if keyed is None:
            raise CacheError(f"{self.trained}, and this batch is not one that a cache can hold. {_DOC}.")
        stored = self.folder.read(keyed)
        states = _all_of(stored) if keyed else torch.empty(0, self.folder.hidden_size)
        if states is None:
            missing = sum(one is None for one in stored)
            raise CacheError(
                f"{missing} of the {len(stored)} samples of this batch are not in {self.folder.path}, and there is no "
                f"other reference: {self.trained}. {_BUILD}. {_under(autocast)}. {_evaluated(self.model())}{_DOC}."
            )
        return states[_sampled(chosen)]


def _under(dtype: torch.dtype | None) -> str:
    """What `build` has to be told of autocast, where a step finds a sample missing."""
    if dtype is None:
        return "This step runs without autocast, so states of it come from `build` without `--autocast`"
    name = str(dtype).split(".")[-1]
    return (
        f"This step runs under autocast to {name} (such as {_FLAGS.get(name, name)}), so states of it come from "
        f"`build` with `--autocast {name}`"
    )


_FLAGS = {"bfloat16": "bf16=True", "float16": "fp16=True"}  # of the HF Trainer


def _evaluated(model: Any) -> str:
    """What an error in an evaluation has to say of the evaluation; nothing in training."""
    if model is None or model.training:
        return ""
    return (
        "This is an evaluation (SELFAUG_EVAL=1), so the rows of the evaluation have to be built, too, into the folder "
        "of those of the training. Unset SELFAUG_EVAL for an evaluation without the term, or freeze the model "
        "(requires_grad_(False)) if it does not train. "
    )


def _all_of(stored: list[Tensor | None]) -> Tensor | None:
    """(N, H): the states of all samples in one tensor; None if a sample is missing."""
    present = [states for states in stored if states is not None]
    return torch.cat(present) if 0 < len(present) == len(stored) else None


def _sampled(chosen: Selection) -> Tensor:
    """(A,) long: the places of this step's aligned positions in ``all_aligned``."""
    return torch.searchsorted(chosen.all_aligned, chosen.index[: chosen.aligned])


@eager
def own_folder(model: Any, settings: config.Settings, run: Any = None) -> Folder:
    """The folder of ``model`` itself, without its LoRA. The base weights are hashed at the first call of each run, and
    again if :func:`.fingerprint.marks` are others, if there are other LoRA layers, and after :func:`hash_again`.

    Args:
        run: see :meth:`.Remembered.of`.

    Raises:
        CacheError: the setting names the folder of another model, or the weights are sharded.
    """
    lora = next((weakref.ref(module) for module in model.modules() if switch.is_lora(module)), None)
    facts = (str(settings.reference_cache), lora, marks(model))
    known = _OWN.of(model, run)
    if known is not None and known[0] == facts:
        return known[1]
    folder = _find_own(model, settings)
    if known is not None and known[1].path == folder.path:
        folder = known[1]  # which knows the entries that this run has used
    return _OWN.keep(model, run, facts, folder)


_OWN: Remembered[Folder] = Remembered()


def hash_again(model: nn.Module) -> None:
    """Call this when ``model`` comes back from an evaluation. A script without an HF Trainer may begin another run,
    with other weights.
    """
    _OWN.doubt(model)


def _find_own(model: Any, settings: config.Settings) -> Folder:
    root, name = _root(settings), _hashed(model)
    about = describe(root)
    if about is not None and about["fingerprint"] != name:
        raise CacheError(
            f"{root} is the folder of another model, {about['model']}, so its states are not those of {title(model)}. "
            f"Name the folder above it, {root.parent}, and this model gets a folder of its own there. Nothing was "
            f"written. {_DOC}."
        )
    path = root if about is not None else root / name
    about = {"model": title(model), "hidden_size": family.text_config(model).hidden_size, "fingerprint": name}
    with contextlib.suppress(OSError):  # if the disk refuses, nothing is kept, and training goes on
        _write_about(path, about)
    return Folder(path, about, settings)


def _hashed(model: Any) -> str:
    try:
        if is_sharded(model):  # a process that has all its samples would make no pass, and others wait for it
            raise ShardedWeights("this model is sharded")
        return fingerprint(model)
    except ShardedWeights as error:
        raise CacheError(
            f"SELFAUG_CACHE needs whole weights to know which model this is, and {error}. Unset it; to train in full "
            f"against a cache that was built, name the folder of its model, DIR/FINGERPRINT. {_DOC}."
        ) from None


@eager
def built_reference(model: Any, settings: config.Settings, run: Any = None) -> Built:
    """The reference of a model that trains in full: the model as it was at the first call of this run, or the model
    whose folder the setting names. The folder is looked up once in a run; the weights that move do not change it.

    Args:
        run: see :meth:`.Remembered.of`. An evaluation outside of any Trainer belongs to the run before it.

    Raises:
        CacheError: there is no such folder, `build` did not fill it, or it does not fit the model.
    """
    known = _BUILT.of(model, run) if run is not None or model.training else _BUILT.last(model)
    if known is not None and known[0] == settings.reference_cache:
        return known[1]
    if decoder.reads_whole_length(family.decoder_of(model)):
        raise CacheError(f"{title(model)} trains in full, and no cache can hold its states. {NOT_CACHEABLE} {_DOC}.")
    return _BUILT.keep(model, run, settings.reference_cache, Built(_find_built(model, settings), model))


_BUILT: Remembered[Built] = Remembered()
NOT_CACHEABLE = "They depend on the length of the batch (rope_type dynamic or longrope, or attention to later tokens)."


def _find_built(model: Any, settings: config.Settings) -> Folder:
    root = _root(settings)
    path = root
    if (about := describe(root)) is None:
        path = root / _hashed(model)
        if (about := describe(path)) is None:
            others = sorted(folder.parent for folder in root.glob("*/built"))
            raise CacheError(
                f"{title(model)} trains in full, and {root} has no states of these weights. {_BUILD}. "
                + "".join(
                    f"If these weights come from a checkpoint of the model that {other} was built from, set "
                    f"SELFAUG_CACHE={other} to align to that model. "
                    for other in others[:1]
                )
                + f"{_evaluated(model)}{_DOC}."
            )
    folder = Folder(path, about, settings)
    if not folder.is_built:
        raise CacheError(f"{path} was filled by LoRA training, which keeps no head. {_BUILD}. {_DOC}.")
    return folder


def _load_head(folder: Folder, model: Any) -> nn.Linear:
    """The head of the model that `build` read, on the device of ``model``."""
    file = folder.path / "head.pt"
    try:
        weight = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch.load raises
        raise CacheError(f"expected the head of {folder.model} in {file}, found {error!r}. {_BUILD}. {_DOC}.") from None
    expected = (family.text_config(model).vocab_size, family.text_config(model).hidden_size)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
    if shape != expected or folder.hidden_size != expected[1]:
        raise CacheError(
            f"{folder.path} was built from {folder.model}, whose head has the shape {shape} (vocabulary, hidden size); "
            f"{title(model)} needs {expected}. A model can only align to one with the same tokens and width. {_DOC}."
        )
    head = nn.Linear(expected[1], expected[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight.to(next(model.parameters()).device), requires_grad=False)
    return head


def _root(settings: config.Settings) -> Path:
    return Path(str(settings.reference_cache)).expanduser()


def describe(folder: Path) -> dict[str, Any] | None:
    """The contents of model.json: ``model`` (a name for people), ``hidden_size`` and ``fingerprint``. None if there is
    no such file, so ``folder`` is not that of a model.
    """
    file = folder / "model.json"
    if not file.is_file():
        return None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return {name: kind(about[name]) for name, kind in _ABOUT.items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):  # 1e999; nested too deep
        raise CacheError(f"{file}: expected JSON with {', '.join(_ABOUT)}. {_BUILD}, into another folder.") from None


_ABOUT: dict[str, Callable[[Any], Any]] = {"model": str, "hidden_size": int, "fingerprint": str}


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    if not (folder / "model.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"model.json.{os.getpid()}.new"
        draft.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, folder / "model.json")


def title(model: Any) -> str:
    """A name of ``model`` for people."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__
