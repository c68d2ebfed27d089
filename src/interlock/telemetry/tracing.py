"""Traces: one a run, across processes and restarts; kept in PostgreSQL, exported by OTLP when configured."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from interlock.base.errors import InterlockError, Unavailable
from interlock.store.database import Database
from interlock.store.queries import QUERIES
from interlock.telemetry import names

_FLUSH_SECONDS = 0.25
_KEPT_WHILE_DOWN = 20_000  # spans held while the database is away; beyond it the oldest go first


@dataclass(frozen=True, slots=True)
class TraceIds:
    """The trace of a run and its root span, as hexadecimal; made when the run is accepted and kept in its row."""

    trace_id: str
    span_id: str

    @classmethod
    def new(cls) -> TraceIds:
        return cls(secrets.token_hex(16), secrets.token_hex(8))


_fixed_ids: ContextVar[TraceIds | None] = ContextVar("fixed_ids", default=None)


class _Ids(RandomIdGenerator):
    """Random ids, but for a root span whose ids were given out when its run was accepted."""

    def generate_span_id(self) -> int:
        fixed = _fixed_ids.get()
        return int(fixed.span_id, 16) if fixed else super().generate_span_id()

    def generate_trace_id(self) -> int:
        fixed = _fixed_ids.get()
        return int(fixed.trace_id, 16) if fixed else super().generate_trace_id()


class Tracing:
    """The tracer of one process."""

    def __init__(self, database: Database, *, service: str, otlp_endpoint: str | None = None) -> None:
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, id_generator=_Ids(), resource=Resource({"service.name": service}), shutdown_on_exit=False
        )
        self._store = _SpanStore(database)
        self._provider.add_span_processor(self._store)
        if otlp_endpoint:
            # Imported here: protobuf takes a while, and most installations keep their spans in PostgreSQL only.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

            exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces")
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("interlock")

    def start(self) -> None:
        self._store.start()

    async def close(self) -> None:
        """Writes what is left."""
        await self._store.close()
        await asyncio.to_thread(self._provider.shutdown)

    async def flush(self) -> None:
        """Writes what has ended so far."""
        await self._store.flush()

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any], *, parent: TraceIds | None = None) -> Iterator[Span]:
        """A span around a block, under the current one or under `parent`; success, error.type and latency.ms are set."""
        context = _remote(parent) if parent else None
        with self._tracer.start_as_current_span(
            name, context=context, attributes=dict(attributes), record_exception=False, set_status_on_exception=False
        ) as span:
            assert isinstance(span, Span)
            try:
                yield span
            except BaseException as error:
                mark_failed(span, error)
                raise

    def emit(
        self, name: str, ids: TraceIds, *, start: float, end: float, ok: bool, attributes: Mapping[str, Any]
    ) -> None:
        """A finished root span with ids given out earlier. Times in seconds since the epoch."""
        token = _fixed_ids.set(ids)
        try:
            span = self._tracer.start_span(
                name, context=Context(), start_time=int(start * 1e9), attributes=dict(attributes)
            )
        finally:
            _fixed_ids.reset(token)
        if not ok:
            span.set_status(Status(StatusCode.ERROR))
        span.end(int(end * 1e9))


def mark_failed(span: Span, error: BaseException) -> None:
    """Says on a span what went wrong; by code, never by message: messages may hold what a tool or a model said."""
    span.set_attribute(names.ERROR_TYPE, error.code if isinstance(error, InterlockError) else type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))


def current_ids() -> TraceIds | None:
    """Trace and span of the running code, for log lines."""
    context = trace.get_current_span().get_span_context()
    return TraceIds(f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


def _remote(ids: TraceIds) -> Context:
    context = SpanContext(
        int(ids.trace_id, 16), int(ids.span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


class _SpanStore(SpanProcessor):
    """Collects ended spans and writes them a few times a second, off the path of the steps.

    A killed process loses at most the last quarter second of spans; the journal and the audit log lose nothing.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ended: deque[ReadableSpan] = deque(maxlen=_KEPT_WHILE_DOWN)
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        if span.attributes and names.ORG_ID in span.attributes:
            self._ended.append(span)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="span store")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            await asyncio.wait_for(self.flush(), 5)
        except (InterlockError, TimeoutError):
            return  # shutting down without a database: the spans are lost, the record is not

    async def flush(self) -> None:
        async with self._writing:
            spans = [self._ended.popleft() for _ in range(len(self._ended))]
            if not spans:
                return
            rows = [_row(span) for span in spans]

            async def write() -> None:
                async with self._database.connection(*{row[2] for row in rows}) as connection:
                    await connection.executemany(QUERIES["insert_span"], rows)

            try:
                await self._database.retrying(write)
            except (Unavailable, asyncio.CancelledError):
                # Closing cancels a flush that is under way and then flushes once more; a span may be written twice.
                self._ended.extendleft(reversed(spans))
                raise

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.flush()
            except Exception:  # noqa: BLE001, S112  kept or lost; the spans that come after must not be lost with them
                continue


def _row(span: ReadableSpan) -> tuple[Any, ...]:
    attributes = {name: _storable(value) for name, value in (span.attributes or {}).items()}
    start, end = span.start_time or 0, span.end_time or 0
    ok = span.status.status_code is not StatusCode.ERROR
    attributes.setdefault(names.SUCCESS, ok)
    attributes[names.LATENCY_MS] = round((end - start) / 1e6, 3)
    context = span.context
    assert context is not None
    parent = f"{span.parent.span_id:016x}" if span.parent else None
    org = str(attributes[names.ORG_ID])
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}", org, parent, span.name, start, end, ok, attributes)


def _storable(value: Any) -> Any:
    # A database text holds neither NUL nor half a surrogate pair; one such span would hold up all that come after it.
    if isinstance(value, str):
        return value.replace("\0", "").encode(errors="replace").decode()
    return [_storable(item) for item in value] if isinstance(value, tuple | list) else value
