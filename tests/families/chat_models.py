"""A tiny random model of a family in a folder, with a tokenizer of single characters and a chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from selfaug.trial import tiny

LETTERS = " abcdefghijklmnopqrstuvwxyz"
ENDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;?!"  # a random model that may end a turn with any of these ends it soon
# As Gemma's: no system turn, and the assistant has another name. It writes BOS itself.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Single characters; a BOS before every text, no pad token, and token types that few models take."""
    vocabulary = ["<unk>", "<bos>", "<eos>", "<turn>", "<end>", "\n", *LETTERS, *ENDS]
    assert len(vocabulary) <= tiny.VOCABULARY
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<turn>", "<end>"],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def save(cls, folder: Path) -> None:
    """A model of this class whose generation config samples, forbids repetition, and knows many ends of a turn."""
    reader = tokenizer()
    torch.manual_seed(0)
    model = cls(tiny.config(cls.config_class, max_position_embeddings=256))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.5, top_k=3, repetition_penalty=1.3, bos_token_id=1,
        eos_token_id=[2, *reader.convert_tokens_to_ids(list(ENDS))],
    )  # fmt: skip
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
