"""Code/benchmarks gpu, without a GPU: the whole command on a CPU with tiny shapes; its budget, by a clock of ours; what
has no memory; and what it does on a GPU, with stand-ins for torch.cuda.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import shlex
import subprocess
import sys
import types
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch._C._autograd import DeviceType

from selfaug.benchmarks import budget, device, gpu, loss_alone
from selfaug.benchmarks import slice as sliced
from selfaug.toolkit.errors import Refusal

BENCHMARKS = Path(__file__).resolve().parents[1] / "Code" / "benchmarks"
COMMAND = runpy.run_path(str(BENCHMARKS / "__main__.py"), run_name="benchmark_command")
TABLES = runpy.run_path(str(BENCHMARKS / "page.py"))["gpu_tables"]
CPU = torch.device("cpu")
LEARNED = ["stock", "selfaug", "original"]


def command(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = [sys.executable, str(BENCHMARKS), "gpu", *words]
    return subprocess.run(done, env=environment, capture_output=True, text=True, check=False)


def plan(**changes) -> gpu.Plan:
    tiny = {
        "shapes": ["tiny"],
        "layers": 1,
        "lengths": [16, 32],
        "variants": LEARNED,
        "rounds": 1,
        "dtype": torch.float32,
        "say": lambda line: None,
        "save": lambda results: None,
    }
    return gpu.Plan(**{**tiny, **changes})


def long(**changes) -> budget.Budget:
    return budget.Budget(3600, **changes)


def cells(results):
    return [
        (shape, T, name, cell)
        for shape, lengths in results["steps"].items()
        for T, by_name in lengths.items()
        for name, cell in by_name.items()
    ]


# the whole command


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "new"
    done = command("--device", "cpu", "--tiny", "--rounds", "1", "--results", str(folder))
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "gpu.json").read_text(encoding="utf-8"))


def test_the_tiny_run_has_a_cell_for_every_variant_at_every_length_of_every_model(written):
    found = [(shape, int(T), name) for shape, T, name, _ in cells(written[1]["results"])]
    shapes, lengths, variants = COMMAND["TINY"], [64, 128], COMMAND["GPU"]
    assert found == [(shape, T, name) for shape in shapes for T in lengths for name in variants]


def test_the_tiny_run_measures_what_is_installed_and_says_what_is_not(written):
    for *_, name, cell in cells(written[1]["results"]):
        lacks = sliced.missing(name, CPU)
        if lacks:
            assert cell == {"left_out": lacks}
        else:
            assert cell["tokens_per_second"] > 0
            assert cell["rounds"] == 1


def test_the_tiny_run_prints_a_row_for_every_cell_and_what_it_left_out(written):
    stdout, file = written
    for shape, T, name, cell in cells(file["results"]):
        start = f"| {shape} | {T} | {name} | "
        assert start + ("left out" if "left_out" in cell else f"{cell['tokens_per_second']:.0f}") in stdout
        assert cell.get("left_out", "") in stdout


def test_the_file_of_results_names_the_machine_the_releases_and_the_settings(written):
    file = written[1]
    assert file["machine"]
    assert file["torch"] == torch.__version__
    assert (file["dtype"], file["checkpointing"], file["prompt"]) == ("float32", True, 0.85)
    assert {"date", "transformers", "peft", "trl", "liger_kernel", "selfaug", "lora", "minutes"} <= set(file)


def test_the_losses_of_the_tiny_run_are_those_of_stock_and_of_the_original(written):
    for lengths in written[1]["results"]["steps"].values():
        for by_name in lengths.values():
            loss = {name: cell["loss"] for name, cell in by_name.items() if "loss" in cell}
            assert loss.get("fused TRL", loss["stock"]) == pytest.approx(loss["stock"], rel=1e-6)
            assert loss["selfaug"] == pytest.approx(loss["original"], rel=1e-6)
            assert loss["selfaug"] > loss["stock"]


def test_the_results_that_are_written_make_a_part_of_the_page(written, tmp_path):
    (tmp_path / "gpu.json").write_text(json.dumps(written[1]), encoding="utf-8")
    part = runpy.run_path(str(BENCHMARKS / "page.py"))["_part"](tmp_path / "gpu.json")
    assert part.startswith("### Whole models on a GPU, gradient checkpointing\n\nWhole models, float32, ")
    assert TABLES(written[1]["results"]) in part


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_the_command_says_so_and_what_to_do_and_fails():
    done = command()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sees no CUDA device" in done.stderr
    assert "python Code/benchmarks gpu --device cpu --tiny" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("gpu --device cpu", "add --tiny"),
        ("gpu --variants cached", "gpu cannot measure cached"),
        ("meta --variants 'fused TRL'", "meta cannot measure fused TRL"),
        ("gpu --minutes 0", "argument --minutes"),
        ("gpu --minutes soon", "argument --minutes"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        COMMAND["read"](shlex.split(words))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_defaults_are_those_of_a_gpu():
    options = COMMAND["read"](["gpu"])
    assert (options.shapes, options.lengths, options.layers) == (["0.5B", "7B"], [2048, 8192, 32768], None)
    assert options.minutes == 8
    assert options.variants[:2] == ["stock", "fused TRL"]


# the variants


def measured_in_double(shape="tiny"):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = sliced.model(shape, 2, True, torch.float64)
    finally:
        torch.set_default_dtype(before)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model, sliced.batch(64, model.config.vocab_size)


def loss_and_gradients(name, model, data):
    loss = sliced.VARIANTS[name](model, data)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


@pytest.mark.parametrize(
    ("one", "other"), [("fused TRL", "stock"), ("stock fused", "stock"), ("selfaug", "original"), ("off", "stock")]
)
@pytest.mark.parametrize("shape", ["tiny", "tiny untied"])
def test_two_variants_of_one_objective_have_the_same_loss_and_gradients(one, other, shape):
    """Stock and the original compute their losses in float32, whatever the model's dtype is."""
    if sliced.missing(one, CPU):
        pytest.skip(sliced.missing(one, CPU))
    model, data = measured_in_double(shape)
    (loss, gradients), (expected, wanted) = (loss_and_gradients(name, model, data) for name in (one, other))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(gradients) == set(wanted)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    assert max((gradients[name] - wanted[name]).abs().max() for name in wanted) < 1e-5 * largest


def test_the_term_is_a_part_of_the_loss_that_no_rounding_hides():
    model, data = measured_in_double()
    loss = {name: loss_and_gradients(name, model, data)[0].item() for name in ("selfaug", "stock")}
    assert loss["selfaug"] > (1 + 1e-4) * loss["stock"]  # a hundred times what the losses may differ by


@pytest.mark.parametrize("name", ["fused TRL", "stock", "selfaug"])
def test_a_variant_leaves_the_forward_of_the_class_in_force(name):
    if sliced.missing(name, CPU):
        pytest.skip(sliced.missing(name, CPU))
    model, data = measured_in_double()
    sliced.VARIANTS[name](model, data)
    assert "forward" not in vars(model.base_model.model)


def test_any_settings_make_a_variant_and_the_environment_is_as_before():
    model, data = measured_in_double()
    before = dict(os.environ)
    without_kl = sliced.with_settings(selfaug_alpha="0")(model, data).item()
    assert without_kl == pytest.approx(sliced.stock(model, data).item(), rel=1e-9)
    assert dict(os.environ) == before


def test_a_library_that_is_not_there_or_too_old_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sliced._FROM, "fused TRL", ("no_such_library.utils", "head", "none>=1", False))
    assert sliced.missing("fused TRL", CPU) == "no_such_library is not installed (pip install 'none>=1')"
    monkeypatch.setitem(sliced._FROM, "fused TRL", ("torch.nn", "no_such_head", "torch>=99", False))
    assert sliced.missing("fused TRL", CPU).endswith("has no no_such_head (pip install 'torch>=99')")
    monkeypatch.setitem(sliced._FROM, "fused TRL", ("torch.nn", "Linear", "torch", True))
    assert sliced.missing("fused TRL", CPU) == "torch's kernels need a GPU"
    assert sliced.missing("fused TRL", torch.device("cuda")) == ""


def test_a_turn_is_one_micro_batch_that_is_not_counted_and_four_that_are(monkeypatch):
    calls = []
    monkeypatch.setitem(sliced.VARIANTS, "selfaug", lambda *given: calls.append(1) or sliced.stock(*given))
    results = gpu.run(plan(variants=["stock", "selfaug"], lengths=[16], rounds=3), device.Device("cpu"), long())
    watched = 2  # the waits and the kernels of a step
    assert len(calls) == 3 * (1 + gpu.MICRO_BATCHES) + watched
    cell = results["steps"]["tiny"]["16"]["selfaug"]
    assert cell["rounds"] == 3
    assert cell["tokens_per_second"] == pytest.approx(16 / cell["seconds"])


def test_economy_has_its_term_once_in_the_micro_batches_of_each_measurement(monkeypatch):
    """Which of the four it is depends on their number, so a measurement that began within a block could miss it."""
    losses, cases = [], plan(variants=["stock", "economy", "selfaug"], lengths=[16, 32], rounds=3)
    economy = sliced.VARIANTS["economy"]

    def noted(model, data):
        losses.append(economy(model, data))
        return losses[-1]

    monkeypatch.setitem(sliced.VARIANTS, "economy", noted)
    by_length = gpu.run(cases, device.Device("cpu"), long())["steps"]["tiny"]
    assert len(losses) == 2 * 3 * 2 * 4
    values = [loss.item() for loss in losses]
    for start in range(0, len(values), 4):
        block = values[start : start + 4]
        assert sum(value > min(block) * (1 + 1e-6) for value in block) == 1
    for by_name in by_length.values():
        assert by_name["economy"]["loss"] > by_name["stock"]["loss"]


# the budget


@pytest.fixture
def no_work(monkeypatch):
    """No step computes anything, and nothing is measured of the loss alone."""
    monkeypatch.setattr(gpu._Case, "_steps", lambda self, name, count: self.seen.append(torch.zeros(())))
    monkeypatch.setattr(loss_alone, "by_size", lambda *_: [])


class Clock:
    """A clock that goes on by one second whenever somebody looks at it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def test_no_model_is_made_when_the_time_is_used_up(monkeypatch):
    monkeypatch.setattr(sliced, "model", None)
    results = gpu.run(plan(), device.Device("cpu"), budget.Budget(0.5, Clock()))
    assert all("left_out" in cell for *_, cell in cells(results))


def test_work_that_takes_longer_than_what_is_left_is_not_begun():
    clock = Clock()
    time = budget.Budget(100, clock)
    assert time.refusal(20) == ""
    clock.now = 60.0
    assert time.refusal(40) == "needs about 40 s, and 30 s were left of the budget of 1.66667 minutes"
    clock.now = 99.0
    assert time.refusal(0).startswith("nothing was left")


def test_the_time_before_the_run_began_counts_too():
    assert budget.Budget(100, lambda: 50.0, start=0.0).left() == 50 - 100 * budget.RESERVE


@pytest.fixture
def each_takes(monkeypatch, no_work):
    """A clock that goes on by so many seconds whenever something is timed."""
    clock = types.SimpleNamespace(now=0.0, each=1.0)

    def seconds(self, work):
        work()
        clock.now += clock.each
        return clock.each

    monkeypatch.setattr(device.Device, "seconds", seconds)
    return clock


def test_when_the_time_is_used_up_every_later_cell_is_left_out_and_says_why(each_takes):
    each_takes.each = 1e-3
    results = gpu.run(plan(shapes=["tiny", "tiny untied"]), device.Device("cpu"), budget.Budget(40, Clock()))
    found = cells(results)
    assert len(found) == 2 * 2 * len(LEARNED)
    left_out = ["left_out" in cell for *_, cell in found]
    assert left_out == sorted(left_out)  # none after the first of them was measured
    assert 0 < sum(left_out) < len(found)
    for shape, T, name, cell in found:
        if "left_out" in cell:
            assert cell["left_out"] == "nothing was left of the budget of 0.666667 minutes"
            assert any(line.startswith(name) and f"{shape} T={T}" in line for line in gpu.problems(results, "left_out"))


def test_a_step_that_is_expected_to_take_too_long_is_not_begun(each_takes):
    """From the steps at one length follows what those at the next may take."""
    each_takes.each = 4.0
    case = plan(lengths=[16, 1600], variants=["stock"])
    results = gpu.run(case, device.Device("cpu"), budget.Budget(100, lambda: each_takes.now))
    first, second = results["steps"]["tiny"].values()
    assert first["stock"]["seconds"] == 1.0  # a quarter of what four take
    expected = 1.5 * gpu._cost("tiny", 1600) / gpu._cost("tiny", 16)
    reason = f"needs about {expected:.0f} s, and 82 s were left of the budget of 1.66667 minutes"
    assert second["stock"] == {"left_out": reason}


@pytest.mark.parametrize("shape", ["0.5B", "7B"])
def test_a_step_costs_by_its_length_what_the_products_of_the_model_do(shape):
    """By torch's counter: stock's whole step, without attention, of which the counter has the whole square."""
    one, two = (gpu._cost(shape, T) for T in (2048, 4096))
    assert 2 < two / one < 4
    H, layers = (sliced.SHAPES[shape][name] for name in ("hidden_size", "num_hidden_layers"))
    measured = json.loads((BENCHMARKS.parents[1] / "docs" / "performance" / "shapes.json").read_text(encoding="utf-8"))
    flops = measured["results"][shape]["2048"]["stock"]["flops"]
    attention = 14 * layers * H * 2048**2
    assert flops - attention == pytest.approx(4 * (one - layers * H * 2048**2), rel=0.03)


def test_four_steps_that_are_expected_to_take_too_long_are_not_begun(each_takes):
    each_takes.each = 10.0
    results = gpu.run(plan(variants=["stock"]), device.Device("cpu"), budget.Budget(50, lambda: each_takes.now))
    expected = "needs about 40 s, and 35 s were left of the budget of 0.833333 minutes"
    assert results["steps"]["tiny"]["16"]["stock"] == {"left_out": expected}
    assert each_takes.now == 20  # one step at each of the two lengths


def test_further_rounds_stay_within_the_share_of_their_length(each_takes):
    results = gpu.run(plan(rounds=50), device.Device("cpu"), budget.Budget(120, lambda: each_takes.now))
    short, long_ = (by_name["stock"]["rounds"] for by_name in results["steps"]["tiny"].values())
    assert 1 < short < long_ < 50


# what has no memory, and what fails


class Broken:
    """A variant that takes a tensor and then fails, at one length."""

    def __init__(self, kind, message, at=32):
        self.kind, self.message, self.at, self.taken = kind, message, at, []

    def __call__(self, model, data):
        if data["labels"].shape[1] != self.at:
            return sliced.stock(model, data)
        large = torch.zeros(1000)
        self.taken.append(weakref.ref(large))
        error = self.kind(self.message)  # holds this frame, which holds the error
        raise error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (torch.cuda.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20 GiB"),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        (RuntimeError, "CUDA error: out of memory"),
    ],
    ids=["torch", "cublas", "cuda"],
)
def test_a_variant_without_memory_is_noted_and_the_others_go_on(kind, message, monkeypatch):
    variant, alive = Broken(kind, message), []

    def next_one(*given):
        alive.extend(taken() is not None for taken in variant.taken)
        return sliced.original(*given)

    monkeypatch.setitem(sliced.VARIANTS, "selfaug", variant)
    monkeypatch.setitem(sliced.VARIANTS, "original", next_one)
    results = gpu.run(plan(lengths=[16, 32, 48]), device.Device("cpu"), long())
    by_length = results["steps"]["tiny"]
    assert by_length["32"]["selfaug"] == {"out_of_memory": f"{kind.__name__}: {message}"}
    assert all("loss" in by_length["32"][name] for name in ("stock", "original"))
    assert all("loss" in cell for T in ("16", "48") for cell in by_length[T].values())
    assert alive
    assert not any(alive)


def test_a_model_without_memory_is_noted_at_all_its_lengths_and_the_next_goes_on(monkeypatch):
    made = sliced.model

    def model(shape, *options):
        if shape == "tiny":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 15 GiB")
        return made(shape, *options)

    monkeypatch.setattr(sliced, "model", model)
    results = gpu.run(plan(shapes=["tiny", "tiny untied"]), device.Device("cpu"), long())
    assert all(set(cell) == {"out_of_memory"} for shape, *_, cell in cells(results) if shape == "tiny")
    assert all("loss" in cell for shape, *_, cell in cells(results) if shape == "tiny untied")


def test_a_variant_that_fails_is_noted_in_words_and_the_others_go_on(monkeypatch):
    monkeypatch.setitem(sliced.VARIANTS, "original", Broken(ValueError, "no kernel for this card", at=16))
    results = gpu.run(plan(), device.Device("cpu"), long())
    assert gpu.problems(results, "failed") == ["original: ValueError: no kernel for this card (tiny T=16)"]
    assert "| tiny | 16 | original | failed |" in TABLES(results)
    assert "loss" in results["steps"]["tiny"]["32"]["original"]


def test_without_stock_there_is_no_ratio_to_it_and_the_figures_remain(monkeypatch):
    monkeypatch.setitem(sliced.VARIANTS, "stock", Broken(torch.cuda.OutOfMemoryError, "CUDA out of memory"))
    case = {"lengths": [32], "variants": ["stock", "stock fused", "original"]}
    cell = gpu.run(plan(**case), device.Device("cpu"), long())["steps"]["tiny"]["32"]["original"]
    assert cell["ratio"] is None
    assert cell["fused"] == "stock fused"
    assert cell["fused_ratio"] > 0
    assert "of fused stock" in gpu.in_words(cell)


def test_one_model_is_in_memory_at_a_time(monkeypatch):
    made, models, alive = sliced.model, [], []

    def model(*given):
        alive.append(sum(reference() is not None for reference in models))
        built = made(*given)
        models.append(weakref.ref(built.base_model.model))
        return built

    monkeypatch.setattr(sliced, "model", model)
    gpu.run(plan(shapes=["tiny", "tiny untied", "tiny"]), device.Device("cpu"), long())
    assert len(alive) > 3
    assert set(alive) == {0}


def test_results_are_saved_after_each_length():
    saved = []
    gpu.run(plan(save=lambda results: saved.append(json.dumps(results))), device.Device("cpu"), long())
    assert [len(json.loads(text)["steps"]["tiny"]) for text in saved] == [1, 2, 2]


# what it does on a GPU


@pytest.mark.parametrize(
    ("name", "said"), [("cuda:1", "1 CUDA devices"), ("gpu0", "no device"), ("mps", "cannot be measured on")]
)
def test_a_device_that_is_not_there_is_refused_in_words(name, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Refusal, match=said):
        device.Device(name)


def said_to_wait(count, at):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            warnings.warn_explicit("called a synchronizing CUDA operation (Triggered ...)", UserWarning, at, 26)
        warnings.warn_explicit("Synchronization debug mode is a prototype", UserWarning, at, 1)
    return caught


def test_waits_are_counted_by_line_and_other_warnings_are_not():
    found = device.waits([*said_to_wait(2, "/a/b/selfaug/copies.py"), *said_to_wait(1, "/c/step.py")])
    assert found == {"waits": 3, "waits_at": {"b/selfaug/copies.py:26": 2, "/c/step.py:26": 1}}


def event(name, microseconds, kind=DeviceType.CUDA, **more):
    return types.SimpleNamespace(
        name=name, device_type=kind, time_range=types.SimpleNamespace(elapsed_us=lambda: microseconds), **more
    )


def test_kernels_and_copies_of_the_gpu_are_counted_and_the_longest_named():
    events = [event("gemm", 300.0), event("exp", 100.0), event("gemm", 500.0), event("Memcpy HtoD", 1.0)]
    others = [event("aten::mm", 9e6, DeviceType.CPU), event("ours", 9e6, is_user_annotation=True)]
    found = device.kernels([*events, *others])
    assert (found["kernels"], found["copies"]) == (3, 1)
    assert found["gpu_seconds"] == pytest.approx(901e-6)
    assert list(found["longest"]) == ["gemm", "exp", "Memcpy HtoD"]
    assert device.kernels(others) == {"kernels": None}


@pytest.fixture
def pretended(monkeypatch):
    """A CPU that is taken for a GPU: torch.cuda's functions are stand-ins that note their calls."""
    calls = []

    def stand_in(name, answer):
        monkeypatch.setattr(torch.cuda, name, lambda *given: calls.append((name, *given)) or answer)

    for name, answer in (
        ("synchronize", None),
        ("empty_cache", None),
        ("reset_peak_memory_stats", None),
        ("memory_allocated", 100),
        ("max_memory_allocated", 500),
        ("set_sync_debug_mode", None),
    ):
        stand_in(name, answer)
    profile = types.SimpleNamespace(events=lambda: [event("gemm", 5.0)])
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: contextlib.nullcontext(profile))
    found = device.Device("cpu")
    found.is_gpu = True
    return found, calls


def test_on_a_gpu_a_turn_empties_the_cache_restarts_the_peak_and_waits_before_and_after(pretended):
    there, calls = pretended
    results = gpu.run(plan(lengths=[16]), there, long())
    cell = results["steps"]["tiny"]["16"]["selfaug"]
    assert (cell["before"], cell["peak"], cell["peak_ratio"]) == (100, 500, 1.0)
    names = [name for name, *_ in calls]
    turn = ["empty_cache", *2 * ["reset_peak_memory_stats", "memory_allocated", "synchronize", "synchronize"]]
    assert "".join(names).count("".join([*turn, "max_memory_allocated"])) == len(LEARNED)
    assert "| 0.00 | 1.000 |" in TABLES(results)
    watched = results["watched"]["tiny"]["16"]["selfaug"]
    assert (watched["waits"], watched["kernels"], watched["gpu_seconds"]) == (0, 1, 5e-6)
    assert "| tiny | 16 | selfaug | 0 | 1 | 0 | 0% |" in TABLES(results)


def test_on_a_gpu_waits_are_warned_of_in_one_step_and_no_longer_even_if_it_fails(pretended):
    there, calls = pretended

    def step():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert there.waits(step)["waits"] == 1
    with pytest.raises(ValueError, match="broken"):
        there.waits(lambda: (_ for _ in ()).throw(ValueError("broken")))
    assert [mode for name, mode in calls if name == "set_sync_debug_mode"] == ["warn", "default"] * 2


def test_kernels_are_counted_after_all_times_are_measured(monkeypatch):
    """The profiler's hooks may stay in the driver."""
    order = []
    seconds = device.Device.seconds
    monkeypatch.setattr(device.Device, "seconds", lambda self, work: order.append("time") or seconds(self, work))
    monkeypatch.setattr(device.Device, "kernels", lambda self, step: order.append("kernels") or {"kernels": 7})
    results = gpu.run(plan(shapes=["tiny", "tiny untied"]), device.Device("cpu"), long())
    assert order == sorted(order, reverse=True)
    assert results["watched"]["tiny untied"]["32"]["selfaug"]["kernels"] == 7
    assert results["loss alone"]["tiny"][0]["kernels"] == 7


def test_the_sizes_of_the_loss_are_as_before_after_the_loss_alone_was_measured(monkeypatch):
    from selfaug import loss

    before = (loss._BLOCK, loss._CPU_BLOCK)
    rows = loss_alone.by_size("tiny", 32, torch.float32, device.Device("cpu"), long(), 3600)
    assert before == (loss._BLOCK, loss._CPU_BLOCK)
    assert [row["block_mib"] for row in rows] == [3, *(block for block in loss_alone.BLOCKS for _ in loss_alone.CHUNKS)]
    assert all(row["seconds"] > 0 for row in rows)


def test_the_loss_alone_takes_no_more_than_its_share_of_the_time(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    seconds = device.Device.seconds

    def slowly(self, work):
        clock.now += 5.0
        return 5.0 + 0 * seconds(self, work)

    monkeypatch.setattr(device.Device, "seconds", slowly)
    given = ("tiny", 32, torch.float32, device.Device("cpu"), budget.Budget(1000, lambda: clock.now))
    assert len(loss_alone.by_size(*given, share=60)) == 3  # 15 s each; the fourth may take 20
    assert loss_alone.by_size(*given[:-1], budget.Budget(1000, lambda: 1000.0, start=0.0), share=60) == []


def test_the_model_is_made_on_the_device_in_its_dtype(monkeypatch):
    made = {}

    def model(shape, layers, checkpointing, dtype):
        made.update(device=torch.empty(0).device, checkpointing=checkpointing, dtype=dtype)
        return sliced.nn.Linear(1, 1)

    monkeypatch.setattr(sliced, "model", model)
    there = device.Device("cpu")
    there.torch = torch.device("meta")
    gpu._build(plan(dtype=torch.bfloat16), "tiny", there)
    assert made == {"device": torch.device("meta"), "checkpointing": True, "dtype": torch.bfloat16}


def test_the_fused_head_of_trl_has_the_fields_that_this_takes():
    if sliced.missing("fused TRL", CPU):
        pytest.skip(sliced.missing("fused TRL", CPU))
    fields = importlib.import_module("trl.trainer.utils").FusedCausalLMOutput.__dataclass_fields__
    assert {"log_probs", "label_mask", "entropy", "is_top1"} <= set(fields)
