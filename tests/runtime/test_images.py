"""A step on images and text: stock's loss and the KL of the whole model, against a copy that never had LoRA."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_family import patched

from selfaug.reference import decoder
from selfaug.trial import exact, tiny
from selfaug.trial.checks import GRADIENT_TOLERANCE, LOSS_TOLERANCE, gradient_error, relative_error

IMAGE = tiny.VOCABULARY - 1  # the token that stands for a part of an image
TOKENS = {"qwen2_5_vl": 4, "qwen3_5": 4, "gemma3": 4, "llava": 16}  # for one image
CLASSES = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_5": "Qwen3_5", "gemma3": "Gemma3", "llava": "Llava"}


def model_of(family: str):
    """A tiny model of images and text."""
    module = pytest.importorskip(
        f"transformers.models.{family}.modeling_{family}", reason="this transformers has no such family"
    )
    cls = patched(getattr(importlib.import_module(module.__name__), f"{CLASSES[family]}ForConditionalGeneration"))
    config = tiny.config(cls.config_class)
    config.image_token_id = config.image_token_index = IMAGE
    config.mm_tokens_per_image = TOKENS[family]
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():  # Gemma 3 begins with a projection of images to nothing
                parameter.normal_()
    return model.eval()


def call(family: str, seed: int = 3) -> dict[str, torch.Tensor]:
    """Two rows, each with one image before its text."""
    count = TOKENS[family]
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(3, IMAGE, (2, 10), generator=generator)
    ids = torch.cat([text[:, :2], torch.full((2, count), IMAGE), text[:, 2:]], 1)
    labels = ids.clone()
    labels[:, : count + 6] = -100
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    labels = labels.masked_fill(mask == 0, -100)
    given = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    generator = torch.Generator().manual_seed(seed)
    if family.startswith("qwen"):
        shape = (2 * count * 4, 3 * 2 * 4 * 4)  # patches, and the values of each: channels, frames, height, width
        grid = torch.tensor([[1, 4, 4]] * 2)
        kinds = {"mm_token_type_ids": (ids == IMAGE).long()}
        return {**given, **kinds, "pixel_values": torch.randn(shape, generator=generator), "image_grid_thw": grid}
    kinds = {"token_type_ids": (ids == IMAGE).long()} if family == "gemma3" else {}
    return {**given, **kinds, "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}


def both(family: str):
    """(what a step gave, what it should have given)."""
    base = model_of(family)
    tuned = tiny.with_lora(base)
    case = exact.Case("images", call(family))
    with tiny.settings(SELFAUG_ALPHA=str(exact.ALPHA)):
        ours = exact._step(tuned, case.call)
    return ours, exact._wanted(base, tuned, case)


@pytest.mark.parametrize("family", TOKENS)
def test_a_step_on_images_has_the_loss_and_the_gradient_of_stock_and_the_term(family):
    ours, wanted = both(family)
    assert wanted.kl > 1e-3
    assert relative_error(ours.loss, wanted.loss) <= LOSS_TOLERANCE
    assert ours.kl == pytest.approx(wanted.kl, rel=1e-4)
    assert gradient_error(ours.gradients, wanted.gradients) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("family", TOKENS)
def test_the_reference_sees_the_images(family):
    tuned = tiny.with_lora(model_of(family))
    kl = []
    for seed in (3, 4):
        with tiny.settings(SELFAUG_ALPHA=str(exact.ALPHA)):
            kl.append(exact._step(tuned, call(family, seed)).kl)
    assert abs(kl[0] - kl[1]) > 1e-4 * kl[0]


@pytest.mark.parametrize("family", TOKENS)
def test_a_tower_for_images_does_not_keep_a_reference_of_text_from_being_cut(family):
    assert not decoder.reads_whole_length(model_of(family).model)
