"""Two models have one fingerprint exactly if they have the same hidden states and the same head with LoRA off."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import ALL_LINEAR, base, batch, with_lora
from torch import nn

from selfaug.reference.fingerprint import ShardedWeights, fingerprint

NEW_ROPE = hasattr(base().config, "rope_parameters")
ROTARY_IN_MODEL = hasattr(base().model, "rotary_emb")  # since transformers 4.45, which also brought YaRN to Qwen2
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def rope(**parameters):
    """A model with these rotary parameters, as the release at hand spells them."""
    if NEW_ROPE:
        return base(rope_parameters={"rope_theta": 10000.0, "rope_type": "default", **parameters})
    theta = parameters.pop("rope_theta", 10000.0)
    return base(rope_theta=theta, rope_scaling=parameters or None)


def states(model):
    model.eval()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 500  # attention is not uniform, so distances and scales matter
    with torch.no_grad():
        return model.model(input_ids=batch()["input_ids"])[0]


@pytest.mark.skipif(not ROTARY_IN_MODEL, reason="this release's Qwen2 has no YaRN")
@pytest.mark.parametrize(
    "change",
    [
        {"attention_factor": 2.0},
        {"factor": 8.0},
        {"rope_theta": 5e5},
        {"mscale": 0.5, "mscale_all_dim": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_of_yarn_that_changes_hidden_states_changes_the_fingerprint(change):
    plain, changed = rope(**YARN), rope(**{**YARN, **change})
    assert fingerprint(plain) == fingerprint(rope(**YARN))
    assert fingerprint(plain) != fingerprint(changed)
    assert not torch.equal(states(plain), states(changed))


@pytest.mark.parametrize(
    "options",
    [
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8},
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
        {"a_setting_of_a_later_release": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_a_config_changes_is_another_model_also_where_no_weight_differs(options):
    assert fingerprint(base(**options)) != fingerprint(base())


def attention_scale(model):
    model.model.layers[1].self_attn.scaling = 0.5


def rotary_scale(model):
    model.model.rotary_emb.attention_scaling = 1.5


def activation(model):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def norm(model):
    model.model.norm.variance_epsilon = 1e-2


def frequencies(model):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 2


def one_weight(model):
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-3


def the_head(model):
    model.lm_head.weight.data[3, 4] += 1e-3


def two_elements_change_places(model):
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight[[0, 5], [1, 7]] = weight[[5, 0], [7, 1]]


def buffer_of_a_quantised_layer(model):
    model.model.layers[0].mlp.up_proj.register_buffer("scales", torch.full((3,), 2.0))


@pytest.mark.parametrize(
    "change",
    [attention_scale, rotary_scale, activation, norm, frequencies, one_weight, the_head, two_elements_change_places,
     buffer_of_a_quantised_layer],
)  # fmt: skip
def test_what_is_changed_in_place_is_another_model(change):
    model = base()
    if change in (attention_scale, rotary_scale, frequencies) and not ROTARY_IN_MODEL:
        pytest.skip("this release keeps these numbers elsewhere")
    before = fingerprint(model)
    change(model)
    assert fingerprint(model) != before


def test_rows_of_a_large_weight_that_change_places_change_the_fingerprint():
    """Sums over whole tensors would not tell, nor would sums over its own columns."""
    model = base(intermediate_size=2048, hidden_size=64)
    before = fingerprint(model)
    weight = model.model.layers[1].mlp.up_proj.weight.data  # (2048, 64)
    weight[[11, 1501]] = weight[[1501, 11]]
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "options",
    [
        {"attention_dropout": 0.1},
        {"use_cache": False},
        {"initializer_range": 0.02, "selfaug": {"alpha": 0.3}},
        {"attn_implementation": "eager"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_no_hidden_state_is_the_same_model(options):
    assert fingerprint(base(**options)) == fingerprint(base())


def test_what_training_does_to_a_model_leaves_it_the_same(tmp_path):
    model = base()
    plain = fingerprint(model)
    model.save_pretrained(tmp_path)
    assert fingerprint(type(model).from_pretrained(tmp_path)) == plain
    model.gradient_checkpointing_enable()
    model.train()
    model(**batch())
    assert fingerprint(model) == plain
    model.config.use_cache, model.config.pad_token_id, model.config._name_or_path = False, 3, "elsewhere"
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + 1)
    assert fingerprint(model) == plain
    model = with_lora(base(), target_modules=[*ALL_LINEAR, "lm_head"], use_dora=True, lora_dropout=0.1)
    assert fingerprint(model.get_base_model()) == plain
    model(**batch()).loss.backward()
    assert fingerprint(model.get_base_model()) == plain


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 4]}], ids=str)
def test_wrappers_of_whole_modules_leave_the_model_the_same(options):
    plain = fingerprint(base())
    try:
        model = get_peft_model(base(), LoraConfig(target_modules=["q_proj"], **options))
    except TypeError:
        pytest.skip("this peft does not have it")
    assert fingerprint(model.get_base_model()) == plain


def test_an_implementation_of_attention_that_is_not_transformers_own_is_another_model():
    model = base()
    plain = fingerprint(model)
    model.config._attn_implementation = "somebody's own"
    assert fingerprint(model) != plain


def test_weights_that_are_offloaded_are_an_error_that_says_so():
    with torch.device("meta"):
        model = base()
    with pytest.raises(ShardedWeights, match="is not whole in this process"):
        fingerprint(model)


def test_a_copy_has_the_fingerprint_of_the_original_in_every_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model = base().to(dtype)
        assert fingerprint(copy.deepcopy(model)) == fingerprint(model)
    assert len({fingerprint(base().to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)}) == 3
