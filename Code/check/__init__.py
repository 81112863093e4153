"""A dry step: what SelfAug would do with a model and its training data, before anything trains.

    python -m selfaug.check --model NAME_OR_FOLDER [--data FILE]

The model is made on torch's meta device, from its config alone: tensors with shapes and without numbers, so no weight
is loaded and a model of 70 billion parameters takes seconds. The positions are selected from the real rows, by the code
that selects them in training.

    shape       the model on the meta device, with LoRA
    batch       the rows of one micro-batch
    cost        floating-point operations and memory of a step: stock, stock with a fused head, SelfAug
    answer      all that is found out, as an object; report puts it into words
"""
