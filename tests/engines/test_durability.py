"""What outlives a worker, a deployment and the database itself: timers, versions, runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import INPUT, NOTE, Bank, Model, Observer, think, until, workflow, write
from interlock.app import App
from interlock.base.settings import Settings
from interlock.identity.principal import Principal
from interlock.store.migrate import migrate
from interlock.testing import rate_limited

# -- timers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.5, 6])
async def test_a_backoff_outlives_its_worker(
    seconds: float, desk: Desk, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    """The worker that got the 429 is gone before the wait is over; 6 s are more than a worker holds a sleeping run."""
    model.script(rate_limited(retry_after=seconds))
    first = await open_app(start_worker=True)
    run = await desk.start("only_think")
    await until(lambda: "step_failed think" in seen.kinds(run), lambda: f"no failure: {seen.kinds(run)}")
    await first.__aexit__(None, None, None)

    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    failed, fired = (next(e for e in seen.journal(run) if e["type"] == kind) for kind in ("step_failed", "timer_fired"))
    assert failed["failure"]["retry_after"] == seconds
    assert fired["at"] - failed["at"] >= seconds
    assert seen.kinds(run)[1:4] == ["step_failed think", "timer_fired retry:think:1", "step_succeeded think"]
    assert model.count == 2


async def test_a_long_wait_occupies_no_worker(desk: Desk, open_app: OpenApp, seen: Observer, model: Model) -> None:
    model.script(rate_limited(retry_after=3600))
    await open_app(start_worker=True)
    run = await desk.start("only_think")
    await until(lambda: "step_failed think" in seen.kinds(run), lambda: f"no failure: {seen.kinds(run)}")
    await seen.asleep(run)
    failed = seen.journal(run)[-1]
    wait = seen.rows("select extract(epoch from available_at) from queue where run_id = %s", run)[0][0]
    assert float(wait) == pytest.approx(failed["at"] + 3600, abs=1)
    assert seen.status(run) == "waiting"


# -- versions --------------------------------------------------------------------------------------------------------


async def test_runs_in_flight_stay_on_their_version(
    desk: Desk, project: Path, open_app: OpenApp, seen: Observer, model: Model
) -> None:
    """Prompt, tool code and workflow change while a run waits for its review."""
    ask = "- {id: ask, kind: review, title: Go on?}\n"
    output = "output: {note: $steps.note.text, words: $steps.think.words}\n"
    write(project, workflow("slow", ask, think(), NOTE, allow="note", output=output.removeprefix("output: ").strip()))
    await open_app(start_worker=True, deploy=True)
    old = await desk.start("slow", ticket="a")
    review = await seen.review(old)
    await seen.asleep(old)

    write(
        project,
        {
            "prompts/think.yaml": (project / "prompts/think.yaml").read_text().replace("Think about", "Now think of"),
            "tools/note/main.py": 'def run(text):\n    return {"text": "new " + text, "done": True}\n',
            **workflow("slow", think(), NOTE, allow="note", output=output.removeprefix("output: ").strip()),
        },
    )
    await desk.app.admin.deploy(desk.admin, desk.app.read_project())
    new = await desk.start("slow", ticket="b")
    assert await seen.finished(new) == ["succeeded"]
    await desk.decide(review, "approve")
    assert await seen.finished(old) == ["succeeded"]

    results = [await desk.app.runs.result(desk.admin, run) for run in (old, new)]
    assert [result["note"] for result in results] == ["a", "new b"]
    prompts = [request.body["messages"][0]["content"] for request in model.requests]
    assert prompts == ["Now think of the matter", "Think about the matter"]
    versions = [seen.rows("select version from runs where run_id = %s", run)[0][0] for run in (old, new)]
    assert versions[0] != versions[1]


async def test_an_old_version_runs_in_a_process_that_never_saw_it(
    desk: Desk, project: Path, data_dir: Path, open_app: OpenApp, seen: Observer
) -> None:
    """The tool's code comes from the store, not from the project directory nor from what this process unpacked."""
    run = await desk.start("only_think", ticket="a")
    (project / "tools/note/main.py").write_text("def run(text):\n    return {'text': 'changed'}\n")
    assert not list((data_dir / "bundles").glob("*"))
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    values = await desk.app.runs.values(desk.admin, run)
    assert values["note"]["text"] == "a"


# -- the database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_the_database_restarts_under_the_runs(
    mode: str,
    private_server: Any,
    project: Path,
    data_dir: Path,
    settings: dict[str, Any],
    bank: Bank,
    strict: Bank,
    model: Model,
) -> None:
    """`fast` disconnects everybody, `immediate` is a crash. Some runs work, one waits for a review all the time."""
    admin = Principal("ada", "acme", frozenset({"admin"}))
    # What a driver lets go of, because the database is away for too long, is free again soon.
    given = {
        **settings,
        "database": {"url": private_server.url, "pool_size": 4},
        "data_dir": data_dir,
        "worker": {"concurrency": 8, "lease_seconds": 10},
    }
    async with App(project, Settings(**given)) as app:
        await app.admin.ensure_org("acme", "Acme")
        await app.admin.deploy(admin, app.read_project())
        await app.start_worker()
        desk = Desk(app, admin)
        with psycopg.connect(private_server.url, autocommit=True) as connection:
            waiting = await desk.start("ask_pay", ticket="patient")
            review = await Observer(connection).review(waiting)
        model.hold("think")
        kinds = ("think_pay", "pay_keyed", "pay_probed")
        runs = [await desk.start(kinds[number % 3], ticket=f"r{number}") for number in range(18)]
        await until(lambda: bank.requests + strict.requests >= 3, lambda: "no bank is asked")
        await asyncio.to_thread(private_server.restart, mode)
        model.release("think")
        with psycopg.connect(private_server.url, autocommit=True) as connection:
            seen = Observer(connection)
            assert seen.rows("select count(*) > 0 from queue") == [(True,)], "nothing was under way"
            await app.reviews.decide(admin, review, "approve", "")
            assert set(await seen.finished(waiting, *runs)) == {"succeeded"}
            assert bank.refunds + strict.refunds == {"patient": 1} | {f"r{number}": 1 for number in range(18)}
            seen.story(waiting, *runs)
            verdict = await app.audit.verify("acme")
            assert verdict.ok, verdict.problem


@pytest.mark.chaos
async def test_the_database_crashes_again_and_again(
    private_server: Any,
    project: Path,
    data_dir: Path,
    settings: dict[str, Any],
    bank: Bank,
    strict: Bank,
    model: Model,
) -> None:
    admin = Principal("ada", "acme", frozenset({"admin"}))
    # What a driver lets go of, because the database is away for too long, is free again soon.
    given = {
        **settings,
        "database": {"url": private_server.url, "pool_size": 4},
        "data_dir": data_dir,
        "worker": {"concurrency": 8, "lease_seconds": 10},
    }
    async with App(project, Settings(**given)) as app:
        await app.admin.ensure_org("acme", "Acme")
        await app.admin.deploy(admin, app.read_project())
        await app.start_worker()
        desk = Desk(app, admin)
        kinds = ("think_pay", "pay_keyed", "pay_probed")
        runs = [await desk.start(kinds[number % 3], ticket=f"r{number}") for number in range(120)]
        struck = 0
        while struck < 5:
            before = bank.requests + strict.requests
            await until(lambda before=before: bank.requests + strict.requests >= before + 8, lambda: "no progress")  # type: ignore[misc]
            await asyncio.to_thread(private_server.restart, "immediate")
            struck += 1
        with psycopg.connect(private_server.url, autocommit=True) as connection:
            seen = Observer(connection)
            assert seen.rows("select count(*) > 0 from queue") == [(True,)], "the crashes came too late"
            assert set(await seen.finished(*runs)) == {"succeeded"}
            assert bank.refunds + strict.refunds == {f"r{number}": 1 for number in range(120)}
            seen.story(*runs)
            assert (await app.audit.verify("acme")).ok


def test_the_migration_is_there(private_server: Any) -> None:
    """The private server is migrated already: doing it again does nothing."""
    assert migrate(private_server.url, bytes(range(32))) == []
    assert INPUT
