"""What self_dialogue, retention, the commands that read training rows, and the examples share. It imports none of them.

errors         why a command stops, in words
files          users' text and JSON files, and hashes of files
rows           files of rows: JSONL, JSON, Parquet; one reader and one writer
training_rows  rows to token ids and labels
messages       checks of conversations, and the columns of a row that a model reads
tokens         plain text to token ids
chat           a tokenizer's chat template
models         loads models and tokenizers
options        numbers on a command line
tables         Markdown tables, and the text between two marks of a page
"""
