"""Workers of several releases over one database, and long journals: who may claim a run, and that it is taken up again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import TERMINAL, Observer, until, write
from interlock.base.errors import FailureKind
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.engines.simulator.driver import simulate
from interlock.execution.loading import JOURNAL_PAGE, fold_in_slices
from interlock.machine import events as ev
from interlock.machine import version
from interlock.machine.machine import fold
from interlock.machine.names import id_of
from interlock.machine.program import Program
from interlock.machine.state import RunState

NEWER = version.MACHINE_VERSION + 1

# -- versions ------------------------------------------------------------------------------------------------------


async def test_an_older_worker_leaves_a_newer_run_alone(
    desk: Desk, open_app: OpenApp, seen: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(version, "MACHINE_VERSION", NEWER)
        ahead = await desk.start("only_think")
    beside = await desk.start("only_think")
    await open_app(start_worker=True)
    assert await seen.finished(beside) == ["succeeded"]
    last = await desk.start("only_think")
    assert await seen.finished(last) == ["succeeded"]
    queued = seen.rows("select machine, worker, fence, crash_streak from queue where run_id = %s", ahead)
    assert queued == [(NEWER, None, 0, 0)], "it was claimed by a worker that does not understand it"
    assert seen.journal(ahead) == []

    monkeypatch.setattr(version, "MACHINE_VERSION", NEWER)  # the same worker, upgraded
    assert await seen.finished(ahead) == ["succeeded"]
    assert [one["machine"] for one in seen.journal(ahead) if one["type"] == "run_started"] == [NEWER]
    seen.story(ahead)


async def test_an_old_run_finishes_under_newer_code(
    desk: Desk, open_app: OpenApp, seen: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await open_app(start_worker=True)
    run = await desk.start("ask_beside_think")
    review = await seen.review(run)
    await seen.asleep(run)
    assert old.engine is not None
    await old.engine.drain()

    monkeypatch.setattr(version, "MACHINE_VERSION", NEWER)
    await open_app(start_worker=True)
    fresh = await desk.start("only_think")
    await desk.decide(review, "approve")
    assert await seen.finished(run, fresh) == ["succeeded", "succeeded"]
    assert [seen.journal(one)[0]["machine"] for one in (run, fresh)] == [NEWER - 1, NEWER]
    seen.story(run)


async def test_a_journal_of_a_newer_release_parks_no_run(desk: Desk, spawn: Spawn, seen: Observer) -> None:
    """An event that this release does not know is said so, and the run waits for a release that does."""
    worker = await spawn().ready()
    run = await desk.start("ask_beside_think")
    await seen.review(run)
    await seen.asleep(run)
    seen.rows(
        "insert into journal (run_id, seq, org_id, event) select run_id, max(seq) + 1, min(org_id), %s from journal"
        " where run_id = %s group by run_id returning seq",
        json.dumps({"type": "step_exploded", "at": 1.0}),
        run,
    )
    seen.rows("update queue set available_at = now() where run_id = %s returning 1", run)
    await until(lambda: len(worker.log("run.abandoned")) > 1, lambda: "it does not say so")
    said = worker.log("run.abandoned")[-1]
    assert said["structured_data"] == {"run_id": run, "reason": "needs_newer_release"}
    assert 'its journal has an event "step_exploded"' in said["message"]
    assert seen.rows("select count(*) from dead_letters where run_id = %s", run) == [(0,)]
    assert seen.rows("select crashes, crash_streak from queue where run_id = %s", run) == [(0, 0)]
    # It drives others meanwhile.
    assert await seen.finished(await desk.start("only_think")) == ["succeeded"]


# -- long journals -------------------------------------------------------------------------------------------------


LEASE = {"concurrency": 8, "lease_seconds": 3}  # half of it in one piece is taken for a stopped process
BULK = """\
name: bulk
input: {type: object, properties: {text: {type: string}, items: {type: array, items: {type: string}}}}
steps:
  - id: each
    kind: map
    items: $input.items
    max_items: 10000
    concurrency: 100
    on_item_failure: continue
    steps:
      - {id: s1, kind: model, prompt: think, values: {text: $input.text}, output: {type: object}}
      - {id: s2, kind: model, prompt: think, values: {text: $input.text}, output: {type: object}}
      - {id: s3, kind: model, prompt: think, values: {text: $input.text}, output: {type: object}}
  - {id: go, kind: wait, signal: go}
output: {}
"""


def journal_of(program: Program, items: int, last: str | None) -> list[Any]:
    """The events of the map; the step named `last` fails in every item."""
    value = Ref("0" * 64, 1, DEFINED)
    failure = ev.Failure(FailureKind.PERMANENT, "code", "it failed")

    def reply(command: ev.Command, now: float) -> Any:
        if not isinstance(command, ev.Perform):
            return None
        if command.step == "each":
            return ev.StepSucceeded("each", command.attempt, now, now, value, {"count": items})
        if last is not None and id_of(command.step) == last:
            return ev.StepFailed(command.step, command.attempt, now, now, failure)
        return ev.StepSucceeded(command.step, command.attempt, now, now, value)

    return simulate(program, reply, seed=7).events


async def taken_up(spawn: Spawn, desk: Desk, seen: Observer, items: int, last: str | None) -> None:
    """A run that stands before its signal after so many items, taken up by a worker with a short lease."""
    run = await desk.start("bulk", items=[])
    org, name, of_version = seen.rows("select org_id, workflow, version from runs where run_id = %s", run)[0]
    events = journal_of((await desk.app.versions.get(org, name, of_version)).program, items, last)
    assert len(events) > 4 * JOURNAL_PAGE
    rows = [(run, number, org, json.dumps(ev.event_to_json(one))) for number, one in enumerate(events, 1)]
    with seen.connection.transaction(), seen.connection.cursor() as cursor:
        cursor.executemany("insert into journal (run_id, seq, org_id, event) values (%s, %s, %s, %s)", rows)
    worker = await spawn(worker=LEASE).ready()
    small = [await desk.start("only_think") for _ in range(3)]
    assert await seen.finished(*small) == ["succeeded"] * 3
    await desk.app.signals.signal(desk.admin, run, "go", {})
    await until(lambda: seen.run(run)["status"] in TERMINAL, lambda: str(worker.log("run.abandoned")))
    assert seen.run(run)["status"] == ("partial" if last else "succeeded")
    assert len(seen.journal(run)) == len(events) + 1
    assert worker.log("run.abandoned") == []


@pytest.fixture
def project(project: Path) -> Path:
    write(project, {"workflows/bulk.yaml": BULK})
    return project


async def test_a_long_run_is_taken_up_again_under_a_short_lease(spawn: Spawn, desk: Desk, seen: Observer) -> None:
    await taken_up(spawn, desk, seen, 1000, "s3")


@pytest.mark.chaos
@pytest.mark.parametrize(("items", "last"), [(10_000, None), (5_000, "s2")], ids=["all succeed", "all fail"])
async def test_the_longest_run_is_taken_up_again(
    spawn: Spawn, desk: Desk, seen: Observer, items: int, last: str | None
) -> None:
    await taken_up(spawn, desk, seen, items, last)


async def test_others_get_the_event_loop_while_a_journal_is_folded(desk: Desk) -> None:
    definition = await desk.app.versions.head(desk.admin.org_id, "bulk")
    events = journal_of(definition.program, 500, None)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    state = await fold_in_slices(definition.program, events, RunState())
    task.cancel()
    assert state == fold(definition.program, events)
    assert turns >= len(events) // 100
