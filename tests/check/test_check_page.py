"""docs/check.md shows what the command prints.

python tests/check/test_check_page.py      writes the output anew
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "check.md"
BLOCK = re.compile(r"(<!-- check: .*? -->\n```text\n)(.*?)(```\n<!-- end of check -->)", re.DOTALL)
QWEN_7B = {  # Qwen/Qwen2.5-7B/config.json
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "tie_word_embeddings": False, "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "bos_token_id": 151643,
    "eos_token_id": 151643,
}  # fmt: skip


def printed() -> str:
    """What the page's command prints where it has the model's config beside it, without an install."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SELFAUG")}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Qwen2.5-7B").mkdir()
        (Path(folder) / "Qwen2.5-7B" / "config.json").write_text(json.dumps(QWEN_7B))
        command = [sys.executable, "-m", "selfaug_patcher", "run", "-m", "selfaug.check", "--model", "Qwen2.5-7B"]
        environ["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_releases(text: str) -> str:
    """The lines that do not depend on the releases of transformers and peft."""
    return "\n".join(line for line in text.splitlines() if not line.startswith(("  patched", "  LoRA on", "  stock")))


def test_the_page_shows_what_the_command_prints():
    import peft
    import transformers

    shown, found = BLOCK.search(PAGE.read_text(encoding="utf-8"))[2], printed()
    if f"transformers {transformers.__version__}, pinned; peft {peft.__version__}, pinned" in shown:
        assert found == shown, "python tests/check/test_check_page.py writes it anew"
    else:
        before = without_releases(shown).rpartition("\n  a step")[0]
        assert without_releases(found).startswith(before.split("\n              (all linear")[0])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda found: found[1] + printed() + found[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
