"""Observation of progress during faults: how long single runs, and all runs together, make no progress.

Reads the tables with its own statements and measures with its own monotonic clock, at intervals of 0.15 s; so its recovery
times are rather too long than too short.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from interlock.base.errors import Unavailable
from interlock.store.database import Database, Row

POLL_SECONDS = 0.15
TERMINAL = frozenset({"succeeded", "partial", "failed", "cancelled", "dead"})

_PROGRESS = """
select runs.run_id, runs.status, coalesce(max(journal.seq), 0) as seq, queue.worker is not null as driven
    from runs left join journal using (run_id) left join queue on queue.run_id = runs.run_id
    where runs.run_id = any($1::text[]) group by runs.run_id, runs.status, queue.worker
"""


@dataclass(slots=True)
class _Seen:
    status: str = "queued"
    seq: int = 0
    driven: bool = False
    hit_at: float | None = None
    seq_when_hit: int | None = None


class RunWatch:
    """Observes the runs of one chaos run.

    Attributes:
        recoveries: seconds from the last fault that hit a run's worker to that run's next entry in the journal.
        longest_stall: seconds without an entry in any journal while runs were unfinished.
    """

    def __init__(self, database: Database, org_id: str) -> None:
        self._database = database
        self._org = org_id
        self._seen: dict[str, _Seen] = {}
        self._moved_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self.recoveries: list[float] = []
        self.longest_stall = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._look_forever())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def expect(self, run_id: str) -> None:
        """Adds a run, which must make progress from now on."""
        if not self.unfinished:
            self._moved_at = time.monotonic()
        self._seen[run_id] = _Seen()

    @property
    def unfinished(self) -> list[str]:
        return [run_id for run_id, seen in self._seen.items() if seen.status not in TERMINAL]

    @property
    def finished(self) -> int:
        return len(self._seen) - len(self.unfinished)

    @property
    def driven(self) -> list[str]:
        """Runs that a worker drove at the last observation."""
        return [run_id for run_id, seen in self._seen.items() if seen.driven and seen.status not in TERMINAL]

    @property
    def waiting(self) -> int:
        """Number of runs that no worker had claimed at the last observation."""
        return sum(seen.status == "queued" and not seen.driven for seen in self._seen.values())

    @property
    def still(self) -> float:
        """Seconds since the last progress of any run; 0 while no run is unfinished."""
        return time.monotonic() - self._moved_at if self.unfinished else 0.0

    def hit(self, runs: list[str], at: float) -> None:
        """Records a fault that hit the worker of these runs at this moment of `time.monotonic()`."""
        for run_id in runs:
            seen = self._seen.get(run_id)
            if seen is not None and seen.status not in TERMINAL:
                seen.hit_at, seen.seq_when_hit = at, None

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            with contextlib.suppress(Unavailable):  # the database is still unavailable: the stall continues
                await self.look()

    async def look(self) -> None:
        """Reads the progress of every unfinished run."""
        runs = self.unfinished
        asked_at = time.monotonic()

        async def read() -> list[Row]:
            async with self._database.connection(self._org) as connection:
                return list(await connection.fetch(_PROGRESS, runs))

        rows = await self._database.retrying(read) if runs else []
        now = time.monotonic()
        if rows and now > asked_at + 1:
            asked_at = now  # after an outage of the database this is the time of its answer
        moved = False
        for row in rows:
            seen = self._seen[row["run_id"]]
            moved |= row["seq"] > seen.seq
            self._recover(seen, row, asked_at, now)
            seen.status, seen.seq, seen.driven = row["status"], row["seq"], row["driven"]
        if moved or not runs:
            if runs:
                self.longest_stall = max(self.longest_stall, now - self._moved_at)
            self._moved_at = now

    def _recover(self, seen: _Seen, row: Row, asked_at: float, now: float) -> None:
        if seen.hit_at is None or asked_at < seen.hit_at:
            return
        if seen.seq_when_hit is None:
            seen.seq_when_hit = row["seq"]  # last entry written before the hit
        if row["seq"] > seen.seq_when_hit or row["status"] in TERMINAL:
            self.recoveries.append(now - seen.hit_at)
            seen.hit_at = seen.seq_when_hit = None
