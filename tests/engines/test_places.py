"""A run that only waits for a timer holds no place of its worker while another run is due."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import Model, Observer, think, until, workflow, write
from interlock.testing import status

# Shorter than the time for which a worker keeps a waiting run at hand, and far more rounds than this test lasts.
POLL = """\
- id: again
  kind: loop
  max_iterations: 100
  until: "false"
  steps:
    - {id: pause, kind: wait, duration: 4}
"""
# All attempts fail; the waits between them are as long.
BACKOFF = think().replace("backoff: 0.05, max_backoff: 0.1", "backoff: 4, max_backoff: 4.5").replace(
    "max_attempts: 3", "max_attempts: 10"
)  # fmt: skip


@pytest.mark.parametrize("kind", ["poll", "backoff"])
async def test_waiting_runs_make_room(
    kind: str, project: Path, desk: Desk, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    write(project, workflow("poll", POLL) | workflow("backoff", BACKOFF) | workflow("small", think("small")))
    await desk.app.admin.deploy(desk.admin, desk.app.read_project())
    model.answers["small"] = {"verdict": "good", "words": "well"}
    if kind == "backoff":
        model.answers.pop("think")
        model.always(status(503))
    await open_app(start_worker=True, worker={"concurrency": 2}, breaker={"failures": 1000})
    waiting = [await desk.start(kind, ticket=f"w{number}") for number in range(2)]
    await until(
        lambda: all(seen.status(run) == "waiting" for run in waiting), lambda: str(list(map(seen.run, waiting)))
    )
    small = await desk.start("small", ticket="s")
    assert await seen.finished(small) == ["succeeded"]
    assert [seen.status(run) in {"waiting", "running"} for run in waiting] == [True, True]
    before = [len(seen.kinds(run)) for run in waiting]
    await until(
        lambda: all(len(seen.kinds(run)) > count for run, count in zip(waiting, before, strict=True)),
        lambda: str([seen.kinds(run) for run in waiting]),
    )
