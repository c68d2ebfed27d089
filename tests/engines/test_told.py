"""What a run is told reaches it: also when nobody listened just then, and when it was about to end, or to leave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engines.conftest import Desk, OpenApp
from engines.dead_letters import FLAKY_TWICE, dead_letter_of
from engines.harness import Bank, Model, Observer, until, write
from interlock.engines.postgres.driver import RunDriver
from interlock.engines.postgres.worker import MAX_CRASH_STREAK, PostgresEngine
from interlock.machine import events as ev
from interlock.store.commit import Commit
from interlock.store.database import Database
from interlock.store.listener import Listener
from interlock.store.rows import NewSignal


async def test_a_driven_run_hears_what_was_said_while_nobody_listened(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model
) -> None:
    model.hold("think")
    app = await open_app(start_worker=True)
    run = await desk.start("think_pay")
    await until(lambda: model.asked("think") == 1, lambda: "not asked")
    await app.engine._listener.close()
    await desk.cancel(run)
    await until(lambda: "cancel_requested" in seen.kinds(run), lambda: f"not heard: {seen.kinds(run)}")
    model.release("think")
    assert await seen.finished(run) == ["cancelled"]
    assert bank.requests == 0


async def test_listening_begins_anew_whatever_ended_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    listen, refusals = database.listen, [asyncpg.InvalidAuthorizationSpecificationError("no entry"), ValueError("odd")]

    async def refusing(channel: str, callback: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await listen(channel, callback)

    monkeypatch.setattr(database, "listen", refusing)
    listener = Listener(database, "somewhere", heard.append)
    listener.start()
    await until(lambda: heard == [""], lambda: f"not listening: {refusals}")
    await listener.close()


@pytest.mark.parametrize("moment", ["with its end", "before its end is on record", "before its end is on record again"])
async def test_a_letter_decided_while_the_run_dies_brings_it_back(
    moment: str,
    project: Path,
    desk: Desk,
    open_app: OpenApp,
    seen: Observer,
    bank: Bank,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`pay_b` cannot be undone at once, and while `pay_a` cannot be either, somebody has the undo of `pay_b` tried again."""
    write(project, FLAKY_TWICE)
    app = await open_app(deploy=True)
    decided = asyncio.Event()

    async def decide(run: str) -> None:
        if not decided.is_set():
            decided.set()
            await desk.app.dead_letters.requeue(desk.admin, await dead_letter_of(seen, run, "compensation", "pay_b"))

    if moment == "with its end":
        following = RunDriver._next

        async def together(driver: RunDriver) -> Any:
            outcomes = await following(driver)
            if any(
                isinstance(one.event, ev.CompensationFailed) and one.event.step == "pay_a" for one in outcomes or ()
            ):
                await decide(driver.ids[0])
                await until(lambda: not driver._events.empty(), lambda: "not told")
                outcomes += [driver._events.get_nowait() for _ in range(driver._events.qsize())]
            return outcomes

        monkeypatch.setattr(RunDriver, "_next", together)
    else:
        submit, ends = app.committer.submit, 0

        async def late(commit: Commit) -> None:
            nonlocal ends
            if commit.finished:
                ends += 1
                if ends == (2 if moment.endswith("again") else 1):
                    await decide(commit.finished[0].run_id)
            await submit(commit)

        monkeypatch.setattr(app.committer, "submit", late)
    await app.start_worker()
    run = await desk.start("w")
    if moment.endswith("again"):
        # Told nothing that it waits for, the dead run is taken up and leaves again: just then the dead letter is decided.
        await seen.finished(run)
        stale = ev.event_to_json(ev.TimerFired("nobody's", 0.0))
        await desk.app.committer.submit(Commit("acme", new_signals=[NewSignal(org_id="acme", run_id=run, event=stale)]))
    await until(
        lambda: "compensation_succeeded pay_b" in seen.kinds(run), lambda: f"{seen.queue(run)} {seen.kinds(run)}"
    )
    assert await seen.finished(run) == ["dead"]
    assert seen.effect(run, "pay_b") == "compensated"
    await desk.app.dead_letters.requeue(desk.admin, await dead_letter_of(seen, run, "compensation", "pay_a"))
    await until(lambda: seen.status(run) == "failed", lambda: f"{seen.status(run)} {seen.kinds(run)}")
    assert sorted(bank.reversed_tickets) == ["first", "second"]
    assert seen.queue(run) is None
    assert seen.rows("select count(*) from signals") == [(0,)]


async def test_parking_a_run_keeps_no_other_from_its_driver(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was claimed together with it is driven, and drained, while the parking takes its time."""
    parking, enough = asyncio.Event(), asyncio.Event()

    async def slow(engine: PostgresEngine, *_: Any) -> None:
        parking.set()
        await enough.wait()

    monkeypatch.setattr(PostgresEngine, "_quarantine", slow)
    deadly = await desk.start("only_think")
    seen.connection.execute("update queue set crash_streak = %s", (MAX_CRASH_STREAK + 1,))
    others = [await desk.start("only_think") for _ in range(3)]
    await open_app(start_worker=True)
    async with asyncio.timeout(120):
        await parking.wait()
    assert await seen.finished(*others) == ["succeeded"] * 3
    assert seen.status(deadly) == "queued"
    enough.set()
