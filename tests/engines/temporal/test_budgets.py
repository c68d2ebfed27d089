"""A run's budget when its parallel steps work in several processes, none of which knows what the others have reserved."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import ASK, Model, Observer, think, until, workflow, write

ONE_STEP = {"concurrency": 1, "lease_seconds": 60}
SHORT = {"concurrency": 8, "lease_seconds": 3}
SUM = "select sum(tokens), sum(nano_usd) from reservations where scope = 'run:' || %s"


def _indent(text: str) -> str:
    return "".join("      " + line for line in text.splitlines(keepends=True))


@pytest.fixture
def project(project: Path) -> Path:
    """With runs whose two calls at once fit their budget one by one (100 tokens) or together (1,000)."""
    both = "- id: both\n  kind: parallel\n  branches:\n    a:\n"
    both += _indent(think("one")) + "    b:\n" + _indent(think("two"))
    for name, tokens in (("tight", 100), ("ample", 1000)):
        write(project, workflow(name, both, ASK, extra=f"budget: {{tokens: {tokens}}}\n"))
    write(project, workflow("free", both, ASK))
    write(project, workflow("single", think("one"), ASK, extra="budget: {tokens: 1000}\n"))
    return project


@pytest.fixture(autouse=True)
def holding(model: Model) -> None:
    for title in ("one", "two"):
        model.answers[title] = {"verdict": "good", "words": "well"}
        model.hold(title)


async def test_steps_in_two_processes_do_not_overspend_together(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    """Each worker has one step; the second is refused while the first is still under way."""
    workers = [await open_app(start_worker=True, worker=ONE_STEP) for _ in range(2)]
    run = await desk.start("tight")
    refused = "select count(*) from claims where run_id = %s and event ->> 'type' = 'step_failed'"
    await until(lambda: seen.rows(refused, run) == [(1,)], lambda: f"nobody is refused: {model.asked('one')}")
    await until(lambda: model.asked("one") + model.asked("two") == 1, lambda: "no step is under way")
    for title in ("one", "two"):
        model.release(title)
    assert await seen.finished(run) == ["partial"]
    record = seen.run(run)
    assert "of the run's 100 are used" in record["reason"]
    assert record["input_tokens"] + record["output_tokens"] <= 100
    assert model.count == 1
    assert len(workers) == 2


async def test_what_is_set_aside_is_replaced_by_what_was_used(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    for _ in range(2):
        await open_app(start_worker=True, worker=ONE_STEP)
    run = await desk.start("ample")
    await until(lambda: model.count == 2, lambda: "the calls are not under way")
    reserved, _ = seen.rows(SUM, run)[0]
    assert reserved > 100, "two times 50 tokens of answer, and the prompts"
    for title in ("one", "two"):
        model.release(title)
    await seen.review(run)
    assert seen.rows(SUM, run) == [(None, None)], "the run's row has it"
    assert seen.rows("select count(*) from claims where run_id = %s and event is not null", run) == [(2,)]
    used = seen.run(run)
    assert 0 < used["input_tokens"] + used["output_tokens"] < reserved


async def test_a_call_lost_with_its_worker_counts_beside_its_repetition(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    """Also where no two calls of a run are under way at once, and until the run is over."""
    worker = await spawn(worker=SHORT).ready()
    run = await desk.start("single")
    await until(lambda: model.asked("one") == 1, lambda: "the provider is not asked")
    assert seen.rows(SUM, run) == [(None, None)]
    worker.send(signal.SIGKILL)
    await worker.ended()
    await open_app(start_worker=True, worker=SHORT)
    await until(lambda: model.asked("one") == 2, lambda: "the call is not repeated")
    ((both, _),) = seen.rows(SUM, run)
    model.release("one")
    review = await seen.review(run)
    assert seen.rows(SUM, run)[0][0] == both / 2
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert seen.rows(SUM, run) == [(None, None)]


async def test_a_run_without_a_budget_sets_nothing_aside(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    await open_app(start_worker=True)
    run = await desk.start("free")
    await until(lambda: model.count == 2, lambda: "the calls are not under way")
    assert seen.rows(SUM, run) == [(None, None)]
