"""Real environments for tests/matrix.py: one for each release of transformers, over the packages that are here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from selfaug_patcher.maintain import wheels

# Trainer passes an argument to accelerate that 1.0 dropped; older accelerates need nothing else.
OLD_ACCELERATE = ("4.40", "accelerate==0.34.2")


class Failure(Exception):
    """A step that failed, and why, in one line."""


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("SELFAUG", "PYTHON", "HF_"))}
    keep.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**keep, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    if result.returncode:
        raise Failure(reason(result.stdout))
    return result.stdout


def reason(output: str) -> str:
    """What a command failed for, in one line: the first check that did not hold, or the last line with an error."""
    checks = re.findall(r"^FAIL +(.*(?:\n {6}.*)*)", output, re.MULTILINE)
    if checks:
        others = len(checks) - 1
        more = f" (and {others} more check{'s' * (others > 1)})" if others else ""
        return one_line(checks[0])[:400] + more
    lines = [line.strip() for line in output.split("\n") if line.strip()]
    telling = [line for line in lines if "Error" in line or line.startswith("error[")]
    return (telling or lines or ["no output"])[-1][:200]


def one_line(text: str) -> str:
    return "; ".join(" ".join(line.split()) for line in text.splitlines())


class Environments:
    """Virtual environments, one after the other, over the packages of the running interpreter."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.base = work / "base"
        self.python = Path()

    def create(self, transformers: str) -> None:
        """An environment with this release and all that it needs, peft apart."""
        folder = self.work / f"transformers-{transformers}"
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=False)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        wheel = wheels.fetch("transformers", transformers)
        site = Path(
            run([self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], self.work).strip()
        )
        extra = self._fitting(wheel, transformers)
        (site / "matrix.pth").write_text(f"{extra}\n{self._base()}\n")
        self.install(wheel)

    def install(self, wheel: Path) -> None:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        run([*pip, "--no-deps", "--no-compile", "--no-index", "--force-reinstall", wheel], self.work)

    def warm(self) -> None:
        """Compile once what the children of the patcher, which write no bytecode, import again and again."""
        with contextlib.suppress(Failure):
            code = "import transformers.models.qwen2.modeling_qwen2, peft, transformers.trainer"
            run([self.python, "-c", code], self.work)

    def remove(self) -> None:
        shutil.rmtree(self.python.parent.parent, ignore_errors=True)

    def _base(self) -> Path:
        """Links to what the running interpreter has, without the packages that each environment has for itself, and
        without datasets: the Trainer imports it where it is there, and it needs a huggingface-hub of its day."""
        own = {"transformers", "peft", "tokenizers", "huggingface_hub", "selfaug", "datasets"}
        if not self.base.is_dir():
            self.base.mkdir()
            for entry in Path(sysconfig.get_path("purelib")).iterdir():
                if entry.name.split("-")[0].lower() not in own and entry.suffix != ".pth":
                    (self.base / entry.name).symlink_to(entry)
        return self.base

    def _fitting(self, wheel: Path, version: str) -> Path:
        """A folder with the requirements of this release that the running interpreter does not meet."""
        missing = [str(requirement) for requirement in requirements(wheel) if not met(requirement)]
        key = "_".join(sorted(missing)).translate(str.maketrans(dict.fromkeys("<>=!~,; ", "-"))) or "nothing"
        old = Version(version) < Version(OLD_ACCELERATE[0])
        folder = self.work / (key + ("_accelerate" if old else ""))
        if not folder.is_dir():
            part = self.work / "part"  # so that an interrupted run leaves no folder that looks complete
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", part]
            if missing:
                run([*pip, *missing], self.work)
            if old:
                run([*pip, "--no-deps", OLD_ACCELERATE[1]], self.work)
            part.rename(folder)
        return folder


def requirements(wheel: Path) -> list[Requirement]:
    """What a wheel requires whatever the extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    found = [Requirement(line) for line in lines]
    return [part for part in found if part.marker is None or part.marker.evaluate({"extra": ""})]


def met(requirement: Requirement) -> bool:
    """By the links in the base folder, which hold neither tokenizers nor huggingface-hub."""
    if requirement.name.replace("-", "_") in ("tokenizers", "huggingface_hub"):
        return False
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def tiny_model(folder: Path) -> None:
    """A random Qwen2 with a tokenizer of single bytes, in the plain form that every release reads."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    hidden, middle, heads, key_heads, layers = 32, 48, 4, 2, 2
    vocabulary = {symbol: number for number, symbol in enumerate([*byte_symbols(), "<|endoftext|>"])}
    end = len(vocabulary) - 1
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": len(vocabulary),
        "hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32", "eos_token_id": end,
        "use_sliding_window": False, "initializer_range": 0.02, "attention_dropout": 0.0, "use_cache": True,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    key_size = hidden * key_heads // heads
    weights = {"model.embed_tokens.weight": (len(vocabulary), hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for letter, size in (("q", hidden), ("k", key_size), ("v", key_size)):
            weights[f"{name}.self_attn.{letter}_proj.weight"] = (size, hidden)
            weights[f"{name}.self_attn.{letter}_proj.bias"] = (size,)
        weights[f"{name}.self_attn.o_proj.weight"] = (hidden, hidden)
        weights[f"{name}.mlp.gate_proj.weight"] = weights[f"{name}.mlp.up_proj.weight"] = (middle, hidden)
        weights[f"{name}.mlp.down_proj.weight"] = (hidden, middle)
        weights[f"{name}.input_layernorm.weight"] = weights[f"{name}.post_attention_layernorm.weight"] = (hidden,)
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    token = {"id": end, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{**token, "normalized": False, "special": True}], "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }  # fmt: skip
    kind = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    rows = [{"prompt": f"w{n} w{n + 1} w{n + 2} ", "completion": f"w{n + 3} w{n % 7}"} for n in range(8)]
    contents = {"config": config, "tokenizer": tokenizer, "tokenizer_config": kind, "vocab": vocabulary}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def byte_symbols() -> list[str]:
    """One printable character for each byte, as byte-level BPE has them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [*map(chr, plain), *(chr(256 + number) for number in range(len(others)))]
