"""SA-SFT, "Talking to Yourself" (arXiv 2602.20162): mixing the model's own dialogues into the task data preserves what
the model could do before fine-tuning. The fine-tuning itself does not change, with or without SelfAug's loss.

    cli -> commands -> dialogues    the model talks to itself (generator, sampling, dialogue_log)
                    -> filters      which dialogues are kept (evaluation_sets)
                    -> mixture      dialogues and task data in one file (formats, token_counts)
                    -> manifest     what went into a file

Imports the toolkit, and nothing of SelfAug's loss.
"""
