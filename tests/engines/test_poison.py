"""A run whose step kills the process that drives it: it is parked, its neighbours are not, and a person can have it back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg
import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import Bank, Model, Observer, WorkerProcess, until
from interlock.engines.postgres.driver import RunDriver
from interlock.engines.postgres.worker import MAX_CRASH_STREAK
from interlock.identity.principal import Principal
from interlock.testing import answer

DIED = 139
MAX_DEATHS = 3 * MAX_CRASH_STREAK + 6  # far more than it takes; endless it would be without the count


def dead_letters(seen: Observer, run: str) -> list[tuple[str, str, str, str]]:
    return seen.rows("select dead_letter_id, purpose, status, reason from dead_letters where run_id = %s", run)


async def die_until_parked(spawn: Spawn, seen: Observer, run: str) -> tuple[int, WorkerProcess]:
    """Restarts a worker whenever it died, as a supervisor does, until the run has a dead letter; deaths and the last worker."""
    deaths = 0
    worker = spawn(poison="pay_keyed")
    while not dead_letters(seen, run):
        await until(
            lambda worker=worker: worker.process.poll() is not None or bool(dead_letters(seen, run)),
            lambda: f"neither dead nor parked: {seen.queue(run)} {seen.kinds(run)}",
        )
        if worker.process.poll() is not None:
            assert await worker.ended() == DIED
            deaths += 1
            assert deaths <= MAX_DEATHS, "it kills worker after worker"
            worker = spawn(poison="pay_keyed")
    return deaths, worker


async def test_a_run_that_kills_its_workers_is_parked_and_its_neighbours_succeed(
    desk: Desk, spawn: Spawn, seen: Observer, model: Model
) -> None:
    """One worker at a time, so that all neighbours die with it each time; their steps take longer than it takes to die."""
    model.always(answer({"verdict": "good", "words": "well"}, delay=0.7))
    model.answers.clear()
    poison = await desk.start("pay_keyed")
    neighbours = [await desk.start("only_think") for _ in range(3)]
    deaths, _ = await die_until_parked(spawn, seen, poison)
    assert deaths > MAX_CRASH_STREAK
    ((_, purpose, status, reason),) = dead_letters(seen, poison)
    assert (purpose, status) == ("parked_run", "open")
    assert reason.startswith(f"{MAX_CRASH_STREAK + 1} workers in a row died while driving it")
    assert set(await seen.finished(*neighbours)) == {"succeeded"}
    assert [dead_letters(seen, one) for one in neighbours] == [[], [], []]
    row = seen.queue(poison)
    assert row is not None
    assert (row["worker"], row["available_at"]) == (None, "infinity")
    assert [one["detail"]["purpose"] for one in seen.audit(poison) if one["event_type"] == "dead_letter.opened"] == [
        "parked_run"
    ]
    seen.story(poison, *neighbours)


async def test_requeued_it_goes_on_where_the_cause_is_mended(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, admin: Principal, bank: Bank
) -> None:
    run = await desk.start("pay_keyed")
    _, worker = await die_until_parked(spawn, seen, run)
    worker.close()
    ((dead_letter, *_),) = dead_letters(seen, run)
    await desk.app.dead_letters.requeue(admin, dead_letter, "the library is mended")
    assert seen.rows("select crashes, crash_streak from queue where run_id = %s", run) == [(0, 0)]
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    assert [status for _, _, status, _ in dead_letters(seen, run)] == ["requeued"]
    seen.story(run)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_busy_worker_hands_over_what_it_drives_to_make_room(
    workers: int,
    desk: Desk,
    open_app: OpenApp,
    seen: Observer,
    model: Model,
    bank: Bank,
    owner: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All workers are busy, and a suspect waits: one of them finishes its steps, drives it, and goes on as before."""
    drives: Counter[str] = Counter()
    original = RunDriver.drive

    async def drive(self: RunDriver) -> None:
        drives[self.ids[0]] += 1
        await original(self)

    monkeypatch.setattr(RunDriver, "drive", drive)
    model.hold("think")
    apps = [await open_app(start_worker=True, worker={"concurrency": 3, "lease_seconds": 60}) for _ in range(workers)]
    busy = [await desk.start("think_pay") for _ in range(3 * workers)]
    await until(lambda: model.asked("think") == len(busy), lambda: "not all are driven")
    suspect = await desk.start("pay_keyed")
    long_ago = "crash_streak = 3, available_at = now() - interval '1 minute'"
    owner.execute(f"update queue set {long_ago} where run_id = %s and worker is null", (suspect,))
    for app in apps:
        await app.engine._take_exclusive_slot()  # as with each renewal of its leases
    assert seen.rows("select room_by from queue where run_id = %s", suspect) == [(apps[0].engine.worker_id,)]
    model.release("think")
    assert set(await seen.finished(suspect, *busy)) == {"succeeded"}
    assert sorted(drives[run] for run in busy) == [1] * 3 * (workers - 1) + [2] * 3, "one worker handed its runs over"
    assert drives[suspect] == 1
    assert set(bank.refunds.values()) == {1}
    seen.story(suspect, *busy)
