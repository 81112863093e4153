"""SA-SFT, "Talking to Yourself" (arXiv 2602.20162): the model's own dialogues, mixed with the task data, keep what it
could do. Fine-tuning itself stays as it is, with SelfAug's loss or without.

    cli -> selftalk -> dialogues (chat, generator, nucleus, dialogue_log), filters (overlap): the model talks to itself
                    -> mixture (rows, rowfiles, tally): mixed with task data
                    -> manifest: what was done

Imports nothing of SelfAug's loss, nor the other way round.
"""
