"""What have adapters learned, and what have they kept? Measures a base model and its adapters on a task and on general
instructions.

    python -m selfaug.retention --base MODEL --adapter DIR [--adapter …] --task task.jsonl --out DIR

The figures go this way:

    prompts (files, instructions) -> measurement (base_model, answers, drift, scores) -> items (one file per model)
        -> summary (bootstrap) -> retention.json -> report, plots (training_log)
    history (training_log, plots): a picture of one run, from the Trainer's log alone

Imports the toolkit, and nothing of SelfAug's loss. docs/retention.md says what each figure means.
"""
