"""The OpenAPI document: current in docs/, complete for a client generator, and shown without another host's scripts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from interlock.api.server import create_api

from .conftest import Served

ROOT = Path(__file__).resolve().parents[2]
OPEN = {"/healthz", "/readyz"}  # for probes, which have no key


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(json.dumps(create_api(None, payload_bytes=1024).openapi()))


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, found) for path, item in document["paths"].items() for method, found in item.items()]


def test_the_committed_document_is_current(document: dict[str, Any]) -> None:
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert committed == document, "run `interlock schema openapi > docs/openapi.json`"


def test_every_operation_is_fit_for_a_generated_client(document: dict[str, Any]) -> None:
    names = [found["operationId"] for _, _, found in operations(document)]
    assert len(names) == len(set(names)) >= 33
    schemas = document["components"]["schemas"]
    for method, path, found in operations(document):
        where = f"{method} {path}"
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", found["operationId"]), where
        assert found["summary"][0].isupper(), where
        assert len(found["summary"]) <= 80, where
        good = {status: answer for status, answer in found["responses"].items() if status < "300"}
        assert good, where
        for status, answer in good.items():
            content = answer.get("content", {})
            if status == "204":
                assert not content, where
            elif "application/json" in content:
                assert content["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/") in schemas
            else:
                assert set(content) <= {"text/event-stream", "application/jsonl"}, where
                assert content, where
        refusals = set(found["responses"]) - set(good)
        for status in refusals:
            error = found["responses"][status]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorBody"}, (where, status)
        if path in OPEN:
            assert "security" not in found, where
        else:
            assert found["security"] == [{"apiKey": []}], where
            assert {"401", "403", "422", "503"} <= refusals, where
        assert "413" in refusals or "requestBody" not in found, where
        assert "404" in refusals or "{" not in path, where
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"


def test_every_event_of_a_stream_has_its_model(document: dict[str, Any]) -> None:
    models = document["paths"]["/v1/runs/{run_id}/events"]["get"]["x-event-models"]
    assert set(models) == {"*", "status", "waiting", "review_opened", "review_closed", "end", "error"}
    for model in models.values():
        schema = document["components"]["schemas"][model["$ref"].rpartition("/")[2]]
        assert schema["description"]
        assert schema["required"]


async def test_the_page_loads_nothing_from_another_host(served: Served) -> None:
    client = await served.client(None)
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "//" not in page.text.removeprefix("<!doctype html>")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(sources) == 4
    for source in sources:
        assert source.startswith("/docs/")
        found = await client.get(source)
        assert (found.status_code, len(found.content) > 50) == (200, True), source
    assert (await client.get("/docs/..%2f__init__.py")).status_code == 404
    assert (await client.get("/openapi.json")).json()["info"]["title"] == "Interlock"
