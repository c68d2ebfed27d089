"""The kernel asks before it calls: breakers and the tools' own health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from engines.harness import NOTE, Model, Observer, think, until, workflow, write
from execution.conftest import Deploy
from interlock.base.errors import InvalidSpec
from interlock.base.settings import Settings
from interlock.definitions.project import read_project
from interlock.testing import rate_limited, server_error

ONCE = think(attempts=1)


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is only slow is waited for: a failure that is not written down in two seconds would not be counted."""
    monkeypatch.setattr("interlock.admission.breakers._PATIENCE", 60.0)


def codes(seen: Observer, run: str) -> list[str]:
    return [event["failure"]["code"] for event in seen.journal(run) if event["type"] == "step_failed"]


async def test_a_provider_that_stays_away_is_not_called_until_it_is_back(
    deploy: Deploy, seen: Observer, model: Model, owner: psycopg.Connection[Any]
) -> None:
    desk = await deploy(workflow("w", ONCE), breaker={"window_seconds": 3600, "open_seconds": 3600})
    model.script(*[server_error()] * 5)
    for _ in range(5):
        run = await desk.start("w")
        assert await seen.finished(run) == ["failed"]
        assert codes(seen, run) == ["provider_error"]
    runs = [await desk.start("w") for _ in range(4)]
    assert set(await seen.finished(*runs)) == {"failed"}
    assert [codes(seen, run) for run in runs] == [["target_down"]] * 4
    assert model.count == 5
    assert seen.rows("select target, state from breakers") == [(f"provider:{model.pin}", "open")]
    failure = seen.journal(runs[0])[-1]["failure"]
    assert failure["kind"] == "transient"
    assert 0 < failure["retry_after"] <= 3600
    owner.execute("update breakers set open_until = now() - interval '1 second'")
    owner.execute("notify interlock_health")

    async def closed() -> bool:
        await seen.finished(await desk.start("w"))
        return seen.rows("select state from breakers") == [("closed",)]

    await until(closed, lambda: "the breaker stays open")
    assert model.count == 8, "three calls on trial, and no other"
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]


async def test_a_provider_that_asks_for_patience_is_not_broken(deploy: Deploy, seen: Observer, model: Model) -> None:
    desk = await deploy(workflow("w", ONCE))
    model.script(*[rate_limited()] * 6)
    runs = [await desk.start("w") for _ in range(7)]
    assert sorted(await seen.finished(*runs)) == ["failed"] * 6 + ["succeeded"]
    assert model.count == 7
    assert seen.rows("select * from breakers") == []


FRAIL_TOOL = """\
name: frail
description: Has a health check.
effect: pure
health: {every: 5}
input: {type: object}
output: {type: object, properties: {done: {type: boolean}}, required: [done]}
"""
FRAIL_CODE = """\
def run():
    return {"done": True}


def health(context):
    return {"healthy": HEALTHY, "detail": "no paper"}
"""


def frail(healthy: bool) -> dict[str, str]:
    step = "- {id: frail, kind: tool, tool: frail}\n"
    return {
        "tools/frail/tool.yaml": FRAIL_TOOL,
        "tools/frail/main.py": FRAIL_CODE.replace("HEALTHY", str(healthy)),
        **workflow("w", step, allow="frail"),
    }


async def test_an_unhealthy_tool_is_not_called_until_it_recovers(
    deploy: Deploy, seen: Observer, owner: psycopg.Connection[Any], project: Path
) -> None:
    desk = await deploy(frail(False))
    bad = "select bad from tool_health"
    await until(lambda: seen.rows(bad) == [(1,)], lambda: f"nobody asked: {seen.rows(bad)}")
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"], "one bad answer is not enough"
    owner.execute("update tool_health set next_at = now()")
    await until(lambda: seen.rows(bad) == [(2,)], lambda: f"nobody asked again: {seen.rows(bad)}")

    async def refused() -> bool:  # as soon as the kernel's process has heard of it
        run = await desk.start("w")
        await seen.finished(run)
        return codes(seen, run) == ["tool_unhealthy"]

    await until(refused, lambda: "the tool is still called")
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    failures = [event["failure"] for event in seen.journal(run) if event["type"] == "step_failed"]
    assert [(one["code"], one["kind"]) for one in failures] == [("tool_unhealthy", "permanent")]
    assert "no paper" in failures[0]["message"]

    write(project, frail(True))  # other code is another tool: it has not been found wanting
    await desk.app.admin.deploy(desk.admin, desk.app.read_project())
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    await until(lambda: seen.rows("select bad, healthy from tool_health where checked_at is not null") == [(0, True)],
                lambda: "the new one is not asked, or the old one still is")  # fmt: skip
    write(project, workflow("w", NOTE, allow="note"))
    await desk.app.admin.deploy(desk.admin, desk.app.read_project())
    assert seen.rows("select * from tool_health") == []


@pytest.mark.parametrize("every", ["4.9", "3601", "soon", "true"])
def test_how_often_is_bounded(every: str, project: Path) -> None:
    write(project, frail(True))
    write(project, {"tools/frail/tool.yaml": FRAIL_TOOL.replace("every: 5", f"every: {every}")})
    with pytest.raises(InvalidSpec, match=r"health\.every"):
        read_project(project, Settings())
