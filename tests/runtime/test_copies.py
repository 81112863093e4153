"""How often a step waits for a GPU and copies to it: a number for each way that a step takes. A test fails if a change
adds one. There is no GPU here: tensors only say that they are on one, and whoever asks for their values is noted.
"""

from __future__ import annotations

import pytest
import torch
from devices import FIRST, Devices
from tiny import base, batch, settings, with_lora

from selfaug import copies


def of_selfaug(found):
    return [(what, by) for what, by in found if by.startswith("selfaug")]


def counted(model, data, calls, **call):
    """(waits, copies) of SelfAug's own modules in the last of so many calls with all on one device."""
    with Devices() as devices:
        for tensor in (*model.parameters(), *model.buffers()):
            devices.put(tensor, FIRST)
        there = {name: devices.put(tensor, FIRST) for name, tensor in data.items()}
        for _ in range(calls):
            devices.waits.clear()
            devices.copies.clear()
            model(**there, **call)[0].backward()
    return of_selfaug(devices.waits), of_selfaug(devices.copies)


POSITIONS = ("cuda:0 to cpu", "selfaug.copies")  # where the labels are: all else follows on the CPU
SELECTED = ("cpu to cuda:0", "selfaug.copies")  # index, next labels and weights, together


@pytest.mark.parametrize(
    ("variables", "waits", "sent"),
    [
        pytest.param({}, [POSITIONS], [SELECTED], id="all positions"),
        pytest.param({"selfaug_sample": "0.5"}, [POSITIONS], [SELECTED], id="uniform sample"),
        pytest.param({"selfaug_reduction": "sequence"}, [POSITIONS], [SELECTED], id="by sequence"),
        pytest.param(
            {"selfaug_sample": "0.5", "selfaug_sample_by": "shift"},
            [POSITIONS, ("cuda:0 to cpu", "selfaug.sample")],  # the scores
            [SELECTED] * 3,  # all positions, the drawn ones among them, and the selection that is left
            id="sample by shift",
        ),
        pytest.param({"selfaug_align": "attention"}, [POSITIONS], [SELECTED] * 2, id="features"),  # of MSE and of NLL
    ],
)
@pytest.mark.parametrize("padding", ["right", None], ids=["mask", "no mask"])
@pytest.mark.parametrize("call", [{}, {"return_dict": False}], ids=["fused", "around"])
def test_a_step_waits_for_the_device_where_it_selects_and_sends_the_selection_once(
    variables, waits, sent, padding, call
):
    with settings(selfaug_chunk_size=4, **variables):
        found = counted(with_lora(base()), batch(padding), 2, **call)
    assert found == (waits, sent)


def test_a_step_with_its_states_in_a_cache_waits_once_more_for_the_tokens_and_sends_the_states(tmp_path):
    with settings(selfaug_cache=tmp_path / "cache"):
        waits, sent = counted(with_lora(base()), batch(), 3)
    assert waits == [POSITIONS] * 2
    assert sent == [SELECTED] * 2


def test_labels_that_are_given_in_both_forms_are_compared_without_waiting():
    data = batch()
    data["shift_labels"] = torch.nn.functional.pad(data["labels"][:, 1:], (0, 1), value=-100)
    model = with_lora(base())
    if not hasattr(model.get_base_model(), "loss_function"):
        pytest.skip("transformers until 4.45 takes no shift_labels")
    waits, sent = counted(model, data, 2)
    assert (waits, sent) == ([POSITIONS], [SELECTED])


@pytest.mark.parametrize(
    "function", [bool, int, float, torch.Tensor.item, torch.Tensor.tolist, torch.nonzero, torch.unique]
)
def test_the_stand_in_notes_whoever_asks_for_a_value(function):
    with Devices() as devices:
        there = devices.put(torch.ones(1), FIRST)
        function(there)
        function(torch.ones(1))
    assert [by for _, by in devices.waits] == [__name__]


def test_the_stand_in_notes_a_choice_by_mask_and_a_copy():
    with Devices() as devices:
        there = devices.put(torch.arange(3), FIRST)
        there[there > 1]
        there[torch.tensor([1]).to(FIRST)]
        there.cpu()
    assert [what for what, _ in devices.waits] == ["__getitem__", "cuda:0 to cpu"]
    assert [what for what, _ in devices.copies] == ["cpu to cuda:0"]


def test_what_is_sent_together_arrives_as_it_was():
    tensors = [
        torch.arange(3),
        torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
        torch.empty(0, 4),
        torch.tensor([True, False, True]),
        torch.tensor([0.5], dtype=torch.double),
        torch.arange(6).view(2, 3).t(),
    ]
    with Devices():
        found = copies.on_device(FIRST, *tensors)
        assert all(tensor.device == FIRST for tensor in found)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, tensors))
    assert all(a is b for a, b in zip(copies.on_device(torch.device("cpu"), *tensors), tensors))
