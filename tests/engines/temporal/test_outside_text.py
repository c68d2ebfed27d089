"""Outcomes that cannot be recorded: a failure of their step, and no activity is tried again for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import Bank, Model, Observer, think, until, workflow, write
from interlock.engines.temporal.activity import Performer
from interlock.execution import kernel
from interlock.execution.engine import MAX_CRASHES
from interlock.identity.principal import Principal
from interlock.testing import answer

SAY = think("say", attempts=1).replace(
    "required: [verdict, words],", "required: [verdict], additionalProperties: {type: integer},"
)


async def started(project: Path, open_app: OpenApp, admin: Principal, model: Model, *steps: str) -> Desk:
    write(project, workflow("w", *steps))
    model.answers["think"] = {"verdict": "good", "words": "well"}
    return Desk(await open_app(start_worker=True, deploy=True), admin)


async def test_a_name_in_a_models_answer_is_corrected_and_recorded_as_a_failure(
    project: Path, open_app: OpenApp, admin: Principal, seen: Observer, model: Model
) -> None:
    desk = await started(project, open_app, admin, model, SAY)
    for number, name in enumerate(("a\0b", "alice@example.com, SSN 078-05-1120"), start=1):
        model.always(answer(json.dumps({"verdict": "good", name: "x"})))
        run = await desk.start("w")
        assert await seen.finished(run) == ["failed"]
        assert model.asked("say") == 3 * number, "an answer and two corrections"
        assert seen.kinds(run) == ["run_started", "step_failed say"]
        assert seen.run(run)["output_tokens"] > 0
    assert "alice" not in seen.everywhere()


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL takes no NUL, so it refuses whatever carries these facts."""
    monkeypatch.setattr(kernel, "facts_of", lambda _schema, _value: {"verdict": "\0"})


async def test_a_refused_outcome_is_a_failure_of_its_step(
    project: Path, open_app: OpenApp, admin: Principal, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    desk = await started(project, open_app, admin, model, think())
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert model.asked("think") == 1
    assert seen.run(run)["output_tokens"] > 0
    assert "database refused" in seen.run(run)["reason"]


async def test_a_refused_outcome_of_a_mutating_tool_is_in_doubt(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    await open_app(start_worker=True)
    run = await desk.start("pay_keyed")
    await seen.review(run, "confirm")
    assert bank.requests == 1
    assert seen.effect(run) == "unknown"


async def test_a_run_whose_activity_always_breaks_is_parked_and_can_be_cancelled(
    project: Path, open_app: OpenApp, admin: Principal, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    async def broken(_self: Any, _run: Any, name: str, _outcome: Any) -> Any:
        tried.append(name)
        raise RuntimeError("alice@example.com")

    with monkeypatch.context() as patched:
        patched.setattr(Performer, "_done", broken)
        desk = await started(project, open_app, admin, model, think())
        run = await desk.start("w")
        letters = "select purpose, code, reason from dead_letters"
        await until(lambda: seen.rows(letters), lambda: f"not parked after {len(tried)} attempts")
        await seen.asleep(run)
        assert len(tried) == MAX_CRASHES
        assert seen.rows(letters) == [
            ("parked_run", "run_parked", f"an activity of it failed {MAX_CRASHES} times: RuntimeError")
        ]
    await desk.cancel(run)
    assert await seen.finished(run) == ["cancelled"]
    assert seen.rows("select status from dead_letters where purpose = 'parked_run'") == [("closed",)]
    seen.story(run)
