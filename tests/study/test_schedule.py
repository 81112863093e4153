from __future__ import annotations

import os
import signal
import threading

import pytest
from sandbox import StepFailed
from schedule import Schedule, Task


def never():
    raise AssertionError("nothing was interrupted")


def fail():
    raise StepFailed("no disk")


def test_a_task_waits_for_what_it_needs_and_the_first_in_the_list_goes_first():
    done = []
    given = [("b", ("a",)), ("a", ()), ("c", ()), ("d", ("b", "c"))]
    tasks = [Task(name, lambda name=name: done.append(name), needs) for name, needs in given]
    assert Schedule(tasks, jobs=1).run(never) == {}
    assert done == ["a", "b", "c", "d"]


def test_as_many_run_at_a_time_as_there_are_jobs():
    meet = threading.Barrier(2, timeout=10)
    assert Schedule([Task("a", meet.wait), Task("b", meet.wait)], jobs=2).run(never) == {}


def test_a_need_that_is_not_in_the_list_counts_as_done():
    done = []
    Schedule([Task("measure", lambda: done.append(1), ("train",))], jobs=2).run(never)
    assert done == [1]


def test_a_failure_costs_what_needs_it_and_nothing_else():
    done = []
    tasks = [
        Task("train a", fail),
        Task("measure a", lambda: done.append("a"), ("train a",)),
        Task("table a", lambda: done.append("table"), ("measure a",)),
        Task("train b", lambda: done.append("b")),
    ]
    failed = Schedule(tasks, jobs=2).run(never)
    assert done == ["b"]
    assert failed["train a"] == "no disk"
    assert set(failed) == {"train a", "measure a", "table a"}


def test_a_task_may_come_after_another_whether_that_succeeds_or_not():
    done = []
    tasks = [
        Task("b", lambda: done.append("b"), after=("a",)),
        Task("a", fail),
        Task("d", lambda: done.append("d"), after=("c",)),
        Task("c", lambda: done.append("c")),
    ]
    assert set(Schedule(tasks, jobs=1).run(never)) == {"a"}
    assert done == ["b", "c", "d"]


def test_a_mistake_of_ours_is_not_hidden_in_a_thread():
    with pytest.raises(ZeroDivisionError):
        Schedule([Task("a", lambda: 1 // 0), Task("b", lambda: None, ("a",))], jobs=2).run(never)


@pytest.fixture
def interruptible():
    """Python's own answer to a Ctrl-C in this process, also where what started the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_what_is_running_and_starts_nothing_more():
    killed, done = threading.Event(), []

    def long():
        os.kill(os.getpid(), signal.SIGINT)
        assert killed.wait(10)
        raise StepFailed("killed")

    tasks = [Task("a", long), Task("b", lambda: done.append("b"), ("a",)), Task("c", lambda: done.append("c"), ("b",))]
    with pytest.raises(KeyboardInterrupt):
        Schedule(tasks, jobs=2).run(killed.set)
    assert killed.is_set()
    assert done == []
