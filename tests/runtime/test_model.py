"""The whole model with LoRA against the float64 oracle: loss, NLL and KL to 1e-5, every gradient tensor to 3e-4."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from tiny import ALL_LINEAR, base, base_logits, batch, expected, settings, taken_gradients, with_lora, worst_error

from selfaug.trainers import metrics


def act(model, data, **extra):
    """One step: (loss, logged NLL and KL, gradients)."""
    metrics.RUNNING.clear()
    output = model(**data, **extra)
    loss = output[0]
    loss.backward()
    return loss.item(), metrics.RUNNING.take(), taken_gradients(model)


def agree(model, data, extra=None, loss_tolerance=1e-5, grad_tolerance=3e-4, **options):
    answer, wanted = expected(model, data, **options)
    loss, logged, found = act(model, data, **(extra or {}))
    assert answer.kl > 1e-4, "the case has to be away from KL = 0 to test anything"
    assert loss == pytest.approx(answer.loss, rel=loss_tolerance)
    assert logged["selfaug/nll"] == pytest.approx(answer.nll, rel=loss_tolerance)
    # float32 resolves a KL to some 1e-8 nats, however small it is
    assert logged["selfaug/kl"] == pytest.approx(answer.kl, rel=loss_tolerance, abs=1e-8)
    assert worst_error(found, wanted) < grad_tolerance
    return answer


@pytest.mark.parametrize(
    "targets", [ALL_LINEAR, ["q_proj"], ["v_proj", "down_proj"], ["layers.1.mlp.up_proj"]], ids=str
)
def test_lora_may_sit_on_any_of_the_linear_layers(targets):
    agree(with_lora(base(), target_modules=targets, std=2.0), batch())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"use_dora": True}, id="DoRA"),
        pytest.param({"use_rslora": True}, id="rsLoRA"),
        pytest.param({"modules_to_save": ["lm_head"]}, id="head saved"),
        pytest.param({"modules_to_save": ["embed_tokens"]}, id="embeddings saved"),
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, id="LoRA on the head"),
        pytest.param({"target_modules": ["o_proj", "embed_tokens"]}, id="LoRA on embeddings"),
        pytest.param({"layers_to_transform": [1]}, id="one layer"),
    ],
)
def test_every_kind_of_lora_gives_the_oracles_gradients(options):
    agree(with_lora(base(), **options), batch())


def test_a_tied_head_gives_the_oracles_gradients():
    agree(with_lora(base(tie_word_embeddings=True)), batch())


@pytest.mark.parametrize("padding", ["left", "right", None])
def test_padding_never_counts(padding):
    agree(with_lora(base()), batch(padding))


@pytest.mark.parametrize("direction", ["base-tuned", "tuned-base"])
@pytest.mark.parametrize("positions", ["input", "strict-input", "output", "all"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_every_setting_means_what_the_oracle_says(direction, positions, reduction):
    options = {"direction": direction, "positions": positions, "reduction": reduction}
    with settings(**{f"SELFAUG_{k}": v for k, v in options.items()}, SELFAUG_CHUNK_SIZE=5):
        agree(with_lora(base()), batch(), **options)


def test_alpha_is_read_at_every_step_from_the_models_config():
    model = with_lora(base())
    for alpha in (0.1, 2.0):
        model.get_base_model().config.selfaug = {"alpha": alpha}
        agree(model, batch(), alpha=alpha)


def test_num_items_in_batch_divides_both_terms():
    answer = agree(with_lora(base()), batch(), extra={"num_items_in_batch": torch.tensor(40)}, num_items=40)
    half = agree(with_lora(base()), batch(), extra={"num_items_in_batch": 80}, num_items=80)
    assert half.loss == pytest.approx(answer.loss / 2)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_gradients_do_not_depend_on_how_rows_are_split_into_micro_batches(reduction):
    """Ragged rows under "sequence"; rows alike under "token"."""
    ragged = reduction == "sequence"
    data = batch(prompts=(6, 4, 7), padding="right") if ragged else batch(prompts=(5, 5, 5), padding=None)
    n = int((data["labels"][:, 1:] != -100).sum())
    model = with_lora(base())
    with settings(SELFAUG_REDUCTION=reduction):
        whole, _, wanted = act(model, data, num_items_in_batch=n)
        total = 0.0
        for row in range(3):
            output = model(**{name: value[row : row + 1] for name, value in data.items()}, num_items_in_batch=n)
            output.loss.backward()
            total += output.loss.item()
        found = taken_gradients(model)
    assert total == pytest.approx(whole, rel=1e-5)
    assert worst_error(found, wanted) < 1e-4


def test_packed_rows_equal_the_same_documents_in_rows_of_their_own():
    data = batch(padding=None, prompts=(6, 4, 7))
    model = with_lora(base())
    with settings(SELFAUG_REDUCTION="sequence"):
        loss, logged, wanted = act(model, data)
        # a packed document's first label is never a target (TRL and LLaMA-Factory both blank it)
        packed = {name: value.reshape(1, -1) for name, value in data.items()}
        positions = torch.arange(11).repeat(3)[None]
        blocks = torch.block_diag(*[torch.ones(11, 11).tril()] * 3)
        mask = torch.where(blocks.bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
        packed_loss, packed_logged, found = act(model, {**packed, "position_ids": positions, "attention_mask": mask})
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert packed_logged == pytest.approx(logged, rel=1e-4)
    assert worst_error(found, wanted) < 3e-4


def test_inputs_embeds_in_place_of_input_ids_give_the_same():
    model, data = with_lora(base()), batch()
    loss, _, wanted = act(model, data)
    embeds = model.get_input_embeddings()(data.pop("input_ids"))
    found_loss, _, found = act(model, {**data, "inputs_embeds": embeds})
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert worst_error(found, wanted) < 1e-5


def test_a_tuple_output_has_the_loss_first_and_stocks_logits_second():
    model, data = with_lora(base()), batch()
    loss, logged, wanted = act(model, data)
    tuple_loss, tuple_logged, found = act(model, data, return_dict=False)
    assert tuple_loss == pytest.approx(loss, rel=1e-6)
    assert tuple_logged == pytest.approx(logged, rel=1e-4)
    assert worst_error(found, wanted) < 1e-4
    with settings(SELFAUG="0"):
        stock = model(**data, return_dict=False)
    ours = model(**data, return_dict=False)
    assert len(ours) == len(stock)
    assert torch.equal(ours[1], stock[1])


def test_a_batch_without_any_masked_label_has_no_kl_and_stocks_loss():
    model, data = with_lora(base()), batch(padding=None, prompts=(0, 0, 0))
    loss, logged, found = act(model, data)
    with settings(SELFAUG="0"):
        stock = model(**data).loss
        stock.backward()
    assert loss == pytest.approx(stock.item(), rel=1e-6)
    assert logged["selfaug/kl"] == 0
    assert worst_error(found, taken_gradients(model)) < 1e-4


def test_a_batch_of_nothing_but_masked_labels_is_finite_and_still_aligned():
    """Stock's loss is NaN there (the mean of nothing)."""
    model, data = with_lora(base()), batch(padding=None, prompts=(11, 11, 11))
    answer = agree(model, data)
    assert answer.loss == pytest.approx(0.5 * answer.kl)
    loss, _, found = act(model, data, num_items_in_batch=10)
    assert loss == 0
    assert all((grad == 0).all() for grad in found.values())


def test_a_batch_of_padding_alone_is_zero_and_not_nan():
    model, data = with_lora(base()), batch("right")
    data["labels"][:] = -100
    data["attention_mask"][:] = 0
    loss, _, found = act(model, data)
    assert loss == 0
    assert all((grad == 0).all() for grad in found.values())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_attention_implementation_gives_the_oracles_gradients(implementation):
    agree(with_lora(base(attn_implementation=implementation)), batch("left"))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model, data = with_lora(base()), batch()
    loss, logged, wanted = act(model, data)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found_loss, found_logged, found = act(model, data)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found_logged == pytest.approx(logged, rel=1e-4)
    assert worst_error(found, wanted) < 1e-5


def test_bfloat16_follows_the_oracle_within_its_precision():
    agree(with_lora(base().bfloat16(), autocast_adapter_dtype=False), batch(), loss_tolerance=1e-2, grad_tolerance=0.1)


def test_autocast_follows_the_oracle_within_its_precision():
    model, data = with_lora(base()), batch()
    answer, wanted = expected(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**data)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(answer.loss, rel=1e-2)
    assert worst_error(taken_gradients(model), wanted) < 0.1


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"lora_dropout": 0.5, "use_dora": True}], ids=["LoRA", "DoRA"]
)
def test_dropout_leaves_the_reference_alone(options):
    """At the start LoRA adds nothing whatever it drops, so KL is 0; with attention dropout in the tuned pass it is
    not.
    """
    model = with_lora(base(), perturbed=False, **options)
    assert act(model, batch())[1]["selfaug/kl"] == pytest.approx(0, abs=1e-6)
    noisy = with_lora(base(attention_dropout=0.5), perturbed=False)
    assert act(noisy, batch())[1]["selfaug/kl"] > 1e-4


def test_of_several_adapters_the_active_one_trains_against_the_base():
    model = with_lora(base(), target_modules=["q_proj"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"]))
    model.set_adapter("second")
    for name, parameter in model.named_parameters():
        if "lora_B.second" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    reference = base_logits(with_lora(base(), target_modules=["q_proj"]), batch())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    agree(model, batch(), reference=reference)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert all("second" in name for name in trainable)


def test_logits_that_are_read_are_stocks_and_carry_their_gradient():
    model, data = with_lora(base()), batch()
    with settings(SELFAUG="0"):
        stock = model(**data)
    ours = model(**data)
    assert torch.equal(ours.logits, stock.logits)
    assert ours.logits.requires_grad
    assert torch.equal(ours["logits"], stock.logits)
    assert torch.equal(ours[1], stock.logits)
    assert torch.equal(model(**data).get("logits"), stock.logits)
    assert ours.get("past") is None
    assert ours.get("past", 1) == 1
    assert list(ours) == list(stock)
    assert len(ours.to_tuple()) == len(stock.to_tuple())


def test_hidden_states_and_attentions_are_passed_on():
    model, data = with_lora(base(attn_implementation="eager")), batch()
    with settings(SELFAUG="0"):
        stock = model(**data, output_hidden_states=True, output_attentions=True)
    ours = model(**data, output_hidden_states=True, output_attentions=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, stock.hidden_states))
    assert all(torch.equal(a, b) for a, b in zip(ours.attentions, stock.attentions))


def test_a_filled_cache_is_left_alone_with_a_warning(caplog):
    model, data = with_lora(base()), batch(padding=None)
    past = model(input_ids=data["input_ids"][:, :3], use_cache=True).past_key_values
    with settings(SELFAUG="0"):
        length = past.get_seq_length()
    model(input_ids=data["input_ids"][:, 3:], labels=data["labels"][:, 3:], past_key_values=past)
    assert past.get_seq_length() == length + 8


@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_reference_sees_the_same_documents_as_the_tuned_pass(use_cache, checkpointing):
    """Packed rows told apart by position ids alone: transformers looks at them only where no cache is filled."""
    model = with_lora(base(attn_implementation="eager"), perturbed=False)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    packed = {name: value.reshape(1, -1) for name, value in batch(padding=None).items()}
    extra = {} if use_cache is None else {"use_cache": use_cache}
    _, logged, _ = act(model, packed, position_ids=torch.arange(11).repeat(3)[None], **extra)
    assert logged["selfaug/kl"] == pytest.approx(0, abs=1e-6)
