"""Two real processes (gloo, CPU) give the gradients and the logs of one process with the whole batch, under DDP, FSDP1
and FSDP2.

All layouts run in one launch of `worker.py`, because starting two interpreters costs more than everything else: six of
them by default, every one with ALL_LAYOUTS=1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import worker
from pair import launch

CASES = [
    "DDP, accumulation 2",
    "FSDP1, sharded head",
    "FSDP2, sharded head",
    "FSDP2, sharded head with LoRA",
    "FSDP2, no aligned token on rank 1",
    *worker.RUNS,
]
if os.environ.get("ALL_LAYOUTS") == "1":
    CASES = list(worker.CASES)

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
    pytest.mark.xdist_group("two processes"),  # one launch serves all
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return launch(worker.__file__, tmp_path_factory.mktemp("two") / "found.json", *CASES)


@pytest.mark.parametrize("case", [name for name in CASES if name not in worker.RUNS])
def test_two_processes_give_the_gradients_and_logs_of_one(found, case):
    assert case in found, f"an earlier case failed: {[name for name in found if 'failed' in found[name]]}"
    assert "failed" not in found[case], found[case].get("failed")
    assert found[case]["error"] < 1e-4
    assert found[case]["logs"] < 1e-4
    assert found[case]["kl"] > 1e-3


@pytest.mark.parametrize("case", ["FSDP1, sharded head", "FSDP2, sharded head"])
def test_a_sharded_head_is_gathered_once_per_step(found, case):
    assert found[case]["head calls"] == 1


def test_the_trainer_logs_the_same_on_two_processes_as_on_one(found, tmp_path):
    two, one = found["Trainer"], worker.trainer(str(tmp_path), rows_each=worker.ROWS)
    for name in ("loss", "grad_norm", "selfaug/nll", "selfaug/kl"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_processes_take_the_same_turns_and_weigh_an_anchor_by_the_rows_of_all_of_them(found, tmp_path):
    """Micro-batch by micro-batch, the two processes together have the rows that the one has."""
    case = "Trainer, every 2 and an anchor"
    assert "failed" not in found[case], found[case].get("failed")
    two, one = found[case], worker.some_turns(str(tmp_path), rows_each=2)
    for name in ("loss", "grad_norm", "selfaug/nll", "selfaug/kl"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_ddp_makes_no_logits_that_nobody_reads(found):
    """For a PeftModel the Trainer sets find_unused_parameters, and DDP then walks the output."""
    assert found["Trainer"]["logits made"] == 0


def test_a_log_on_one_process_alone_hangs_nobody_and_the_trainers_logs_stay_averages(found):
    """`trainer.log({"loss": ...})` on rank 0 only, at each step."""
    assert "failed" not in found["own logs"], found["own logs"].get("failed")
    logs = found["own logs"]["both"]
    own, trainers = logs[::2], logs[1::2]
    assert [log["loss"] for log in own] == [1.0, 1.0]
    assert not [name for log in own for name in log if "selfaug" in name]
    assert all(log["selfaug/kl"] > 1e-3 for log in trainers)
    assert trainers[0]["selfaug/kl"] == pytest.approx(trainers[1]["selfaug/kl"], rel=1e-5)  # learning rate 0


def test_a_process_in_which_no_step_acted_joins_the_sum(found):
    """Its rows count in neither average; rank 0's, which are alike in length but not in content, do."""
    both, one = (found["own logs"][name][1::2] for name in ("both", "one"))
    assert len(one) == 2
    assert all(log["selfaug/kl"] > 1e-3 for log in one)
    assert one[0]["selfaug/kl"] != pytest.approx(both[0]["selfaug/kl"], rel=1e-5)


def test_sequences_split_between_processes_train_on_stocks_loss_and_each_process_says_so_once(found):
    assert "failed" not in found["split sequences"], found["split sequences"].get("failed")
    for of_rank in found["split sequences"]["ranks"]:
        assert of_rank["stock"]
        assert len(of_rank["said"]) == 1
        assert "shift_labels are given in a run of several processes" in of_rank["said"][0]
