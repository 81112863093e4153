"""SelfAug (arXiv 2509.03934): LoRA fine-tuning that keeps what the base model could do.

The patched ``transformers`` model file imports :mod:`.hooks`, which calls :mod:`.step`. A step uses

    positions   which tokens are supervised and which are aligned
    reference   the model with LoRA off: hidden states and a head
    loss        NLL + alpha * KL
    trainers    the HF Trainer, the logs and the warnings

In a checkout this folder is ``Code``; ``python -m selfaug_patcher install`` copies it beside transformers as
``selfaug``.
"""

__version__ = "1.0.0"
