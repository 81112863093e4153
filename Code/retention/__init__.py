"""Is it learned, and is it kept? A base model and its adapters, measured on a task and on general instructions.

    python -m selfaug.retention --base MODEL --adapter DIR [--adapter …] --task task.jsonl --out DIR

The way of the figures:

    prompts (files, instructions) -> measurement (bench, answers, drift, scores) -> items (one file per model)
        -> summary (bootstrap) -> retention.json -> report, plots

docs/retention.md says what each figure means.
"""
