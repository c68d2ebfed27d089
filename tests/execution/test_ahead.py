"""Work that begins before its cause is durable: only what changes nothing outside, one transaction ahead, and no further."""

from __future__ import annotations

import asyncio

import pytest

from engines.harness import Bank, Model, Observer, pay, think, until, workflow
from execution.conftest import Deploy
from interlock.base.errors import LeaseLost
from interlock.engines.postgres import driver
from interlock.store.commit import Commit

PAY = pay("pay", "refund", "bank")
NOTE = "- {id: note, kind: tool, tool: note, input: {text: $input.ticket}}\n"


class Gate:
    """Holds back transactions with a step's event in them; what they raise in the end is `error`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, committer: object, step: str) -> None:
        self.open = asyncio.Event()
        self.error: Exception | None = None
        self.held = 0
        original = committer.submit  # type: ignore[attr-defined]

        async def submit(commit: Commit) -> None:
            if any(row.event.get("step") == step for row in commit.journal) and not self.open.is_set():
                self.held += 1
                await self.open.wait()
                if self.error is not None:
                    raise self.error
            await original(commit)

        monkeypatch.setattr(committer, "submit", submit)


async def test_a_model_call_begins_beside_the_transaction_before_it(
    deploy: Deploy, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it shows before, and the one after it waits: never two transactions of one run under way."""
    desk = await deploy(workflow("w", think("one"), think("two"), think("three")))
    gate = Gate(monkeypatch, desk.app.committer, "one")
    run = await desk.start("w")
    await until(lambda: model.asked("two") == 1, lambda: "it waited for the transaction")
    await asyncio.sleep(0.3)
    assert (gate.held, model.asked("three")) == (1, 0)
    assert ("step_succeeded one" in seen.kinds(run), seen.run(run)["steps"]) == (False, 0)
    gate.open.set()
    assert await seen.finished(run) == ["succeeded"]
    assert seen.kinds(run) == ["run_started", *(f"step_succeeded {name}" for name in ("one", "two", "three"))]
    assert [model.asked(name) for name in ("one", "two", "three")] == [1, 1, 1]
    seen.story(run)


async def test_an_effect_waits_for_everything_before_it(
    deploy: Deploy, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await deploy(workflow("w", NOTE, PAY, allow="note, refund"))
    gate = Gate(monkeypatch, desk.app.committer, "note")
    run = await desk.start("w")
    await until(lambda: gate.held == 1, lambda: "note is not done")
    await asyncio.sleep(0.3)
    assert (bank.requests, seen.effect(run)) == (0, None)  # not even intended
    gate.open.set()
    assert await seen.finished(run) == ["succeeded"]
    assert bank.requests == 1
    seen.story(run)


async def test_the_end_is_told_when_it_is_durable(
    deploy: Deploy, seen: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await deploy(workflow("w", NOTE, allow="note"))
    gate = Gate(monkeypatch, desk.app.committer, "note")
    run = await desk.start("w")
    await until(lambda: gate.held == 1, lambda: "note is not done")
    await asyncio.sleep(0.3)
    await desk.app.tracing.flush()
    assert seen.status(run) in {"queued", "running"}
    assert not seen.rows("select 1 from spans where name = 'run w'")
    gate.open.set()
    assert await seen.finished(run) == ["succeeded"]


async def test_a_refused_transaction_ends_the_work_begun_on_its_account(
    deploy: Deploy, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`two` is under way and would take for ever; the refusal of `one` is heard at once, and nothing of either is written."""
    model.hold("two")
    desk = await deploy(workflow("w", think("one"), think("two")))
    gate = Gate(monkeypatch, desk.app.committer, "one")
    gate.error = LeaseLost("the run belongs to another worker now")
    worker = desk.app.engine
    assert worker is not None
    run = await desk.start("w")
    await until(lambda: model.asked("two") == 1, lambda: "it waited for the transaction")
    gate.open.set()
    await until(lambda: run not in worker._drivers, lambda: "the drive goes on")
    seen.lapse(run=run)
    assert "step_succeeded one" not in seen.kinds(run)
    model.release("two")
    # Whoever takes it next begins where the journal ends.
    assert await seen.finished(run) == ["succeeded"]
    assert (model.asked("one"), model.asked("two")) == (2, 2)
    assert seen.kinds(run) == ["run_started", "step_succeeded one", "step_succeeded two"]
    seen.story(run)


async def test_a_start_is_written_with_its_first_outcome(
    deploy: Deploy, seen: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_START_WAITS", 60.0)  # nothing else has it written before
    desk = await deploy(workflow("w", think("one"), think("two")))
    written: list[list[str]] = []
    original = desk.app.committer.submit

    async def submit(commit: Commit) -> None:
        written.append([row.event["type"] for row in commit.journal])
        await original(commit)

    monkeypatch.setattr(desk.app.committer, "submit", submit)
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert [kinds for kinds in written if kinds] == [["run_started", "step_succeeded"], ["step_succeeded"]]
    seen.story(run)


async def test_a_start_does_not_wait_for_a_slow_first_step(deploy: Deploy, seen: Observer, model: Model) -> None:
    """Whoever looks at the run sees it running, and a worker that dies now leaves that on record."""
    model.hold("one")
    desk = await deploy(workflow("w", think("one")))
    run = await desk.start("w")
    await until(lambda: model.asked("one") == 1, lambda: "not asked")
    await until(lambda: seen.status(run) == "running", lambda: "nobody wrote that it runs")
    assert (seen.kinds(run), model.asked("one")) == (["run_started"], 1)
    model.release("one")
    assert await seen.finished(run) == ["succeeded"]
    assert seen.kinds(run) == ["run_started", "step_succeeded one"]
    seen.story(run)


async def test_a_start_before_an_effect_is_durable_first(
    deploy: Deploy, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await deploy(workflow("w", PAY, allow="refund"))
    gate = Gate(monkeypatch, desk.app.committer, "none")
    original = desk.app.committer.submit

    async def submit(commit: Commit) -> None:
        if any(row.event["type"] == "run_started" for row in commit.journal):
            gate.held += 1
            await gate.open.wait()
        await original(commit)

    monkeypatch.setattr(desk.app.committer, "submit", submit)
    run = await desk.start("w")
    await until(lambda: gate.held == 1, lambda: "the start waits for something")
    await asyncio.sleep(0.3)
    assert (bank.requests, seen.effect(run)) == (0, None)
    gate.open.set()
    assert await seen.finished(run) == ["succeeded"]
    assert bank.requests == 1
