"""Requests made up from the OpenAPI document: whatever comes, no 5xx, and every refusal has the one shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from settled import issue_key

from .conftest import PATIENCE, Served, problem_of

# Text as it may come over the wire: NUL, lone surrogates (as JSON escapes), right-to-left marks, anything.
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.sampled_from(
        ["", "ask", "anything", "\0", "\ud800", "approve", "succeeded", "-1", "9" * 30, "run_", "*/--", "%"]
    ),
)
NUMBERS = st.one_of(
    st.integers(-5, 5), st.integers(), st.just(2**31), st.just(2**63), st.just(10**400), st.floats(), st.just(1e308)
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


def resolve(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    for part in schema.get("$ref", "#").split("/")[1:]:
        document = document[part]
    return document if "$ref" in schema else schema


def near(schema: dict[str, Any], document: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a schema, mostly; the rest is anything."""
    schema = resolve(schema, document)
    kind = schema.get("type")
    if "anyOf" in schema:
        fitting = st.one_of(*(near(one, document) for one in schema["anyOf"]))
    elif "enum" in schema:
        fitting = st.sampled_from(schema["enum"])
    elif kind == "object":
        fields = {name: near(one, document) for name, one in schema.get("properties", {}).items()}
        required = {name: fields.pop(name) for name in schema.get("required", ())}
        fitting = st.fixed_dictionaries(required, optional=fields)
    elif kind == "array":
        fitting = st.lists(near(schema["items"], document), max_size=3)
    else:
        fitting = {"integer": NUMBERS, "number": NUMBERS, "boolean": st.booleans(), "null": st.none()}.get(kind, TEXT)
    return fitting if kind == "object" else st.one_of(fitting, fitting, fitting, JSON)


@st.composite
def requests(draw: st.DrawFn, document: dict[str, Any], ids: dict[str, list[str]]) -> dict[str, Any]:
    """A request: method, path, query, headers, body, every part made up from what the document says about it."""
    path = draw(st.sampled_from(sorted(document["paths"])))
    method = draw(st.sampled_from(sorted(document["paths"][path])))
    operation = document["paths"][path][method]
    query: list[tuple[str, str]] = []
    headers: list[tuple[bytes, bytes]] = []
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "path":
            known = st.sampled_from(ids[name])
            value = draw(st.one_of(known, known, TEXT))
            path = path.replace("{" + name + "}", quote(value, safe="", errors="surrogatepass"))
        elif parameter["in"] == "query" and draw(st.booleans()):
            value = draw(st.one_of(*_cursors(path, name, ids), near(parameter["schema"], document)))
            query.append((name, quote(str(value), safe="", errors="surrogatepass")))
        elif parameter["in"] == "header" and draw(st.booleans()):
            value = str(draw(near(parameter["schema"], document)))
            # What may stand in a header's value at all (RFC 9110 §5.5); the rest never reaches the application.
            octets = bytes(byte for byte in value.encode("latin-1", "ignore") if byte >= 0x20 and byte != 0x7F)
            headers.append((name.encode(), octets.strip()))
    body = None
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        fitting = near(schema, document)
        body = json.dumps(draw(st.one_of(fitting, fitting, fitting, JSON)), ensure_ascii=True).encode()
        headers.append((b"Content-Type", b"application/json"))
    target = path + "?" + "&".join(f"{name}={value}" for name, value in query) if query else path
    return {"method": method.upper(), "target": target, "headers": headers, "body": body}


def _cursors(path: str, name: str, ids: dict[str, list[str]]) -> list[st.SearchStrategy[str]]:
    """Known cursors of a list: others are refused."""
    listed = {"/v1/runs": "run_id", "/v1/reviews": "review_id", "/v1/dead-letters": "dead_letter_id"}.get(path)
    return [st.sampled_from(ids[listed])] * 2 if listed is not None and name in {"before", "after"} else []


async def ask(client: httpx.AsyncClient, request: dict[str, Any]) -> httpx.Response:
    """Sends it; of a stream, which might never end, only the head is read."""
    url = httpx.URL(client.base_url, raw_path=request["target"].encode("ascii"))
    made = client.build_request(
        request["method"], url, content=request["body"], headers=[*client.headers.raw, *request["headers"]]
    )
    response = await client.send(made, stream=True)
    if "event-stream" not in response.headers.get("content-type", ""):
        await response.aread()
    await response.aclose()
    return response


async def test_no_request_makes_the_server_fail(working: Served) -> None:
    run_id, over = await working.start("waits"), await working.start("over")
    review = await working.review(run_id)
    rejected = await working.finish(over, "reject")  # what failed is in the dead-letter queue
    spare = (await issue_key(working.app.database, "acme", "spare", frozenset({"viewer"}))).split("_")[1]
    ids = {"run_id": [run_id, over], "review_id": [review], "key_id": [spare]}
    ids |= {"dead_letter_id": rejected["dead_letters"], "name": ["go", "ask"], "workflow": ["ask", "listen"]}
    ids["policy"] = ["built-in"]
    document = working.server._server.config.app.openapi()
    client = await working.client()
    seen: dict[int, int] = {}
    loop = asyncio.get_running_loop()

    @settings(max_examples=160, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(requests(document, ids))
    def fuzz(request: dict[str, Any]) -> None:
        response = asyncio.run_coroutine_threadsafe(ask(client, request), loop).result(PATIENCE)
        seen[response.status_code // 100] = seen.get(response.status_code // 100, 0) + 1
        assert response.status_code < 500, (request, response.text)
        if response.status_code >= 400:
            problem_of(response)

    await asyncio.to_thread(fuzz)
    # It came through to the handlers, and was stopped before them: both happened.
    assert seen[2] >= 25
    assert seen[4] >= 25
    # What did get in is whole: every list can be read, and the record verifies.
    for path in ("/v1/runs?limit=200", "/v1/reviews?status=all", "/v1/keys", "/v1/audit?limit=1000"):
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/v1/audit/verify")).json()["ok"] is True
    for run in (await client.get("/v1/runs?limit=200")).json()["runs"]:
        assert (await client.get(f"/v1/runs/{run['run_id']}")).status_code == 200
        assert (await client.get(f"/v1/runs/{run['run_id']}/values")).status_code == 200
