"""OTLP: a real collector's end of the wire, which decodes what it gets with OpenTelemetry's own protocol buffers."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import requests
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from interlock.base.outbound import Outbound
from interlock.store.database import Database
from interlock.telemetry import names
from interlock.telemetry.spans import TraceIds
from interlock.telemetry.tracing import Tracing
from interlock.telemetry.vetted_requests import VettedRequests

if TYPE_CHECKING:
    from conftest import Tenant


class Collector:
    """Takes traces at `/v1/traces`; `posts` are the decoded requests, whatever they were answered."""

    def __init__(self) -> None:
        self.posts: list[ExportTraceServiceRequest] = []
        self.content_types: set[str] = set()
        self.status = 200
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.content_types.add(request.content_type)
        self.posts.append(ExportTraceServiceRequest.FromString(body))
        return web.Response(status=self.status)

    def spans(self) -> dict[str, Any]:
        return {
            span.name: span
            for post in self.posts
            for resource in post.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    application = web.Application()
    application.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    collector.url = f"http://{host}:{port}"
    yield collector
    await runner.cleanup()


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_collector_gets_what_the_database_gets(
    database: Database,
    collector: Collector,
    owner: psycopg.Connection[Any],
    tenants: tuple[Tenant, Tenant],
    slash: str,
) -> None:
    org, ids = tenants[0].org_id, TraceIds.new()
    tracing = Tracing(database, service="support", otlp_endpoint=collector.url + slash)
    with (
        pytest.raises(ValueError, match="private words"),
        tracing.span("step", {names.ORG_ID: org, names.TOKENS_INPUT: 7}, parent=ids),
    ):
        raise ValueError("private words")
    tracing.emit("run", ids, start=10.0, end=12.0, ok=True, attributes={names.ORG_ID: org})
    await tracing.close()

    assert collector.content_types == {"application/x-protobuf"}
    resources = [resource.resource for post in collector.posts for resource in post.resource_spans]
    services = {(item.key, item.value.string_value) for resource in resources for item in resource.attributes}
    assert ("service.name", "support") in services
    spans = collector.spans()
    assert set(spans) == {"step", "run"}
    assert (spans["run"].trace_id.hex(), spans["run"].span_id.hex()) == (ids.trace_id, ids.span_id)
    assert (spans["run"].start_time_unix_nano, spans["run"].end_time_unix_nano) == (10 * 10**9, 12 * 10**9)
    assert (spans["step"].trace_id, spans["step"].parent_span_id) == (spans["run"].trace_id, spans["run"].span_id)
    attributes = {item.key: item.value for item in spans["step"].attributes}
    assert attributes[names.TOKENS_INPUT].int_value == 7
    assert attributes[names.ERROR_TYPE].string_value == "ValueError"
    assert "private words" not in str(collector.posts)
    in_database = {row[0]: row[1] for row in owner.execute("select name, span_id from spans").fetchall()}
    assert in_database == {name: span.span_id.hex() for name, span in spans.items()}


async def test_a_collector_that_refuses_costs_nothing_but_its_own_copy(
    database: Database, collector: Collector, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    collector.status = 400
    tracing = Tracing(database, service="support", otlp_endpoint=collector.url)
    with tracing.span("step", {names.ORG_ID: tenants[0].org_id}):
        pass
    await tracing.close()
    assert set(collector.spans()) == {"step"}  # it was asked
    assert owner.execute("select name from spans").fetchall() == [("step",)]


async def test_without_an_endpoint_nothing_leaves(
    database: Database, collector: Collector, monkeypatch: pytest.MonkeyPatch, tenants: tuple[Tenant, Tenant]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)  # for some other program on this machine
    tracing = Tracing(database, service="support")
    with tracing.span("step", {names.ORG_ID: tenants[0].org_id}):
        pass
    await tracing.close()
    assert collector.posts == []


async def test_a_collector_inside_the_network_must_be_named(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to an address that the settings do not name, also if the name resolves to it only at the connection."""
    given = socket.getaddrinfo

    def resolve(host: str, *args: Any, **named: Any) -> Any:
        return given("127.0.0.1" if host == "collector.internal" else host, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = collector.url.replace("127.0.0.1", "collector.internal") + "/v1/traces"
    with pytest.raises(requests.ConnectionError, match=r"network\.private"):
        await asyncio.to_thread(VettedRequests(Outbound()).post, url, data=b"")
    assert collector.posts == []
    named = VettedRequests(Outbound(["collector.internal"]))
    assert (await asyncio.to_thread(named.post, url, data=b"")).status_code == 200
    assert len(collector.posts) == 1
    named.close()


async def test_a_collector_cannot_send_traces_elsewhere(collector: Collector) -> None:
    async def moved(_request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{collector.url}/v1/traces"})

    application = web.Application()
    application.router.add_post("/v1/traces", moved)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    answer = await asyncio.to_thread(VettedRequests(Outbound()).post, f"http://{host}:{port}/v1/traces", data=b"x")
    await runner.cleanup()
    assert (answer.status_code, collector.posts) == (307, [])
