"""Several patchers at once: one works, the others wait or say so; a lock never outlives its process."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from selfaug_patcher import lock
from selfaug_patcher.errors import PatcherError
from selfaug_patcher.install import install
from selfaug_patcher.revert import revert


def test_thirty_threads_lose_nothing(place):
    before = place.snapshot()
    setup = place.selfaug.setup(place.python)
    failures = []

    def work(number: int) -> None:
        try:
            (install if number % 3 else revert)(*setup)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert place.states() in (("patched", "patched", "installed"), ("stock", "stock", "missing"))
    place.done("revert")
    assert place.snapshot() == before


def test_holders_exclude_each_other(tmp_path):
    inside = []
    most = []

    def work() -> None:
        for _ in range(5):
            with lock.hold(tmp_path / "store"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 150
    assert not (tmp_path / "store").exists()


def test_whoever_waits_too_long_is_told_which_process_has_it(tmp_path):
    store = tmp_path / "store"
    with lock.hold(store), pytest.raises(PatcherError) as error, lock.hold(store, wait=0):
        pass
    assert error.value.problems[0].id == "busy"
    assert f"process {os.getpid()}" in str(error.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_of_a_killed_process_is_taken_over(place):
    before = place.snapshot()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with lock.hold(place.site / ".selfaug"):
            os.write(writer, b".")
            time.sleep(60)
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (place.site / ".selfaug" / "lock").exists()
    assert place.run("status").code == 0
    assert place.snapshot() == before


def test_a_lock_that_is_a_link_is_not_followed(place, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (place.site / ".selfaug").mkdir()
    (place.site / ".selfaug" / "lock").symlink_to(victim)
    assert place.run("install").code != 0
    assert victim.read_text() == "precious"
