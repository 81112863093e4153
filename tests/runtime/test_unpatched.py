"""LoRA that trains a model whose class is not patched is noticed by the patched peft, and only such LoRA."""

from __future__ import annotations

import copy
import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny import base, batch, settings, with_lora
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DiffLlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from selfaug import unpatched
from selfaug.trainers import bypass

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_PATCH = (
    "SelfAug is on and LoRA trains DiffLlamaForCausalLM on labels, but this class is not patched: SelfAug has no patch "
    "for transformers.models.diffllama.modeling_diffllama. The model trains on its stock loss. Train a model of "
    "another family (`python -m selfaug_patcher status` lists them), or set SELFAUG=0 to train without SelfAug on "
    "purpose."
)


def diff_llama(cls=DiffLlamaForCausalLM, **options):
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"])
    model = get_peft_model(cls(DiffLlamaConfig(pad_token_id=0, **SIZES)), config)
    return model.train()


def steps(model, count=3, **data):
    for _ in range(count):
        model(**{**batch(), **data}).loss.backward()


def test_a_plain_loop_on_another_family_is_told_once_at_the_first_step(said):
    model = diff_llama()
    model(**batch()).loss.backward()
    assert said == [NO_PATCH]
    steps(model)
    assert len(said) == 1


def test_the_loss_and_the_gradient_stay_those_of_a_model_without_the_look(said, monkeypatch):
    model = diff_llama()
    loss = model(**batch()).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    monkeypatch.setattr(unpatched, "check_model", None)
    monkeypatch.setattr(unpatched, "CAN_TELL", False)
    other = diff_llama()
    expected = other(**batch()).loss
    expected.backward()
    assert torch.equal(loss, expected)
    assert found
    assert all(torch.equal(p.grad, found[name]) for name, p in other.named_parameters() if p.grad is not None)


def test_positional_labels_are_labels(said):
    data = batch()
    base_model = diff_llama().base_model.model
    base_model(data["input_ids"], labels=data["labels"]).loss.backward()
    assert said == [NO_PATCH]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_does_not_hide_it(said, reentrant):
    model = diff_llama()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    steps(model)
    assert said == [NO_PATCH]


def test_strict_is_an_error_at_every_step():
    model = diff_llama()
    with settings(SELFAUG_STRICT=1):
        for _ in range(2):
            with pytest.raises(
                bypass.BypassError, match=r"SELFAUG_STRICT=1 makes this an error\. Train a model of another family"
            ):
                model(**batch())


def quiet(name, do):
    return pytest.param(do, id=name)


QUIET = [
    quiet("evaluation", lambda: diff_llama().eval()(**batch())),
    quiet("no labels", lambda: diff_llama()(batch()["input_ids"]).logits.sum().backward()),
    quiet("generate", lambda: diff_llama().generate(input_ids=batch()["input_ids"][:1, :4], max_new_tokens=3)),
    quiet("no LoRA", lambda: steps(DiffLlamaForCausalLM(DiffLlamaConfig(**SIZES)).train())),
    quiet("patched", lambda: steps(with_lora(base()))),
]


@pytest.mark.parametrize("do", QUIET)
def test_nothing_is_said(said, do):
    do()
    assert [text for text in said if "not patched" in text] == []


def test_nothing_is_said_without_gradient_without_selfaug_with_frozen_lora_or_with_alpha_0(said):
    with torch.no_grad():
        steps_without_backward = diff_llama()
        steps_without_backward(**batch())
    for variables in ({"SELFAUG": 0}, {"SELFAUG_ALPHA": 0}):
        with settings(**variables):
            steps(diff_llama())
    frozen = diff_llama()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    frozen(**batch())
    assert said == []


def test_a_classifier_and_an_encoder_decoder_are_no_language_models_of_this_kind(said):
    model = diff_llama(DiffLlamaForSequenceClassification)
    model(input_ids=batch()["input_ids"], labels=torch.tensor([0, 1, 0])).loss.backward()
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )
    t5 = get_peft_model(t5, LoraConfig(target_modules=["q", "v"])).train()
    t5(input_ids=batch()["input_ids"], labels=batch()["input_ids"]).loss.backward()
    assert said == []


def test_labels_that_come_after_steps_without_them_are_noticed(said):
    model = diff_llama()
    for _ in range(3):
        model(batch()["input_ids"]).logits.sum().backward()
    with torch.no_grad():
        model(**batch())
    steps(model, 1)
    assert said == [NO_PATCH]


def test_reading_the_switch_of_every_layer_before_training_hides_nothing(said):
    model = diff_llama()
    for module in model.modules():
        getattr(module, "disable_adapters", None)
    steps(model, 1)
    assert said == [NO_PATCH]


def test_one_model_being_quiet_does_not_hide_another(said):
    other = diff_llama()
    other(batch()["input_ids"]).logits.sum().backward()
    steps(with_lora(base()), 1)
    said.clear()
    steps(diff_llama(), 1)
    assert said == [NO_PATCH]


def test_one_layer_of_a_model_looks_once_per_forward_and_none_of_a_patched_one(monkeypatch, said):
    asked = []
    real = unpatched.check_model
    monkeypatch.setattr(unpatched, "check_model", lambda layer: asked.append(layer) or real(layer))
    model = diff_llama()
    for _ in range(3):
        model(batch()["input_ids"])
    assert len(asked) == 3
    assert len(set(map(id, asked))) == 1
    steps(model)
    assert len(asked) == 6
    asked.clear()
    steps(with_lora(base()))
    assert len(asked) == 1


class Wrapped(DiffLlamaForCausalLM):
    """A user's own class, whose forward takes the labels in its keywords."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_users_own_subclass_is_named_with_the_module_that_would_have_to_be_patched(said):
    steps(diff_llama(Wrapped), 1)
    assert said == [NO_PATCH.replace("DiffLlamaForCausalLM", "Wrapped")]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_hf_trainer_is_told_also_where_it_keeps_the_labels(said, tmp_path, smoothing):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=1, report_to=[], use_cpu=True,
        label_smoothing_factor=smoothing,
    )  # fmt: skip
    rows = [{name: value[row] for name, value in batch().items()} for row in range(3)]
    Trainer(diff_llama(), arguments, train_dataset=rows).train()
    assert [text for text in said if "not patched" in text] == [NO_PATCH]


def test_torch_compile_in_one_graph_still_works(said):
    model = diff_llama()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    data = batch()
    loss = compiled(**data).loss
    assert torch.equal(loss, diff_llama()(**data).loss)


def test_lora_layers_are_copied_pickled_and_known_by_class_as_before():
    from peft.tuners.lora.layer import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next(module for module in diff_llama().modules() if isinstance(module, Linear))
    assert isinstance(layer, LoraLayer)
    assert isinstance(layer, BaseTunerLayer)
    assert "adapter_layer_names" in vars(LoraLayer)
    assert LoraLayer.disable_adapters is not BaseTunerLayer.disable_adapters
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    pickled = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(layer), pickled):
        assert vars(other).keys() == vars(layer).keys()
        assert not [name for name in vars(other) if "selfaug" in name]
        x = torch.ones(1, layer.in_features)
        assert torch.equal(other(x), layer(x))
    layer._disable_adapters = True
    assert layer.disable_adapters is True


def test_a_class_of_the_users_beside_lora_layer_keeps_its_own_init_subclass():
    from peft.tuners.lora.layer import LoraLayer

    seen = []

    class Noting:
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__()
            seen.append((cls.__name__, kwargs))

    type("Mine", (torch.nn.Module, LoraLayer, Noting), {}, word=1)
    assert seen == [("Mine", {"word": 1})]


# What a process sees that has imported one of the two packages before `install`, or whose transformers was upgraded:
# stock classes in memory, and on disk a patched or a newer file, with SelfAug's record beside it.
@pytest.fixture
def site(tmp_path, monkeypatch):
    def put(name: str, text: str, version: str | None) -> None:
        package = name.split(".")[0]
        path = tmp_path / package / "models.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        monkeypatch.setattr(sys.modules[package], "__file__", str(path.parent / "__init__.py"))
        monkeypatch.setattr(sys.modules[name], "__file__", str(path))
        (tmp_path / ".selfaug").mkdir(exist_ok=True)
        target = {"transformers": "transformers:qwen2", "peft": "peft:lora"}[package]
        record = {"targets": {target: {"version": version}}} if version else {}
        (tmp_path / ".selfaug" / "receipt.json").write_text(json.dumps(record))

    return put


MARK = "# >>> SelfAug (arXiv 2509.03934), added by selfaug_patcher; undo: python -m selfaug_patcher revert\n"
QWEN2 = "transformers.models.qwen2.modeling_qwen2"
LAYER = "peft.tuners.lora.layer"
INSTALL = f"Run `python -m selfaug_patcher install --python {sys.executable}`"
SITUATIONS = {
    "imported before install": (
        MARK,
        "now",
        "this process had imported {} before SelfAug was installed",
        "Restart the",
    ),
    "upgraded": ("", "0.0.1", "{} was 0.0.1 when SelfAug was installed and is {now} now", INSTALL + " again"),
    "installed anew": ("", "now", "{} {now} was installed anew after SelfAug", INSTALL + " again"),
    "never installed": ("", None, "SelfAug was never installed for {} {now}", INSTALL),
}


@pytest.mark.parametrize("name", [QWEN2, LAYER])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_reason_and_the_command_are_those_of_the_situation(site, name, situation):
    text, version, reason, do = SITUATIONS[situation]
    package = name.split(".")[0]
    now = {"transformers": transformers, "peft": peft}[package].__version__
    site(name, text, now if version == "now" else version)
    cls = sys.modules[name].LoraLayer if package == "peft" else sys.modules[name].Qwen2ForCausalLM
    found = unpatched.why(cls)
    assert found[0] == reason.format(package, now=now)
    assert found[1].startswith(do)


def is_documented(message: str) -> bool:
    page = (Path(__file__).resolve().parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")
    message = message.replace(sys.executable, "…/bin/python")
    message = message.replace(transformers.__version__, "5.23.0").replace("0.0.1", "5.22.2")
    return " ".join(message.split()) in " ".join(page.split())


def test_the_page_shows_every_text_as_it_is_said(said, site, monkeypatch):
    steps(diff_llama(), 1)
    stock = type("Qwen2ForCausalLM", (DiffLlamaForCausalLM,), {"__module__": QWEN2})
    for text, version in ((MARK, None), ("", "0.0.1")):
        site(QWEN2, text, version)
        steps(diff_llama(stock), 1)
    site(LAYER, MARK, None)
    model = with_lora(base())
    for name in ("selfaug_reference", "disable_adapters"):
        monkeypatch.delattr(unpatched.ReferenceSwitch, name)
    steps(model, 1)
    assert len(said) == 4
    for message in said:
        assert is_documented(message), message


LATE = """
import sys, torch
sys.path[:0] = [{root!r}, {runtime_tests!r}]
import {early}
from selfaug_patcher import memory
import conftest
from tiny import base, batch, with_lora
model = with_lora(base())
for _ in range(3):
    model(**batch()).loss.backward()
"""


@pytest.mark.parametrize("early", [QWEN2, LAYER])
def test_a_process_that_had_one_package_imported_before_the_patch_hears_of_it(early):
    root = Path(__file__).resolve().parents[2]
    code = LATE.format(root=str(root / "tests"), runtime_tests=str(root / "tests" / "runtime"), early=early)
    code = code.replace("from selfaug_patcher", f"sys.path.insert(0, {str(root)!r})\nfrom selfaug_patcher")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if "SelfAug is on" in line]
    expected = "but this class is not patched" if early == QWEN2 else "peft's LoRA layers are not patched"
    assert len(told) == 1, result.stderr
    assert expected in told[0]


ALONE = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from selfaug_patcher import families, memory, pins
target = families.LAYER
path = Path(importlib.util.find_spec("peft").origin).parent.parent / target.path
memory.install({{target.module: (str(path), pins.load().patched(target, path.read_bytes()))}}, {{}})
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
assert importlib.util.find_spec("selfaug") is None
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 2)), LoraConfig(r=2, target_modules=["0"]))
layer = model.base_model.model[0].train()
layer.lora_B["default"].weight.data.fill_(1.0)
on = layer(torch.ones(1, 3))
layer._disable_adapters = True
print(LoraLayer.__bases__[0].__name__, torch.equal(on, layer(torch.ones(1, 3))), layer.disable_adapters)
"""


def test_a_shared_patched_peft_is_stock_in_an_environment_without_selfaug():
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", ALONE.format(root=root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert result.stdout == "ReferenceSwitch False True\n", result.stderr


def test_a_family_that_install_takes_by_name_is_named_in_the_command():
    module = "transformers.models.olmo2.modeling_olmo2"
    reason, do = unpatched.why(type("Olmo2ForCausalLM", (torch.nn.Module,), {"__module__": module}))
    assert reason == f"SelfAug was never installed for olmo2 of transformers {transformers.__version__}"
    assert do == f"Run `python -m selfaug_patcher install olmo2 --python {shlex.quote(sys.executable)}`"


def test_in_a_process_of_run_a_family_that_is_not_served_is_added_to_the_command(monkeypatch):
    """Who uses `run` may not be able to write: `install` is no advice."""
    monkeypatch.setenv("_SELFAUG_RUN", json.dumps({"families": ["qwen2", "llama"]}))
    module = "transformers.models.olmo2.modeling_olmo2"
    reason, do = unpatched.why(type("Olmo2ForCausalLM", (torch.nn.Module,), {"__module__": module}))
    assert reason == "`selfaug_patcher run` was told to patch qwen2, llama"
    assert do == "Start it with `python -m selfaug_patcher run --families qwen2,llama,olmo2`"


@pytest.mark.parametrize("told", ["", "{", "[]", '{"families": 1}', '{"families": []}'])
def test_what_run_never_said_is_not_taken_for_its_word(monkeypatch, told):
    monkeypatch.setenv("_SELFAUG_RUN", told)
    module = "transformers.models.olmo2.modeling_olmo2"
    reason, _ = unpatched.why(type("Olmo2ForCausalLM", (torch.nn.Module,), {"__module__": module}))
    assert reason.startswith("SelfAug was never installed for olmo2")


def test_a_class_that_no_family_patches_is_told_so_although_its_file_is_patched(site):
    patched = "class Qwen2ForCausalLM(SelfAligned, Base): ...\nclass Qwen2ForConditionalGeneration(Base): ...\n"
    site(QWEN2, MARK + patched, transformers.__version__)
    reason, do = unpatched.why(type("Qwen2ForConditionalGeneration", (torch.nn.Module,), {"__module__": QWEN2}))
    assert reason == "SelfAug has no patch for Qwen2ForConditionalGeneration"
    assert do.startswith("Train the ForCausalLM class of a family")


class Outer(DiffLlamaForCausalLM):
    """A model of images and text: it asks a language model inside it for logits, and makes the loss itself."""

    def __init__(self, config, inner):
        super().__init__(config)
        self.inner = inner

    def forward(self, input_ids, labels=None, attention_mask=None, **others):
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"loss": torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


def test_a_patched_model_without_labels_does_not_hide_the_one_around_it_that_has_them(said):
    outer = Outer(DiffLlamaConfig(**SIZES), base()).train()
    get_peft_model(outer.inner, LoraConfig(target_modules=["q_proj", "v_proj"]))
    for _ in range(3):
        outer(**batch())["loss"].backward()
    assert len(said) == 1
    assert "LoRA trains Outer on labels, but this class is not patched" in said[0]
