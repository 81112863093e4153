"""What a step aligns to: the model with LoRA off, computed or from disk."""
