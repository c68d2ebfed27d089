"""Dead letters on this engine: a held step goes on, and a run that is dead comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp
from engines.dead_letters import FLAKY, FLAKY_TWICE, dead_letter_of
from engines.harness import BOOM, Bank, Observer, pay, refund_tool, until, workflow, write
from interlock.engines.temporal.activity import Performer


async def test_a_dead_run_comes_back(project: Path, desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    write(
        project,
        {
            **refund_tool(
                "refund_flaky", "bank", "honours_idempotency", "compensate", code=FLAKY.replace("< 2", "< 3")
            ),
            **workflow("w", pay("pay", "refund_flaky", "bank"), BOOM, allow="refund_flaky, boom"),
        },
    )
    await open_app(start_worker=True, deploy=True)
    run = await desk.start("w")
    for number in (1, 2):
        dead_letter = await dead_letter_of(seen, run, "compensation")
        assert await seen.finished(run) == ["dead"]
        assert sum(kind.startswith("compensation_failed") for kind in seen.kinds(run)) == number
        await desk.app.dead_letters.requeue(desk.admin, dead_letter)
    await until(lambda: seen.status(run) == "failed", lambda: f"{seen.status(run)} {seen.kinds(run)}")
    assert len(bank.reversed_tickets) == 1
    assert seen.effect(run) == "compensated"
    assert seen.queue(run) is None


async def test_a_held_step_is_requeued_or_given_up(
    project: Path, desk: Desk, open_app: OpenApp, seen: Observer
) -> None:
    write(project, workflow("w", BOOM, allow="boom", extra="on_failure: hold\n"))
    await open_app(start_worker=True, deploy=True)
    run = await desk.start("w")
    first = await dead_letter_of(seen, run, "step")
    await desk.app.dead_letters.requeue(desk.admin, first)
    await until(lambda: seen.kinds(run).count("step_failed boom") == 2, lambda: str(seen.kinds(run)))
    await desk.app.dead_letters.discard(desk.admin, await dead_letter_of(seen, run, "step"))
    assert await seen.finished(run) == ["failed"]
    seen.story(run)


async def test_a_letter_decided_while_the_run_dies_brings_it_back(
    project: Path, desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches the workflow while the death is being recorded: then the run leaves the queue, and is back in it at once."""
    write(project, FLAKY_TWICE)
    committing = Performer._commit

    async def slowly(performer: Performer, held: Any, new: Any, *rest: Any) -> bool:
        if any(one["event"]["type"] == "compensation_failed" and one["event"]["step"] == "pay_a" for one in new):
            query = "select 1 from dead_letters where step = 'pay_b' and status = 'open'"
            if seen.rows(query):
                await desk.app.dead_letters.requeue(
                    desk.admin, await dead_letter_of(seen, held.run.run_id, "compensation", "pay_b")
                )
                told = "select count(*) from signals where forwarded_at is not null"
                await until(lambda: seen.rows(told) == [(1,)], lambda: "not delivered")
        return await committing(performer, held, new, *rest)

    monkeypatch.setattr(Performer, "_commit", slowly)
    await open_app(start_worker=True, deploy=True)
    run = await desk.start("w")
    await until(
        lambda: "compensation_succeeded pay_b" in seen.kinds(run), lambda: f"{seen.queue(run)} {seen.kinds(run)}"
    )
    assert await seen.finished(run) == ["dead"]
    await desk.app.dead_letters.requeue(desk.admin, await dead_letter_of(seen, run, "compensation", "pay_a"))
    await until(lambda: seen.status(run) == "failed", lambda: f"{seen.status(run)} {seen.kinds(run)}")
    assert sorted(bank.reversed_tickets) == ["first", "second"]
    assert seen.queue(run) is None
