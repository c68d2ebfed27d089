"""Batches that a provider does not take, loses, or is long about: asked for while that makes sense, given up after."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
from aiohttp import web

from engines.harness import NOTE, NOTE_TOOL, PATIENCE, Observer, think, until, workflow, write
from execution.batching import WORDS, batched, calls_in, config
from execution.conftest import Deploy, Gathering
from gateway.batch_server import Batch, BatchServer
from interlock.admission.gate import CallGate
from interlock.base.errors import TargetDown
from interlock.execution.batch import calls as module
from interlock.execution.batch.calls import BatchedCalls
from interlock.gateway import batches as dialects


@pytest.fixture
def old(owner: psycopg.Connection[object]) -> object:
    """Makes all batches so many hours older: since they were gathered, and since they were handed in."""

    def make(gathered: float, submitted: float = 0.0) -> None:
        owner.execute(
            "update batches set created_at = created_at - make_interval(secs => %s), "
            "tried_at = tried_at - make_interval(secs => %s)",
            (gathered * 3600, submitted * 3600),
        )

    return make


@pytest.mark.parametrize("status", [429, 503])
async def test_a_batch_that_is_never_taken_is_given_up(
    status: int, deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RECOVER_SECONDS", 0.2)
    provider.down = {"create": status}
    desk = await deploy(workflow("w", batched(attempts=1)), **config(pin))
    run = await desk.start("w")
    await until(lambda: provider.hits["create"] >= 2, lambda: f"not tried: {provider.hits}")
    assert seen.status(run) in {"running", "waiting"}
    old(49)
    assert await seen.finished(run) == ["failed"]
    assert "given up after two days" in seen.run(run)["reason"]


async def test_a_batch_that_was_handed_in_late_has_its_time(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, old
) -> None:
    """A day at the provider counts from when it was there."""
    provider.ready, provider.down = False, {"create": 429}
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(pin))
    run = await desk.start("w", text="late")
    await until(lambda: provider.hits["create"] >= 1, lambda: "not tried")
    old(47)
    provider.down = {}
    await until(lambda: len(provider.batches) == 1, lambda: "not handed in")
    old(5)
    before = provider.hits["look"]
    await until(lambda: provider.hits["look"] > before + 1, lambda: "nobody looks")
    provider.ready = True
    assert await seen.finished(run) == ["succeeded"], seen.run(run)["reason"]


async def test_after_a_long_standstill_one_failed_look_loses_nothing(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, old
) -> None:
    """The batch ended long ago; whoever looks for it first cannot reach the provider."""
    provider.ready = False
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(pin))
    run = await desk.start("w", text="matter")
    await until(lambda: provider.hits["look"] >= 1, lambda: "nobody looks")
    provider.down = {"look": 503}
    old(50, 50)
    before = provider.hits["look"]
    await until(lambda: provider.hits["look"] > before, lambda: "nobody looks")
    provider.ready, provider.down = True, {}
    assert await seen.finished(run) == ["succeeded"], seen.run(run)["reason"]


async def test_a_batch_that_never_ends_is_given_up(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, old
) -> None:
    provider.ready = False
    desk = await deploy(workflow("w", batched(attempts=1)), **config(pin))
    run = await desk.start("w")
    await until(lambda: provider.hits["look"] >= 1, lambda: "nobody looks")
    old(49, 49)
    assert await seen.finished(run) == ["failed"]
    assert "its time is over" in seen.run(run)["reason"]


async def test_a_pause_of_ages_is_not_taken_at_its_word(
    deploy: Deploy, seen: Observer, provider: BatchServer, owner: psycopg.Connection[object]
) -> None:
    provider.ready = False
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(provider.pin))
    run = await desk.start("w", text="matter")
    await until(lambda: provider.hits["look"] >= 1, lambda: "nobody looks")

    def busy(name: str) -> None:
        provider.hits[name] += 1
        raise web.HTTPTooManyRequests(text="{}", content_type="application/json", headers={"retry-after": "1e15"})

    gate, provider._gate = provider._gate, busy  # type: ignore[method-assign]
    before = provider.hits["look"]
    await until(lambda: provider.hits["look"] > before, lambda: "nobody looks")
    pause = "select extract(epoch from next_check - now())::int between 3000 and 3600 from batches"
    await until(lambda: seen.rows(pause) == [(True,)], lambda: str(seen.rows("select next_check from batches")))
    await seen.asleep(run)  # for as long: nobody but time can move its timer
    assert seen.kinds(run)[-1] == "step_deferred think"
    provider._gate = gate  # type: ignore[method-assign]


async def test_a_success_that_cannot_be_read_may_be_one(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str, owner: psycopg.Connection[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The provider has the batch, and something on the way spoils what it says: it is looked for, not made again."""
    monkeypatch.setattr(module, "_RECOVER_SECONDS", 0.5)

    async def spoil() -> None:
        raise web.HTTPOk(text="<html>", content_type="text/html")

    provider.after_create = spoil
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(pin))
    run = await desk.start("w", text="matter")
    await until(lambda: provider.hits["create"] == 1, lambda: "not handed in")
    if pin == provider.anthropic_pin:
        await until(lambda: len(provider.batches) == 1, lambda: "not made")
        provider.batches[0].status = "ended"
    assert await seen.finished(run) == ["succeeded"], seen.run(run)["reason"]
    assert len(provider.batches) == 1


async def test_what_is_too_much_at_once_is_tried_in_smaller_parts(
    deploy: Deploy, seen: Observer, provider: BatchServer, gathering: Gathering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account may queue three calls: no call loses an attempt over it."""
    monkeypatch.setattr(dialects, "_FULL_SECONDS", 0.3)
    finish = provider.finish

    def full(batch: Batch, status: str = "completed") -> None:
        finish(batch, status)
        if len(batch.calls) > 3:
            batch.status, batch.files = "failed", (None, None)
            batch.errors = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]

    provider.finish = full  # type: ignore[method-assign]
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(provider.pin))
    runs = {await desk.start("w", text=f"matter {number}"): f"matter {number}" for number in range(10)}
    await calls_in(seen, "waiting", 10)
    gathering.held = False
    assert set(await seen.finished(*runs)) == {"succeeded"}
    for run, text in runs.items():
        assert await desk.result(run) == {"words": text}
    assert max(len(batch.calls) for batch in provider.batches) > 3


async def test_failures_that_were_kept_close_no_door(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str
) -> None:
    """A batch expired at a provider that is up: its calls fail, direct ones are made as ever."""
    provider.spoil = lambda _one, _body: "expired"
    desk = await deploy(workflow("w", batched(attempts=1)), workflow("v", think(attempts=1)), **config(pin))
    runs = [await desk.start("w", text=f"matter {number}") for number in range(8)]
    assert set(await seen.finished(*runs)) == {"failed"}
    direct = await desk.start("v")
    assert await seen.finished(direct) == ["succeeded"], seen.run(direct)["reason"]


async def test_an_answer_that_is_there_needs_no_open_door(
    deploy: Deploy, seen: Observer, provider: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look brings the answers of all; from then on the provider may be as dead as it likes."""
    admit, refused, standing = CallGate.admit, 0, BatchedCalls.status
    answered: set[asyncio.Task[Any] | None] = set()  # steps that found their answer there

    async def noted(calls: BatchedCalls, *call: Any) -> str | None:
        status = await standing(calls, *call)
        if status == "done":
            answered.add(asyncio.current_task())
        return status

    async def dead_by_then(
        health: CallGate, org_id: str, target: str, tool: Any = None, *, seconds: float = 0.0
    ) -> Any:
        nonlocal refused
        if asyncio.current_task() in answered:
            refused += 1
            raise TargetDown("it failed too often and is not called", retry_after=0.2)
        return await admit(health, org_id, target, tool, seconds=seconds)

    monkeypatch.setattr(BatchedCalls, "status", noted)
    monkeypatch.setattr(CallGate, "admit", dead_by_then)
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(provider.pin))
    runs = [await desk.start("w", text=f"matter {number}") for number in range(4)]
    assert set(await seen.finished(*runs)) == {"succeeded"}
    assert (len(answered) >= 1, refused) == (True, 0)


@pytest.mark.parametrize(("how", "said"), [("batch", "half ? gone"), ("direct", "answered 400")])
async def test_half_a_character_in_a_providers_words(
    how: str, said: str, deploy: Deploy, seen: Observer, provider: BatchServer, pin: str
) -> None:
    """JSON can say half a surrogate pair, and no database takes one: the step fails, and nothing breaks."""
    words = "half \ud800 gone"
    desk = await deploy(workflow("w", batched(attempts=1)), workflow("v", think(attempts=1)), **config(pin))
    if how == "direct":

        def refuse(_: str) -> None:
            raise web.HTTPBadRequest(text=json.dumps({"error": {"message": words}}), content_type="application/json")

        provider._gate = refuse  # type: ignore[method-assign]
        run = await desk.start("v")
    else:
        provider.ready = False
        run = await desk.start("w")
        await until(lambda: len(provider.batches) == 1, lambda: "not handed in")
        one = provider.batches[0].calls[0][0]
        inner = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
        line = {
            "custom_id": one,
            "error": {"code": "x", "message": words},
            "result": {"type": "errored", "error": inner},
        }
        provider.around, provider.drop, provider.ready = [json.dumps(line).encode()], {one}, True
    assert await seen.finished(run) == ["failed"]
    assert said in seen.run(run)["reason"], "a refusal that is no JSON tells its status only"


async def test_what_a_call_was_made_with_need_not_stay_fresh(
    deploy: Deploy, project, seen: Observer, provider: BatchServer
) -> None:
    """It was fresh when the call was made, and the answer is paid for."""
    provider.ready = False
    write(project, {"tools/note/tool.yaml": NOTE_TOOL + "max_age: 3600\n"})
    step = batched("think", attempts=1).replace("$input.text", "$steps.note.text")
    desk = await deploy(workflow("w", NOTE, step, allow="note"), **config(provider.pin))
    run = await desk.start("w", text="x")
    await until(lambda: len(provider.batches) == 1, lambda: "not handed in")
    desk.pass_time(4000)
    provider.ready = True
    assert await seen.finished(run) == ["succeeded"], seen.run(run)["reason"]


async def test_a_batched_call_is_the_direct_one_to_the_letter(
    deploy: Deploy, seen: Observer, provider: BatchServer
) -> None:
    """The order of the schema's fields steers what a model writes."""
    desk = await deploy(workflow("w", batched()), workflow("v", think()), **config(provider.pin))
    assert set(await seen.finished(await desk.start("w"), await desk.start("v"))) == {"succeeded"}
    assert json.dumps(provider.batches[0].calls[0][1]) == json.dumps(provider.direct[0])


async def test_batches_of_which_nothing_is_left_are_cleared_away(
    deploy: Deploy, seen: Observer, provider: BatchServer, old
) -> None:
    """The call of the first one was made again, in another."""
    tried: list[str] = []

    def first(one: str, _: object) -> int | None:
        tried.append(one)
        return 500 if tried[0] == one else None

    provider.spoil = first
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(provider.pin))
    assert await seen.finished(await desk.start("w", text="x")) == ["succeeded"]
    assert seen.rows("select status from batches") == [("ended",)]
    assert len(provider.batches) == 2
    old(73)
    assert await seen.finished(await desk.start("w", text="y")) == ["succeeded"]
    assert seen.rows("select count(*) from batches") == [(0,)]


async def test_whoever_is_broken_off_while_looking_leaves_it_to_the_next(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str
) -> None:
    """A late heartbeat, a lost lease: not four minutes of silence over it."""
    looking = asyncio.Event()

    async def slow_once() -> None:
        if not looking.is_set():
            looking.set()
            await asyncio.sleep(60)

    provider.during_look = slow_once
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(pin))
    run = await desk.start("w", text="matter")
    async with asyncio.timeout(PATIENCE):
        await looking.wait()
    _, drive = desk.app.engine._drivers[run]  # type: ignore[union-attr]
    drive.cancel()
    await until(drive.done, lambda: "it goes on")
    seen.lapse(run=run)
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"words": "matter"}
