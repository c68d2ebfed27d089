"""Dead letters on this engine: a held step goes on, and a run that is dead comes back."""

from __future__ import annotations

from pathlib import Path

from engines.conftest import Desk, OpenApp
from engines.harness import BOOM, Bank, Observer, pay, refund_tool, until, workflow, write

FLAKY = """

undo = compensate


def compensate(input, output, context):
    if context["attempt"] < 3:
        raise RuntimeError("the bank is closed")
    return undo(input, output, context)
"""


async def letter_of(seen: Observer, run: str, purpose: str) -> str:
    query = "select letter_id from dead_letters where run_id = %s and purpose = %s and status = 'open'"
    await until(lambda: bool(seen.rows(query, run, purpose)), lambda: f"no letter: {seen.run(run)} {seen.kinds(run)}")
    return str(seen.rows(query, run, purpose)[0][0])


async def test_a_dead_run_comes_back(project: Path, desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    write(
        project,
        {
            **refund_tool("refund_flaky", "bank", "honours_idempotency", "compensate", code=FLAKY),
            **workflow("w", pay("pay", "refund_flaky", "bank"), BOOM, allow="refund_flaky, boom"),
        },
    )
    await open_app(start_worker=True, deploy=True)
    run = await desk.start("w")
    for number in (1, 2):
        letter = await letter_of(seen, run, "compensation")
        assert await seen.finished(run) == ["dead"]
        assert sum(kind.startswith("compensation_failed") for kind in seen.kinds(run)) == number
        await desk.app.letters.requeue(desk.admin, letter)
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
    first = await letter_of(seen, run, "step")
    await desk.app.letters.requeue(desk.admin, first)
    await until(lambda: seen.kinds(run).count("step_failed boom") == 2, lambda: str(seen.kinds(run)))
    await desk.app.letters.discard(desk.admin, await letter_of(seen, run, "step"))
    assert await seen.finished(run) == ["failed"]
    seen.story(run)
