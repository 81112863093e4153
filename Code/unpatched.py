"""Warnings where only one of peft and the model's class is patched, so that SelfAug is never silently off.

The class is not patched if the model is of another family, if transformers was upgraded, or if the process imported
transformers before `install`. The patched LoRA layers notice that: they call :func:`check_model` while they train. It
finds the model and its labels in the frames of the callers. So no stock class is wrapped, and a plain loop, accelerate
and every trainer are all alike. One layer of each model checks, once per forward, and no more once the model turns out
to be patched. In a compiled graph no layer checks.
"""

from __future__ import annotations

import shlex
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from . import config, receipt
from .labels import IGNORE_INDEX
from .reference import guards, switch
from .trainers import bypass

# the families that `install` can patch: transformers.models.FAMILY
FAMILIES = {
    "qwen2", "qwen3", "qwen3_5", "llama", "mistral", "ministral", "ministral3", "phi3", "smollm3", "olmo",
    "olmo2", "olmo3", "glm", "glm4", "gemma", "gemma2", "gemma3", "gemma4", "granite", "cohere", "cohere2",
    "exaone4", "seed_oss", "starcoder2", "arcee", "apertus", "ernie4_5", "hunyuan_v1_dense", "nemotron",
    "helium", "stablelm", "qwen2_moe", "qwen3_moe", "qwen3_5_moe", "mixtral", "gpt_oss", "glm4_moe", "olmoe",
    "granitemoe", "bitnet", "phi", "gpt_neox", "bloom", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "lfm2",
    "qwen3_next", "nemotron_h", "ernie4_5_moe", "exaone_moe", "solar_open", "minimax", "minimax_m2", "cwm",
    "granitemoeshared", "hunyuan_v1_moe", "flex_olmo", "jais2", "cohere2_moe", "afmoe", "vaultgemma",
    "nanochat", "mellum", "hyperclovax", "gemma4_unified", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "qwen3_vl_moe", "mistral3", "llava", "internvl",
}  # fmt: skip
CAN_TELL = hasattr(getattr(torch, "compiler", None), "is_compiling")  # whether code is compiled; not before torch 2.1
_STATUS = "python -m selfaug_patcher status"
_MARK = b"added by selfaug_patcher; undo:"
_BASES = {"transformers": "SelfAligned", "peft": "ReferenceSwitch"}  # of a patched class, by package
_VARKEYWORDS = 0x08  # in co_flags of a code object: the function takes **kwargs

_QUIET: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # layers that need not check


class ReferenceSwitch:
    """First base class of peft's ``LoraLayer``. While ``selfaug_reference`` is True on a layer, as in the reference
    pass, the layer computes without LoRA. Nothing is merged, unmerged or frozen for that.
    """

    selfaug_reference = False

    @property
    def disable_adapters(self) -> bool:
        layer: Any = self  # a LoraLayer
        if layer.training and CAN_TELL and not torch.compiler.is_compiling() and layer not in _QUIET:
            check_model(layer)
        return layer.selfaug_reference or layer._disable_adapters  # type: ignore[no-any-return]  # peft's, either type


def check_model(layer: Any) -> None:
    """Find the model that called a LoRA layer in training, and warn if its class is not patched.

    Raises:
        BypassError: the class is not patched, and SELFAUG_STRICT=1.
    """
    caller = _Caller(sys._getframe(2))
    model = caller.model
    if model is None:
        if caller.within_a_call:  # but in no language model
            _QUIET.add(layer)
        return
    _QUIET.update(module for module in model.modules() if switch.is_lora(module))
    _QUIET.add(layer)  # a replica of nn.DataParallel is not among model.modules()
    if hasattr(type(model), "selfaug_aligned"):
        return
    try:
        _warn_of_class(model, layer, caller)
    finally:
        _QUIET.discard(layer)


def _warn_of_class(model: Any, layer: Any, caller: _Caller) -> None:
    """Warn that the class of ``model`` is not patched, if this call is part of a step that should have the term."""
    settings = config.read(getattr(model, "config", None))
    if not (caller.labelled and caller.with_gradient and settings.enabled and settings.alpha > 0):
        return
    is_replica = vars(layer).get("_is_replica")  # its weights are no parameters
    if is_replica or switch.lora_layers(model):
        reason, do = why(type(model))
        name = type(model).__name__
        what = f"SelfAug is on and LoRA trains {name} on labels, but this class is not patched: {reason}."
        bypass.of(model).warn(what, settings.strict, do)


def check_peft(model: Any, settings: config.Settings) -> None:
    """Warn if LoRA trains in ``model`` and only seems not to: its layers are not patched, or ``model`` is a replica of
    ``nn.DataParallel``, whose weights are no parameters.
    """
    if vars(model).get("_is_replica") and switch.has_lora_on(model):
        what = "SelfAug is on but could not act: nn.DataParallel calls copies of the model."
        do = "Start the script with torchrun or `accelerate launch`, or show it one GPU (CUDA_VISIBLE_DEVICES=0)"
        bypass.of(model).warn(what, settings.strict, do)
    elif layer_class := guards.unpatched_peft(model):
        reason, do = why(layer_class)
        what = f"SelfAug is on but could not act: peft's LoRA layers are not patched: {reason}."
        bypass.of(model).warn(what, settings.strict, do)
    elif model.training and (adapters := guards.other_adapters(model) or _prompts(model)):
        what = f"SelfAug is on but could not act: the adapter that trains is no LoRA: {adapters}."
        bypass.of(model).warn(what, settings.strict, "Train with LoRA (peft's LoraConfig; see docs/trainers.md)")


def _prompts(model: nn.Module) -> str:
    """The kinds of peft's adapters that train around ``model`` and not in it, as prompt tuning does; else empty."""
    if any(parameter.requires_grad for parameter in model.parameters()):
        return ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        around = frame.f_locals.get("self")
        frame = frame.f_back
        if isinstance(around, nn.Module) and any(parameter.requires_grad for parameter in around.parameters()):
            adapters: Any = getattr(around, "peft_config", None)
            if isinstance(adapters, Mapping):
                kinds = {a.peft_type for a in adapters.values() if getattr(a, "is_prompt_learning", False)}
                return ", ".join(sorted(str(getattr(kind, "value", kind)) for kind in kinds))
    return ""


class _Caller:
    """What the frames of a LoRA layer's callers show.

    model: the innermost language model among the callers that has labels; if none has, the outermost one. A model of
        images and text may call a language model inside it without labels, and compute the loss itself.
    labelled: this model or the trainer has labels to train on.
    with_gradient: gradients are enabled, or a checkpoint will compute this call again with gradients.
    within_a_call: some module is being called. Otherwise somebody only read an attribute of the layer.
    """

    def __init__(self, frame: FrameType | None) -> None:
        self.model: Any = None
        self.labelled = self.within_a_call = False
        self.with_gradient = torch.is_grad_enabled()
        while frame is not None:
            code = frame.f_code
            is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
            first = frame.f_locals.get("self") if is_method else None
            if code.co_name == "_call_impl":
                self.within_a_call = True
            if self.model is None and frame.f_globals.get("__name__") == "torch.utils.checkpoint":
                self.with_gradient = True
            if not self.labelled and isinstance(first, nn.Module) and _is_language_model(first, frame):
                self.model = first
            if first is self.model is not None:
                self.labelled = self.labelled or _has_labels(frame)
            elif self.model is not None and code.co_name == "compute_loss":
                if _keeps_labels(frame, first):
                    self.labelled = True
                elif _is_trl(first):  # DPO, KTO, GRPO: their labels are for log-probabilities
                    self.labelled = False
            frame = frame.f_back


def _is_language_model(module: nn.Module, frame: FrameType) -> bool:
    """Whether ``module``, whose method runs in ``frame``, is a decoder with a head and no encoder-decoder: it can
    generate, or it trains on its own tokens, as a class without ``generate`` and a plain module may.
    """
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return False
    generates = getattr(type(module), "can_generate", None)
    return (generates is not None and bool(generates())) or _trains_on_its_tokens(frame)


def _trains_on_its_tokens(frame: FrameType) -> bool:
    """Whether a method has token ids and, as labels, the same tokens."""
    ids, labels = _argument(frame, "input_ids"), _argument(frame, "labels")
    if not (isinstance(ids, torch.Tensor) and isinstance(labels, torch.Tensor) and ids.shape == labels.shape):
        return False
    supervised = labels != IGNORE_INDEX
    return ids.dim() == 2 and bool(supervised.any()) and torch.equal(ids[supervised], labels[supervised].to(ids))


def _has_labels(frame: FrameType) -> bool:
    return any(_argument(frame, name) is not None for name in ("labels", "shift_labels"))


def _argument(frame: FrameType, name: str) -> Any:
    """An argument of a call, or what the function has put in its place; None if there is no such argument."""
    code, values = frame.f_code, frame.f_locals
    if name not in values and code.co_flags & _VARKEYWORDS:
        keywords = code.co_varnames[code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04)]
        values = values.get(keywords) or {}
    return values.get(name)


def _keeps_labels(frame: FrameType, trainer: Any) -> bool:
    """Whether a trainer's ``compute_loss`` has labels: in its inputs, or taken out of them for a loss of its own."""
    inputs = frame.f_locals.get("inputs")
    if isinstance(inputs, Mapping) and inputs.get("labels") is not None:
        return True
    own_loss = getattr(trainer, "label_smoother", None) or getattr(trainer, "compute_loss_func", None)
    return own_loss is not None and frame.f_locals.get("labels") is not None


def _is_trl(trainer: Any) -> bool:
    return any(cls.__module__.startswith("trl.") for cls in type(trainer).__mro__)


def why(cls: type) -> tuple[str, str]:
    """(why, what to do): the reason that a class of transformers or peft is not patched in this process."""
    stock = next((c for c in cls.__mro__ if _is_theirs(c)), cls)
    package = stock.__module__.split(".")[0]
    if package == "transformers_modules":
        do = "Load it without trust_remote_code=True, if transformers has a class for it"
        return f"it is code that came with the checkpoint, in {stock.__module__}", do
    if package not in ("transformers", "peft"):
        do = "Derive it from a patched class of transformers (class Mine(LlamaForCausalLM)), or train such a class"
        return f"it is a model of its own, in {stock.__module__}", do
    family = stock.__module__.split(".")[2]
    on_disk = _on_disk(stock.__module__)
    if f"class {stock.__name__}(" in on_disk and f"class {stock.__name__}({_BASES[package]}, " not in on_disk:
        do = f"Train the ForCausalLM class of a family (`{_STATUS}` lists the families)"
        return f"SelfAug has no patch for {stock.__name__}", do
    if on_disk:
        reason = f"this process had imported {package} before SelfAug was installed"
        return reason, "Restart the process (in a notebook, the kernel)"
    if package == "transformers" and not stock.__name__.endswith(("ForCausalLM", "ForConditionalGeneration")):
        do = f"Train the ForCausalLM class of a family (`{_STATUS}` lists the families)"
        return f"SelfAug has no patch for {stock.__name__}", do
    if package == "transformers" and family not in FAMILIES:
        do = f"Train a model of another family (`{_STATUS}` lists them)"
        return f"SelfAug has no patch for {stock.__module__}", do
    served = receipt.families_of_run()
    if package == "transformers" and served and family not in served:
        reason = f"`selfaug_patcher run` was told to patch {', '.join(served)}"
        return reason, f"Start it with `python -m selfaug_patcher run --families {','.join([*served, family])}`"
    by_name = package == "transformers" and family != "qwen2"
    verb = f"install {family}" if by_name else "install"
    install = f"Run `python -m selfaug_patcher {verb} --python {shlex.quote(sys.executable)}`"
    then = str(receipt.entry("peft:lora" if package == "peft" else f"transformers:{family}").get("version", ""))
    now = str(getattr(sys.modules.get(package), "__version__", ""))
    if then and then != now:
        return f"{package} was {then} when SelfAug was installed and is {now} now", f"{install} again"
    if then:
        return f"{package} {now} was installed anew after SelfAug", f"{install} again"
    whose = f"{family} of {package} {now}" if by_name else f"{package} {now}"
    return f"SelfAug was never installed for {whose}", install


def _is_theirs(cls: type) -> bool:
    """Whether a class is a whole model of transformers', and no mere base class, or a layer of peft's."""
    return cls.__module__.startswith("peft.") or (
        cls.__module__.startswith("transformers.models.") and not cls.__name__.endswith("PreTrainedModel")
    )


def _on_disk(module: str) -> str:
    """The text of a loaded module's file if the file is patched on disk; else empty."""
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        content = Path(path).read_bytes() if path is not None else b""
    except OSError:
        return ""
    return content.decode("utf-8", "replace") if _MARK in content else ""
