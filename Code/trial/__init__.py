"""The trial: does SelfAug do, with the packages of this machine, what it says, and nothing where it should not?

It compares a patched model with *stock's own loss*, on tiny random models, on the CPU, in seconds. ``python -m
selfaug_patcher install`` runs the trial in memory before it writes to a release that nobody has pinned, and ``verify``
runs it on what is installed.
"""
