"""The reference is the model as it was before LoRA was added: a copy of it made then says what must come out."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import ALL_LINEAR, base, batch, expected, settings, taken_gradients, with_lora, worst_error
from transformers import DynamicCache, Qwen2ForCausalLM

from selfaug.reference import switch
from selfaug.trainers import metrics


def copy_of_the_base(model):
    return copy.deepcopy(model).eval()


@torch.no_grad()
def logits_of_the_base(model, data):
    return model(**{name: value for name, value in data.items() if name != "labels"}).logits


def agree(model, untouched, data, **options):
    """Loss, logged KL and every gradient are what the oracle says from the logits of the copy ``untouched``."""
    answer, wanted = expected(model, data, reference=logits_of_the_base(untouched, data), **options)
    metrics.RUNNING.clear()
    loss = model(**data).loss
    loss.backward()
    assert answer.kl > 1e-4, "the case has to be away from KL = 0 to test anything"
    assert metrics.RUNNING.take()["selfaug/kl"] == pytest.approx(answer.kl, rel=1e-5, abs=1e-8)
    assert loss.item() == pytest.approx(answer.loss, rel=1e-5)
    assert worst_error(taken_gradients(model), wanted) < 3e-4


def kl_of(model, data):
    metrics.RUNNING.clear()
    model(**data).loss.backward()
    return metrics.RUNNING.take()["selfaug/kl"]


LORA_OPTIONS = set(inspect.signature(LoraConfig).parameters)
TOKENS_OF_THE_BATCH = sorted(set(batch()["input_ids"].flatten().tolist()))[:8]


@pytest.mark.parametrize(
    ("options", "tied"),
    [
        pytest.param({"trainable_token_indices": TOKENS_OF_THE_BATCH}, False, id="trainable tokens"),
        pytest.param({"trainable_token_indices": TOKENS_OF_THE_BATCH}, True, id="trainable tokens, tied head"),
        pytest.param({"trainable_token_indices": {"lm_head": TOKENS_OF_THE_BATCH}}, False, id="tokens of the head"),
        pytest.param({"modules_to_save": ["embed_tokens", "lm_head"]}, False, id="modules_to_save"),
        pytest.param({"modules_to_save": ["norm"]}, False, id="a norm saved"),
        pytest.param({"target_modules": [*ALL_LINEAR, "embed_tokens"]}, False, id="LoRA on embeddings"),
        pytest.param({"use_dora": True}, False, id="DoRA"),
        pytest.param(
            {"target_modules": [], "target_parameters": ["v_proj.weight", "up_proj.weight"]},
            False,
            id="target_parameters",
        ),
    ],
)
def test_no_tuner_layer_or_wrapper_of_peft_stays_on_in_the_reference(options, tied):
    if (
        "trainable_token_indices" in options
        and "trainable_token_indices" not in inspect.signature(LoraConfig).parameters
    ):
        pytest.skip("this peft has no such option")
    model = base(tie_word_embeddings=tied)
    untouched = copy_of_the_base(model)
    agree(with_lora(model, **options), untouched, batch())


def test_other_tuners_beside_lora_are_off_in_the_reference_and_on_again_afterwards():
    from peft import LoKrConfig

    model = base()
    untouched = copy_of_the_base(model)
    mixed = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]), mixed=True)
    mixed.add_adapter("lokr", LoKrConfig(r=4, target_modules=["v_proj"]))
    mixed.set_adapter(["default", "lokr"])
    for name, parameter in mixed.named_parameters():
        if "lora_B" in name or "lokr" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    data = batch()
    wanted = logits_of_the_base(untouched, data)
    tuned = mixed.eval()(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    with switch.switched_off(model):
        off = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    assert torch.equal(off, wanted)
    assert not torch.equal(tuned, wanted)
    again = mixed(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    assert torch.equal(again, tuned)


def test_the_switch_leaves_no_trace_on_any_module():
    tokens = {"trainable_token_indices": TOKENS_OF_THE_BATCH} if "trainable_token_indices" in LORA_OPTIONS else {}
    model = with_lora(base(), modules_to_save=["norm"], **tokens)
    before = [dict(vars(module)) for module in model.modules()]
    with switch.switched_off(model.get_base_model()):
        pass
    assert [dict(vars(module)) for module in model.modules()] == before


def rope(kind, **more):
    parameters = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0, **more}
    known = inspect.signature(type(base().config).__init__).parameters
    return {"rope_parameters" if "rope_scaling" not in known else "rope_scaling": parameters}


LONG = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 8}


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "yarn", "linear", "default"])
def test_rotary_frequencies_of_the_reference_are_those_of_the_whole_batch(kind):
    more = LONG if kind == "longrope" else {"original_max_position_embeddings": 8} if kind == "yarn" else {}
    model = base(max_position_embeddings=8, **rope(kind, **more))
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.dim() > 1 else 1  # attention that tells positions apart
    untouched = copy_of_the_base(model)
    assert kl_of(with_lora(copy.deepcopy(model), perturbed=False), batch()) < 1e-7, "LoRA that has not moved"
    agree(with_lora(model), untouched, batch())
    for _ in range(2):  # the frequencies of "dynamic" follow what came before
        agree(with_lora(copy.deepcopy(untouched).train()), copy.deepcopy(untouched), batch(T=9, prompts=(4, 3, 5)))


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_under_which_prompts_see_what_comes_after_them_is_not_cut(kind):
    data = batch(None)
    T = data["input_ids"].shape[1]
    causal = torch.ones(T, T).tril().bool()
    allowed = (causal | (torch.arange(T) < 9)).expand(3, 1, T, T)  # the first nine see each other, in every row
    mask = allowed if kind == "bool" else torch.zeros(3, 1, T, T).masked_fill(~allowed, -1e9)
    model = base()
    untouched = copy_of_the_base(model)
    try:
        logits_of_the_base(untouched, {**data, "attention_mask": mask})
    except ValueError:
        pytest.skip("this release takes no 4-D mask")
    agree(with_lora(model), untouched, {**data, "attention_mask": mask}, real=torch.ones(3, T))


def test_a_decoder_that_was_made_bidirectional_is_not_cut():
    model = base(attn_implementation="sdpa")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    untouched = copy_of_the_base(model)
    data = batch(None)
    first, last = (logits_of_the_base(untouched, {"input_ids": data["input_ids"][:, :t]})[:, 0] for t in (3, 11))
    if torch.allclose(first, last):
        pytest.skip("this release does not ask the attention module")
    agree(with_lora(model), untouched, data)


def add_outer_noise(model, way):
    """A constant in place of noise, so that it can be told: 0.3 on the embeddings while ``model`` is in training."""
    embed = model.get_base_model().model.embed_tokens
    if way == "hook":
        embed.register_forward_hook(lambda module, args, output: output + 0.3 if model.training else output)
    else:
        stock = embed.forward
        embed.forward = lambda ids: stock(ids) + 0.3 if model.training else stock(ids)


@pytest.mark.parametrize("way", ["hook", "forward"])
def test_noise_that_asks_the_outer_model_for_its_mode_is_not_in_the_reference(way):
    model = base()
    untouched = copy_of_the_base(model)
    tuned = with_lora(model)
    add_outer_noise(tuned, way)
    agree(tuned, untouched, batch())
    assert tuned.training


def test_a_wrapper_around_the_peft_model_is_in_eval_mode_in_the_reference():
    class Lightning(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

    tuned = with_lora(base())
    outer = torch.nn.Sequential(Lightning(tuned)).train()
    with switch.switched_off(tuned.get_base_model()):
        assert not any(module.training for module in outer.modules())
    assert all(module.training for module in outer.modules())


CACHE = "cache" if "cache" in inspect.signature(Qwen2ForCausalLM.forward).parameters else "past_key_values"


@pytest.mark.parametrize("name", sorted({CACHE, "past_key_values"}))
@pytest.mark.parametrize("extra", [{}, {"logits_to_keep": 11}], ids=["fused", "around"])
def test_an_empty_cache_of_the_caller_is_filled_by_the_tuned_pass_alone(name, extra):
    if "logits_to_keep" not in inspect.signature(Qwen2ForCausalLM.forward).parameters:
        extra = {}
    model = base()
    untouched = copy_of_the_base(model)
    tuned, data, cache = with_lora(model), batch(), DynamicCache()
    answer, wanted = expected(tuned, data, reference=logits_of_the_base(untouched, data))
    metrics.RUNNING.clear()
    output = tuned(**data, **{name: cache}, **extra)
    output.loss.backward()
    assert cache.get_seq_length() == data["input_ids"].shape[1]
    assert metrics.RUNNING.take()["selfaug/kl"] == pytest.approx(answer.kl, rel=1e-5)
    assert worst_error(taken_gradients(tuned), wanted) < 3e-4


@pytest.mark.parametrize("name", sorted({CACHE, "past_key_values"}))
def test_a_filled_cache_of_the_caller_is_told_under_every_name(name):
    tuned, data, cache = with_lora(base()), batch(None), DynamicCache()
    with torch.no_grad():
        tuned(input_ids=data["input_ids"], use_cache=True, **{name: cache})
    with settings(SELFAUG_STRICT=1), pytest.raises(RuntimeError, match="filled key-value cache"):
        tuned(**data, **{name: cache})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_packed_rows_are_told_apart_in_the_reference_as_in_the_tuned_pass(checkpointing, training):
    model = with_lora(base(), perturbed=False)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    data = batch(None, B=1, prompts=(3,))
    data["position_ids"] = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]])
    data["labels"][0, 5:8] = -100
    model.train(training)
    with settings(SELFAUG_EVAL=1):
        with_the_term = model(**data).loss
    with settings(SELFAUG=0):
        assert with_the_term.item() == pytest.approx(model(**data).loss.item(), abs=1e-7)


def test_outputs_have_stocks_fields_by_attribute_item_get_and_tuple():
    tuned, data = with_lora(base()), batch()
    ours, stock = (tuned(**data, use_cache=True, output_hidden_states=True) for _ in range(2))
    with settings(SELFAUG=0):
        stock = tuned(**data, use_cache=True, output_hidden_states=True)
    assert list(ours.keys()) == list(stock.keys())
    for name in [*stock.keys(), CACHE, "past_key_values", "attentions"]:
        for read in (getattr, lambda out, n: out.get(n), lambda out, n: n in out and out[n]):
            assert type(read(ours, name)) is type(read(stock, name)), name
    assert [type(value) for value in ours.to_tuple()] == [type(value) for value in stock.to_tuple()]
    assert [type(value) for value in ours[1:]] == [type(value) for value in stock[1:]]
    assert torch.allclose(ours[1], stock[1])


@pytest.mark.parametrize(
    "read", [lambda out: out[0], lambda out: out[:1], lambda out: out["loss"], lambda out: out[-1]]
)
def test_reading_another_field_makes_no_logits(read):
    from selfaug.outputs import LazyLogits

    output = with_lora(base())(**batch(), use_cache=True)
    read(output)
    assert isinstance(dict(output.items())["logits"], LazyLogits)


def test_base_weights_that_are_unfrozen_later_are_noticed_at_the_next_step():
    tuned, data = with_lora(base()), batch()
    tuned(**data).loss.backward()
    tuned.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.up_proj.* train beside LoRA"):
        tuned(**data)


def test_an_adapter_that_is_merged_later_in_one_layer_is_noticed_at_the_next_step():
    tuned, data = with_lora(base()), batch()
    tuned(**data).loss.backward()
    tuned.get_base_model().model.layers[1].mlp.up_proj.merge()
    with pytest.raises(RuntimeError, match="merged into base weights"):
        tuned(**data)


def test_an_adapter_that_is_frozen_later_in_a_late_layer_is_noticed_at_the_next_step():
    tuned, data = with_lora(base()), batch()
    tuned.add_adapter("second", LoraConfig(r=4, target_modules=["down_proj"]))
    tuned.base_model.set_adapter(["default", "second"])
    tuned(**data).loss.backward()
    for name, parameter in tuned.named_parameters():
        if ".second." in name:
            parameter.requires_grad_(False)
    with pytest.raises(RuntimeError, match="'second' is active and frozen"):
        tuned(**data)


def test_x_lora_is_off_in_the_reference_though_its_layers_ask_the_tuner_around_the_model(tmp_path):
    XLoraConfig = pytest.importorskip("peft").__dict__.get("XLoraConfig")
    if XLoraConfig is None or not hasattr(Qwen2ForCausalLM, "loss_function"):
        pytest.skip("this peft has no X-LoRA, or one that does not know this transformers")
    model = base()
    untouched = copy_of_the_base(model)
    adapter = with_lora(copy.deepcopy(model), task_type="CAUSAL_LM")
    for name in ("a", "b"):
        adapter.save_pretrained(tmp_path / name)
    model.config.use_cache = False
    paths = {"0": str(tmp_path / "a"), "1": str(tmp_path / "b")}
    options = {"task_type": "CAUSAL_LM", "hidden_size": 32, "xlora_depth": 1, "use_trainable_adapters": True}
    tuned = get_peft_model(model, XLoraConfig(adapters=paths, **options)).train()
    data = batch()
    with torch.no_grad():
        p = tuned(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits.double().log_softmax(-1)
    q = logits_of_the_base(untouched, data).double().log_softmax(-1)
    aligned = (data["labels"] == -100) & data["attention_mask"].bool()
    wanted = (q.exp() * (q - p)).sum(-1)[aligned].mean().item()
    assert wanted > 1e-4
    assert kl_of(tuned, data) == pytest.approx(wanted, rel=1e-4)


def mixed_adapters(frozen):
    from peft import LoKrConfig

    model = base()
    mixed = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]), mixed=True)
    mixed.add_adapter("lokr", LoKrConfig(r=4, target_modules=["v_proj"]))
    mixed.set_adapter(["default", "lokr"])
    for name, parameter in mixed.named_parameters():
        if "lokr" in name:
            torch.nn.init.normal_(parameter, std=0.5)
            parameter.requires_grad_(not frozen)
    return mixed.train()


def test_a_frozen_adapter_of_another_tuner_is_asked_about_as_a_frozen_lora_is():
    with pytest.raises(RuntimeError, match="'lokr' is active and frozen"):
        mixed_adapters(frozen=True)(**batch())
    with settings(SELFAUG_REFERENCE="frozen-adapters"):
        assert kl_of(mixed_adapters(frozen=True), batch()) < 1e-7, "LoRA has not moved"


def test_an_adapter_of_another_tuner_that_is_merged_is_refused_and_stays_merged():
    mixed = mixed_adapters(frozen=False)
    layer = mixed.base_model.model.model.layers[0].self_attn.v_proj
    layer.merge(adapter_names=["lokr"])
    with pytest.raises(RuntimeError, match="'lokr' is merged"):
        mixed(**batch())
    assert layer.merged_adapters == ["lokr"]


def test_noise_on_the_head_is_not_in_the_reference():
    model, data = base(), batch()
    untouched = copy_of_the_base(model)
    noise = torch.randn(61, generator=torch.Generator().manual_seed(3))
    tuned = with_lora(model)
    model.lm_head.register_forward_hook(lambda head, args, out: out + noise if head.training else out)
    agree(tuned, untouched, data)


def test_a_mask_with_a_bias_on_what_is_seen_hides_nothing():
    """As ALiBi adds one: every token sees itself, with a bias below 0."""
    T, data = 11, batch(None)
    seen = torch.ones(T, T).tril().bool().expand(3, 1, T, T)
    bias = -(torch.arange(T)[:, None] - torch.arange(T)).abs() * 0.1 - 0.05
    model = base()
    untouched = copy_of_the_base(model)
    data["attention_mask"] = torch.where(seen, bias.expand(3, 1, T, T), torch.tensor(-1e9))
    try:
        logits_of_the_base(untouched, data)
    except ValueError:
        pytest.skip("this release takes no 4-D mask")
    agree(with_lora(model), untouched, data, real=torch.ones(3, T))


def test_noise_that_asks_the_second_outer_model_of_a_base_is_not_in_the_reference_either():
    first = with_lora(base())
    first(**batch())
    model = first.unload()
    untouched = copy_of_the_base(model)
    tuned = with_lora(model)
    add_outer_noise(tuned, "hook")
    agree(tuned, untouched, batch())


def test_a_decoder_that_is_compiled_by_itself_gets_its_arguments():
    model = base()
    untouched = copy_of_the_base(model)
    tuned = with_lora(model)
    data = batch()
    answer, _ = expected(tuned, data, reference=logits_of_the_base(untouched, data))
    model.model = torch.compile(model.model, backend="eager")
    assert kl_of(tuned, data) == pytest.approx(answer.kl, rel=1e-4)


def test_the_modules_of_a_model_are_those_that_torch_finds_a_shared_one_once():
    model = with_lora(base())
    model.shared = model.get_base_model().model.layers[0]
    modules = switch.all_modules(model)
    assert len(modules) == len(list(model.modules()))
    assert {id(module) for module in modules} == {id(module) for module in model.modules()}
