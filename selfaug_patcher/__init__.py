"""Puts SelfAug into an installed transformers and peft, and takes it out again."""
