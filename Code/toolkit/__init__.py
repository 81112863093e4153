"""What self_dialogue, retention and the commands that read training data share. Imports none of them.

errors      why a command stops, in words
files       text files and JSON that users give
messages    checks of conversations, and what else in a row a model reads
tokens      a plain text as a tokenizer reads it
"""
