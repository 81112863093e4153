"""Tests see this checkout's Code/ as `selfaug` and, where torch is installed, patched transformers and peft: patched
in memory, so that nothing is written into the environment that the tests run in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runtime")]

import not_proved  # noqa: E402

from selfaug_patcher import families, memory, pins  # noqa: E402
from selfaug_patcher.maintain import wheels  # noqa: E402

for name in [name for name in os.environ if name.startswith("SELFAUG")]:
    if name not in ("SELFAUG_WHEEL_CACHE", "SELFAUG_PROVE_ALL"):  # those are about the tests themselves
        del os.environ[name]
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What started the tests may ignore signals (`nohup`, a shell's background job), and a program that is started inherits
# that, a handler it does not: so these tests go on ignoring such a signal, and whatever they start has the default.
for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def _patched() -> dict[str, tuple[str, bytes]]:
    """Module name to (path, patched source) for whichever of the two packages is installed."""
    table = pins.load()
    sources = {}
    for target in families.targets():
        package = importlib.util.find_spec(target.package)
        if package is None or package.origin is None:
            continue
        path = Path(package.origin).parent.parent / target.path
        if not path.exists():  # a family that this release does not have
            continue
        stock = path.read_bytes()
        pin = table.by_stock(target.name, hashlib.sha256(stock).hexdigest())
        if pin is None and target not in (families.MODELS[0], families.LAYER):
            continue  # proved for other releases
        assert pin is not None, f"{path} is not stock: the tests need stock packages of a pinned release"
        sources[target.module] = (str(path), table.patched(target, stock))
    return sources


memory.install(_patched(), {"selfaug": str(ROOT / "Code")})


def pytest_terminal_summary(terminalreporter) -> None:
    """What tests had to report, by `record_property`: numbers that are wanted even where everything passes.

    Properties come with the reports of the tests, so that it makes no difference how many processes ran them.
    """
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [each for report in reports if getattr(report, "when", "") == "call" for each in report.user_properties]
    proved, missing = ({value for name, value in told if name == word} for word in ("proved", "not proved"))
    if proved or missing:
        no = f"; {len(missing)} not: no wheel in {wheels.cache()} (SELFAUG_PROVE_ALL=1 fetches them)" if missing else ""
        terminalreporter.write_line(f"pins: {len(proved)} of {len(proved | missing)} proved from real files{no}")
    for line in sorted(value for name, value in told if name == "told"):
        terminalreporter.write_line(line)
    skipped = terminalreporter.stats.get("skipped", [])
    missing_line = not_proved.line(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    if missing_line:
        terminalreporter.write_line(missing_line)


@pytest.fixture
def said(monkeypatch):
    """The texts of SelfAug's warnings in this test, as Python would show them."""
    from selfaug.trainers import bypass

    found = []

    def show(message, category, *where, **how):
        if issubclass(category, bypass.BypassWarning):
            found.append(str(message))

    monkeypatch.setattr(warnings, "showwarning", show)
    return found


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a random Qwen2 of two layers with a tokenizer of single bytes and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-qwen2")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["llama", "qwen3"])
def tiny_other_model(tiny_model, tmp_path_factory, request):
    """The folder of a random Llama or Qwen3, with the tokenizer and the sizes of :func:`tiny_model`."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(f"tiny-{request.param}")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    own = AutoConfig.from_pretrained(tiny_model)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names = (*names, "num_key_value_heads", "eos_token_id", "pad_token_id", "bos_token_id")
    config = AutoConfig.for_model(request.param, **{name: getattr(own, name) for name in names})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
