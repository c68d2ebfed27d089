"""Batched model calls when workers die, people are erased, runs are cancelled, time and money run out."""

from __future__ import annotations

import asyncio
import signal
import textwrap

import psycopg
import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import Observer, think, until, workflow, write
from execution.batching import WORDS, batched, calls_in, config
from execution.conftest import Deploy, Gathering
from gateway.batch_server import BatchServer, never
from interlock.app import App
from interlock.base.settings import Settings
from interlock.engines.postgres import driver
from interlock.gateway.openai import OpenAIProvider
from interlock.gateway.provider import ModelRequest, ModelResponse


def hurry(owner: psycopg.Connection[object]) -> None:
    """Passes the minutes for which a batch is left to whoever was at it."""
    owner.execute("update batches set taken_until = now(), next_check = now()")


async def test_killed_between_handing_in_and_writing_it_down(
    project: object, open_app: OpenApp, admin: object, spawn: Spawn, seen: Observer, provider: BatchServer, pin: str,
    owner: psycopg.Connection[object],
) -> None:  # fmt: skip
    """The provider has the batch and nobody knows: it is found there, and not handed in again."""
    write(project, workflow("w", batched(), output=WORDS))  # type: ignore[arg-type]
    provider.after_create, provider.ready = never, False
    desk = Desk(await open_app(deploy=True, **config(pin)), admin)  # type: ignore[arg-type]
    worker = await spawn(together=3, **config(pin)).ready()
    runs = {await desk.start("w", text=f"matter {number}"): f"matter {number}" for number in range(3)}
    await until(lambda: len(provider.batches) == 1, lambda: "not handed in")
    worker.send(signal.SIGKILL)
    await worker.ended()
    assert seen.rows("select status, provider_id from batches") == [("submitting", None)]
    hurry(owner)
    provider.after_create, provider.ready = None, True
    await open_app(start_worker=True, **config(pin))
    if pin == provider.anthropic_pin:
        # A batch without a name can be told by its results only, so while it is not over nothing is handed in.
        await until(lambda: provider.hits["list"] >= 2, lambda: f"not looked for: {provider.hits}")
        assert len(provider.batches) == 1
        provider.batches[0].status = "ended"
    assert set(await seen.finished(*runs)) == {"succeeded"}
    for run, text in runs.items():
        assert await desk.result(run) == {"words": text}
    late = [text for batch in provider.batches[1:] for _, text in batch.calls]
    assert sorted(provider.calls) == sorted(runs.values()), f"handed in again: {late}"


async def test_killed_before_the_provider_had_it(
    project: object, open_app: OpenApp, admin: object, spawn: Spawn, seen: Observer, provider: BatchServer, pin: str,
    owner: psycopg.Connection[object],
) -> None:  # fmt: skip
    """What the provider does not know is handed in, once."""
    write(project, workflow("w", batched(), output=WORDS))  # type: ignore[arg-type]
    provider.before_create = never
    desk = Desk(await open_app(deploy=True, **config(pin)), admin)  # type: ignore[arg-type]
    worker = await spawn(**config(pin)).ready()
    run = await desk.start("w", text="matter")
    await until(lambda: provider.hits["create"] == 1, lambda: "not handed in")
    worker.send(signal.SIGKILL)
    await worker.ended()
    assert provider.batches == []
    hurry(owner)
    provider.before_create = None
    await open_app(start_worker=True, **config(pin))
    assert await seen.finished(run) == ["succeeded"]
    assert (provider.calls, provider.hits["list"]) == (["matter"], 1)


async def test_two_workers_never_look_at_once(
    deploy: Deploy, open_app: OpenApp, seen: Observer, provider: BatchServer, pin: str
) -> None:
    provider.ready = False
    provider.during_look = lambda: asyncio.sleep(0.5)  # longer than the pause between two looks
    desk = await deploy(workflow("w", batched()), **config(pin))
    await open_app(start_worker=True, **config(pin))
    runs = [await desk.start("w") for _ in range(12)]
    await until(lambda: provider.hits["look"] >= 4, lambda: f"nobody looks: {provider.hits}")
    provider.ready = True
    assert set(await seen.finished(*runs)) == {"succeeded"}
    holders = seen.rows("select count(distinct event ->> 'step') from journal")
    assert holders
    assert provider.most_looking == 1
    assert len(provider.calls) == 12


@pytest.mark.parametrize("status", ["waiting", "submitted"])
async def test_an_erased_person(
    status: str, deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, gathering: Gathering
) -> None:
    """Nothing about them is handed in any more, or kept of what comes back; the others' calls go on."""
    provider.ready = False
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(pin))
    gone, stays = [await desk.start("w", customer=f"cus-{n}", text=f"matter {n}") for n in (1, 2)]
    await calls_in(seen, "waiting", 2)
    if status == "submitted":  # which is said before it is done
        gathering.held = False
        await calls_in(seen, status, 2)
        await until(lambda: len(provider.calls) == 2, lambda: "not handed in")
    keys, org = desk.app.keys, desk.admin.org_id
    subject = keys.pseudonym(org, "cus-1")
    about = "select count(*) from artifacts where %s = any(subjects)"
    before = seen.rows(about, subject)
    assert await keys.destroy(org, subject)
    provider.ready, gathering.held = True, False
    assert await seen.finished(gone, stays) == ["failed", "succeeded"]
    assert "erased" in seen.run(gone)["reason"]
    assert await desk.result(stays) == {"words": "matter 2"}
    assert sorted(provider.calls) == (["matter 2"] if status == "waiting" else ["matter 1", "matter 2"])
    assert seen.rows(about, subject) == before


async def test_a_cancelled_run_hands_nothing_in(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, gathering: Gathering
) -> None:
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(pin))
    gone, stays = await desk.start("w", text="gone"), await desk.start("w", text="stays")
    await calls_in(seen, "waiting", 2)
    await desk.cancel(gone)
    assert await seen.finished(gone) == ["cancelled"]
    gathering.held = False
    assert await seen.finished(stays) == ["succeeded"]
    assert provider.calls == ["stays"]
    assert seen.rows("select count(*) from batched_calls") == [(0,)]
    assert seen.rows("select count(*) from batches") == [(0,)]


async def test_a_step_that_cannot_wait_longer(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its deadline a step goes on to its fallback, which is called directly, of the same model if need be."""
    monkeypatch.setattr(driver, "HOLD_SECONDS", 1.0)
    provider.ready = False
    extra = "  deadline: 3600\n  fallback: [{model: default}]\n"
    desk = await deploy(workflow("w", batched(extra=extra), output=WORDS), **config(pin))
    run = await desk.start("w", text="soon")
    await until(lambda: provider.calls == ["soon"], lambda: "not handed in")
    desk.pass_time(3600)
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"words": "soon"}
    assert (provider.calls, len(provider.direct)) == (["soon"], 1)


async def test_a_deadline_before_handing_in(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, gathering: Gathering
) -> None:
    """What nobody waits for any more is not handed in with the others."""
    late = workflow("late", batched(extra="  deadline: 1\n  on_failure: continue\n"), think("after"))
    desk = await deploy(late, workflow("w", batched()), **config(pin))
    provider.say = lambda body: {"verdict": "good", "words": "well"}
    gone, stays = await desk.start("late", text="gone"), await desk.start("w", text="stays")
    assert await seen.finished(gone) == ["partial"]
    gathering.held = False
    assert await seen.finished(stays) == ["succeeded"]
    assert provider.calls == ["stays"]


@pytest.mark.parametrize("hold", [600.0, 5.0], ids=["same lease", "another lease"])
async def test_a_waiting_call_stays_reserved(
    hold: float, deploy: Deploy, seen: Observer, provider: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """57 tokens may be needed by each of two calls, and 100 are allowed: the second is refused while the first is out.

    A run that was given back and is taken up again has the reservation from the database.
    """
    monkeypatch.setattr(driver, "HOLD_SECONDS", hold)
    provider.ready = False
    steps = "- id: both\n  kind: parallel\n  branches:\n" + "".join(
        f"    {name}:\n{textwrap.indent(text, '      ')}"
        for name, text in (
            ("slow", batched("slow")),
            ("quick", "- {id: pause, kind: wait, signal: go}\n" + think("quick")),
        )
    )
    pace = {"gather_seconds": 60.0, "check_seconds": 60.0, "max_check_seconds": 60.0}
    desk = await deploy(workflow("w", steps, extra="budget: {tokens: 100}\n"), **config(provider.pin, **pace))
    run = await desk.start("w")
    await until(lambda: "step_deferred slow" in seen.kinds(run), lambda: f"no call: {seen.kinds(run)}")
    if hold < pace["gather_seconds"]:
        await seen.asleep(run)
    await desk.app.signals.signal(desk.admin, run, "go", {})
    assert await seen.finished(run) == ["partial"]
    assert "of the run's 100 are used" in seen.run(run)["reason"]
    assert provider.direct == []


class Unbatched:
    """A provider as they were before there were batch APIs."""

    name = "plain"

    def __init__(self, url: str) -> None:
        self._inner = OpenAIProvider("plain", url, None)

    async def complete(self, request: ModelRequest) -> ModelResponse:
        return await self._inner.complete(request)

    async def close(self) -> None:
        await self._inner.close()

    def resolve(self, pin: str) -> tuple[Unbatched, str]:
        return self, pin


async def test_a_provider_without_a_batch_api(
    project: object, owner_url: str, data_dir: object, admin: object, seen: Observer, provider: BatchServer
) -> None:
    write(project, workflow("w", batched()))  # type: ignore[arg-type]
    settings = Settings(
        database={"url": owner_url},
        data_dir=data_dir,
        sandbox={"warm": 0},
        models={"default": provider.pin},
        providers=provider.providers,
        variables={"bank": "127.0.0.1:9"},
    )
    plain = Unbatched(f"{provider.url}/v1")
    async with App(project, settings, models=plain) as app:  # type: ignore[arg-type]
        await app.admin.deploy(admin, app.read_project())  # type: ignore[arg-type]
        await app.start_worker()
        run = await Desk(app, admin).start("w")  # type: ignore[arg-type]
        assert await seen.finished(run) == ["failed"]
    await plain.close()
    assert seen.run(run)["reason"] == (
        'step "think": provider "plain" has no batch API; remove batch from step "think"'
    )
    assert (provider.batches, provider.direct) == ([], [])
