"""SELFAUG_ALIGN: loss and every gradient against a float64 oracle of this file's own, in every way that a step can go;
and what is refused.

The oracle has hooks of its own on a copy of the base model made before LoRA was added, and on the tuned model while
SelfAug is off; autograd does the rest.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from types import MethodType

import pytest
import torch
from test_family import patched
from test_trainer import Rows, train
from tiny import base, batch, perturb, settings, taken_gradients, with_lora, worst_error
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from selfaug import config, features
from selfaug.trainers import announce, metrics, turns

ALIGNS = ["q", "k", "v", "o", "attention", "ffn", "layers"]
PROJECTIONS = {"q": ["q_proj"], "k": ["k_proj"], "v": ["v_proj"], "o": ["o_proj"],
               "attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}  # fmt: skip


def pair(model=None, **lora):
    """(a tuned model in float64, a copy of its base from before LoRA)."""
    model = (model or base()).double()
    untouched = copy.deepcopy(model).eval()
    return with_lora(model, **{"std": 0.5, **lora}), untouched


@contextlib.contextmanager
def outputs(model, align):
    """The outputs (B, T, F) of the modules in the order of the calls of their layers, by hooks of this test."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = inner.get_decoder().layers
    if align == "layers":
        modules = list(layers)
    elif align == "ffn":
        modules = [layer.mlp for layer in layers]
    else:
        modules = [getattr(layer.self_attn, name) for layer in layers for name in PROJECTIONS[align]]
    found: list = [None] * len(modules)

    def keep(at):
        return lambda module, given, output: found.__setitem__(at, output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep(at)) for at, module in enumerate(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def mse_of(tuned, untouched, data, align):
    """(the NLL with LoRA on, (B, T) mean squared difference), with their graph."""
    given = {name: value for name, value in data.items() if name not in ("labels", "num_items_in_batch", "return_dict")}
    with torch.no_grad(), outputs(untouched, align) as wanted:
        untouched(**given)
    with settings(SELFAUG="0"), outputs(tuned, align) as found:
        logits = tuned(**given).logits
    labels = data["labels"][:, 1:]
    nll = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
    nll = nll / data.get("num_items_in_batch", max(1, int((labels != -100).sum())))
    per_module = [((one - other) ** 2).mean(-1) for one, other in zip(found, wanted)]
    return nll, torch.stack(per_module).mean(0)


def expected(tuned, untouched, data, align, alpha=0.5, reduction="token", positions="input"):
    """(loss, MSE, gradients)."""
    nll, mse = mse_of(tuned, untouched, data, align)
    labels, real = data["labels"], data.get("attention_mask", torch.ones_like(data["labels"])).bool()
    supervised = nn.functional.pad(labels[:, 1:], (0, 1), value=-100) != -100
    prompt = labels == -100
    aligned = {"input": prompt, "strict-input": prompt & ~supervised, "output": supervised,
               "all": torch.ones_like(prompt)}[positions] & real  # fmt: skip
    count = int(supervised.sum())
    if reduction == "token":
        mean = mse[aligned].mean() if aligned.any() else 0 * nll
    else:
        rows = [(int(supervised[b].sum()), mse[b][aligned[b]]) for b in range(len(labels))]
        mean = sum(n * row.mean() for n, row in rows if len(row)) / count
    total = nll + alpha * mean * count / data.get("num_items_in_batch", count)
    total.backward()
    plain = float(mse.detach()[aligned].mean()) if aligned.any() else 0.0
    return float(total.detach()), plain, taken_gradients(tuned)


def act(model, data):
    """One step: (loss, logs, gradients)."""
    metrics.RUNNING.clear()
    output = model(**data)
    loss = output[0]
    loss.backward()
    return float(loss.detach()), metrics.RUNNING.take(), taken_gradients(model)


def agree(tuned, untouched, data, align, tolerance=1e-9, **options):
    """Compare one step with the oracle; returns the loss."""
    loss, mse, gradients = expected(tuned, untouched, data, align, **options)
    given = {f"SELFAUG_{name}": value for name, value in options.items()}
    with settings(SELFAUG_ALIGN=align, **given):
        found, logs, found_gradients = act(tuned, data)
    assert mse > 1e-7, "the case has to be away from 0 to test anything"
    assert found == pytest.approx(loss, rel=tolerance)
    assert logs["selfaug/mse"] == pytest.approx(mse, rel=1e-5)  # the logs are float32
    assert worst_error(found_gradients, gradients) < tolerance
    assert hooks_on(tuned) == []
    return loss


def hooks_on(model):
    """The names of the modules with a hook, but for the one that `enable_input_require_grads` leaves."""
    hooked = [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    return [name for name in hooked if not name.endswith("embed_tokens")]


@pytest.mark.parametrize("align", ALIGNS)
def test_each_value_gives_the_oracles_loss_and_gradients(align):
    tuned, untouched = pair()
    found = agree(tuned, untouched, batch(), align)
    with settings(SELFAUG_ALIGN=align, SELFAUG_ALPHA="0"):
        assert act(tuned, batch())[0] < found
    with settings():
        assert act(tuned, batch())[0] != pytest.approx(found, rel=1e-3)  # the KL is something else


@pytest.mark.parametrize("positions", ["input", "strict-input", "output", "all"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_positions_reduction_and_alpha_mean_what_they_mean_for_the_kl(positions, reduction):
    agree(*pair(), batch(), "attention", alpha=0.3, positions=positions, reduction=reduction)


@pytest.mark.parametrize("padding", ["left", "right", None])
def test_padding_is_not_aligned(padding):
    agree(*pair(), batch(padding), "ffn")


def test_num_items_in_batch_divides_the_term_too():
    tuned, untouched = pair()
    first = agree(tuned, untouched, {**batch(), "num_items_in_batch": 40}, "layers")
    assert agree(tuned, untouched, {**batch(), "num_items_in_batch": 80}, "layers") == pytest.approx(first / 2)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
        {"use_dora": True},
        {"target_modules": ["q_proj", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("align", ["o", "layers"])
def test_lora_may_sit_where_it_likes(align, lora):
    agree(*pair(std=2.0, **lora), batch(), align)


@pytest.mark.parametrize("align", ALIGNS)
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(align):
    tuned, untouched = pair(lora_dropout=0.0)
    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tuned.enable_input_require_grads()
    calls = []
    counter = (
        tuned.get_base_model()
        .model.layers[0]
        .self_attn.q_proj.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    )
    with settings(SELFAUG_ALIGN=align):
        output = tuned(**batch())
        assert calls == [False, True], "the reference, then the tuned pass"
        output.loss.backward()
        assert calls == [False, True, True], "the layer was not computed again, so nothing is tested"
    counter.remove()
    found, found_gradients = float(output.loss.detach()), taken_gradients(tuned)
    tuned.gradient_checkpointing_disable()
    loss, _, gradients = expected(tuned, untouched, batch(), align)
    assert found == pytest.approx(loss, rel=1e-9)
    assert worst_error(found_gradients, gradients) < 1e-9


def test_dropout_in_checkpointed_layers_is_the_same_in_both_computations():
    tuned, _ = pair(lora_dropout=0.5)
    with settings(SELFAUG_ALIGN="attention"):
        torch.manual_seed(1)
        wanted = act(tuned, batch())
        tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        found = act(tuned, batch())
    assert found[0] == pytest.approx(wanted[0], rel=1e-12)
    assert worst_error(found[2], wanted[2]) < 1e-9


def test_the_first_micro_batch_is_refused_even_if_it_has_no_term():
    assert not turns.has_term(0, 8)
    with settings(SELFAUG_EVERY="8"):
        refused(reentrant(with_lora(base())), "ffn", "use_reentrant=True")


def own_forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
    """A forward that SelfAug does not know."""
    logits = self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask)[0])
    if labels is None:
        return CausalLMOutputWithPast(logits=logits)
    return (nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),)


@pytest.mark.parametrize("align", ["q", "attention", "ffn", "layers"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_forward_that_nobody_knows_gets_the_term(align, checkpointed):
    tuned, untouched = pair()
    inner = tuned.get_base_model()
    inner.forward = MethodType(own_forward, inner)
    if checkpointed:
        tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    agree(tuned, untouched, batch(), align)


def test_a_forward_that_calls_the_decoder_twice_is_held_by_its_last_call():
    def twice(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        with torch.no_grad():
            self.model(input_ids=input_ids.flip(0))
        return own_forward(self, input_ids, attention_mask, labels)

    tuned, untouched = pair()
    inner = tuned.get_base_model()
    inner.forward = MethodType(twice, inner)
    agree(tuned, untouched, batch(), "attention")


def test_a_tuple_for_an_output_gets_the_term():
    agree(*pair(), {**batch(), "return_dict": False}, "attention", tolerance=1e-6)  # stock's NLL is in float32


def test_trls_fused_head_and_label_smoothing_get_the_term_in_the_trainers_loss(tmp_path):
    """What a step of the plain Trainer differs by from one without SelfAug, the others differ by, too."""
    utils = pytest.importorskip("trl.trainer.utils")
    if not hasattr(utils, "add_fused_lm_head"):
        pytest.skip("TRL until 1.14 has no fused head")

    class Stepped(Trainer):
        def training_step(self, model, *args, **kwargs):
            result = super().training_step(model, *args, **kwargs)
            self.gradients = taken_gradients(model)
            return result

    class Fused(Stepped):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs, fused_lm_head=True)
            return -outputs.log_probs.sum() / num_items_in_batch

    def step(cls=Stepped, **arguments):
        model = base()
        if cls is Fused:
            utils.add_fused_lm_head(model)
        options = TrainingArguments(tmp_path, max_steps=1, logging_steps=1, report_to=[], save_strategy="no",
                                    disable_tqdm=True, use_cpu=True, label_names=["labels"],
                                    per_device_train_batch_size=8, **arguments)  # fmt: skip
        trainer = cls(with_lora(model), options, train_dataset=Rows())
        trainer.train()
        return trainer

    with settings(SELFAUG="0"):
        without = step().gradients
        smoothed = step(label_smoothing_factor=0.1).gradients
    with settings(SELFAUG_ALIGN="attention", SELFAUG_ALPHA="5"):
        wanted = step()
        fused = step(Fused)
        with_smoothing = step(label_smoothing_factor=0.1).gradients
    assert worst_error(fused.gradients, wanted.gradients) < 1e-4
    assert worst_error(fused.gradients, without) > 0.01
    for name in ("loss", "selfaug/nll", "selfaug/mse"):
        assert fused.state.log_history[0][name] == pytest.approx(wanted.state.log_history[0][name], rel=1e-4)
    term = {name: wanted.gradients[name] - without[name] for name in without}
    assert worst_error(with_smoothing, {name: smoothed[name] + term[name] for name in smoothed}) < 1e-3


@pytest.mark.parametrize("way", ["uniform", "shift"])
def test_a_sample_is_right_on_average(way):
    tuned, untouched = pair()
    loss, mse, gradients = expected(tuned, untouched, batch(), "attention", alpha=5.0)
    mean, seen, draws = {name: torch.zeros_like(grad) for name, grad in gradients.items()}, [], 60
    with settings(SELFAUG_ALIGN="attention", SELFAUG_ALPHA="5", SELFAUG_SAMPLE="0.5", SELFAUG_SAMPLE_BY=way):
        for seed in range(draws):
            torch.manual_seed(seed)
            found, logs, once = act(tuned, batch())
            seen.append((found, logs["selfaug/mse"]))
            for name, grad in once.items():
                mean[name] += grad / draws
    error = sum((mean[name] - grad).norm() ** 2 for name, grad in gradients.items()) ** 0.5
    assert error / sum(grad.norm() ** 2 for grad in gradients.values()) ** 0.5 < 0.1
    assert sum(each for each, _ in seen) / draws == pytest.approx(loss, rel=0.05)
    assert sum(each for _, each in seen) / draws == pytest.approx(mse, rel=0.05)
    assert len(set(seen)) > 5, "every draw was the same"


@pytest.mark.parametrize("shown", [{}, {"return_dict": False}], ids=["own way", "around"])
def test_where_nothing_is_aligned_the_loss_is_stocks(shown):
    tuned, _ = pair()
    data = {**batch(padding=None, prompts=(0, 0, 0)), **shown}
    with settings(SELFAUG="0"):
        stock = act(tuned, data)
    with settings(SELFAUG_ALIGN="attention"):
        found = act(tuned, data)
    assert found[0] == pytest.approx(stock[0], rel=1e-6)
    assert found[1]["selfaug/mse"] == 0
    assert worst_error(found[2], stock[2]) < 1e-6


def test_where_nothing_is_supervised_the_loss_is_alpha_times_the_term():
    tuned, untouched = pair()
    data = batch(padding=None, prompts=(11, 11, 11))
    _, mse = mse_of(tuned, untouched, data, "ffn")
    with settings(SELFAUG_ALIGN="ffn"):
        assert act(tuned, data)[0] == pytest.approx(0.5 * float(mse.mean().detach()), rel=1e-9)


def test_an_anchor_weighs_as_a_mean_row_with_labels():
    """Row 1 has no label; the other two have 9 supervised tokens, so that it weighs as one with 4.5."""
    tuned, untouched = pair()
    data = batch(padding=None, prompts=(6, 11, 7))
    nll, mse = mse_of(tuned, untouched, data, "attention")
    aligned = data["labels"] == -100
    others = aligned.clone()
    others[1] = False
    wanted = nll + 0.5 * (mse[others].mean() + 4.5 / 9 * mse[1].mean())
    wanted.backward()
    gradients = taken_gradients(tuned)
    with settings(SELFAUG_ALIGN="attention", SELFAUG_ANCHORS="1"):
        found = act(tuned, data)
    assert found[0] == pytest.approx(float(wanted.detach()), rel=1e-9)
    assert worst_error(found[2], gradients) < 1e-9


def test_before_lora_has_learned_anything_the_term_is_nothing_whatever_dropout_does():
    tuned, _ = pair(perturbed=False, lora_dropout=0.5)
    with settings(SELFAUG_ALIGN="attention"):
        assert act(tuned, batch())[1]["selfaug/mse"] == pytest.approx(0, abs=1e-12)


def test_a_reference_at_the_start_holds_features_to_the_model_as_it_was():
    tuned, _ = pair()
    with settings(SELFAUG_ALIGN="layers", SELFAUG_REFERENCE="start"):
        assert act(tuned, batch())[1]["selfaug/mse"] == pytest.approx(0, abs=1e-12)
        then = copy.deepcopy(tuned)
        perturb(tuned)
        found = act(tuned, batch())
    with settings(SELFAUG="0"):
        then.eval()
        loss, mse, gradients = expected(tuned, then, batch(), "layers")
    assert found[0] == pytest.approx(loss, rel=1e-9)
    assert found[1]["selfaug/mse"] == pytest.approx(mse, rel=1e-5)
    assert worst_error(found[2], gradients) < 1e-9


def test_what_a_model_writes_over_later_is_recorded_as_it_was():
    """Liger's rotary embeddings write over the queries that they are given."""
    tuned, untouched = pair()
    wanted = expected(tuned, untouched, batch(), "q")

    def overwriting(model):
        for layer in model.model.layers:
            # the norm's output is no output of q_proj, so a doubling of the queries is undone by the attention's scale
            attention = layer.self_attn
            attention.scaling /= 2
            attention.q_proj.forward = doubled_later(attention.q_proj.forward, attention.k_proj)

    def doubled_later(project, next_module):
        made = []
        forward = next_module.forward

        def then(x):
            made.pop().mul_(2)  # in place, after q_proj has returned
            return forward(x)

        next_module.forward = then
        return lambda x: made.append(project(x)) or made[-1]

    overwriting(untouched)
    overwriting(tuned.get_base_model())
    with settings(SELFAUG_ALIGN="q"):
        found = act(tuned, batch())
    assert found[0] == pytest.approx(wanted[0], rel=1e-9)
    assert worst_error(found[2], wanted[2]) < 1e-9


def test_bfloat16_and_autocast_follow_the_oracle_within_their_precision():
    tuned, untouched = pair()
    loss, mse, gradients = expected(tuned, untouched, batch(), "attention")
    tuned = tuned.float()
    with settings(SELFAUG_ALIGN="attention"):
        with torch.autocast("cpu", torch.bfloat16):
            output = tuned(**batch())
        output.loss.backward()
        assert output.loss.dtype == torch.float32
        assert float(output.loss.detach()) == pytest.approx(loss, rel=1e-2)
        assert worst_error(taken_gradients(tuned), gradients) < 0.1
        half = with_lora(base().bfloat16(), autocast_adapter_dtype=False)
        found, logs, _ = act(half, batch())
    assert found == pytest.approx(loss, rel=2e-2)
    assert logs["selfaug/mse"] == pytest.approx(mse, rel=5e-2)


def test_an_evaluation_with_the_term_has_this_term():
    tuned, untouched = pair()
    loss, _, _ = expected(tuned, untouched, batch(), "attention")
    tuned.eval()
    with settings(SELFAUG_ALIGN="attention", SELFAUG_EVAL="1"), torch.no_grad():
        assert float(tuned(**batch()).loss) == pytest.approx(loss, rel=1e-6)


FAMILIES = {
    "llama": "Llama",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "qwen3_moe": "Qwen3Moe",
    "granite": "Granite",
    "gpt_oss": "GptOss",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("align", ["attention", "ffn", "layers"])
def test_other_families_give_the_oracles_loss_and_gradients(family, align):
    tuned, untouched = pair(other(family, FAMILIES[family]), target_modules=["q_proj", "v_proj", "o_proj"], std=2.0)
    agree(tuned, untouched, batch(), align, tolerance=1e-6)  # Gemma 2 makes its NLL in float32


def other(family, prefix):
    """A tiny model of another family."""
    name = f"transformers.models.{family}.modeling_{family}"
    module = pytest.importorskip(name, reason="this transformers has no such family")
    cls = patched(getattr(importlib.import_module(module.__name__), f"{prefix}ForCausalLM"))
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
             "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "bos_token_id": 1,
             "eos_token_id": 2}  # fmt: skip
    given = cls.config_class(**sizes)
    given._experts_implementation = "eager"  # the others have no float64
    model = cls(given)
    for parameter in model.parameters():  # as they are made, an MLP adds next to nothing
        parameter.data.mul_(4 if parameter.dim() > 1 else 1)
    return model


def test_a_model_of_images_and_text_has_the_layers_of_its_language_model():
    from test_images import model_of

    model = with_lora(model_of("qwen2_5_vl"), target_modules=["q_proj"])
    inner = model.get_base_model()
    count = inner.config.get_text_config().num_hidden_layers
    assert len(features.modules_of(inner, "q")) == count
    language = set(inner.get_decoder().modules())
    assert set(features.modules_of(inner, "attention").values()) <= language


def test_a_step_that_fails_leaves_no_hook_behind():
    tuned, _ = pair()
    failing = tuned.get_base_model().model.layers[1].mlp
    with settings(SELFAUG_ALIGN="layers"):
        for at in (0, 1):  # in the reference pass, then in the tuned pass
            calls = iter(range(2))
            handle = failing.register_forward_pre_hook(
                lambda *_, at=at, calls=calls: (
                    (_ for _ in ()).throw(RuntimeError("here")) if next(calls) == at else None
                )
            )
            with pytest.raises(RuntimeError, match="here"):
                tuned(**batch())
            handle.remove()
            assert hooks_on(tuned) == []


def test_the_logs_and_the_first_line_do_not_call_it_a_kl(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(announce.logger, "warning", said.append)
    with settings(SELFAUG_ALIGN="attention"):
        logs = train(tmp_path, with_lora(base())).state.log_history[:2]
    for log in logs:
        assert "selfaug/kl" not in log
        assert log["loss"] == pytest.approx(log["selfaug/nll"] + 0.5 * log["selfaug/mse"], rel=1e-3)
    assert said[0].startswith("SelfAug is on: loss = NLL + 0.5 * MSE of attention (SELFAUG_ALIGN) at input positions, ")
    assert "the MSE begins above 0" in said[1]


@pytest.mark.parametrize("way", [{}, {"return_dict": False}], ids=["own way", "around"])
def test_a_micro_batch_that_selfaug_every_leaves_without_the_term_records_nothing(way, monkeypatch):
    tuned, untouched = pair()
    data = {**batch(), **way}
    loss, mse, gradients = expected(tuned, untouched, data, "attention", alpha=1.5)  # 3 * 0.5
    with settings(SELFAUG="0"):
        without = act(tuned, data)
    recorded = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **k: recorded.append(self.shape) or clone(self, **k))
    with settings(SELFAUG_ALIGN="attention", SELFAUG_EVERY="3"):
        steps = []
        for _ in range(3):
            before = len([shape for shape in recorded if len(shape) == 3])
            found = act(tuned, data)
            steps.append((len([shape for shape in recorded if len(shape) == 3]) - before, *found))
    (with_term,) = [step for step in steps if step[0]]
    assert with_term[1] == pytest.approx(loss, rel=1e-6)
    assert with_term[2]["selfaug/mse"] == pytest.approx(mse, rel=1e-5)
    assert worst_error(with_term[3], gradients) < 1e-6
    for step in steps:
        if step is not with_term:
            assert step[1] == pytest.approx(without[0], rel=1e-6)
            assert worst_error(step[3], without[2]) < 1e-6


def test_a_sum_of_the_one_does_not_go_on_as_a_sum_of_the_other():
    model = with_lora(base())
    metrics.RUNNING.clear()
    for align in ("logits", "ffn"):
        with settings(SELFAUG_ALIGN=align):
            model(**batch()).loss.backward()
    logs = metrics.RUNNING.take()
    with settings(SELFAUG_ALIGN="ffn"):
        alone = act(model, batch())[1]
    assert logs == alone


# What is refused


def refused(model, align, *parts, data=None, **given):
    with settings(SELFAUG_ALIGN=align, **given), pytest.raises(config.SettingError) as caught:
        model(**(data or batch()))
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "docs/settings.md" in message or "SELFAUG_CACHE" in message or "reference_cache" in message
    assert hooks_on(model) == []


def test_a_value_that_is_none_is_refused():
    with pytest.raises(config.SettingError, match=r'SELFAUG_ALIGN must be "logits" or "q" or "k" or .* or "layers"'):
        config.read(None, {"SELFAUG_ALIGN": "mlp"})


def test_a_cache_is_refused_before_training_begins(tmp_path):
    with settings(SELFAUG_ALIGN="q", SELFAUG_CACHE=str(tmp_path)):
        with pytest.raises(config.SettingError, match=r"SELFAUG_ALIGN=q and SELFAUG_CACHE exclude each other"):
            with_lora(base())  # sets it to train
        with settings(SELFAUG="0"):
            with_lora(base())(**batch()).loss.backward()
    model = base()
    model.config.selfaug = {"align": "q", "reference_cache": str(tmp_path)}
    with pytest.raises(
        config.SettingError, match=r'model\.config\.selfaug\["align"\]=q and .*\["reference_cache"\] excl'
    ):
        model.train()
    model.config.selfaug = {"align": "logits", "reference_cache": str(tmp_path)}
    model.train()


def test_a_target_for_the_kl_is_refused_since_the_term_is_none():
    given = {"SELFAUG_ALIGN": "ffn", "SELFAUG_TARGET_KL": "0.1"}
    with pytest.raises(
        config.SettingError, match="SELFAUG_TARGET_KL follows a KL, and the term of SELFAUG_ALIGN=ffn is"
    ):
        config.read(None, given)
    assert config.read(None, {**given, "SELFAUG": "0"}).align == "ffn"


def reentrant(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("align", ["q", "attention", "ffn"])
@pytest.mark.parametrize("way", [{}, {"return_dict": False}], ids=["own way", "around"])
def test_reentrant_checkpointing_is_refused(align, way):
    model, data = reentrant(with_lora(base())), {**batch(), **way}
    refused(model, align, "gradients are disabled", "use_reentrant=True", '{"use_reentrant": False}', data=data)
    model(**data)[0].backward()  # the KL has no such limit


def test_layers_under_reentrant_checkpointing_are_refused_or_right():
    """In recent transformers a layer's hooks run outside the checkpoint, where its output has a gradient."""
    tuned, untouched = pair()
    wanted = expected(tuned, untouched, batch(), "layers")
    reentrant(tuned)
    with settings(SELFAUG_ALIGN="layers"):
        try:
            found = act(tuned, batch())
        except config.SettingError:
            refused(tuned, "layers", "use_reentrant=True")
            return
    assert found[0] == pytest.approx(wanted[0], rel=1e-9)
    assert worst_error(found[2], wanted[2]) < 1e-9


def test_a_family_with_q_k_and_v_in_one_product_is_refused_by_what_it_has():
    model = with_lora(other("phi3", "Phi3"), target_modules=["qkv_proj", "o_proj"])
    refused(model, "k", "Looked for: k_proj.", "self_attn.qkv_proj", "q, k and v are one product",
            "(logits, o, ffn, layers)")  # fmt: skip
    refused(model, "attention", "Looked for: q_proj, k_proj, v_proj, o_proj.", "Phi3ForCausalLM")
    with settings(SELFAUG_ALIGN="o"):
        assert act(model, batch())[1]["selfaug/mse"] > 1e-6


def test_a_family_whose_modules_have_other_names_is_refused():
    model = with_lora(other("gpt_neox", "GPTNeoX"), target_modules=["query_key_value"])
    refused(model, "o", "Looked for: o_proj.", "attention.dense", "(logits, ffn, layers)")


def test_a_family_whose_layers_differ_is_refused_by_the_layer_that_lacks_one():
    model = with_lora(base())
    del model.get_base_model().model.layers[1].mlp
    with pytest.raises(config.SettingError, match=r"Looked for: mlp\. Found: in layer 1 of Qwen2ForCausalLM"):
        features.modules_of(model.get_base_model(), "ffn")


def test_a_decoder_without_a_list_of_layers_is_refused():
    model = with_lora(base())
    decoder = model.get_base_model().model
    decoder.blocks = decoder._modules.pop("layers")
    with pytest.raises(config.SettingError, match=r"Looked for: layers\. Found: no list of layers named `layers`"):
        features.modules_of(model.get_base_model(), "layers")


@pytest.mark.parametrize(
    ("reshape", "shape"), [(lambda x: x.flatten(0, 1), "[(33, 32)]"), (lambda x: x.view(1, -1, 32), "[(1, 33, 32)]")]
)
def test_a_module_that_returns_tokens_without_their_rows_is_refused(reshape, shape):
    model = with_lora(base())
    attention = model.get_base_model().model.layers[0].self_attn
    project = attention.q_proj.forward
    attention.q_proj.forward = lambda x: reshape(project(x))
    refused(model, "q", "one output of layer 0 self_attn.q_proj", "(3 rows, 7 to 11 positions, features)", shape)


def test_a_module_that_is_called_twice_is_refused():
    model = with_lora(base())
    layer = model.get_base_model().model.layers[0]
    block = layer.mlp.forward

    def with_another_call(x):
        layer.self_attn.q_proj(x)
        return block(x)

    layer.mlp.forward = with_another_call
    refused(model, "q", "one output of layer 0 self_attn.q_proj", "[(3, 11, 32), (3, 11, 32)]")


@pytest.mark.parametrize("how", ["sharded", "tensor parallel"])
def test_a_model_that_is_spread_over_processes_is_refused(how, monkeypatch):
    model = with_lora(base())
    if how == "sharded":
        monkeypatch.setattr(features, "is_sharded", lambda model: True)
    else:
        model.get_base_model()._tp_size = 2
    refused(model, "layers", "spread over processes")


def test_a_compiled_decoder_has_the_term_and_one_that_was_called_before_is_refused():
    tuned, untouched = pair(base(num_hidden_layers=1))
    inner = tuned.get_base_model()
    inner.model = torch.compile(inner.model, backend="eager")
    loss, _, gradients = expected(tuned, untouched, batch(), "attention")
    torch._dynamo.reset()
    with settings(SELFAUG_ALIGN="attention"):
        found = act(tuned, batch())
    assert found[0] == pytest.approx(loss, rel=1e-9)
    assert worst_error(found[2], gradients) < 1e-9
    torch._dynamo.reset()
    act(tuned, batch())
    refused(tuned, "attention", "torch.compile", "Found: none")
    torch._dynamo.reset()


def test_a_compiled_decoder_keeps_its_hooks_over_micro_batches_without_the_term():
    found = []
    for compiled in (False, True):
        tuned, _ = pair(base(num_hidden_layers=1))
        torch._dynamo.reset()
        if compiled:
            tuned.get_base_model().model = torch.compile(tuned.get_base_model().model, backend="eager")
        with settings(SELFAUG_ALIGN="attention", SELFAUG_EVERY="3"):
            found.append([act(tuned, batch())[0] for _ in range(6)])
    torch._dynamo.reset()
    assert len({round(loss, 6) for loss in found[0]}) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-6)
