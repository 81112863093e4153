"""Settings: the defaults, then the SELFAUG_* environment, then the dict ``model.config.selfaug``. Each source wins over
the one before it.

Environment and dict are read at every step, so a callback may change alpha during training.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from .eager import constant

DIRECTIONS = ("base-tuned", "tuned-base")
POSITIONS = ("input", "strict-input", "output", "all")
REDUCTIONS = ("token", "sequence")
SAMPLERS = ("uniform", "shift")
ALIGNS = ("logits", "q", "k", "v", "o", "attention", "ffn", "layers")
REFERENCES = ("base", "frozen-adapters", "start")


class SettingError(ValueError):
    """The name or the value of a setting is not accepted. The message lists what is."""


@dataclass(frozen=True)
class Settings:
    """The settings of one step.

    enabled: False leaves every call to stock transformers.
    alpha: the weight of the KL term in ``loss = NLL + alpha * KL`` (arXiv 2509.03934, section 3.3), >= 0.
    direction: "base-tuned" is KL(p_base || p_tuned), as in the authors' code; "tuned-base" is KL(p_tuned || p_base), as
        in the paper.
    positions: which tokens are aligned, see :func:`.positions.aligned`.
    reduction: "token" averages over the aligned tokens of the micro-batch; "sequence" averages within each row and
        weights rows by their supervised tokens.
    chunk_size: how many positions have logits at the same time; None is "auto", see :func:`.loss.auto_chunk_size`.
    sample: the share of the aligned positions, 0 < p <= 1, at which the KL is computed, see :mod:`.sample`.
    sample_by: "uniform" draws each position with the same chance; "shift" with a chance that grows with how far its
        hidden state has moved from the reference's.
    every: the term is computed at one of so many micro-batches and weighted by this number, see :mod:`.trainers.turns`.
    target_kl: nats per aligned token that alpha follows the measured KL toward, see :mod:`.trainers.controller`. None:
        alpha stays as it is given.
    anchors: a row without labels is an anchor: the term at all its tokens weighs as that of a mean row with labels, see
        :func:`.positions.kl_weights`.
    align: what the term compares: the KL of "logits", or the squared difference of the outputs of modules inside the
        decoder, see :mod:`.features`.
    reference_cache: the folder that keeps the reference's hidden states between epochs, see :mod:`.reference.cache`.
    reference_cache_gb: how many gigabytes the folder may take.
    reference: the reference if there were adapters before training. "base" switches all adapters off,
        "frozen-adapters" keeps frozen ones on, "start" is the model with all adapters as it was at the first step.
        None: the base, but a frozen adapter is an error and a loaded one a warning. See :mod:`.reference.guards`.
    evaluation: ``eval_loss`` contains the term, too.
    strict: a step that goes past SelfAug is an error and not a warning, see :mod:`.trainers.bypass`.
    """

    enabled: bool = True
    alpha: float = 0.5
    direction: str = "base-tuned"
    positions: str = "input"
    reduction: str = "token"
    chunk_size: int | None = None
    sample: float = 1.0
    sample_by: str = "uniform"
    every: int = 1
    target_kl: float | None = None
    anchors: bool = False
    align: str = "logits"
    reference_cache: str | None = None
    reference_cache_gb: float = 50.0
    reference: str | None = None
    evaluation: bool = False
    strict: bool = False

    @property
    def measure(self) -> str:
        """What the term is called: "KL", or "MSE" where it compares the outputs of modules."""
        return "KL" if self.align == "logits" else "MSE"


def _switch(value: Any) -> bool:
    if str(value) in ("1", "True"):
        return True
    if str(value) in ("0", "False"):
        return False
    raise ValueError("1 or 0")


def _weight(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor with several numbers
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("a number >= 0")
    return number


def _share(value: Any) -> float:
    try:
        number = _weight(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise ValueError("a number > 0 and <= 1")
    return number


def _folder(value: Any) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if not isinstance(path, str) or not path:
        raise ValueError("a folder")
    return str(path)


def _count(value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("a whole number > 0")
    return int(text)


def _chunk_size(value: Any) -> int | None:
    if value is None or value == "auto":
        return None
    try:
        return _count(value)
    except ValueError as accepted:
        raise ValueError(f'{accepted}, or "auto"') from None


def _target(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = _weight(value)
    except ValueError:
        number = 0
    if number == 0:
        raise ValueError("a number > 0")
    return number


def _one_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(" or ".join(f'"{name}"' for name in names))
        return names[names.index(value)]  # not str(value): for a member of an enum that is its name

    return parse


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "enabled": _switch,
    "alpha": _weight,
    "direction": _one_of(DIRECTIONS),
    "positions": _one_of(POSITIONS),
    "reduction": _one_of(REDUCTIONS),
    "chunk_size": _chunk_size,
    "sample": _share,
    "sample_by": _one_of(SAMPLERS),
    "every": _count,
    "target_kl": _target,
    "anchors": _switch,
    "align": _one_of(ALIGNS),
    "reference_cache": _folder,
    "reference_cache_gb": _weight,
    "reference": _one_of(REFERENCES),
    "evaluation": _switch,
    "strict": _switch,
}
_SHORT = {
    "enabled": "SELFAUG",
    "evaluation": "SELFAUG_EVAL",
    "reference_cache": "SELFAUG_CACHE",
    "reference_cache_gb": "SELFAUG_CACHE_GB",
}
ENVIRONMENT = {_SHORT.get(key, f"SELFAUG_{key.upper()}"): key for key in _PARSERS}


def read(model_config: Any = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in force for a model whose ``config`` is ``model_config``.

    The dict ``model_config.selfaug`` is saved as JSON with the model. So a value that JSON does not have, such as a
    ``Path`` or a number of numpy or torch, is replaced in the dict by a plain ``str``, ``bool`` or number.

    Raises:
        SettingError: an unknown key, a value that is not accepted, a SELFAUG_* variable that looks misspelt, or two
            settings that exclude each other.
    """
    given = _given(model_config, environ)
    settings = Settings(**{key: value for key, (value, _) in given.items()})
    if settings.enabled:
        _check_together(settings, {key: source for key, (_, source) in given.items()})
    return settings


def _check_together(settings: Settings, source: dict[str, str]) -> None:
    target = source.get("target_kl", "")
    if settings.target_kl is not None and settings.alpha == 0:
        raise SettingError(
            f"{target} starts from alpha and multiplies it, and {source['alpha']} is 0. Give an alpha > 0, or unset "
            f"{target}."
        )
    if settings.align == "logits":
        return
    align = f"{source['align']}={settings.align}"
    if settings.target_kl is not None:
        raise SettingError(f"{target} follows a KL, and the term of {align} is none. Unset one of them.")
    if settings.reference_cache is not None:
        raise SettingError(
            f"{align} and {source['reference_cache']} exclude each other: the cache keeps the reference's last hidden "
            "states, and not the outputs of modules. Unset one of them."
        )


def sources(model_config: Any = None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where each setting that is not at its default comes from: a variable, or ``model.config.selfaug["alpha"]``."""
    given, default = _given(model_config, environ), Settings()
    return {key: source for key, (value, source) in given.items() if value != getattr(default, key)}


def shown(key: str, value: Any) -> str:
    """The value of a setting as a variable has it."""
    if value is None:
        return "auto" if key == "chunk_size" else "not set"
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _given(model_config: Any, environ: Mapping[str, str] | None) -> dict[str, tuple[Any, str]]:
    """(value, source) of each setting that somebody gave."""
    environ = os.environ if environ is None else environ
    given: dict[str, tuple[Any, str]] = {}
    for name in environ:
        if not name.startswith("SELFAUG"):
            continue
        if name in ENVIRONMENT:
            given[ENVIRONMENT[name]] = _parse(ENVIRONMENT[name], environ[name], name), name
        elif close := _meant(name):
            raise SettingError(f"{name} is not a setting of SelfAug. Did you mean {close}?")

    chosen = getattr(model_config, "selfaug", None)
    if chosen is not None and not isinstance(chosen, dict):
        raise SettingError(f"model.config.selfaug must be a dict, not {type(chosen).__name__}.")
    plain = {}
    for key, value in (chosen or {}).items():
        if key not in _PARSERS:
            raise SettingError(f"model.config.selfaug has an unknown key {key!r}. Accepted: {', '.join(_PARSERS)}.")
        source = f'model.config.selfaug["{key}"]'
        given[key] = _parse(key, value, source), source
        if type(value) not in _JSON:
            plain[key] = given[key][0]
    if chosen and plain:
        chosen.update(plain)
    return given


@constant
def _meant(name: str) -> str:
    """The variable that somebody who wrote ``name`` meant, such as that of the key of the dict; empty if none is."""
    by_key = {f"SELFAUG_{key.upper()}": variable for variable, key in ENVIRONMENT.items()}
    known = {**by_key, **{variable: variable for variable in ENVIRONMENT}}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return known[close[0]] if close else ""


def ignored(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables named as settings are that are none and resemble none. They may belong to another tool."""
    environ = os.environ if environ is None else environ
    return sorted(name for name in environ if name.startswith("SELFAUG_") and name not in ENVIRONMENT)


_JSON = (str, bool, int, float, type(None))


def _parse(key: str, value: Any, source: str) -> Any:
    try:
        return _PARSERS[key](value)
    except ValueError as accepted:
        raise SettingError(f"{source} must be {accepted}, not {value!r}.") from None
