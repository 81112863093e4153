"""Runs tasks that need one another, several at a time. The next task is the first in the list whose needs are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandbox import StepFailed


@dataclass(frozen=True)
class Task:
    """A task that begins when every task in ``needs`` has succeeded and every task in ``after`` has ended."""

    name: str
    work: Callable[[], None]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class Schedule:
    """Runs ``tasks`` in threads, ``jobs`` at a time.

    If a task raises StepFailed, its message goes into ``failed``, the tasks that need it are left out, and the others
    continue: overnight, one failure costs one run. A need that is not in the list counts as done.
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
        """Run all tasks. Returns the failed tasks with their messages. An interrupt calls ``stop``, which must end the
        tasks that are running.
        """
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
            except BaseException as error:  # a bug of ours, which run() raises again
                self.error, self.stopped = error, True
            with self.change:
                self.open.discard(task.name)
                if message is not None and not self.stopped:
                    self.failed[task.name] = message
                self.change.notify_all()

    def take(self) -> Task | None:
        """Wait until a task is ready, and return that task. None if no task is left."""
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
