"""Speed of our sampling beside ``transformers.generate`` with its own, same prompts, batch and number of tokens.

    python -m selfaug_patcher run tests/self_dialogue/bench.py MODEL [--batch 16] [--tokens 64] [--rounds 5]

Neither stops early, and they take turns, so that a busy machine slows both alike. Ours includes decoding, the log on
disk and the filters of turns: what `generate` does for each batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from selfaug.self_dialogue.dialogue_log import DialogueLog, Turn
from selfaug.self_dialogue.filters import Filters, Limits
from selfaug.self_dialogue.generator import Request, TransformersGenerator
from selfaug.self_dialogue.sampling import Sampling
from selfaug.toolkit.chat import Chat, Ending


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    generator = TransformersGenerator(args.model, "auto", args.device, None, Sampling(), 0)
    chat = Chat(generator.tokenizer, eos=generator.eos)
    filters = Filters(Limits(), chat.special_texts())
    log = DialogueLog(Path(tempfile.mkdtemp()) / "log", {})
    prompt = chat.user_prompt([])
    never = Ending(())

    def ours() -> None:
        requests = [Request(number, 0, prompt) for number in range(args.batch)]
        turns = [
            Turn(request.dialogue, 0, *chat.decode(ids, never))
            for request, ids in zip(requests, generator.write(requests, args.tokens, never))
        ]
        log.append(turns, 0.0)
        for turn in turns:
            filters.turn("user", turn.text, turn.finished)

    def theirs() -> None:
        ids = torch.tensor([prompt] * args.batch, device=args.device)
        options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": args.tokens}
        with torch.inference_mode():
            made = generator.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert made.shape[1] == len(prompt) + args.tokens

    spent: dict[str, list[float]] = {"ours": [], "transformers": []}
    for number in range(args.rounds + 1):
        for name, run in (("ours", ours), ("transformers", theirs)):
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first is warm-up
                spent[name].append(time.perf_counter() - started)
    for name, seconds in spent.items():
        speed = args.batch * args.tokens / statistics.median(seconds)
        print(f"{name:13}{speed:8.1f} tokens/s   median of {len(seconds)}: {statistics.median(seconds):.2f} s")
    ratios = [ours / theirs for ours, theirs in zip(spent["ours"], spent["transformers"])]
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"time of ours / time of transformers: median {statistics.median(ratios):.3f}, {spread}")


if __name__ == "__main__":
    main()
