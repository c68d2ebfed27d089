"""Server-sent events: in order, resumable, with an end; a client that leaves takes its follower with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from .conftest import PATIENCE, Served, problem_of


@dataclass(frozen=True)
class Event:
    id: int | None
    kind: str
    data: dict[str, Any]


@asynccontextmanager
async def follow(served: Served, run_id: str, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    """Events as a browser's EventSource would see them."""
    client = await served.client("viewer")
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


async def test_events_come_in_order_and_end(working: Served) -> None:
    run_id = await working.start()
    review = await working.review(run_id)
    async with follow(working, run_id) as events:
        first = await anext(events)
        assert (first.id, first.kind) == (1, "run_started")
        # Decided while somebody follows: what comes next comes through the same stream.
        decision = {"decision": "approve", "note": "fine"}
        await (await working.client()).post(f"/v1/reviews/{review}/decision", json=decision)
        rest = [event async for event in events]
    assert [event.id for event in rest[:-1]] == list(range(2, 2 + len(rest) - 1))
    assert [event.kind for event in rest] == ["review_decided", "end"]
    assert rest[-1].id is None
    assert rest[-1].data["run_id"] == run_id
    assert rest[-1].data["status"] == "succeeded"
    for event in [first, *rest[:-1]]:
        assert event.data["seq"] == event.id
        assert event.data["type"] == event.kind
    await settled(working, 0)


async def test_a_client_resumes_after_the_last_event_it_saw(working: Served) -> None:
    run_id = await working.start()
    await working.finish(run_id)
    whole = await everything(working, run_id)
    assert [event.id for event in whole] == [1, 2, None]
    assert await everything(working, run_id, **{"Last-Event-ID": "1"}) == whole[1:]
    # Past the end there is nothing but the end.
    for last in ("2", "99999", str(2**31 - 1), "0" * 5 + "2"):
        assert await everything(working, run_id, **{"Last-Event-ID": last}) == whole[-1:], last
    assert await everything(working, run_id, **{"Last-Event-ID": "0"}) == whole


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
        await settled(served, 1)
        stopping = asyncio.create_task(served.server.stop())
        assert [event async for event in events] == []
        await asyncio.wait_for(stopping, PATIENCE)
