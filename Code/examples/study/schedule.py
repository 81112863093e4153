"""Tasks that need one another, some at a time: always the first in the list whose needs are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandbox import StepFailed


@dataclass(frozen=True)
class Task:
    """``needs`` must have succeeded before it begins; ``after`` must have ended, well or not."""

    name: str
    work: Callable[[], None]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class Schedule:
    """``tasks`` in threads, ``jobs`` at a time.

    A task that raises StepFailed is in ``failed`` with its message, those that need it are left out, and the rest goes
    on: after a night, one failure has cost one run. Needs that are not in the list count as done.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int) -> None:
        self.waiting = list(tasks)
        self.open = {task.name for task in tasks}
        self.failed: dict[str, str] = {}
        self.jobs = jobs
        self.stopped = False
        self.error: BaseException | None = None
        self.change = threading.Condition()

    def run(self, stop: Callable[[], None]) -> dict[str, str]:
        """Do all tasks; the failed ones. ``stop`` ends what is running when this thread is interrupted."""
        threads = [threading.Thread(target=self.worker, daemon=True) for _ in range(self.jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # join without a timeout would not let an interrupt through everywhere
                    thread.join(1)
        except BaseException:
            with self.change:
                self.stopped = True
                self.change.notify_all()
            stop()
            for thread in filter(threading.Thread.is_alive, threads):
                thread.join()
            raise
        if self.error is not None:
            raise self.error
        return self.failed

    def worker(self) -> None:
        while (task := self.take()) is not None:
            message = None
            try:
                task.work()
            except StepFailed as failure:
                message = str(failure)
            except BaseException as error:  # a mistake of ours: no reason to hide it in a thread
                self.error, self.stopped = error, True
            with self.change:
                self.open.discard(task.name)
                if message is not None and not self.stopped:
                    self.failed[task.name] = message
                self.change.notify_all()

    def take(self) -> Task | None:
        """The next task; waits for one to become ready; None when there is nothing left to do."""
        with self.change:
            while self.waiting and not self.stopped:
                for task in list(self.waiting):
                    if any(need in self.failed for need in task.needs):
                        self.waiting.remove(task)
                        self.open.discard(task.name)
                        self.failed[task.name] = f"left out, since {' and '.join(task.needs)} did not all succeed"
                for task in self.waiting:
                    if not self.open.intersection((*task.needs, *task.after)):
                        self.waiting.remove(task)
                        return task
                if self.waiting:
                    self.change.wait()
            return None
