"""Two builds side by side on a real Temporal server: a run ends on the build it began on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType

import interlock
from engines.conftest import Desk, OpenApp
from engines.harness import PATIENCE, Bank, Model, Observer, until
from engines.temporal.conftest import Histories, Start, TemporalServer
from interlock.engines.temporal.worker import DEPLOYMENT, build_id
from interlock.testing import rate_limited

WORKFLOW_TASK = EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED
ACTIVITY = EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED


@pytest.fixture
def temporal_server(real_server: TemporalServer) -> TemporalServer:
    """Here all of it is the real one."""
    return real_server


@pytest.fixture
def other_source(tmp_path: Path) -> Path:
    """The package with a change that is none: another build."""
    copy = tmp_path / "source"
    shutil.copytree(Path(interlock.__file__).parent, copy / "interlock", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "interlock/engines/temporal/workflow.py").open("a") as file:
        file.write("# another build\n")
    return copy


def make_current(temporal: dict[str, Any], build: str) -> None:
    """As docs/engines.md says it: with Temporal's own command line."""
    program = Path(sys.executable).with_name("temporal")
    command = [program, "worker", "deployment", "set-current-version", "--yes", "--address", temporal["address"]]
    command += ["--namespace", temporal["namespace"], "--deployment-name", DEPLOYMENT, "--build-id", build]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env={}, check=False)
    assert done.returncode == 0, done.stderr


async def builds(histories: Histories) -> set[str]:
    """What the server knows of our deployment."""
    described = await histories.describe_deployment(DEPLOYMENT)
    return {version.deployment_version.build_id for version in described.version_summaries}


async def workers(histories: Histories, run: str) -> set[str]:
    """Who did the run's workflow tasks and activities, by the server's history."""
    found = set()
    for events in await histories.chain(run):
        for event in events:
            if event.event_type == WORKFLOW_TASK:
                found.add(event.workflow_task_started_event_attributes.identity)
            if event.event_type == ACTIVITY:
                found.add(event.activity_task_started_event_attributes.identity)
    return found


async def appears(histories: Histories, known: set[str]) -> str:
    """The one build that the server did not know before."""

    async def there() -> bool:
        return len(await builds(histories)) > len(known)

    await until(there, lambda: f"the server knows {known} only")
    (new,) = await builds(histories) - known
    return new


@pytest.mark.parametrize("temporal", [{"versioned": True, "namespace": "pinned", "cached_runs": 100}], indirect=True)
async def test_a_run_ends_on_the_build_it_began_on(
    desk: Desk,
    open_app: OpenApp,
    start: Start,
    other_source: Path,
    temporal: dict[str, Any],
    histories: Histories,
    seen: Observer,
    bank: Bank,
) -> None:
    first = await open_app(start_worker=True)
    first_worker = first.engine.worker_id
    assert await appears(histories, set()) == build_id()
    make_current(temporal, build_id())
    old = [await desk.start("ask_pay", ticket=ticket) for ticket in ("a", "b")]
    reviews = [await seen.review(run) for run in old]

    arguments = ("--engine", "temporal", "--address", temporal["address"])
    start(*arguments, source=other_source, namespace="pinned")
    other = await appears(histories, {build_id()})
    make_current(temporal, other)
    new = await desk.start("pay_keyed", ticket="c")
    await desk.decide(reviews[0], "approve")
    assert await seen.finished(new, old[0]) == ["succeeded"] * 2
    assert await workers(histories, old[0]) == {first_worker}
    (second,) = await workers(histories, new)
    assert second != first_worker

    # No worker of the old build is left: its run waits for one, and workers of the new build do not take it.
    await first.__aexit__(None, None, None)
    await desk.decide(reviews[1], "approve")
    later = await desk.start("pay_keyed", ticket="d")
    assert await seen.finished(later) == ["succeeded"]
    assert seen.kinds(old[1]) == ["run_started"]
    again = await open_app(start_worker=True)
    assert await seen.finished(old[1]) == ["succeeded"]
    assert await workers(histories, old[1]) == {first_worker, again.engine.worker_id}
    assert bank.refunds == dict.fromkeys("abcd", 1)
    seen.story(*old, new, later)


@pytest.mark.parametrize(
    "temporal", [{"versioned": True, "namespace": "renewed", "cached_runs": 100, "history_events": 20}], indirect=True
)
async def test_a_run_that_continues_as_new_stays_on_its_build(
    desk: Desk,
    open_app: OpenApp,
    start: Start,
    other_source: Path,
    temporal: dict[str, Any],
    histories: Histories,
    seen: Observer,
    model: Model,
) -> None:
    model.hold("think")
    model.script(*[rate_limited(retry_after=0.1)] * 2)
    first = await open_app(start_worker=True)
    await appears(histories, set())
    make_current(temporal, build_id())
    run = await desk.start("ask_beside_think")
    review = await seen.review(run)
    start("--engine", "temporal", "--address", temporal["address"], source=other_source, namespace="renewed")
    make_current(temporal, await appears(histories, {build_id()}))
    model.release("think")
    await until(lambda: "step_succeeded think" in seen.kinds(run), lambda: f"no progress: {seen.kinds(run)}")
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert len(await histories.chain(run)) > 1
    assert await workers(histories, run) == {first.engine.worker_id}
    seen.story(run)
