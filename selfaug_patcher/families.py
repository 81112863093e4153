"""The files that get patched: a modelling file of transformers for each model family, and the LoRA layer of peft."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Target:
    """One file, and the classes in it that get a base class of SelfAug's.

    Args:
        name: the package and the family, as pins, receipts and messages write it: ``transformers:qwen2``.
        module: the name under which Python imports the file.
        class_names: the classes. The first is in every release; another one, for images and text, gets the base class
            where it has a head of its own: until transformers 4.51 such a class held a whole causal language model.
        configuration: the module of the relative import (``from .CONFIGURATION import ...``) that SelfAug's import
            follows; empty where the seam has no such import.
        since: the first release of the package that has the file.
    """

    name: str
    module: str
    class_names: tuple[str, ...]
    configuration: str
    since: str

    @property
    def class_name(self) -> str:
        """The class that people know the file by."""
        return self.class_names[0]

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def family(self) -> str:
        return self.name.split(":")[1]

    @property
    def is_model(self) -> bool:
        return self.package == "transformers"

    @cached_property
    def path(self) -> str:
        """The file, relative to the site directory, with forward slashes."""
        return self.module.replace(".", "/") + ".py"


def model(family: str, class_name: str, since: str, images: str = "") -> Target:
    """The modelling file of a family that keeps to transformers' naming. ``images``: its class for images and text."""
    module = f"transformers.models.{family}.modeling_{family}"
    names = (class_name, images) if images else (class_name,)
    return Target(f"transformers:{family}", module, names, f"configuration_{family}", since)


# One line for each family. `install` without a name takes the first.
MODELS = (
    model("qwen2", "Qwen2ForCausalLM", "4.37.0"),
    model("qwen3", "Qwen3ForCausalLM", "4.51.0"),
    model("qwen3_5", "Qwen3_5ForCausalLM", "5.2.0", images="Qwen3_5ForConditionalGeneration"),
    model("llama", "LlamaForCausalLM", "4.37.0"),
    model("mistral", "MistralForCausalLM", "4.37.0"),
    model("ministral", "MinistralForCausalLM", "4.57.0"),
    model("ministral3", "Ministral3ForCausalLM", "5.0.0rc0"),
    model("phi3", "Phi3ForCausalLM", "4.41.0"),
    model("smollm3", "SmolLM3ForCausalLM", "4.53.0"),
    model("olmo", "OlmoForCausalLM", "4.40.0"),
    model("olmo2", "Olmo2ForCausalLM", "4.47.0"),
    model("olmo3", "Olmo3ForCausalLM", "4.57.0"),
    model("glm", "GlmForCausalLM", "4.46.0"),
    model("glm4", "Glm4ForCausalLM", "4.51.3"),
    model("gemma", "GemmaForCausalLM", "4.38.0"),
    model("gemma2", "Gemma2ForCausalLM", "4.42.0"),
    model("gemma3", "Gemma3ForCausalLM", "4.50.0", images="Gemma3ForConditionalGeneration"),
    model("gemma4", "Gemma4ForCausalLM", "5.5.0", images="Gemma4ForConditionalGeneration"),
    model("granite", "GraniteForCausalLM", "4.45.0"),
    model("cohere", "CohereForCausalLM", "4.39.0"),
    model("cohere2", "Cohere2ForCausalLM", "4.48.0"),
    model("exaone4", "Exaone4ForCausalLM", "4.54.0"),
    model("seed_oss", "SeedOssForCausalLM", "4.56.0"),
    model("starcoder2", "Starcoder2ForCausalLM", "4.39.0"),
    model("arcee", "ArceeForCausalLM", "4.53.0"),
    model("apertus", "ApertusForCausalLM", "4.56.0"),
    model("ernie4_5", "Ernie4_5ForCausalLM", "4.54.0"),
    model("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", "4.56.0"),
    model("nemotron", "NemotronForCausalLM", "4.44.0"),
    model("helium", "HeliumForCausalLM", "4.49.0"),
    model("stablelm", "StableLmForCausalLM", "4.38.0"),
    model("qwen2_moe", "Qwen2MoeForCausalLM", "4.40.0"),
    model("qwen3_moe", "Qwen3MoeForCausalLM", "4.51.0"),
    model("qwen3_5_moe", "Qwen3_5MoeForCausalLM", "5.2.0", images="Qwen3_5MoeForConditionalGeneration"),
    model("mixtral", "MixtralForCausalLM", "4.37.0"),
    model("gpt_oss", "GptOssForCausalLM", "4.55.0"),
    model("glm4_moe", "Glm4MoeForCausalLM", "4.54.0"),
    model("olmoe", "OlmoeForCausalLM", "4.45.0"),
    model("granitemoe", "GraniteMoeForCausalLM", "4.45.0"),
    model("bitnet", "BitNetForCausalLM", "4.52.0"),
    model("phi", "PhiForCausalLM", "4.37.0"),
    model("gpt_neox", "GPTNeoXForCausalLM", "4.37.0"),
    model("bloom", "BloomForCausalLM", "4.37.0"),
    model("deepseek_v2", "DeepseekV2ForCausalLM", "4.54.0"),
    model("deepseek_v3", "DeepseekV3ForCausalLM", "4.51.0"),
    model("glm4_moe_lite", "Glm4MoeLiteForCausalLM", "5.0.0rc3"),
    model("lfm2", "Lfm2ForCausalLM", "4.54.0"),
    model("qwen3_next", "Qwen3NextForCausalLM", "4.57.0"),
    model("nemotron_h", "NemotronHForCausalLM", "5.3.0"),
    model("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", "4.54.0"),
    model("exaone_moe", "ExaoneMoeForCausalLM", "5.1.0"),
    model("solar_open", "SolarOpenForCausalLM", "5.0.0"),
    model("minimax", "MiniMaxForCausalLM", "4.53.0"),
    model("minimax_m2", "MiniMaxM2ForCausalLM", "5.0.0rc3"),
    model("cwm", "CwmForCausalLM", "5.0.0rc0"),
    model("granitemoeshared", "GraniteMoeSharedForCausalLM", "4.49.0"),
    model("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", "4.56.0"),
    model("flex_olmo", "FlexOlmoForCausalLM", "4.57.0"),
    model("jais2", "Jais2ForCausalLM", "5.0.0rc2"),
    model("cohere2_moe", "Cohere2MoeForCausalLM", "5.9.0"),
    model("afmoe", "AfmoeForCausalLM", "5.0.0rc0"),
    model("vaultgemma", "VaultGemmaForCausalLM", "4.57.0"),
    model("nanochat", "NanoChatForCausalLM", "5.0.0rc0"),
    model("mellum", "MellumForCausalLM", "5.10.1"),
    model("hyperclovax", "HyperCLOVAXForCausalLM", "5.9.0"),
    model("gemma4_unified", "Gemma4UnifiedForCausalLM", "5.10.0", images="Gemma4UnifiedForConditionalGeneration"),
    model("qwen2_vl", "Qwen2VLForConditionalGeneration", "4.45.0"),
    model("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "4.49.0"),
    model("qwen3_vl", "Qwen3VLForConditionalGeneration", "4.57.0"),
    model("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "4.57.0"),
    model("mistral3", "Mistral3ForConditionalGeneration", "4.50.0"),
    model("llava", "LlavaForConditionalGeneration", "4.37.0"),
    model("internvl", "InternVLForConditionalGeneration", "4.52.0"),
)

LAYER = Target("peft:lora", "peft.tuners.lora.layer", ("LoraLayer",), "", "0.6.0")


def targets() -> tuple[Target, ...]:
    """Every file that SelfAug knows: the models in the order of their table, then peft's."""
    return (*MODELS, LAYER)
