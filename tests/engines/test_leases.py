"""Who drives a run: takeovers, fences, drains, many runs on many workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp, Spawn, faults
from engines.harness import Bank, Model, Observer, WorkerProcess, clean_environment, pay, think, until, workflow, write
from interlock.engines.postgres.driver import RunDriver
from interlock.engines.postgres.worker import PostgresEngine
from interlock.identity.principal import Principal

LONG_LEASE = {"concurrency": 8, "lease_seconds": 600}  # nobody can wait for it to run out


# -- a worker that sleeps past its lease ---------------------------------------------------------------------------


async def test_stopped_in_the_middle_of_a_call(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    """The call goes on while its worker sleeps; whoever wakes up late may neither write nor begin anything."""
    bank.hold()
    sleeper = await spawn().ready()
    run = await desk.start("pay_keyed", ticket="a")
    await until(lambda: bank.refunds == {"a": 1}, lambda: "the bank is not asked")
    await sleeper.stop()
    bank.release()

    app = await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    record = (seen.journal(run), seen.audit(run), seen.run(run), seen.rows("select * from effects"))

    sleeper.send(signal.SIGCONT)
    await until(lambda: bool(sleeper.log("run.abandoned")), lambda: "the sleeper has not noticed")
    assert sleeper.log("run.abandoned")[0]["structured_data"] == {"run_id": run, "reason": "lease_lost"}
    assert record == (seen.journal(run), seen.audit(run), seen.run(run), seen.rows("select * from effects"))
    assert (bank.requests, bank.refunds) == (2, {"a": 1})
    seen.story(run)

    # It is none the worse for it: without the other worker it drives the next run.
    await app.engine.drain()
    again = await desk.start("pay_keyed", ticket="b")
    assert await seen.finished(again) == ["succeeded"]
    await until(lambda: bool(sleeper.log("run.finished")), lambda: "not in its log")  # written after the commit
    assert [line["structured_data"]["run_id"] for line in sleeper.log("run.finished")] == [again]


async def test_stopped_before_the_effect(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank, model: Model
) -> None:
    """It sleeps in the step before the refund, and wakes up while somebody else is paying."""
    model.hold("think")
    sleeper = await spawn().ready()
    run = await desk.start("think_pay", ticket="a")
    await until(lambda: model.asked("think") == 1, lambda: "the model is not asked")
    await sleeper.stop()
    await open_app(start_worker=True)
    await until(lambda: model.asked("think") == 2, lambda: "nobody takes over")
    bank.hold()
    model.release("think")  # both get their answer, the sleeper when it wakes up
    await until(lambda: bank.requests == 1, lambda: "nobody pays")

    sleeper.send(signal.SIGCONT)
    await until(lambda: bool(sleeper.log("run.abandoned")), lambda: "the sleeper has not noticed")
    assert sleeper.log("run.abandoned")[0]["structured_data"]["reason"] == "lease_lost"
    assert seen.effect(run) == "executing", "it was to wake up in the middle"
    bank.release()
    assert await seen.finished(run) == ["succeeded"]
    assert (bank.requests, bank.refunds) == (1, {"a": 1})
    assert seen.queue(run) is None
    seen.story(run)


async def test_a_drive_cancelled_before_its_first_step_is_not_renewed_for_ever(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process is found to have been stopped in the very moment in which it had claimed the run."""
    cancelled: list[str] = []
    original = PostgresEngine._claim

    async def claim_and_cancel(self: PostgresEngine, free: int) -> None:
        await original(self, free)
        if not cancelled:
            for run_id, (_, task) in self._drivers.items():
                cancelled.append(run_id)
                task.cancel()

    monkeypatch.setattr(PostgresEngine, "_claim", claim_and_cancel)
    app = await open_app(start_worker=True)
    run = await desk.start("pay_keyed", ticket="a")
    await until(lambda: cancelled and run not in app.engine._drivers, lambda: f"not cancelled: {seen.queue(run)}")
    seen.lapse(run=run)
    assert await seen.finished(run) == ["succeeded"]
    assert cancelled == [run]
    assert bank.refunds == {"a": 1}


async def test_a_run_let_go_is_taken_up_again_by_a_busy_worker(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drive that breaks off leaves its lease to run out, also while the worker goes on renewing others."""
    model.hold("think")
    broken: list[str] = []
    original = RunDriver._apply

    async def break_once(self: RunDriver, outcomes: list[Any]) -> None:
        run_id = self.ids[0]
        if seen.rows("select workflow from runs where run_id = %s", run_id)[0][0] == "pay_keyed" and not broken:
            broken.append(run_id)
            raise RuntimeError("a bug in the driver")
        await original(self, outcomes)

    monkeypatch.setattr(RunDriver, "_apply", break_once)
    app = await open_app(start_worker=True)
    busy = await desk.start("only_think")
    await until(lambda: model.asked("think") == 1, lambda: "the model is not asked")
    run = await desk.start("pay_keyed")
    await until(
        lambda: broken and run not in app.engine._drivers, lambda: f"the run is still driven: {seen.queue(run)}"
    )
    leases = "select lease_until from queue where run_id in (%s, %s) order by run_id = %s"
    kept, left = seen.rows(leases, busy, run, run)
    await app.engine._renew()
    renewed, still = seen.rows(leases, busy, run, run)
    assert (renewed > kept, still) == (True, left), "it renews what it drives, and nothing else"
    seen.lapse(run=run)
    assert await seen.finished(run) == ["succeeded"]
    assert broken == [run]
    assert seen.queue(run) is None
    model.release("think")
    assert await seen.finished(busy) == ["succeeded"]
    assert seen.journal(busy)[-1]["type"] == "step_succeeded"
    seen.story(run, busy)


# -- drains ----------------------------------------------------------------------------------------------------------


class Command:
    """`interlock worker` as users start it, in a project directory, configured by the environment."""

    def __init__(self, project: Path, data_dir: Path, url: str, settings: dict[str, Any], output: Path) -> None:
        environment = clean_environment(
            INTERLOCK_DATA_DIR=str(data_dir),
            INTERLOCK_DATABASE__URL=url,
            INTERLOCK_MODELS=json.dumps(settings["models"]),
            INTERLOCK_PROVIDERS=json.dumps(settings["providers"]),
            INTERLOCK_VARIABLES=json.dumps(settings["variables"]),
            INTERLOCK_WORKER__LEASE_SECONDS="600",
            INTERLOCK_SANDBOX__WARM="0",
        )
        self._output = output
        with output.open("wb") as file:
            command = [str(Path(sys.executable).with_name("interlock")), "worker"]
            self.process = subprocess.Popen(command, cwd=project, env=environment, stdout=file, stderr=file)

    @property
    def said(self) -> str:
        return self._output.read_text()

    async def ended(self) -> int:
        await until(lambda: self.process.poll() is not None, lambda: f"it does not end: {self.said}")
        return int(self.process.returncode)


async def test_drained_worker_finishes_the_step_and_hands_the_run_over(
    desk: Desk,
    open_app: OpenApp,
    seen: Observer,
    bank: Bank,
    project: Path,
    data_dir: Path,
    database_url: str,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    bank.hold()
    drained = Command(project, data_dir, database_url, settings, tmp_path / "drained")
    try:
        run = await desk.start("pay_keyed", ticket="a")
        await until(lambda: bank.requests == 1, lambda: f"the bank is not asked: {drained.said}")
        drained.process.send_signal(signal.SIGTERM)
        await until(lambda: "stopping" in drained.said, lambda: f"it does not hear: {drained.said}")
        bank.release()
        assert await drained.ended() == 0, drained.said
    finally:
        drained.process.kill()
    # The call was waited for and is on record; the step after it was not begun; the run is free at once.
    assert seen.kinds(run) == ["run_started", "step_succeeded pay"]
    assert seen.effect(run) == "succeeded"
    assert {key: seen.queue(run)[key] for key in ("worker", "ready")} == {"worker": None, "ready": True}  # type: ignore[index]

    await open_app(start_worker=True, worker=LONG_LEASE)
    assert await seen.finished(run) == ["succeeded"]
    assert (bank.requests, bank.refunds) == (1, {"a": 1})
    assert seen.kinds(run) == ["run_started", "step_succeeded pay", "step_succeeded note"]
    seen.story(run)


async def test_overlapping_drains_lose_nothing(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, admin: Principal
) -> None:
    """Workers come and go while runs arrive; every lease is too long to be waited for."""
    runs = [await desk.start("pay_keyed", ticket=f"r{number}") for number in range(6)]
    first = await open_app(start_worker=True, worker=LONG_LEASE)
    await until(lambda: bank.requests >= 2, lambda: "the bank is not asked")
    second = await open_app(start_worker=True, worker=LONG_LEASE)
    runs += [await desk.start("pay_keyed", ticket=f"r{number}") for number in range(6, 12)]
    await first.engine.drain()
    third = await open_app(start_worker=True, worker=LONG_LEASE)
    await second.engine.drain()
    assert set(await seen.finished(*runs)) == {"succeeded"}
    assert bank.refunds == {f"r{number}": 1 for number in range(12)}
    assert bank.requests == 12
    seen.story(*runs)
    assert third.engine is not None
    assert (await desk.app.audit.verify(admin.org_id)).ok


# -- many runs -------------------------------------------------------------------------------------------------------


async def test_sixty_runs_on_two_workers(
    desk: Desk, spawn: Spawn, seen: Observer, bank: Bank, strict: Bank, model: Model, admin: Principal
) -> None:
    kinds = ("think_pay", "pay_probed", "only_think")
    workers = [await spawn().ready() for _ in range(2)]
    model.hold("think")
    runs = [await desk.start(kinds[number % 3], ticket=f"r{number}") for number in range(60)]
    busy = "select count(distinct worker) from queue"
    await until(lambda: seen.rows(busy) == [(2,)], lambda: "one worker has it all")
    model.release("think")
    assert set(await seen.finished(*runs)) == {"succeeded"}

    assert bank.refunds + strict.refunds == {f"r{number}": 1 for number in range(60) if number % 3 != 2}
    assert bank.requests + strict.requests == 40

    def told() -> int:
        return sum(len(worker.log("run.finished")) for worker in workers)

    await until(lambda: told() >= 60, lambda: f"only {told()} ends are in the logs")  # written after the commit
    assert told() == 60
    assert [bool(worker.log("run.finished")) for worker in workers] == [True, True]
    assert seen.rows("select count(*) from queue") == [(0,)]
    seen.story(*runs)
    verdict = await desk.app.audit.verify(admin.org_id)
    assert verdict.ok, verdict.problem
    assert verdict.verified == seen.rows("select count(*) from audit")[0][0]


TOOLS = (("refund_keyed", "bank"), ("refund_probed", "strict"))


@pytest.mark.chaos
@faults("bank", "--delay", "1", "--drop-after-effect-every", "7")
@faults("strict", "--delay", "1", "--drop-after-effect-every", "7")
async def test_workers_die_at_random_while_runs_arrive(
    project: Path, desk: Desk, spawn: Spawn, seen: Observer, bank: Bank, strict: Bank, admin: Principal
) -> None:
    """Two workers at a time; whoever holds most runs is killed, again and again; the banks hang up on every seventh caller."""
    # With three attempts, one run in 343 would meet the hanging up in all of them.
    keyed, probed = (pay("pay", tool, where, attempts=9) for tool, where in TOOLS)
    write(project, workflow("pay_keyed", keyed, allow="refund_keyed"))
    write(project, workflow("pay_probed", probed, allow="refund_probed"))
    write(project, workflow("think_pay", think(), keyed, allow="refund_keyed"))
    await desk.app.admin.deploy(admin, desk.app.read_project())
    kinds = ("think_pay", "pay_probed", "pay_keyed", "only_think")
    runs = [await desk.start(kinds[number % 4], ticket=f"r{number}") for number in range(160)]
    workers = [await spawn().ready(), await spawn().ready()]
    struck = 0
    while (victim := await _most_loaded(seen, workers)) is not None:
        victim.send(signal.SIGKILL)
        await victim.ended()
        struck += 1
        workers.append(await spawn().ready())
    assert struck >= 4
    assert set(await seen.finished(*runs)) == {"succeeded"}

    assert bank.refunds + strict.refunds == {f"r{number}": 1 for number in range(160) if number % 4 != 3}
    taken_over = sum(len(worker.log("run.resumed")) for worker in workers)
    assert taken_over >= 16, f"only {taken_over} runs were interrupted"
    seen.story(*runs)
    assert (await desk.app.audit.verify(admin.org_id)).ok


async def _most_loaded(seen: Observer, workers: list[WorkerProcess]) -> WorkerProcess | None:
    """The living worker with most runs, once it has at least four; None when there are too few runs left."""
    found: list[WorkerProcess] = []

    def look() -> bool:
        held = dict(seen.rows("select worker, count(*) from queue where worker is not null group by worker"))
        alive = [one for one in workers if one.process.poll() is None and held.get(one.worker_id, 0) >= 4]
        found[:] = sorted(alive, key=lambda one: held[one.worker_id])[-1:]
        return bool(found) or seen.rows("select count(*) from queue")[0][0] < 8

    await until(look, lambda: f"nobody holds four runs; {seen.rows('select status, count(*) from runs group by 1')}")
    return found[0] if found else None
