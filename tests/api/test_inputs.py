"""Whatever a client may send: refused in a sentence or accepted whole, never a 500, never half."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from .conftest import Served, problem_of

# A JSON text as it goes over the wire, so that what Python would not write can be sent too.
Wire = str | bytes


async def send(client: httpx.AsyncClient, path: str, body: Wire, **headers: str) -> httpx.Response:
    return await client.post(path, content=body, headers={"Content-Type": "application/json", **headers})


def run_of(value: Wire) -> Wire:
    """A request for a run of `ask` whose text is this JSON."""
    if isinstance(value, bytes):
        return b'{"workflow": "ask", "input": {"text": ' + value + b"}}"
    return '{"workflow": "ask", "input": {"text": ' + value + "}}"


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


async def runs_there(served: Served) -> int:
    return len((await (await served.client()).get("/v1/runs", params={"limit": 200})).json()["runs"])


OBJECT = "body: must be a JSON object; send one, with the header Content-Type: application/json"

BAD_REQUESTS: dict[str, tuple[Wire, int]] = {
    "nothing": ("", 422),
    "cut": ("{", 422),
    "no JSON": ("nonsense", 422),
    "null": ("null", 422),
    "array": ("[]", 422),
    "string": ('"text"', 422),
    "empty": ("{}", 422),
    "no input": ('{"workflow": "ask"}', 422),
    "no workflow": ('{"input": {"text": "x"}}', 422),
    "workflow is a number": ('{"workflow": 1, "input": {"text": "x"}}', 422),
    "unknown field": ('{"workflow": "ask", "input": {"text": "x"}, "extra": 1}', 422),
    "unknown field, surrogate": ('{"workflow": "ask", "input": {"text": "x"}, "\\ud800": 1}', 422),
    "long workflow name": ('{"workflow": "' + "x" * 201 + '", "input": {}}', 422),
    "unknown workflow": ('{"workflow": "nobody", "input": {}}', 404),
    "empty workflow": ('{"workflow": "", "input": {}}', 404),
    "NUL in workflow": ('{"workflow": "a\\u0000b", "input": {}}', 422),
    "surrogate in workflow": ('{"workflow": "\\ud800", "input": {}}', 422),
    "input null": ('{"workflow": "ask", "input": null}', 422),
    "input without text": ('{"workflow": "ask", "input": {}}', 422),
    "input with unknown field": ('{"workflow": "ask", "input": {"text": "x", "more": 1}}', 422),
    "NUL in a name": ('{"workflow": "ask", "input": {"text": "x", "\\u0000": 1}}', 422),
    "text is a number": (run_of("1"), 422),
    "NaN": (run_of("NaN"), 422),
    "infinity": (run_of("-Infinity"), 422),
    "float without end": (run_of("1e400"), 422),
    "long integer": (run_of("1" * 400), 422),
    "integer over Python's limit": (run_of("1" * 5000), 422),
    "lone surrogate": (run_of('"\\ud800"'), 422),
    "surrogates the wrong way round": (run_of('"\\ude00\\ud83d"'), 422),
    "broken escape": (run_of('"\\u000"'), 422),
    "raw NUL": (run_of('"a\x00b"'), 422),
    "NUL": (run_of('"a\\u0000b"'), 422),
    "a field twice": ('{"workflow": "ask", "workflow": "ask", "input": {"text": "x"}}', 422),
    "a field twice inside": ('{"workflow": "ask", "input": {"text": "x", "text": "y"}}', 422),
    "integer beyond 64 bits": (run_of("9223372036854775808"), 422),
    "not UTF-8": (run_of(b'"\xff\xfe"'), 422),
    "a surrogate as UTF-8": (run_of(b'"\xed\xa0\x80"'), 422),
    "nested 200 deep": (run_of(nested(200)), 422),
    "nested 900 deep": (run_of(nested(900)), 422),
    "nested 10,000 deep": (run_of(nested(10_000)), 422),
    "objects 300 deep": ('{"a":' * 300 + "1" + "}" * 300, 422),
}


async def test_a_bad_request_for_a_run_is_refused(served: Served, subtests: pytest.Subtests) -> None:
    for name, (body, status) in BAD_REQUESTS.items():
        with subtests.test(name):
            answer = await send(await served.client(), "/v1/runs", body)
            assert answer.status_code == status, answer.text
            problem_of(answer)
            assert await runs_there(served) == 0


@pytest.mark.parametrize(
    ("text", "same"),
    [
        pytest.param('"\\ud83d\\ude00 \\u0007 \\u202e ﷽ \\u001b[31m"', True, id="emoji, controls, bidi"),
        pytest.param('"' + "é" * 300_000 + '"', True, id="large, beside the database"),
    ],
)
async def test_odd_text_comes_back_as_it_went_in(working: Served, text: str, same: bool) -> None:
    client = await working.client()
    answer = await send(client, "/v1/runs", run_of(text))
    assert answer.status_code == 201, answer.text
    run_id = answer.json()["run_id"]
    assert (await working.finish(run_id))["status"] == "succeeded"
    assert (await client.get(f"/v1/runs/{run_id}/result")).json()["output"]["text"] == json.loads(text)
    assert (await client.get(f"/v1/runs/{run_id}/values")).json()["values"]["input"]["text"] == json.loads(text)


async def test_a_body_that_is_not_called_json_is_refused(served: Served) -> None:
    client = await served.client()
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense", ""):
        answer = await send(client, "/v1/runs", run_of('"x"'), **{"Content-Type": content_type})
        assert answer.status_code == 422, content_type
        problem_of(answer)
    assert await runs_there(served) == 0


IN_WORDS: dict[str, tuple[str, dict[str, str], str]] = {
    "form": (run_of('"x"'), {"Content-Type": "application/x-www-form-urlencoded"}, OBJECT),  # type: ignore[dict-item]
    "nothing": ("", {}, OBJECT),
    "array": ("[]", {}, OBJECT),
    "number": (run_of("5"), {}, "input: text: is 5 (a number); must be a string"),  # type: ignore[dict-item]
    "no input": ('{"workflow": "ask"}', {}, "body.input: is required; add it"),
    "unknown field": (
        '{"workflow": "ask", "input": {}, "x": 1}',
        {},
        "body.x: is not a known field; remove it or check the",
    ),
    "workflow": ('{"workflow": 1, "input": {}}', {}, "body.workflow: is 1 (a number); must be a string"),
    "not JSON": ("{", {}, "body: is not JSON: "),
}


async def test_a_refusal_is_a_sentence_in_plain_words(served: Served, subtests: pytest.Subtests) -> None:
    for name, (body, headers, said) in IN_WORDS.items():
        with subtests.test(name):
            answer = await send(await served.client(), "/v1/runs", body, **headers)
            assert answer.status_code == 422
            assert answer.json()["error"]["message"].startswith(said)


BAD_PARAMETERS = [
    "/v1/runs?limit=0",
    "/v1/runs?limit=201",
    "/v1/runs?limit=x",
    "/v1/runs?limit=99999999999999999999999",
    "/v1/runs?status=nonsense",
    "/v1/runs?status=",
    "/v1/runs?workflow=%00",
    "/v1/runs?before=a%00b",
    "/v1/reviews?status=nonsense",
    "/v1/reviews?run_id=%00",
    "/v1/audit?after=-1",
    "/v1/audit?after=9223372036854775808",
    "/v1/audit?after=1.5",
    "/v1/audit?limit=1001",
    "/v1/audit?run_id=%00",
    "/v1/runs/{run}/events?after=-1",
    "/v1/runs/{run}/events?after=2147483648",
    "/v1/runs/{run}/events?after=x",
    "/v1/runs/{run}/result?reveal=perhaps",
]
NO_SUCH = [
    "/v1/runs/nonsense",
    "/v1/runs/run_00000000000000000000000000",
    "/v1/runs/" + "x" * 200,
    "/v1/runs/%F0%9F%98%80",
    "/v1/runs/%FF%FE",
    "/v1/runs/'; drop table runs; --",
    "/v1/runs/..%2Freviews",
    "/v1/runs/",
    "/v1/runs/x/nothing",
    "/v1/reviews/nonsense",
    "/v2/runs",
    "/",
]


async def test_bad_parameters_are_named(served: Served) -> None:
    client = await served.client()
    run = await served.start()
    for path in BAD_PARAMETERS:
        answer = await client.get(path.format(run=run))
        assert answer.status_code == 422, (path, answer.text)
        code, message = problem_of(answer)
        assert code == "invalid_input"
        if "%00" not in path:
            assert path.partition("?")[2].partition("=")[0] in message, (path, message)


async def test_what_is_not_there_is_404(served: Served) -> None:
    client = await served.client()
    for path in NO_SUCH:
        answer = await client.get(path)
        assert (answer.status_code, problem_of(answer)[0]) == (404, "not_found"), path
    for path in ("/v1/runs/nonsense/cancel", "/v1/reviews/nonsense/decision"):
        body = {"reason": ""} if path.endswith("cancel") else {"decision": "approve"}
        answer = await client.post(path, json=body)
        assert (answer.status_code, problem_of(answer)[0]) == (404, "not_found"), path
    assert (await client.get("/v1/runs/%00")).status_code == 422


async def test_wrong_methods_are_refused(served: Served) -> None:
    client = await served.client()
    for method, path in (("PUT", "/v1/runs"), ("DELETE", "/v1/runs/x"), ("PATCH", "/v1/me"), ("POST", "/healthz")):
        answer = await client.request(method, path)
        assert (answer.status_code, problem_of(answer)[0]) == (405, "method_not_allowed"), path


@pytest.mark.parametrize("role", ["operator"])
async def test_reasons_and_notes_take_any_text(working: Served, role: str) -> None:
    client = await working.client()
    for text, status in (
        ("ab [/red] \x1b[0m", 202),
        ("a\0b", 422),
        ("x" * 500, 202),
        ("x" * 501, 422),
        ('"\\ud800"', 422),
    ):
        run_id = await working.start()
        await working.review(run_id)
        body = '{"reason": ' + (text if text.startswith('"') else json.dumps(text)) + "}"
        answer = await send(client, f"/v1/runs/{run_id}/cancel", body)
        assert answer.status_code == status, (text, answer.text)
        if status == 202:
            run = await working.run(run_id, lambda run: run["status"] == "cancelled")
            assert run["reason"] == f"cancelled: {text}"
        else:
            problem_of(answer)
    for text, status in (("ab", 200), ("a\0b", 422), ("x" * 4001, 422), ('"\\udfff"', 422)):
        review = await working.review(await working.start())
        note = text if text.startswith('"') else json.dumps(text)
        answer = await send(client, f"/v1/reviews/{review}/decision", '{"decision": "approve", "note": ' + note + "}")
        assert answer.status_code == status, (text, answer.text)
        found = (await client.get(f"/v1/reviews/{review}")).json()
        assert found["status"] == ("approved" if status == 200 else "open")


async def test_a_bad_decision_leaves_the_review_open(working: Served) -> None:
    client = await working.client()
    review = await working.review(await working.start())
    for body in (
        {},
        {"decision": "maybe"},
        {"decision": True},
        {"decision": ["approve"]},
        {"decision": "approve", "note": 1},
        {"decision": "approve", "by": "somebody"},
        "approve",
    ):
        answer = await client.post(f"/v1/reviews/{review}/decision", json=body)
        assert answer.status_code == 422, body
        problem_of(answer)
    assert (await client.get(f"/v1/reviews/{review}")).json()["status"] == "open"


async def test_a_decision_is_made_once(working: Served) -> None:
    client = await working.client()
    run_id = await working.start()
    review = await working.review(run_id)
    assert (await client.post(f"/v1/reviews/{review}/decision", json={"decision": "reject"})).status_code == 200
    again = await client.post(f"/v1/reviews/{review}/decision", json={"decision": "approve"})
    assert (again.status_code, problem_of(again)[0]) == (409, "conflict")
    run = await working.run(run_id, lambda run: run["status"] not in {"waiting", "running"})
    assert run["status"] == "failed"
    over = await client.post(f"/v1/runs/{run_id}/cancel", json={})
    assert (over.status_code, problem_of(over)[0]) == (409, "conflict")


async def test_a_result_is_there_only_at_the_end(working: Served) -> None:
    client = await working.client()
    run_id = await working.start()
    early = await client.get(f"/v1/runs/{run_id}/result")
    assert (early.status_code, problem_of(early)[0]) == (409, "conflict")
    await working.finish(run_id)
    assert (await client.get(f"/v1/runs/{run_id}/result")).json() == {"output": {"text": "hello"}}


async def test_a_list_of_runs_pages_backwards_without_gaps(served: Served) -> None:
    client = await served.client()
    started = [await served.start(str(number)) for number in range(5)]
    pages: list[str] = []
    last: dict[str, Any] = {}
    while page := (await client.get("/v1/runs", params={"limit": 2, **last})).json()["runs"]:
        assert len(page) <= 2
        pages += [run["run_id"] for run in page]
        last = {"before": pages[-1]}
    assert pages == sorted(started, reverse=True)
    assert (await client.get("/v1/runs", params={"workflow": "other"})).json() == {"runs": [], "next": None}
    assert (await client.get("/v1/runs", params={"status": "succeeded"})).json() == {"runs": [], "next": None}
    assert len((await client.get("/v1/runs", params={"status": "queued"})).json()["runs"]) == 5
