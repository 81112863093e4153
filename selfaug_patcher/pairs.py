"""Releases of transformers and peft that do not work beside each other, patched or not.

At least one pair of each kind was seen to fail with the stock files, and the rest of the kind have the same import.
They are told before anything is written, as warnings: what fails is not the patch. `docs/releases.md` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class BadPair:
    """Releases by PEP 440 specifiers; ``{peft}`` and ``{transformers}`` in the texts stand for what is installed."""

    peft: str
    transformers: str
    what: str
    do: str


BAD_PAIRS = (
    BadPair(
        peft=">=0.14",
        transformers="<4.43",
        what="peft {peft} does not import beside transformers {transformers}: it needs EncoderDecoderCache, from 4.43",
        do='pip install "peft==0.13.2", or "transformers==4.57.6"',
    ),
    BadPair(
        peft=">=0.16,<0.18",
        transformers=">=4.43,<4.44",
        what="peft {peft} does not import beside transformers {transformers}: it needs HybridCache, from 4.44 to 4.57",
        do='pip install "peft==0.15.2", or "transformers==4.57.6"',
    ),
    BadPair(
        peft=">=0.16,<0.18",
        transformers=">=5.0.0rc3",
        what="peft {peft} does not import beside transformers {transformers}: it needs HybridCache, from 4.44 to 4.57",
        do='pip install "peft==0.18.1", or "transformers==4.57.6"',
    ),
    BadPair(
        peft="==0.18.0",
        transformers=">=4.43,<4.47",
        what="peft {peft} does not import beside transformers {transformers}: it needs modeling_layers, from 4.52",
        do='pip install "peft==0.15.2", or "transformers==4.57.6"',
    ),
    BadPair(
        peft="==0.18.0",
        transformers=">=4.47,<4.52",
        what="peft {peft} does not import beside transformers {transformers}: it needs modeling_layers, from 4.52",
        do='pip install "peft==0.18.1"',
    ),
    BadPair(
        peft=">=0.18.0rc0,!=0.18.0",
        transformers=">=4.43,<4.47",
        what="peft {peft} beside transformers {transformers} fails in get_peft_model: no torch.distributed.tensor",
        do='pip install "transformers==4.47.1", or put "import torch.distributed.tensor" first in the script',
    ),
    BadPair(
        peft=">=0.19",
        transformers=">=5.0.0rc0,<=5.0.0rc3",
        what="peft {peft} does not work beside transformers {transformers}: it needs names that 5.0.0 added",
        do='pip install "transformers==5.0.0", or "peft==0.18.1"',
    ),
    BadPair(
        peft="<0.7",
        transformers=">=5.0.0rc0",
        what="the Trainer of transformers {transformers} does not import beside peft {peft}: it needs PeftMixedModel",
        do='pip install "peft==0.18.1", or "transformers==4.57.6"',
    ),
    BadPair(
        peft="",
        transformers=">=4.42,<4.43",
        what="transformers {transformers} does not import beside numpy 2",
        do='pip install "numpy<2", or "transformers==4.57.6"',
    ),
)


def warnings(transformers_version: str, peft_version: str | None, installer: str = "pip install") -> list[str]:
    """What is known to fail with these two, each with the release to take. ``None``: peft is not installed."""
    texts = []
    for pair in BAD_PAIRS:
        if _in(transformers_version, pair.transformers) and (not pair.peft or _in(peft_version, pair.peft)):
            what = pair.what.format(peft=peft_version, transformers=transformers_version)
            texts.append(f"{what}\n  do:       {pair.do.replace('pip install', installer)}")
    return texts


def _in(version: str | None, specifiers: str) -> bool:
    try:
        return version is not None and SpecifierSet(specifiers).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
