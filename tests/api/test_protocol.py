"""Requests at the edge of HTTP and JSON: each refused with one sentence, and none of them costs the server anything."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from interlock.api import protocol

from .conftest import PATIENCE, Served, problem_of

RUN = {"workflow": "ask", "input": {"text": "hello"}}


async def exchange(served: Served, request: bytes) -> bytes:
    """What the server answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return answer


async def test_405_names_every_method_of_the_path(served: Served) -> None:
    client = await served.client()
    for method, path, allowed in (
        ("PATCH", "/v1/quotas", "DELETE, GET, PUT"),
        ("PUT", "/v1/keys", "GET, POST"),
        ("DELETE", "/v1/runs", "GET, POST"),
        ("POST", "/v1/me", "GET"),
    ):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path
        assert problem_of(answer)[0] == "method_not_allowed"


LAX: list[tuple[str, str, Any]] = [
    ("PUT", "/v1/quotas", {"scope": "org", "rate": "5"}),
    ("PUT", "/v1/quotas", {"scope": "org", "rate": 5.0}),
    ("PUT", "/v1/quotas", {"scope": "org", "rate": True}),
    ("PUT", "/v1/quotas", {"scope": "org", "rate": 5, "per_seconds": "60"}),
    ("POST", "/v1/runs", {**RUN, "priority": "1"}),
    ("POST", "/v1/runs", {**RUN, "priority": True}),
    ("POST", "/v1/runs", {**RUN, "workflow": 7}),
    ("POST", "/v1/keys", {"user_id": "x", "roles": "viewer"}),
    ("POST", "/v1/keys", {"user_id": 7, "roles": ["viewer"]}),
]


async def test_no_type_is_taken_for_another(served: Served, subtests: pytest.Subtests) -> None:
    client = await served.client()
    for method, path, body in LAX:
        with subtests.test(body=str(body)):
            answer = await client.request(method, path, json=body)
            assert (answer.status_code, problem_of(answer)[0]) == (422, "invalid_input")
    for value in ("1", "yes", "True", ""):
        answer = await client.get("/v1/runs/run_x/result", params={"reveal": value})
        assert (answer.status_code, problem_of(answer)[0]) == (422, "invalid_input"), value
    assert (await client.get("/v1/quotas")).json() == {"quotas": []}


async def test_a_key_named_twice_is_refused_at_every_depth(served: Served) -> None:
    client = await served.client()
    for body in (
        '{"workflow": "ask", "input": {"text": "a"}, "input": {"text": "b"}}',
        '{"workflow": "ask", "input": {"text": "a", "text": "b"}}',
        '{"workflow": "ask", "input": {"text": "a", "more": [{"x": 1, "\\u0078": 2}]}}',
    ):
        answer = await client.post("/v1/runs", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, problem_of(answer)[0]) == (422, "invalid_input"), body
    assert (await client.get("/v1/runs")).json() == {"runs": [], "next": None}


async def test_a_long_address_is_not_echoed(served: Served) -> None:
    client = await served.client()
    for path in (
        "/v1/runs/{}",
        "/v1/reviews/{}",
        "/v1/dead-letters/{}",
        "/v1/workflows/{}/versions",
        "/v1/runs?before={}",
    ):
        answer = await client.get(path.format("x" * 50_000))
        assert answer.status_code == 422, path
        assert len(answer.content) < 1000, path
    answer = await client.post("/v1/runs", json={"workflow": "ask", "input": {"text": "a", "x" * 50_000: 1}})
    assert (answer.status_code, len(answer.content) < 3000) == (422, True)


async def test_two_framings_in_one_request_are_refused_and_the_connection_ends(served: Served) -> None:
    body = json.dumps(RUN).encode()
    head = [
        "POST /v1/runs HTTP/1.1",
        "Host: interlock",
        f"Authorization: Bearer {served.keys['admin']}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Transfer-Encoding: chunked",
    ]
    sent = "\r\n".join([*head, "", ""]).encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    answer = await exchange(served, sent + b"GET /healthz HTTP/1.1\r\nHost: interlock\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert (await (await served.client()).get("/v1/runs")).json() == {"runs": [], "next": None}


async def test_half_a_head_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    for begun in (b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: interlock\r\nX: "):
        assert await exchange(served, begun) == b""
    # After an answered request as well; and a whole request is answered however long its answer takes.
    whole = b"GET /healthz HTTP/1.1\r\nHost: interlock\r\n\r\n"
    answer = await exchange(served, whole + b"GET /healthz HT")
    assert answer.count(b"HTTP/1.1 200 ") == 1


async def test_malformed_requests_are_logged_and_do_not_flood_the_log(served: Served, log_file: Path) -> None:
    for _ in range(20):
        assert (await exchange(served, b"\x16\x03\x01 nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    logged = [json.loads(line) for line in log_file.read_text().splitlines()]
    assert len([one for one in logged if one["event_type"] == "request.malformed"]) == 1
