"""SelfAug (arXiv 2509.03934): LoRA fine-tuning that keeps what the base model could do.

The patched ``transformers`` model file calls :mod:`.hooks`; everything else follows from there:

    hooks -> step -> reference (the model with LoRA off), positions (which tokens), loss (NLL + alpha * KL),
                     trainers (the HF Trainer, the logs, the warnings)

In a checkout this folder is ``Code``; ``python -m selfaug_patcher install`` copies it beside transformers as
``selfaug``.
"""

__version__ = "0.1.0"
