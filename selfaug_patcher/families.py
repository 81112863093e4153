"""The files that get patched: a modelling file of transformers for each model family, and the LoRA layer of peft."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One file, and the class in it that gets a base class of SelfAug's.

    Args:
        name: the package and the family, as pins, receipts and messages write it: ``transformers:qwen2``.
        module: the name under which Python imports the file.
        class_name: the class.
        configuration: the module of the relative import (``from .CONFIGURATION import ...``) that SelfAug's import
            follows; empty where the seam has no such import.
        since: the first release of the package that has the file.
    """

    name: str
    module: str
    class_name: str
    configuration: str
    since: str

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def family(self) -> str:
        return self.name.split(":")[1]

    @property
    def is_model(self) -> bool:
        return self.package == "transformers"

    @property
    def path(self) -> str:
        """The file, relative to the site directory, with forward slashes."""
        return self.module.replace(".", "/") + ".py"


def model(family: str, class_name: str, since: str) -> Target:
    """The modelling file of a family that keeps to transformers' naming."""
    module = f"transformers.models.{family}.modeling_{family}"
    return Target(f"transformers:{family}", module, class_name, f"configuration_{family}", since)


# One line for each family. `install` without a name takes the first.
MODELS = (model("qwen2", "Qwen2ForCausalLM", "4.37.0"),)

LAYER = Target("peft:lora", "peft.tuners.lora.layer", "LoraLayer", "", "0.6.0")


def targets() -> tuple[Target, ...]:
    """Every file that SelfAug knows: the models in the order of their table, then peft's."""
    return (*MODELS, LAYER)
