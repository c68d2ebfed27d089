"""A worker: leases runs, drives them, keeps the leases alive, gives back what it cannot finish."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from interlock.base.errors import Unavailable
from interlock.base.ids import new_id
from interlock.engines.postgres.driver import RunDriver
from interlock.runtime.engine import Services
from interlock.store.database import DOWN
from interlock.telemetry import names
from interlock.telemetry.logs import log

CHANNEL = "interlock_queue"
_POLL_SECONDS = 1.0  # the net under LISTEN/NOTIFY, and how late a timer may fire
# Goes on while the machine sleeps, where there is such a clock; a lease does, too.
_LEASE_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class PostgresEngine:
    """Fulfils `runtime.engine.Engine`. Many of these, in as many processes, share one database safely."""

    def __init__(self, services: Services, *, concurrency: int, lease_seconds: float) -> None:
        self._services = services
        self._concurrency = concurrency
        self._lease = lease_seconds
        self.worker_id = new_id("wrk")
        self._drivers: dict[str, tuple[RunDriver, asyncio.Task[None]]] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: Any = None

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._claim_forever(), name="claim"),
            asyncio.create_task(self._renew_forever(), name="renew leases"),
            asyncio.create_task(self._notice_pauses(), name="notice pauses"),
            asyncio.create_task(self._listen_forever(), name="listen"),
        ]
        log(names.LOG_WORKER_STARTED, worker=self.worker_id, concurrency=self._concurrency)

    async def drain(self) -> None:
        """Finishes the steps under way and hands every run back; no run waits for a lease to expire."""
        self._stopping = True
        for driver, _ in self._drivers.values():
            driver.drain()
        await asyncio.gather(*(task for _, task in self._drivers.values()), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            with contextlib.suppress(*DOWN):
                await asyncio.wait_for(self._listener.close(), 2)
        with contextlib.suppress(Unavailable):
            await self._services.database.execute("release_leases", self.worker_id)
        log(names.LOG_WORKER_STOPPED, worker=self.worker_id)

    # -- claiming ----------------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        while not self._stopping:
            self._wake.clear()
            free = self._concurrency - len(self._drivers)
            claimed = 0
            if free > 0:
                try:
                    claimed = await self._claim(free)
                except Exception as error:  # noqa: BLE001  a worker that claims no more looks alive and is not
                    _complain(error)
            if claimed == 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _POLL_SECONDS)

    async def _claim(self, free: int) -> int:
        rows = await self._services.database.rows("claim_runs", self.worker_id, self._lease, free)
        if self._stopping:
            return 0  # claimed while the drain began; the drain gives them back
        for row in rows:
            run_id = row["run_id"]
            stale = self._drivers.pop(run_id, None)
            if stale is not None:  # our own lease ran out and we were first to take it again: the old drive is void
                stale[1].cancel()
            driver = RunDriver(self._services, run_id, row["org_id"], row["fence"])
            task = asyncio.create_task(self._drive(run_id, driver), name=f"drive {run_id}")
            self._drivers[run_id] = (driver, task)
        return len(rows)

    async def _drive(self, run_id: str, driver: RunDriver) -> None:
        try:
            await driver.drive()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  one run's bug must not stop the others; its lease expires and it is tried again
            log(names.LOG_INTERNAL, str(error), level="error", run_id=run_id, exc_info=error)
        finally:
            if self._drivers.get(run_id, (None,))[0] is driver:
                del self._drivers[run_id]
            self._wake.set()

    # -- leases and notifications ------------------------------------------------------------------------------

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            if not self._drivers:
                continue
            try:
                # By name: a run that its driver let go must run out, or nobody would ever take it up again.
                driven = list(self._drivers)
                await self._services.database.rows("renew_leases", self.worker_id, self._lease, driven)
            except Exception as error:  # noqa: BLE001  as above
                _complain(error)

    async def _notice_pauses(self) -> None:
        """Lets go of everything when this process was stopped so long that its leases may have run out meanwhile.

        The fence keeps what it would write out of the database; nothing else keeps a call that it was about to make from
        reaching a tool a second time. A database that is away is no such case: then nobody else can take the runs either.
        """
        while True:
            before = time.clock_gettime(_LEASE_CLOCK)
            await asyncio.sleep(self._lease / 10)
            # Renewed every third of a lease, so at least two thirds were left when the pause began.
            if time.clock_gettime(_LEASE_CLOCK) - before > self._lease / 2:
                for _, task in self._drivers.values():
                    task.cancel()

    async def _listen_forever(self) -> None:
        while True:
            try:
                self._listener = await self._services.database.listen(CHANNEL, self._notified)
                self._wake.set()
                while not self._listener.is_closed():  # noqa: ASYNC110  the library has no event for it
                    await asyncio.sleep(_POLL_SECONDS)
            except DOWN:
                pass  # polling goes on; listening is only the quick way
            await asyncio.sleep(_POLL_SECONDS)

    def _notified(self, payload: str) -> None:
        mine = self._drivers.get(payload)
        if mine is not None:
            mine[0].wake()
        else:
            self._wake.set()


def _complain(error: Exception) -> None:
    if isinstance(error, Unavailable):
        log(names.LOG_DATABASE_DOWN, error.message, level="error")
    else:
        log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)
