"""Calls of a model that were lost with their worker: they may have been paid for, so they count in the budget of their run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import ASK, Model, Observer, think, until, workflow, write

SUM = "select count(*), coalesce(sum(tokens), 0) from reservations where scope = 'run:' || %s"


@pytest.fixture
def project(project: Path) -> Path:
    """With runs of calls that come one after the other: a budget for one call of at most about 100 tokens, and for several."""
    for name, tokens in (("tight", 100), ("ample", 1000)):
        write(project, workflow(name, think(), ASK, think("again"), extra=f"budget: {{tokens: {tokens}}}\n"))
    return project


async def lose(name: str, desk: Desk, spawn: Spawn, seen: Observer, model: Model) -> str:
    """A run whose worker was killed while the provider had its call."""
    model.hold("think")
    worker = await spawn().ready()
    run = await desk.start(name)
    await until(lambda: model.asked("think") == 1, lambda: "the provider is not asked")
    assert seen.rows(SUM, run) == [(0, 0)], "a call that is not lost needs no row"
    worker.send(signal.SIGKILL)
    await worker.ended()
    return run


async def test_a_lost_call_counts_until_its_run_is_over(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    run = await lose("ample", desk, spawn, seen, model)
    await open_app(start_worker=True)
    await until(lambda: model.asked("think") == 2, lambda: "the call is not repeated")
    ((count, both),) = seen.rows(SUM, run)
    assert count == 2
    model.release("think")
    review = await seen.review(run)
    assert seen.rows(SUM, run) == [(1, both // 2)], "the repetition is in the run's row, the lost call is not"
    await desk.decide(review, "approve")  # the run rests in between: its next worker counts it, too
    assert await seen.finished(run) == ["succeeded"]
    assert seen.rows(SUM, run) == [(0, 0)]
    assert model.asked("again") == 1
    seen.story(run)


async def test_a_budget_that_the_lost_call_may_have_used_up_allows_no_other(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    run = await lose("tight", desk, spawn, seen, model)
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["partial"]
    assert "of the run's 100 are used" in seen.run(run)["reason"]
    assert model.count == 1
