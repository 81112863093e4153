"""What each trainer library does to the forward, the labels or the loss, reproduced by name of its file and function:
the term reaches the gradient, or the user is told who passed it by.

The libraries themselves run in `nox -s trainers` (trl_stack.py).
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import MethodType

import pytest
import torch
from test_trainer import Rows
from tiny import base, batch, settings, taken_gradients, with_lora, worst_error
from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from selfaug import padding
from selfaug.trainers import bypass, metrics


@pytest.fixture(autouse=True)
def alone(said):
    """No test has sums or warnings of another."""
    metrics.RUNNING.clear()


def is_documented(message):
    """Whether docs/trainers.md shows this message, whatever the files and lines in it."""
    page = (Path(__file__).parent.parent.parent / "docs" / "trainers.md").read_text(encoding="utf-8")
    message, page = (re.sub(r"\(\S+:\d+\)", "(FILE)", " ".join(text.split())) for text in (message, page))
    return message in page


def plain(data=None, **extra):
    """(loss, gradients) of the stock forward with SelfAug."""
    model = with_lora(base())
    output = model(**(data or batch()), **extra)
    output.loss.backward()
    return output.loss.item(), taken_gradients(model)


def stock_gradients(run):
    with settings(SELFAUG="0"):
        return run()


def check(loss, model, wanted):
    loss.backward()
    assert loss.item() == pytest.approx(wanted[0], rel=1e-5)
    assert worst_error(taken_gradients(model), wanted[1]) < 1e-4
    assert metrics.RUNNING.take()["selfaug/kl"] > 1e-4


# ms-swift 4.6.0: swift/trainers/mixin.py:prepare_logits_to_keep, swift/template/base.py:compute_sft_loss


def swift_inputs(data):
    """The cut that ``use_logits_to_keep`` makes, in its two forms."""
    labels = data["labels"]
    if labels.shape[0] == 1:
        kept = (labels != -100)[0]
        cut = torch.nn.functional.pad(labels[:, kept], (1, 0), value=-100)
        return {**data, "labels": cut, "logits_to_keep": torch.nn.functional.pad(kept[1:], (0, 1), value=True)}
    k = labels.shape[-1] - int((labels != -100).int().argmax(-1).min()) + 1
    return {**data, "labels": labels[:, -k:], "logits_to_keep": k}


def swift_loss(model, inputs, num_items):
    outputs = model(**inputs)
    return outputs.loss * ((inputs["labels"][:, 1:] != -100).sum() / num_items)


@pytest.mark.parametrize("rows", [1, 3], ids=["bool mask", "int suffix"])
@pytest.mark.parametrize("cut", [True, False], ids=["use_logits_to_keep", "whole"])
def test_ms_swift_acts_with_and_without_its_cut_labels(rows, cut):
    data = {name: value[-rows:] for name, value in batch(padding=None).items()}
    n = int((data["labels"][:, 1:] != -100).sum())
    wanted = plain(data)
    metrics.RUNNING.clear()
    model = with_lora(base())
    loss = swift_loss(model, swift_inputs(data) if cut else data, n)
    check(loss, model, wanted)


# LLaMA-Factory 0.9.5: llamafactory/data/collator.py:prepare_4d_attention_mask, neat_packing


def neat_packed():
    """One row of three documents; segment ids 1, 2, 3, 0 at padding."""
    data = batch(padding=None)
    ids, labels = (torch.nn.functional.pad(data[n].reshape(1, -1), (0, 3), value=v) for n, v in
                   (("input_ids", 0), ("labels", -100)))  # fmt: skip
    segments = torch.tensor([[1] * 11 + [2] * 11 + [3] * 11 + [0] * 3])
    return ids, labels, segments


def test_llama_factory_neat_packing_gives_the_term_of_the_documents_alone():
    ids, labels, segments = neat_packed()
    same = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] != 0)
    mask = torch.where(same & torch.ones(36, 36).tril().bool(), 0.0, torch.finfo(torch.float32).min)[:, None]
    position_ids = torch.cat((torch.arange(11).repeat(3), torch.zeros(3).long()))[None]
    model = with_lora(base())
    with settings(SELFAUG_REDUCTION="sequence"):
        wanted = plain(batch(padding=None))
        metrics.RUNNING.clear()
        output = model(input_ids=ids, labels=labels, attention_mask=mask, position_ids=position_ids)
        check(output.loss, model, wanted)


def test_segment_ids_in_a_two_dimensional_mask_count_as_real_tokens():
    """The form that neat_packing hands to FlashAttention: its kernel, not the mask, keeps documents apart."""
    _, labels, segments = neat_packed()
    assert torch.equal(padding.real_tokens(segments, labels), segments != 0)


# Liger 0.8.5: liger_kernel/transformers/model/qwen2.py:lce_forward; class before load, instance after


def liger_forward(
    self, input_ids=None, attention_mask=None, position_ids=None, labels=None, logits_to_keep=0, skip_logits=None,
    **kwargs,
):  # fmt: skip
    outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
    hidden = outputs[0]
    skip_logits = self.training and labels is not None if skip_logits is None else skip_logits
    assert skip_logits
    logits = torch.nn.functional.linear(hidden[:, :-1], self.lm_head.weight).flatten(0, 1)  # the fused kernel's sum
    items = kwargs.get("num_items_in_batch")
    loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum" if items else "mean")
    found = CausalLMOutputWithPast(loss=loss / items if items else loss, logits=None)
    found["token_accuracy"] = torch.tensor(0.5)
    return found


@pytest.mark.parametrize("items", [None, 40])
@pytest.mark.parametrize("level", ["class", "instance"])
def test_liger_acts_at_the_class_and_at_the_instance(level, items, monkeypatch):
    extra = {} if items is None else {"num_items_in_batch": items}
    wanted = plain(**extra)
    if level == "class":
        monkeypatch.setattr(Qwen2ForCausalLM, "forward", liger_forward)
    model = with_lora(base())
    if level == "instance":
        inner = model.get_base_model()
        inner.forward = MethodType(liger_forward, inner)
    assert "skip_logits" in inspect.signature(model.get_base_model().forward).parameters
    metrics.RUNNING.clear()
    output = model(**batch(), **extra)
    assert output["token_accuracy"] == 0.5
    check(output.loss, model, wanted)


# The HF Trainer and losses of one's own


class Run(Trainer):
    """One or two steps; gradients of the last one."""

    def training_step(self, model, *args, **kwargs):
        found = super().training_step(model, *args, **kwargs)
        self.found = {n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None}
        return found


def run(tmp_path, cls=Run, steps=1, model=None, compute_loss_func=None, **arguments):
    extra = {"compute_loss_func": compute_loss_func} if compute_loss_func else {}
    trainer = cls(
        model or with_lora(base()),
        TrainingArguments(tmp_path, max_steps=steps, logging_steps=1, report_to=[], save_strategy="no",
                          disable_tqdm=True, use_cpu=True, label_names=["labels"],
                          **{"per_device_train_batch_size": 4, **arguments}),
        train_dataset=Rows(),
        **extra,
    )  # fmt: skip
    trainer.train()
    return trainer


def mean_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("how", ["label smoothing", "compute_loss_func"])
def test_a_trainer_that_keeps_the_labels_gets_the_term_all_the_same(tmp_path, how, said):
    """The stock loss of such a trainer plus alpha * KL: what the plain trainer's gradients differ by."""
    options = {"label_smoothing_factor": 0.1} if how == "label smoothing" else {"compute_loss_func": mean_loss}
    with_term, without = run(tmp_path).found, stock_gradients(lambda: run(tmp_path).found)
    term = {n: with_term[n] - without[n] for n in without}
    stock = stock_gradients(lambda: run(tmp_path, **options).found)
    metrics.RUNNING.clear()
    trainer = run(tmp_path, **options)
    # label smoothing makes a mean of the micro-batch, which here is the whole batch
    assert worst_error(trainer.found, {n: stock[n] + term[n] for n in stock}) < 1e-3
    assert trainer.state.log_history[0]["selfaug/kl"] > 1e-4
    assert said == []


class Swift(Run):
    """ms-swift's Seq2SeqTrainer: it cuts the labels, and for its dft and weighted losses takes them from the model."""

    cut, scale = True, False

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if self.scale:
            inputs["loss_scale"] = (inputs["labels"] != -100).float()
        return swift_inputs(inputs) if self.cut else inputs

    def compute_loss(self, model, inputs, num_items_in_batch=None, **kwargs):
        if inputs.pop("loss_scale", None) is None:
            return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch, **kwargs)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("rows", [1, 4], ids=["bool mask", "int suffix"])
@pytest.mark.parametrize("how", ["label smoothing", "loss_scale"])
def test_ms_swift_acts_where_it_cuts_the_labels_and_keeps_them_too(tmp_path, how, rows, said):
    class Whole(Swift):
        cut = False
        scale = how == "loss_scale"

    class Cut(Swift):
        scale = how == "loss_scale"

    class Plain(Swift):
        cut = False

    def one(cls, **arguments):
        smoothing = {"label_smoothing_factor": 0.1} if how == "label smoothing" and cls is not Plain else {}
        return run(tmp_path, cls, per_device_train_batch_size=rows, **smoothing, **arguments)

    with_term, without = one(Plain).found, stock_gradients(lambda: one(Plain).found)
    term = {n: with_term[n] - without[n] for n in without}
    stock = stock_gradients(lambda: one(Whole).found)
    metrics.RUNNING.clear()
    cut = one(Cut)
    assert worst_error(cut.found, {n: stock[n] + term[n] for n in stock}) < 1e-3
    metrics.RUNNING.clear()
    whole = one(Whole)
    for name in ("selfaug/kl", "selfaug/nll"):
        assert cut.state.log_history[0][name] == pytest.approx(whole.state.log_history[0][name], rel=1e-5)
    assert said == []


class OwnLoss(Run):
    """LLaMA-Factory's asft, unsloth's patched step: a loss made without a forward that SelfAug knows of."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        inner = model.get_base_model()
        logits = inner.lm_head(inner.model(inputs["input_ids"])[0])
        return mean_loss({"logits": logits}, inputs["labels"], 1)


def test_a_trainer_that_goes_past_the_model_is_told_with_the_forward_that_ran(tmp_path, said):
    run(tmp_path, OwnLoss, steps=3)
    assert len(said) == 1
    assert "no step goes through SelfAug: OwnLoss computed its loss without it" in said[0]
    assert "OwnLoss.compute_loss (" in said[0]
    assert "Qwen2ForCausalLM.forward (" in said[0]
    assert "set SELFAUG=0" in said[0]
    assert is_documented(said[0])


def test_with_strict_the_same_is_an_error(tmp_path):
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="OwnLoss computed its loss without it"):
        run(tmp_path, OwnLoss, steps=3)


def no_loss(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
    return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids)[0]))


def test_a_forward_without_a_loss_is_told(said):
    model = with_lora(base())
    inner = model.get_base_model()
    inner.forward = MethodType(no_loss, inner)
    model(**batch())
    assert len(said) == 1
    assert "a forward returned without a loss that the term could be added to" in said[0]
    assert "no_loss (" in said[0]
    assert is_documented(said[0])


def test_losses_that_nobody_uses_are_told(said):
    model = with_lora(base())
    for _ in range(bypass.UNUSED + 2):
        model(**batch())
    assert len(said) == 1
    assert "the losses that the model returned were never backpropagated" in said[0]
    assert is_documented(said[0])


def test_losses_that_are_added_up_before_one_backward_are_no_false_alarm(said):
    model = with_lora(base())
    with settings(SELFAUG_STRICT="1"):
        for _ in range(2):
            sum(model(**batch()).loss for _ in range(2 * bypass.UNUSED)).backward()
    assert said == []


def test_strict_stays_strict_after_good_steps_and_after_the_first_error(tmp_path):
    model = with_lora(base())
    with settings(SELFAUG_STRICT="1"):
        run(tmp_path, steps=2, model=model)
        for _ in range(2):
            with pytest.raises(bypass.BypassError, match="OwnLoss computed its loss without it"):
                run(tmp_path, OwnLoss, steps=3, model=model)
        inner = model.get_base_model()
        inner.forward = MethodType(no_loss, inner)
        for _ in range(2):
            with pytest.raises(bypass.BypassError, match="SELFAUG_STRICT=1 makes this an error"):
                model(**batch())


def test_each_model_is_told_for_itself(tmp_path, said):
    run(tmp_path, steps=2)
    for _ in range(2):
        run(tmp_path, OwnLoss, steps=3)
    assert len(said) == 2


def replica(model):
    """What nn.DataParallel calls (torch/nn/parallel/replicate.py): copies whose weights are tensors, not parameters."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            copy._modules[name] = copies[child]
        for name, parameter in module._parameters.items():
            setattr(copy, name, parameter if parameter is None else parameter * 1)
    return copies[model]


def test_data_parallel_is_told_once_with_what_to_start_instead(said):
    model = with_lora(base())
    for _ in range(3):
        replica(model)(**batch())
    assert len(said) == 1
    assert is_documented(said[0])
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="torchrun"):
        replica(model)(**batch())


def test_a_replica_without_lora_or_with_lora_off_is_told_nothing(said):
    model = with_lora(base())
    with settings(SELFAUG_STRICT="1"):
        replica(base().train())(**batch())
        with model.disable_adapter():
            replica(model)(**batch())
    assert said == []


def test_a_trainer_that_goes_past_the_replicas_too_is_told(said):
    model = torch.nn.DataParallel(with_lora(base()))
    for _ in range(bypass.MISSED + 1):
        bypass.count_missed_call(model, object.__new__(OwnLoss))
    assert len(said) == 1
    assert "OwnLoss computed its loss without it" in said[0]


def test_losses_that_are_only_looked_at_after_good_steps_are_no_false_alarm(said):
    model = with_lora(base())
    with settings(SELFAUG_STRICT="1"):
        model(**batch()).loss.backward()
        for _ in range(2 * bypass.UNUSED):
            assert model(**batch()).loss.item() > 0
    assert said == []


class Preferences(Run):
    """DPO, KTO, GRPO: log-probabilities of an objective of another kind; no labels in the trainer's inputs."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        logits = model(input_ids=inputs["input_ids"]).logits.log_softmax(-1)
        return -logits.gather(-1, inputs["input_ids"].unsqueeze(-1)).mean()


class Unlabelled(Rows):
    def __getitem__(self, i):
        return {"input_ids": self.data["input_ids"][i], "chosen": self.data["labels"][i]}


def test_there_is_no_false_alarm_without_labels(tmp_path, said):
    arguments = TrainingArguments(tmp_path, max_steps=3, report_to=[], save_strategy="no", disable_tqdm=True,
                                  use_cpu=True, remove_unused_columns=False)  # fmt: skip
    with settings(SELFAUG_STRICT="1"):
        Preferences(with_lora(base()), arguments, train_dataset=Unlabelled()).train()
    assert said == []


def test_there_is_no_false_alarm_in_evaluation_generation_and_inference(said):
    model = with_lora(base()).eval()
    data = batch(padding=None)
    with settings(SELFAUG_STRICT="1"):
        for _ in range(bypass.UNUSED + 2):
            model(**data)
            with torch.no_grad():
                model(**data)
            model(input_ids=data["input_ids"]).logits.sum().backward()
        model.generate(input_ids=data["input_ids"][:, :4], max_new_tokens=3)
        model.train()
        for _ in range(bypass.UNUSED + 2):
            model(input_ids=data["input_ids"]).logits.sum().backward()  # DPO by hand
    assert said == []


def test_evaluation_between_steps_is_no_false_alarm(tmp_path, said):
    model = with_lora(base())
    trainer = run(tmp_path, steps=2, model=model)
    for _ in range(3):
        trainer.evaluate(Rows())
    assert said == []


# Layouts that need no second process


@pytest.mark.parametrize("prefetched", [False, True])
def test_a_head_that_zero3_has_partitioned_is_called_once(prefetched):
    """DeepSpeed ZeRO-3: a weight with a ds_id, filled by a hook before the module's forward (or earlier: prefetched)
    and emptied after it (parameter_offload.py; `tests/distributed/deepspeed_run.py` runs it).
    """
    wanted = plain()
    model = with_lora(base())
    head = model.get_base_model().lm_head
    whole, gathered = head.weight.data, []
    head.weight.ds_id = 7
    if not prefetched:
        head.weight.data = torch.empty(0)

    def gather(module, args):
        gathered.append(1)
        module.weight.data = whole

    def release(module, args, output):
        module.weight.data = torch.empty(0)
        return output

    head.register_forward_pre_hook(gather)
    head.register_forward_hook(release)
    metrics.RUNNING.clear()
    with settings(SELFAUG_CHUNK_SIZE="3"):
        output = model(**batch())
    assert gathered == [1]
    check(output.loss, model, wanted)
    assert "forward" not in vars(head)


def test_deepspeed_walks_the_output_and_makes_no_logits(monkeypatch):
    """deepspeed/runtime/zero/utils.py:apply_to_tensors_only, after every module's forward."""
    walk = {"__name__": "deepspeed.runtime.zero.utils"}
    exec("def walked(value):\n    for key in value.keys():\n        value[key] = value[key]", walk)
    output = with_lora(base())(**batch())
    head = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *args: pytest.fail("logits were made"))
    walk["walked"](output)
    monkeypatch.setattr(torch.nn.Linear, "forward", head)
    assert output.logits.shape == (3, 11, 61)


def test_activation_offloading_gives_the_same_gradients():
    wanted = plain()
    model = with_lora(base())
    metrics.RUNNING.clear()
    with torch.autograd.graph.save_on_cpu():
        output = model(**batch())
    check(output.loss, model, wanted)


def test_a_quantised_linear_layer_obeys_the_switch():
    """What bitsandbytes, GPTQ, AWQ, … have in common: a weight that is no matrix, and a forward of their own."""

    class Packed(torch.nn.Linear):
        def forward(self, x):
            assert self.weight.dtype == torch.int8
            return torch.nn.functional.linear(x, self.weight.to(x) * self.scale)

    wanted_of = base()
    scale = {}
    for name, module in wanted_of.named_modules():
        if name.endswith("proj"):
            scale[name] = module.weight.abs().max() / 127
            module.weight.data = (module.weight.data / scale[name]).round() * scale[name]
            module.bias = None
    packed = base()
    packed.load_state_dict(wanted_of.state_dict(), strict=False)
    for name, module in packed.named_modules():
        if name.endswith("proj"):
            module.bias = None
            module.weight = torch.nn.Parameter((module.weight.data / scale[name]).round().to(torch.int8), False)
            module.scale = scale[name]
            module.__class__ = Packed
    reference = with_lora(wanted_of)
    output = reference(**batch())
    output.loss.backward()
    wanted = output.loss.item(), taken_gradients(reference)
    model = with_lora(packed, autocast_adapter_dtype=True)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = reference.get_parameter(name).data.clone().float().requires_grad_(True).data
    metrics.RUNNING.clear()
    check(model(**batch()).loss, model, wanted)
