"""The payload limit, over a raw socket where an HTTP library would not say what a hostile client says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from .conftest import PATIENCE, Serve, Served, problem_of

LIMIT = 4096


@pytest.fixture
async def small(serve: Serve) -> Served:
    return await serve(limits={"payload_bytes": LIMIT})


def body_of(size: int) -> bytes:
    """A valid request for a run of exactly this many bytes."""
    frame = len(json.dumps({"workflow": "ask", "input": {"text": ""}}))
    return json.dumps({"workflow": "ask", "input": {"text": "x" * (size - frame)}}).encode()


async def in_chunks(body: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def raw(served: Served, headers: list[str], *parts: bytes, leave: bool = False) -> bytes:
    """Sends a POST of these headers and bytes; everything the server answers until it closes, or until we `leave`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    lines = [
        "POST /v1/runs HTTP/1.1",
        "Host: interlock",
        f"Authorization: Bearer {served.keys['admin']}",
        "Content-Type: application/json",
        "Connection: close",
        *headers,
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    for part in parts:
        writer.write(part)
    await writer.drain()
    if leave:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def count(served: Served) -> int:
    return len((await (await served.client()).get("/v1/runs")).json()["runs"])


@pytest.mark.parametrize("chunked", [False, True], ids=["Content-Length", "chunked"])
async def test_the_limit_is_exact(small: Served, chunked: bool) -> None:
    client = await small.client()
    headers = {"Content-Type": "application/json"}
    for size, status in ((LIMIT + 1, 413), (LIMIT * 50, 413), (LIMIT, 201)):
        body = body_of(size)
        assert len(body) == size
        answer = await client.post("/v1/runs", content=in_chunks(body) if chunked else body, headers=headers)
        assert answer.status_code == status, (size, answer.text)
        if status == 413:
            code, message = problem_of(answer)
            assert code == "payload_too_large"
            assert "4096 bytes" in message
            assert "limits.payload_bytes" in message
    assert await count(small) == 1


async def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(small: Served) -> None:
    answer = await raw(small, ["Content-Length: 1000000000000"])
    assert status_of(answer) == 413
    assert b'"payload_too_large"' in answer


async def test_a_length_that_lies_starts_nothing(small: Served, subtests: pytest.Subtests) -> None:
    body = body_of(500)
    liars = {
        "less than is sent": (["Content-Length: 100"], [body]),
        "negative": (["Content-Length: -1"], [body]),
        "no number": (["Content-Length: 5e2"], [body]),
        "two that differ": ([f"Content-Length: {len(body)}", "Content-Length: 10"], [body]),
        "chunks of no size": (["Content-Length: 10", "Transfer-Encoding: chunked"], [b"zz\r\n", body]),
    }
    for name, (headers, parts) in liars.items():
        with subtests.test(name):
            answer = await raw(small, headers, *parts)
            assert 400 <= status_of(answer) < 500
            assert b"Traceback" not in answer
            assert await count(small) == 0
    leavers = {
        "more than is sent": (["Content-Length: 600"], [body]),
        "nothing sent": (["Content-Length: 500"], []),
        "chunks that break off": (["Transfer-Encoding: chunked"], [b"1f4\r\n", body[:250]]),
        "chunks without an end": (["Transfer-Encoding: chunked"], [b"1f4\r\n", body, b"\r\n"]),
        "a chunk of a lying size": (["Transfer-Encoding: chunked"], [b"fffffff\r\n", body]),
    }
    for name, (headers, parts) in leavers.items():
        with subtests.test(name):
            assert await raw(small, headers, *parts, leave=True) == b""
            assert await count(small) == 0
    whole = await raw(small, [f"Content-Length: {len(body)}"], body)
    assert status_of(whole) == 201
    assert await count(small) == 1


async def test_a_value_that_grows_over_the_limit_when_stored_is_refused_whole(small: Served) -> None:
    # Stored as canonical JSON, every é takes six bytes instead of two.
    client = await small.client()
    answer = await client.post("/v1/runs", json={"workflow": "ask", "input": {"text": "é" * 1500}})
    assert answer.status_code == 413
    assert problem_of(answer)[0] == "payload_too_large"
    assert await count(small) == 0
