"""Workers that share the load, die, drain, and wake up too late."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp, Spawn, faults
from engines.harness import Bank, Model, Observer, WorkerProcess, until
from interlock.engines.temporal import workflow
from interlock.identity.principal import Principal

SHORT = {"concurrency": 8, "lease_seconds": 2}  # for workers that are killed and whose heartbeats are missed


async def taken_over(sleeper: WorkerProcess, done: Callable[[], bool]) -> None:
    """Waits until others have done it. The server may offer it to the sleeper again, whose last request for work still stands."""

    async def over() -> bool:
        await sleeper.lapse()
        return done()

    await until(over, lambda: "nobody takes over")


async def test_many_runs_on_two_workers(
    desk: Desk, spawn: Spawn, seen: Observer, bank: Bank, strict: Bank, model: Model, admin: Principal
) -> None:
    kinds = ("think_pay", "pay_probed", "only_think")
    workers = [await spawn().ready() for _ in range(2)]
    model.hold("think")
    runs = [await desk.start(kinds[number % 3], ticket=f"r{number}") for number in range(30)]
    await until(lambda: model.asked("think") > SHORT["concurrency"], lambda: "one worker has it all")
    model.release("think")
    assert set(await seen.finished(*runs)) == {"succeeded"}

    assert bank.refunds + strict.refunds == {f"r{number}": 1 for number in range(30) if number % 3 != 2}
    assert bank.requests + strict.requests == 20

    def told() -> int:
        return sum(len(worker.log("run.finished")) for worker in workers)

    await until(lambda: told() >= 30, lambda: f"only {told()} ends are in the logs")  # written after the commit
    assert told() == 30
    assert [bool(worker.log("step.finished")) for worker in workers] == [True, True]
    assert seen.rows("select count(*) from queue") == [(0,)]
    assert seen.rows("select count(*) from claims") == [(0,)]
    seen.story(*runs)
    verdict = await desk.app.audit.verify(admin.org_id)
    assert verdict.ok, verdict.problem


async def test_one_process_records_and_another_performs(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process remembers of a run may be older than the journal; here nothing rides along that could tell."""
    monkeypatch.setattr(workflow, "_CARRIED", 0)
    for _ in range(2):
        await open_app(start_worker=True)
    runs = [await desk.start("think_pay", ticket=f"r{number}") for number in range(8)]
    assert set(await seen.finished(*runs)) == {"succeeded"}
    assert bank.refunds == {f"r{number}": 1 for number in range(8)}
    seen.story(*runs)


async def test_a_zombie_never_calls_the_tool(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    """Stopped after it wrote its intent and before it wrote `executing`, and woken when another attempt has done it all."""
    sleeper = await spawn(crash=("before executing", 0)).ready()
    run = await desk.start("pay_keyed", ticket="a")
    await until(sleeper.stopped, lambda: f"the worker does not stop: {seen.kinds(run)}")
    assert seen.effect(run) == "intended"

    other = await open_app(start_worker=True)
    await taken_over(sleeper, lambda: seen.effect(run) == "succeeded")
    record, requests = seen.rows("select * from effects"), bank.requests
    sleeper.send(signal.SIGCONT)
    await until(lambda: bool(sleeper.log("run.abandoned")), lambda: "the sleeper has not noticed")
    assert await seen.finished(run) == ["succeeded"]
    assert seen.rows("select * from effects") == record
    assert (bank.requests, bank.refunds) == (requests, {"a": 1})
    assert [one["event_type"] for one in seen.audit(run)].count("tool.call") == 2, (
        "one for the refund, one for the note"
    )
    seen.story(run)
    assert other.engine is not None


async def test_a_zombie_in_the_middle_of_its_call(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    """The call goes on while its worker sleeps; the other attempt repeats it under the same key, and the late one adds nothing."""
    bank.hold()
    sleeper = await spawn().ready()
    run = await desk.start("pay_keyed", ticket="a")
    await until(lambda: bank.requests >= 1, lambda: "the bank is not asked")
    await sleeper.stop()
    bank.release()
    await open_app(start_worker=True)
    await taken_over(sleeper, lambda: seen.status(run) == "succeeded")
    record = (seen.journal(run), seen.audit(run), seen.run(run), seen.rows("select * from effects"))
    requests = bank.requests
    assert requests > 1
    sleeper.send(signal.SIGCONT)
    await until(lambda: bool(sleeper.log("run.abandoned")), lambda: "the sleeper has not noticed")
    assert record == (seen.journal(run), seen.audit(run), seen.run(run), seen.rows("select * from effects"))
    assert (bank.requests, bank.refunds) == (requests, {"a": 1})
    seen.story(run)


async def test_a_worker_of_the_library_that_ended_is_replaced(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    """It cannot run a second time, and a process without one looks alive and drives nothing."""
    app = await open_app(start_worker=True)
    await until(lambda: app.engine._worker is not None, lambda: "it does not run")
    ended = app.engine._worker
    await ended.shutdown()
    run = await desk.start("pay_keyed", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1}
    assert app.engine._worker not in {ended, None}


async def test_drained_worker_finishes_the_step_and_hands_the_run_over(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    patient = {"concurrency": 8, "lease_seconds": 600}  # nobody can wait for a heartbeat to be missed
    bank.hold()
    drained = await spawn(worker=patient).ready()
    run = await desk.start("pay_keyed", ticket="a")
    await until(lambda: bank.requests == 1, lambda: "the bank is not asked")
    drained.send(signal.SIGTERM)
    await until(drained.stopping, lambda: "it does not hear")
    await asyncio.sleep(1)  # until it asks Temporal for no more tasks
    bank.release()
    assert await drained.ended() == 0
    # The call was waited for, and is in the ledger; its event is Temporal's until somebody records it.
    assert seen.effect(run) == "succeeded"
    assert seen.kinds(run) == ["run_started"]

    await open_app(start_worker=True, worker=patient)
    assert await seen.finished(run) == ["succeeded"]
    assert (bank.requests, bank.refunds) == (1, {"a": 1})
    assert seen.kinds(run) == ["run_started", "step_succeeded pay", "step_succeeded note"]
    seen.story(run)


@pytest.mark.chaos
@faults("bank", "--delay", "2", "--drop-after-effect-every", "7")
async def test_workers_die_at_random(desk: Desk, spawn: Spawn, seen: Observer, bank: Bank, admin: Principal) -> None:
    """Two workers at a time, one of them killed again and again; the bank hangs up on every seventh caller."""
    runs = [await desk.start(("think_pay", "pay_keyed")[number % 2], ticket=f"r{number}") for number in range(120)]
    workers: list[Any] = [await spawn(worker=SHORT).ready(), await spawn(worker=SHORT).ready()]
    for struck in range(4):
        before = bank.requests
        await until(lambda before=before: bank.requests >= before + 5, lambda: "no progress")  # type: ignore[misc]
        workers[struck].send(signal.SIGKILL)
        workers.append(await spawn(worker=SHORT).ready())
    assert seen.rows("select count(*) > 0 from queue") == [(True,)], "the kills came too late"
    assert set(await seen.finished(*runs)) == {"succeeded"}
    assert bank.refunds == {f"r{number}": 1 for number in range(120)}
    seen.story(*runs)
    assert (await desk.app.audit.verify(admin.org_id)).ok
