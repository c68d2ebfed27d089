"""A worker: leases runs, drives them, keeps the leases alive, gives back what it cannot finish."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from interlock.base.background import Loop
from interlock.base.clock import since_boot
from interlock.base.errors import InterlockError, LeaseLost, Unavailable
from interlock.base.ids import new_id
from interlock.engines.postgres.driver import RunDriver
from interlock.execution.engine import MAX_CRASHES, EngineServices
from interlock.execution.records import park_run
from interlock.machine import version as machine_version
from interlock.store.commit import Commit
from interlock.store.listener import Listener
from interlock.store.rows import CrashedRun
from interlock.telemetry import names
from interlock.telemetry.logs import log, stack_of

ENGINE = "postgres"
CHANNEL = "interlock_queue"
MAX_CRASH_STREAK = 3
"""Workers in a row that may die under a run which gets no further; after that it is driven alone, and after one more death
a person has to look at it. `claim_runs` knows this number, too."""
_POLL_SECONDS = 1.0  # the net under LISTEN/NOTIFY, and how late a timer may fire


class PostgresEngine:
    """Fulfils `runtime.engine.Engine`. Many of these, in as many processes, share one database safely."""

    def __init__(self, services: EngineServices, *, concurrency: int, lease_seconds: float) -> None:
        self._services = services
        self._concurrency = concurrency
        self._lease = lease_seconds
        self.worker_id = new_id("wrk")
        self._drivers: dict[str, tuple[RunDriver, asyncio.Task[None]]] = {}
        self._stopping = False
        self._making_room = False
        self._seen_running = since_boot()
        third, tenth = lease_seconds / 3, lease_seconds / 10
        claiming = Loop("claim", self._claim_free, every=_POLL_SECONDS, longest=_POLL_SECONDS, report=_complain)
        renewing = Loop("renew leases", self._keep, every=third, at_once=False, longest=third, report=_complain)
        noticing = Loop("notice pauses", self._notice_pause, every=tenth, longest=tenth, report=_complain)
        self._claiming, self._loops = claiming, (claiming, renewing, noticing)
        self._listener = Listener(services.database, CHANNEL, self._notified)

    async def start(self) -> None:
        self._seen_running = since_boot()
        for loop in self._loops:
            loop.start()
        self._listener.start()
        log(names.LOG_WORKER_STARTED, worker=self.worker_id, concurrency=self._concurrency)

    async def drain(self) -> None:
        """Finishes the steps under way and hands every run back; no run waits for a lease to expire."""
        self._stopping = True
        for driver, _ in self._drivers.values():
            driver.drain()
        await asyncio.gather(*(task for _, task in self._drivers.values()), return_exceptions=True)
        for loop in self._loops:
            await loop.close()
        await self._listener.close()
        with contextlib.suppress(Unavailable):
            await self._services.database.execute("release_leases", self.worker_id)
        log(names.LOG_WORKER_STOPPED, worker=self.worker_id)

    # -- claiming ----------------------------------------------------------------------------------------------

    async def _claim_free(self) -> None:
        """Claims as many runs as this worker can drive. Another round comes when a run is accepted or one of these ends."""
        free = 0 if self._making_room and self._drivers else self._concurrency - len(self._drivers)
        if self._stopping:
            return
        if free > 0:
            await self._claim(free)
        elif not self._making_room:
            await self._release_waiting()

    async def _release_waiting(self) -> None:
        """Gives runs back that only wait for a timer, as many as other runs are due and find no place here."""
        waiting = [driver for driver, _ in self._drivers.values() if driver.waits]
        if waiting:
            versions = (machine_version.OLDEST_MACHINE, machine_version.MACHINE_VERSION)
            row = await self._services.database.row("runs_due", ENGINE, *versions, len(waiting))
            for driver in waiting[: row["due"] if row is not None else 0]:
                driver.make_room()

    async def _claim(self, free: int) -> None:
        rows = await self._services.database.rows(
            "claim_runs",
            self.worker_id,
            self._lease,
            free,
            ENGINE,
            machine_version.OLDEST_MACHINE,
            machine_version.MACHINE_VERSION,
        )
        if self._stopping:
            return  # claimed while the drain began; the drain gives them back
        self._making_room = False
        for row in rows:
            if row["crash_streak"] <= MAX_CRASH_STREAK:
                self._begin(row["run_id"], row["org_id"], row["fence"])
        # After them: it takes a commit, and what has no driver is neither renewed nor drained.
        for row in rows:
            if row["crash_streak"] > MAX_CRASH_STREAK:
                await self._quarantine(row["run_id"], row["org_id"], row["fence"], row["crash_streak"])

    def _begin(self, run_id: str, org_id: str, fence: int) -> None:
        stale = self._drivers.pop(run_id, None)
        if stale is not None:  # our own lease ran out and we were first to take it again: the old drive is void
            stale[1].cancel()
        driver = RunDriver(self._services, run_id, org_id, fence)
        task = asyncio.create_task(self._drive(run_id, driver), name=f"drive {run_id}")
        self._drivers[run_id] = (driver, task)
        # Not in a `finally` of its own: a task that is cancelled before its first step never gets there.
        task.add_done_callback(partial(self._driven, run_id, driver))

    async def _drive(self, run_id: str, driver: RunDriver) -> None:
        try:
            await driver.drive()
        except Exception as error:  # noqa: BLE001  one run's bug must not stop the others; its lease expires and it is tried again
            await self._crashed(driver, error)  # before the lease runs out
            said = error.message if isinstance(error, InterlockError) else type(error).__name__
            log(names.LOG_INTERNAL, said, level="error", run_id=run_id, stack=stack_of(error))

    def _driven(self, run_id: str, driver: RunDriver, _: asyncio.Task[None]) -> None:
        """Stops renewing the lease of a run whose driver ended."""
        if self._drivers.get(run_id, (None,))[0] is driver:
            del self._drivers[run_id]
        self._claiming.wake()

    async def _crashed(self, driver: RunDriver, error: Exception) -> None:
        """Counts a crashed drive. A run that cannot be driven is parked with a dead letter instead of being retried for ever."""
        run_id, org_id, fence = driver.ids
        try:
            row = await self._services.database.row("get_crashes", run_id, org=org_id)
            if row is None:
                return
            if row["crashes"] + 1 >= MAX_CRASHES:
                reason = error.message if isinstance(error, InterlockError) else type(error).__name__
                await self._park(run_id, org_id, fence, f"driving it failed {MAX_CRASHES} times: {reason}")
            else:
                crashed = [CrashedRun(run_id=run_id, parked=False)]
                await self._services.committer.submit(Commit(org_id, fence=(run_id, fence), crashed=crashed))
        except LeaseLost:
            pass  # another worker drives it now, and will count
        except Exception as failure:  # noqa: BLE001  uncounted it is tried again, as it would be anyway
            _complain(failure)

    async def _quarantine(self, run_id: str, org_id: str, fence: int, crash_streak: int) -> None:
        """Instead of driving it: its workers died again and again, the last of them with nothing else in its hands."""
        reason = f"{crash_streak} workers in a row died while driving it and it got no further, the last one driving nothing else"
        log(names.LOG_RUN_ABANDONED, reason, level="error", run_id=run_id, reason="driver_failed")
        try:
            await self._park(run_id, org_id, fence, reason)
        except LeaseLost:
            pass  # as above
        except Exception as failure:  # noqa: BLE001  its lease runs out, and the next worker parks it
            _complain(failure)

    async def _park(self, run_id: str, org_id: str, fence: int, reason: str) -> None:
        commit = Commit(org_id, fence=(run_id, fence), crashed=[CrashedRun(run_id=run_id, parked=True)])
        row = await self._services.database.row("get_crashes", run_id, org=org_id)
        if row is not None and not row["parked"]:  # else its dead letter lies there from the last time
            run = await self._services.database.row("get_run", run_id, org=org_id)
            assert run is not None, "crashes are counted of runs that exist"
            park_run(commit, run, reason, self._services.clock.now())
        await self._services.committer.submit(commit)

    # -- leases and notifications ------------------------------------------------------------------------------

    async def _keep(self) -> None:
        if self._drivers:
            await self._renew()
            await self._take_exclusive_slot()

    async def _renew(self) -> None:
        # Named runs only: the lease of a run without a driver must expire, or no worker would claim it again.
        driven = list(self._drivers)
        rows = await self._services.database.rows("renew_leases", self.worker_id, self._lease, driven)
        for row in rows:  # the net under the notification
            self._notified(row["signalled"])

    async def _take_exclusive_slot(self) -> None:
        """Releases all runs if a suspect run waits for an exclusive slot and no idle worker took it."""
        row = await self._services.database.row(
            "take_exclusive_slot",
            self.worker_id,
            self._lease,
            ENGINE,
            machine_version.OLDEST_MACHINE,
            machine_version.MACHINE_VERSION,
        )
        if row is not None and row["chosen"]:
            self._making_room = True
            for driver, _ in self._drivers.values():
                driver.drain()

    async def _notice_pause(self) -> None:
        """Lets go of everything when this process was stopped so long that its leases may have run out meanwhile.

        The fence keeps what it would write out of the database; nothing else keeps a call that it was about to make from
        reaching a tool a second time. A database that is away is no such case: then no other worker can take the runs either.
        """
        before, self._seen_running = self._seen_running, since_boot()
        # Renewed every third of a lease, so at least two thirds were left when the pause began.
        if self._seen_running - before > self._lease / 2:
            for run_id, (_, task) in self._drivers.items():
                message = "this process was stopped for so long that the lease may be gone"
                log(names.LOG_RUN_ABANDONED, message, level="warning", run_id=run_id, reason=LeaseLost.code)
                task.cancel()

    def _notified(self, payload: str) -> None:
        mine = self._drivers.get(payload)
        if mine is not None:
            mine[0].wake()
        else:
            self._claiming.wake()


def _complain(error: Exception) -> None:
    if isinstance(error, Unavailable):
        log(names.LOG_DATABASE_DOWN, error.message, level="error")
    else:
        log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)
