"""Dead letters over HTTP: who may, what is shown, and what a hostile request cannot do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from .conftest import PATIENCE, Served, problem_of

WORKFLOW = """\
name: look
input: {type: object, properties: {text: {type: string}}, required: [text]}
allow: [picky]
on_failure: hold
steps:
  - {id: try, kind: tool, tool: picky, input: {text: $input.text}}
output: {text: $steps.try.text}
"""
TOOL = """\
name: picky
description: Takes everything but bad.
effect: pure
input: {type: object, properties: {text: {type: string}}, required: [text], additionalProperties: false}
output: {type: object, properties: {text: {type: string}}, required: [text]}
"""
CODE = """\
def run(text):
    if text == "bad":
        raise RuntimeError("no bad")
    return {"text": text}
"""


@pytest.fixture(autouse=True)
def files(project: Path) -> None:
    (project / "workflows" / "look.yaml").write_text(WORKFLOW)
    (project / "tools" / "picky").mkdir(parents=True)
    (project / "tools" / "picky" / "tool.yaml").write_text(TOOL)
    (project / "tools" / "picky" / "main.py").write_text(CODE)
    (project / "policies").mkdir(exist_ok=True)
    (project / "policies" / "main.cedar").write_text("permit(principal, action, resource);\n")


async def held(served: Served) -> tuple[str, str]:
    """(run, letter) of a run whose only step is held."""
    client = await served.client()
    answer = await client.post("/v1/runs", json={"workflow": "look", "input": {"text": "bad"}})
    run_id = answer.json()["run_id"]

    async def wait() -> str:
        while not (found := (await client.get("/v1/dead-letters", params={"run_id": run_id})).json()["dead_letters"]):
            await asyncio.sleep(0.02)
        return str(found[0]["dead_letter_id"])

    return run_id, await asyncio.wait_for(wait(), PATIENCE)


async def test_looked_at_edited_and_requeued(working: Served) -> None:
    run_id, dead_letter_id = await held(working)
    operator = await working.client("operator")
    shown = (await operator.get(f"/v1/dead-letters/{dead_letter_id}")).json()
    assert shown["input"] == {"text": "bad"}
    assert shown["error_detail"] == "RuntimeError: no bad"
    assert (shown["purpose"], shown["step"], shown["status"]) == ("step", "try", "open")
    answer = await operator.post(
        f"/v1/dead-letters/{dead_letter_id}/requeue", json={"note": "n", "input": {"text": "good"}}
    )
    assert answer.status_code == 200
    assert answer.json()["status"] == "requeued"
    run = await working.run(run_id, lambda run: run["status"] == "succeeded")
    assert run["dead_letters"] == []
    for path in ("requeue", "discard"):
        again = await operator.post(f"/v1/dead-letters/{dead_letter_id}/{path}", json={})
        assert (again.status_code, problem_of(again)[0]) == (409, "conflict")


BAD_BODIES: list[Any] = [
    {"input": []},
    {"input": "text"},
    {"input": {"text": 7}},
    {"input": {}},
    {"input": {"text": "x", "more": 1}},
    {"note": "x" * 4001},
    {"note": 7},
    {"other": 1},
    [],
]


async def test_a_bad_request_decides_nothing(working: Served, subtests: pytest.Subtests) -> None:
    _, dead_letter_id = await held(working)
    client = await working.client()
    for body in BAD_BODIES:
        with subtests.test(body=str(body)[:40]):
            answer = await client.post(f"/v1/dead-letters/{dead_letter_id}/requeue", json=body)
            assert answer.status_code == 422
            problem_of(answer)
    deep = '{"input": {"text": ' + "[" * 200 + "]" * 200 + "}}"
    headers = {"Content-Type": "application/json"}
    for raw in (deep, '{"input": {"text": NaN}}', '{"input": {"text": "\\ud800"}}', "{", ""):
        answer = await client.post(f"/v1/dead-letters/{dead_letter_id}/requeue", content=raw, headers=headers)
        assert answer.status_code == 422, raw[:30]
    answer = await client.post(f"/v1/dead-letters/{dead_letter_id}/discard", json={"note": "a\0b"})
    assert answer.status_code == 422, "PostgreSQL has no text that could hold it"
    assert (await client.get(f"/v1/dead-letters/{dead_letter_id}")).json()["status"] == "open"


async def test_pages(working: Served) -> None:
    ids = [(await held(working))[1] for _ in range(3)]
    client = await working.client()
    page = (await client.get("/v1/dead-letters", params={"limit": 2})).json()
    first = page["dead_letters"]
    assert page["next"] == first[-1]["dead_letter_id"]
    assert (await client.get("/v1/dead-letters", params={"limit": 200})).json()["next"] is None
    rest = (await client.get("/v1/dead-letters", params={"limit": 2, "after": first[-1]["dead_letter_id"]})).json()[
        "dead_letters"
    ]
    assert [one["dead_letter_id"] for one in first + rest] == sorted(ids)
    for query in ({"limit": 0}, {"limit": 201}, {"status": "x"}):
        assert (await client.get("/v1/dead-letters", params=query)).status_code == 422
    await client.post(f"/v1/dead-letters/{ids[0]}/discard", json={})
    discarded = (await client.get("/v1/dead-letters", params={"status": "discarded"})).json()["dead_letters"]
    assert [one["dead_letter_id"] for one in discarded] == [ids[0]]


async def test_nobody_else_sees_or_decides(working: Served) -> None:
    _, dead_letter_id = await held(working)
    stranger = await working.client("stranger")
    assert (await stranger.get("/v1/dead-letters", params={"status": "all"})).json() == {
        "dead_letters": [],
        "next": None,
    }
    for method, path, body in (("GET", "", None), ("POST", "/requeue", {}), ("POST", "/discard", {})):
        answer = await stranger.request(method, f"/v1/dead-letters/{dead_letter_id}{path}", json=body)
        assert (answer.status_code, problem_of(answer)[0]) == (404, "not_found")
        for role in ("viewer", "developer", "reviewer"):
            refused = await (await working.client(role)).request(
                method, f"/v1/dead-letters/{dead_letter_id}{path}", json=body
            )
            assert (refused.status_code, problem_of(refused)[0]) == (403, "denied")
