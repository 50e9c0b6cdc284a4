"""What goes on in the background of a shell while the user works.

Called by `console`. A job is a command with a number; it ends by itself, by ``cancel`` or with the
shell, and says so once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydi_node.errors import UserError

CANCEL_WAIT_S = 15.0  # a cancelled upload may keep what it has: one flush


@dataclass(slots=True)
class Job:
    """One command in the background."""

    number: int
    line: str  # as it was typed
    task: asyncio.Task[int]  # its exit code
    progress: Callable[[], str]  # how far it is, in words

    def text(self) -> str:
        if not self.task.done():
            state = f"running: {self.progress()}"
        elif self.task.cancelled():
            state = "cancelled"
        else:
            state = f"{'done' if self.task.result() == 0 else 'failed'}: {self.progress()}"
        return f"[{self.number}] {self.line}  {state}"


class Jobs:
    """All jobs of one shell. ``on_end`` is called with each one that ended."""

    def __init__(self, on_end: Callable[[Job], None]) -> None:
        self._on_end = on_end
        self._jobs: dict[int, Job] = {}
        self._last = 0

    def start(self, line: str, work: Coroutine[Any, Any, int], progress: Callable[[], str]) -> Job:
        self._last += 1
        job = Job(self._last, line, asyncio.ensure_future(work), progress)
        self._jobs[job.number] = job
        job.task.add_done_callback(lambda _: self._ended(job))
        return job

    def running(self) -> list[Job]:
        return list(self._jobs.values())

    async def wait(self, numbers: list[int]) -> int:
        """Until these have ended, or all; the last exit code that was not 0, else 0. UserError for
        a number that no running job has."""
        jobs = [self._job(number) for number in numbers] or self.running()
        code = 0
        for job in jobs:
            await asyncio.wait([job.task])
            ended = 1 if job.task.cancelled() else job.task.result()
            code = ended or code
        return code

    async def cancel(self, numbers: list[int]) -> None:
        """End these, or all; what an upload has sent is kept for --continue."""
        jobs = [self._job(number) for number in numbers] or self.running()
        for job in jobs:
            job.task.cancel()
        if jobs:
            await asyncio.wait([job.task for job in jobs], timeout=CANCEL_WAIT_S)

    def _job(self, number: int) -> Job:
        job = self._jobs.get(number)
        if job is None:
            raise UserError(f"no job {number} is running")
        return job

    def _ended(self, job: Job) -> None:
        self._jobs.pop(job.number, None)
        self._on_end(job)
