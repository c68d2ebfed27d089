"""What stands on the server: nothing readable, nothing long, and nothing that replays differently."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.converter import DataConverter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from engines.conftest import Desk, OpenApp
from engines.harness import Bank, Model, Observer, until
from engines.temporal.conftest import MASTER_KEY, Histories
from interlock.base.errors import IntegrityError
from interlock.engines.temporal.activity import Performer
from interlock.engines.temporal.codec import SealingCodec, sealing_converter
from interlock.engines.temporal.workflow import InterlockRun
from interlock.testing import rate_limited

SECRET = "zanzibar"


@pytest.mark.parametrize("temporal", [{"history_events": 20}], indirect=True)
async def test_a_long_run_continues_as_new(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, histories: Histories
) -> None:
    await open_app(start_worker=True)
    run = await desk.start("pay_twice_boom")
    assert await seen.finished(run) == ["failed"]
    chain = await histories.chain(run)
    assert len(chain) > 1
    assert max(len(events) for events in chain) < 40
    assert bank.refunds == {"first": 1, "second": 1}
    assert bank.reversed_tickets == ["second", "first"]
    seen.story(run)


@pytest.mark.parametrize("temporal", [{"history_events": 20}], indirect=True)
async def test_a_wait_outlives_continuing_as_new(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model, histories: Histories
) -> None:
    """The history is full while a timer runs and a review is open; both are heard in the next one."""
    model.script(*[rate_limited(retry_after=0.2)] * 2)
    await open_app(start_worker=True)
    run = await desk.start("ask_beside_think")
    review = await seen.review(run)
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert len(await histories.chain(run)) > 1
    assert seen.kinds(run).count("step_succeeded think") == 1
    seen.story(run)


async def test_the_server_reads_nothing(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model, histories: Histories, monkeypatch: Any
) -> None:
    model.answers["think"] = {"verdict": "good", "words": SECRET}

    async def fail(self: Performer, run_id: str, org_id: str) -> Any:
        raise RuntimeError(f"{SECRET} in a failure")

    with monkeypatch.context() as patch:
        patch.setattr(Performer, "_held", fail)
        await open_app(start_worker=True)
        broken = await desk.start("only_think", ticket=SECRET)
        await until(lambda: seen.queue(broken)["ready"] is False, lambda: f"not handed on: {seen.queue(broken)}")

        async def failed() -> bool:
            pending = (await histories.handle(broken).describe()).raw_description.pending_activities
            failures.extend(one.last_failure.SerializeToString() for one in pending if one.HasField("last_failure"))
            return bool(failures)

        failures: list[bytes] = []
        await until(failed, lambda: "no failure on the server")
    runs = [broken]
    runs += [await desk.start(kind, ticket=SECRET, text=SECRET) for kind in ("think_pay", "ask_pay", "only_think")]
    await desk.decide(await seen.review(runs[2]), "approve")
    assert await seen.finished(*runs) == ["succeeded"] * 4

    chains = [await histories.chain(run) for run in runs]
    held = b"".join([event.SerializeToString() for chain in chains for events in chain for event in events] + failures)
    assert b"Encoded failure" in held, "the failure has to be there to prove anything"
    assert b"InterlockRun" in held
    hidden = (SECRET, "refund", "think", "verdict", "note", "ask", "acme", "tokens", "step_succeeded", "RuntimeError")
    assert [word for word in hidden if word.encode() in held] == []


async def test_payloads_of_strangers_are_refused() -> None:
    ours, theirs = SealingCodec(MASTER_KEY), SealingCodec(bytes(32))
    plain = await DataConverter().encode([{"word": SECRET}])
    sealed = await ours.encode(plain)
    assert SECRET.encode() not in sealed[0].SerializeToString()
    assert await ours.decode(sealed) == plain
    with pytest.raises(IntegrityError, match="master key"):
        await theirs.decode(sealed)
    with pytest.raises(IntegrityError, match="not sealed"):
        await ours.decode(plain)


async def test_histories_replay(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model, histories: Histories
) -> None:
    model.script(rate_limited(retry_after=0.1))
    await open_app(start_worker=True)
    runs = [await desk.start(kind) for kind in ("only_think", "think_pay", "pay_twice_boom", "ask_beside_think")]
    cancelled = await desk.start("ask_pay")
    await seen.review(cancelled)
    await desk.cancel(cancelled)
    await desk.decide(await seen.review(runs[3]), "approve")
    await seen.finished(*runs, cancelled)
    replayer = Replayer(
        workflows=[InterlockRun],
        workflow_runner=UnsandboxedWorkflowRunner(),
        data_converter=sealing_converter(MASTER_KEY),
    )
    for run in (*runs, cancelled):
        await replayer.replay_workflow(await histories.fetch(run))


async def test_what_a_run_was_told_outlives_its_workflow(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, histories: Histories
) -> None:
    """Temporal has it, nobody has recorded it yet, and the workflow goes: it is told again, and the run begins from its journal."""
    app = await open_app(start_worker=True)
    run = await desk.start("ask_pay", ticket="a")
    review = await seen.review(run)
    await seen.asleep(run)
    app.engine._loop.finish()
    await app.engine._worker.shutdown()  # no worker takes its tasks, as for a build without workers; the bridge runs on
    await desk.decide(review, "approve")
    told = "select count(*) from signals where forwarded_at is not null"
    await until(lambda: seen.rows(told) == [(1,)], lambda: "not handed on")
    await histories.handle(run).terminate()
    await open_app(start_worker=True)
    seen.connection.execute("update queue set available_at = now() where run_id = %s", (run,))  # the minute passes
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1}
    assert seen.rows("select count(*) from signals") == [(0,)]
    seen.story(run)
