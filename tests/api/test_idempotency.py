"""Idempotency-Key: the same key and input is the same run, whoever comes first."""

from __future__ import annotations

import asyncio

import pytest

from .conftest import Served, problem_of

BODY = {"workflow": "ask", "input": {"text": "mail ada@example.com", "customer": "c-1"}}


async def test_a_repetition_is_the_same_run(served: Served) -> None:
    client = await served.client()
    headers = {"Idempotency-Key": "order-7"}
    first = await client.post("/v1/runs", json=BODY, headers=headers)
    again = await client.post("/v1/runs", json=BODY, headers=headers)
    reordered = await client.post(
        "/v1/runs",
        content='{"input": {"customer": "c-1", "text": "mail ada@example.com"}, "workflow": "ask"}',
        headers={**headers, "Content-Type": "application/json"},
    )
    assert [answer.status_code for answer in (first, again, reordered)] == [201, 200, 200]
    assert first.json()["new"] is True
    assert again.json() == reordered.json() == {"run_id": first.json()["run_id"], "new": False}
    assert len((await client.get("/v1/runs")).json()["runs"]) == 1
    entries = (await client.get("/v1/audit", params={"run_id": first.json()["run_id"]})).json()["entries"]
    assert [one["entry"]["event_type"] for one in entries] == ["run.created"]


async def test_without_a_key_every_request_is_a_run(served: Served) -> None:
    client = await served.client()
    started = [(await client.post("/v1/runs", json=BODY)).json()["run_id"] for _ in range(2)]
    assert started[0] != started[1]


async def test_the_key_with_another_input_is_a_conflict(served: Served) -> None:
    client = await served.client()
    headers = {"Idempotency-Key": "order-7"}
    first = (await client.post("/v1/runs", json=BODY, headers=headers)).json()["run_id"]
    for value in ({"text": "mail bob@example.com", "customer": "c-1"}, {"text": BODY["input"]["text"]}):  # type: ignore[index]
        answer = await client.post("/v1/runs", json={"workflow": "ask", "input": value}, headers=headers)
        assert answer.status_code == 409
        code, message = problem_of(answer)
        assert code == "conflict"
        assert "order-7" in message
        assert first in message
        assert "example.com" not in message
    # In another workflow the key is free.
    other = await client.post("/v1/runs", json={"workflow": "anything", "input": 1}, headers=headers)
    assert other.status_code == 201


async def test_many_at_the_same_moment_are_one_run(served: Served) -> None:
    client = await served.client()
    headers = {"Idempotency-Key": "rush"}
    answers = await asyncio.gather(*(client.post("/v1/runs", json=BODY, headers=headers) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    assert len((await client.get("/v1/runs")).json()["runs"]) == 1
    assert (await client.get("/v1/audit/verify")).json()["ok"] is True


@pytest.mark.parametrize(
    ("key", "status"),
    [
        pytest.param(b"x" * 200, 201, id="longest"),
        pytest.param(b"x" * 201, 422, id="too long"),
        pytest.param(b"\xe9t\xe9 7/[bold]", 201, id="printable"),
        pytest.param(b"a\tb", 422, id="tab"),
        pytest.param(b"a\x85b", 422, id="control character"),
    ],
)
async def test_keys_are_short_and_printable(served: Served, key: bytes, status: int) -> None:
    client = await served.client()
    headers = [*client.headers.raw, (b"Idempotency-Key", key)]
    answer = await client.post("/v1/runs", json=BODY, headers=headers)
    assert answer.status_code == status
    if status == 201:
        runs = (await client.get("/v1/runs")).json()["runs"]
        assert [run["idempotency_key"] for run in runs] == [key.decode("latin-1")]
    else:
        assert problem_of(answer)[0] == "invalid_input"
        assert (await client.get("/v1/runs")).json() == {"runs": [], "next": None}


async def test_a_refused_request_does_not_use_the_key_up(served: Served) -> None:
    client = await served.client()
    headers = {"Idempotency-Key": "order-7"}
    refused = await client.post("/v1/runs", json={"workflow": "ask", "input": {}}, headers=headers)
    assert refused.status_code == 422
    assert (await client.post("/v1/runs", json=BODY, headers=headers)).status_code == 201
