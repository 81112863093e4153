"""Several patchers at once: one works, the others wait or say so; a lock never outlives its process."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from types import SimpleNamespace

import pytest

from selfaug_patcher import files, lock
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


def test_nothing_stays_on_nfs_where_an_open_file_outlives_its_removal(tmp_path, monkeypatch):
    store = tmp_path / "store"
    renamed = store / ".nfs0001"
    unlink, close = os.unlink, os.close

    def silly_rename(path) -> None:
        os.rename(path, renamed)

    def last_close(descriptor: int) -> None:
        close(descriptor)
        if renamed.exists():
            unlink(renamed)

    with monkeypatch.context() as nfs, lock.hold(store):
        nfs.setattr(lock.os, "unlink", silly_rename)
        nfs.setattr(lock.os, "close", last_close)
    assert not store.exists()


def test_on_windows_the_file_is_closed_before_it_is_removed(monkeypatch, tmp_path):
    done = []
    system = {"name": "nt", "close": lambda _: done.append("close"), "unlink": lambda _: done.append("unlink")}
    monkeypatch.setattr(lock, "os", SimpleNamespace(**system))
    lock._release(3, tmp_path / "lock")
    assert done == ["close", "unlink"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_good_enough(place, monkeypatch, code):
    before, fsync = place.snapshot(), os.fsync

    def fsync_of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync_of_files)
    place.done("install")
    place.done("revert")
    assert place.snapshot() == before


def test_a_file_that_does_not_reach_the_disk_is_an_error_everywhere(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(files.os, "fsync", lambda _: os.close(10**6))  # EBADF
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(OSError, match="Bad file descriptor"):
            files.sync(path)
    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt"))  # where neither can be opened for it
    files.sync(tmp_path)
