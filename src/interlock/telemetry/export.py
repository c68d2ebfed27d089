"""Export of spans to a collector: conversion to the OpenTelemetry SDK's spans, with the same ids and times, sent by OTLP."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from interlock.base.outbound import Outbound
from interlock.telemetry.spans import Span
from interlock.telemetry.vetted_requests import VettedRequests


class _Ids(IdGenerator):
    """Id generator that returns the ids of the span being exported; safe because `take` contains no await."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Exporter:
    """Sends ended spans to a collector, in batches, from a separate thread."""

    def __init__(self, service: str, endpoint: str, outbound: Outbound) -> None:
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            id_generator=self._ids,
            resource=Resource({"service.name": service}),
            shutdown_on_exit=False,
        )
        address = endpoint.rstrip("/") + "/v1/traces"
        exporter = OTLPSpanExporter(endpoint=address, session=VettedRequests(outbound))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("interlock")

    def take(self, span: Span) -> None:
        """Queues an ended span for export."""
        self._ids.trace_id, self._ids.span_id = int(span.trace_id, 16), int(span.span_id, 16)
        context = _under(span) if span.parent_id else Context()
        copy = self._tracer.start_span(
            span.name, context=context, start_time=span.start_ns, attributes=span.attributes, record_exception=False
        )
        if not span.ok:
            copy.set_status(Status(StatusCode.ERROR))
        copy.end(span.end_ns)

    def close(self) -> None:
        """Sends the remaining spans. Blocking."""
        self._provider.shutdown()


def _under(span: Span) -> Context:
    assert span.parent_id is not None
    parent = SpanContext(
        int(span.trace_id, 16), int(span.parent_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())
