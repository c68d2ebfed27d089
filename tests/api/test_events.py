"""Server-sent events: in order, resumable, with an end; a client that leaves takes its follower with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from interlock.services import followers
from settled import issue_key

from .conftest import PATIENCE, Served, problem_of


@dataclass(frozen=True)
class Event:
    id: int | None
    kind: str
    data: dict[str, Any]


@asynccontextmanager
async def follow(
    served: Served, run_id: str, *, role: str = "viewer", **headers: str
) -> AsyncIterator[AsyncIterator[Event]]:
    """Events as a browser's EventSource would see them."""
    client = await served.client(role)
    async with client.stream("GET", f"/v1/runs/{run_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"

        async def events() -> AsyncIterator[Event]:
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                if line.startswith(":"):
                    continue
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif fields:
                    number = int(fields["id"]) if "id" in fields else None
                    yield Event(number, fields["event"], json.loads(fields["data"]))
                    fields = {}

        yield events()


async def everything(served: Served, run_id: str, **headers: str) -> list[Event]:
    async def collect() -> list[Event]:
        async with follow(served, run_id, **headers) as events:
            return [event async for event in events]

    return await asyncio.wait_for(collect(), PATIENCE)


async def settled(served: Served, number: int) -> None:
    """Waits until the server works on exactly this many requests."""

    async def wait() -> None:
        while len(served.server._server.server_state.tasks) != number:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), PATIENCE)


def numbered(events: list[Event]) -> list[Event]:
    """The journal's entries among the events."""
    return [event for event in events if event.id is not None]


async def test_events_come_in_order_and_end(working: Served) -> None:
    run_id = await working.start()
    review = await working.review(run_id)
    async with follow(working, run_id) as events:
        first = [await anext(events) for _ in range(4)]
        assert [event.kind for event in first] == ["run_started", "review_opened", "status", "waiting"]
        assert first[0].id == 1
        opened = {"review_id": review, "step": "approve", "purpose": "approve", "title": "Send it?", "role": "reviewer"}
        assert first[1].data == {"run_id": run_id, **opened}
        assert first[2].data == {"run_id": run_id, "status": "waiting", "reason": None}
        assert first[3].data == {"run_id": run_id, "reviews": [review], "dead_letters": []}
        # Decided while somebody follows: what comes next comes through the same stream.
        decision = {"decision": "approve", "note": "fine"}
        await (await working.client()).post(f"/v1/reviews/{review}/decision", json=decision)
        rest = [event async for event in events]
    entries = numbered(first + rest)
    assert [(event.id, event.kind) for event in entries] == [(1, "run_started"), (2, "review_decided")]
    for event in entries:
        assert (event.data["seq"], event.data["type"]) == (event.id, event.kind)
    closed = {"review_id": review, "step": "approve", "status": "approved", "decided_by": "admin-1"}
    assert [event.data for event in rest if event.kind == "review_closed"] == [{"run_id": run_id, **closed}]
    assert rest[-2].kind == "status"
    assert rest[-2].data["status"] == "succeeded"
    assert (rest[-1].kind, rest[-1].data["run_id"], rest[-1].data["status"]) == ("end", run_id, "succeeded")
    await settled(working, 0)


async def test_a_client_resumes_after_the_last_event_it_saw(working: Served) -> None:
    run_id = await working.start()
    await working.finish(run_id)
    whole = await everything(working, run_id)
    assert [event.id for event in whole] == [1, 2, None, None]
    assert [event.kind for event in whole[2:]] == ["status", "end"]
    assert await everything(working, run_id, **{"Last-Event-ID": "1"}) == whole[1:]
    # Past the last entry there is nothing but the run's state.
    for last in ("2", "99999", str(2**31 - 1), "0" * 5 + "2"):
        assert await everything(working, run_id, **{"Last-Event-ID": last}) == whole[2:], last
    assert await everything(working, run_id, **{"Last-Event-ID": "0"}) == whole


async def test_a_stream_ends_soon_after_its_key_is_revoked(served: Served) -> None:
    run_id = await served.start()
    key = await issue_key(served.app.database, "acme", "leaver", frozenset({"viewer"}))
    client = await served.client(key=key)

    async def read() -> list[str]:
        async with client.stream("GET", f"/v1/runs/{run_id}/events") as response:
            lines = response.aiter_lines()
            while "event: status" not in (line := await anext(lines)):
                assert "error" not in line
            revoked = await (await served.client()).delete(f"/v1/keys/{key.split('_')[1]}")
            assert revoked.status_code == 204
            return [line async for line in lines if line and not line.startswith(":")]

    told = await asyncio.wait_for(read(), PATIENCE)
    assert told[-2] == "event: error"
    assert json.loads(told[-1].removeprefix("data: "))["code"] == "unauthenticated"
    await settled(served, 0)


async def test_a_follower_hears_of_a_change_without_looking(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    # A look in an hour: what comes before that was notified.
    monkeypatch.setattr(followers, "_LOOK_SECONDS", 3600.0)
    run_id = await served.start()
    async with follow(served, run_id) as events:
        assert (await anext(events)).data["status"] == "queued"
        await asyncio.sleep(followers._SECOND_LOOK_SECONDS + 0.5)  # so that the second look is over, too
        await served.app.start_worker()

        async def until_waiting() -> list[str]:
            kinds = []
            async for event in events:
                kinds.append(event.kind)
                if event.kind == "waiting":
                    break
            return kinds

        kinds = await asyncio.wait_for(until_waiting(), PATIENCE)
    assert {"run_started", "review_opened", "status"} < {*kinds}


async def test_streams_are_bounded_by_process_and_organisation(serve: Any) -> None:
    served = await serve(server={"followers": 3, "followers_per_org": 2})
    run_id = await served.start()
    other = await (await served.client("stranger")).post("/v1/runs", json={"workflow": "ask", "input": {"text": "x"}})
    theirs = other.json()["run_id"]
    async with AsyncExitStack() as stack:
        streams = []

        async def open_one(run: str, role: str) -> None:
            streams.append(await stack.enter_async_context(follow(served, run, role=role)))
            assert (await anext(streams[-1])).kind == "status"

        for _ in range(2):
            await open_one(run_id, "viewer")
        refused = await (await served.client()).get(f"/v1/runs/{run_id}/events")
        assert (refused.status_code, problem_of(refused)[0]) == (429, "too_many_requests")
        assert "server.followers_per_org" in problem_of(refused)[1]
        await open_one(theirs, "stranger")
        refused = await (await served.client("stranger")).get(f"/v1/runs/{theirs}/events")
        assert refused.status_code == 429
        assert "(server.followers)" in problem_of(refused)[1]
    await settled(served, 0)
    async with follow(served, run_id) as events:
        assert (await anext(events)).kind == "status"


async def test_a_nonsensical_last_event_is_refused_before_the_stream_begins(served: Served) -> None:
    run_id = await served.start()
    client = await served.client()
    for last in (b"-1", b"x", b"1.0", b"\xb2", b"99999999999999999999", b"1 ; 2"):
        headers = [*client.headers.raw, (b"Last-Event-ID", last)]
        answer = await client.get(f"/v1/runs/{run_id}/events", headers=headers)
        assert (answer.status_code, problem_of(answer)[0]) == (422, "invalid_input"), last


async def test_a_client_that_leaves_leaves_nothing_running(served: Served) -> None:
    run_id = await served.start()  # no worker: it waits in the queue for ever
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        lines = [
            f"GET /v1/runs/{run_id}/events HTTP/1.1",
            "Host: interlock",
            f"Authorization: Bearer {served.keys['admin']}",
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await asyncio.wait_for(reader.readuntil(b"still here"), PATIENCE)
        await settled(served, 1)
        writer.transport.abort()
        await settled(served, 0)


async def test_a_server_that_stops_does_not_wait_for_its_followers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await served.start()
    # A grace longer than any test: stopping may not use it up.
    monkeypatch.setattr(served.server._server.config, "timeout_graceful_shutdown", 1000)
    async with follow(served, run_id) as events:
        assert (await anext(events)).kind == "status"
        stopping = asyncio.create_task(served.server.stop())
        assert [event async for event in events] == []
        await asyncio.wait_for(stopping, PATIENCE)
