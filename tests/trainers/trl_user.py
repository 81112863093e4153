"""A TRL script as its users have it. It knows nothing of SelfAug."""

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

words = {f"w{i}": i for i in range(58)} | {"<pad>": 58, "<eos>": 59, "<unk>": 60}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
)  # fmt: skip
torch.manual_seed(0)
numbers = torch.randint(0, 58, (32, 12)).tolist()
rows = [
    {"prompt": " ".join(f"w{n}" for n in row[:8]) + " ", "completion": " ".join(f"w{n}" for n in row[8:])}
    for row in numbers
]
config = Qwen2Config(
    vocab_size=61, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
arguments = SFTConfig(
    tempfile.mkdtemp(), max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=2,
    learning_rate=2e-2, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
)  # fmt: skip
trainer = SFTTrainer(
    Qwen2ForCausalLM(config),
    arguments,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear"),
)
trainer.train()
