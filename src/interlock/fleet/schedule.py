"""Scheduler of work that one process of all does every so often.

The table `schedule` has one row for each job: when it is due, and which process is at it until when. Processes take due rows with
`for update skip locked`. A process that dies during a job is followed by another when its lease has run out; a job is cancelled
before that, so no job runs twice at once. Due times survive restarts: a process that restarts often does not work more often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from interlock.base.background import Loop
from interlock.base.errors import InterlockError, Unavailable
from interlock.base.ids import new_id
from interlock.store.database import Database
from interlock.telemetry import names
from interlock.telemetry.logs import log

_LOOK_SECONDS = 5.0
_RETRY_SECONDS = 60.0  # after a failure, unless the job's own interval is shorter
_MARGIN = 0.8  # of the lease, after which a job is cancelled


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """Work to do every `every` seconds, in one process of all; the first time `every` seconds after the first process started.

    Attributes:
        name: of the row, so the same in every process and release.
        lease: seconds until another process takes the job over; the work is cancelled after four fifths of it.
    """

    name: str
    work: Callable[[], Awaitable[object]]
    every: float
    lease: float = 600.0


class Schedule:
    """Takes due jobs, one after the other, until closed. An error is logged, and the job is due again after a minute at most."""

    def __init__(self, database: Database, jobs: list[ScheduledJob], *, look_seconds: float = _LOOK_SECONDS) -> None:
        self._database = database
        self._jobs = jobs
        self._holder = new_id("sch")
        self._errors: dict[str, str] = {}
        self._loop = Loop("schedule", self.run_due, every=look_seconds, longest=look_seconds, report=_unknown)

    def start(self) -> None:
        self._loop.start()

    async def close(self) -> None:
        """Cancels the job under way; it is due again at once."""
        await self._loop.close()

    async def run_due(self) -> None:
        """Does each job that is due and that no other process is at."""
        for job in self._jobs:
            row = await self._database.row("take_job", job.name, self._holder, job.every, job.lease)
            if row is not None and row["taken"]:
                await self._run(job)

    async def _run(self, job: ScheduledJob) -> None:
        wait = min(job.every, _RETRY_SECONDS)
        try:
            async with asyncio.timeout(job.lease * _MARGIN):
                await job.work()
            wait = job.every
            self._errors.pop(job.name, None)
        except asyncio.CancelledError:
            wait = 0.0
            raise
        except Exception as error:  # noqa: BLE001  a job must not end the others
            self._failed(job, error)
        finally:
            await self._database.row("job_done", job.name, self._holder, wait)

    def _failed(self, job: ScheduledJob, error: Exception) -> None:
        reason = str(error) if isinstance(error, InterlockError) else f"{type(error).__name__}: {error}"
        if self._errors.get(job.name) != reason:  # once, not every minute
            self._errors[job.name] = reason
            level = "warning" if isinstance(error, Unavailable) else "error"
            log(names.LOG_INTERNAL, f'the job "{job.name}" failed: {reason}', level=level)


def _unknown(error: Exception) -> None:
    log(names.LOG_DATABASE_DOWN, str(error), level="error")
