"""Patches transformers and peft with SelfAug, and takes the patches out again."""
