"""Traces: one per run, across processes and restarts; stored in PostgreSQL, exported by OTLP when configured."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping

from pydantic_core import to_json

from interlock.base.background import Loop
from interlock.base.entropy import random_bytes
from interlock.base.errors import InterlockError, Unavailable
from interlock.base.json import JsonObject
from interlock.base.outbound import Outbound
from interlock.store.database import Database
from interlock.store.queries import QUERIES
from interlock.telemetry import names
from interlock.telemetry.spans import Span, TraceIds, current_ids, finished_attributes

_SpanRow = tuple[str, str, str, str | None, str, int, int, bool, str]
"""Values of the columns of `insert_spans`."""

_FLUSH_SECONDS = 0.25
_KEPT_WHILE_DOWN = 20_000  # spans kept in memory while the database is unavailable; the oldest are dropped first


class Tracing:
    """The tracer of one process."""

    def __init__(
        self, database: Database, *, service: str, otlp_endpoint: str | None = None, outbound: Outbound | None = None
    ) -> None:
        self._store = _SpanStore(database)
        self._exporter = None
        self._done: Callable[[Span], None] = self._store.ended.append
        if otlp_endpoint:
            # Imported here: importing the SDK and protobuf is slow, and most installations store spans in PostgreSQL only.
            from interlock.telemetry.export import Exporter  # noqa: PLC0415

            self._exporter = Exporter(service, otlp_endpoint, outbound or Outbound())
            self._done = self._keep_and_export

    def start(self) -> None:
        self._store.start()

    async def close(self) -> None:
        """Writes the remaining spans."""
        await self._store.close()
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)

    async def flush(self) -> None:
        """Writes the spans that have ended so far."""
        await self._store.flush()

    def span(self, name: str, attributes: JsonObject, *, parent: TraceIds | None = None) -> Span:
        """A span around a block, under `parent` or the current one; success, error.type and latency.ms are set."""
        above = parent or current_ids()
        trace_id = above.trace_id if above else random_bytes(16).hex()
        ids = TraceIds(trace_id, random_bytes(8).hex())
        return Span(
            name,
            ids,
            attributes,
            parent_id=above.span_id if above else None,
            start_ns=time.time_ns(),
            done=self._done,
        )

    def emit(self, name: str, ids: TraceIds, *, start: float, end: float, ok: bool, attributes: JsonObject) -> None:
        """Records a finished root span with ids that were assigned earlier. Times are seconds since the epoch."""
        span = Span(name, ids, attributes, parent_id=None, start_ns=int(start * 1e9), done=self._done)
        span.ok = ok
        span.end(int(end * 1e9))

    def _keep_and_export(self, span: Span) -> None:
        assert self._exporter is not None
        self._store.ended.append(span)
        self._exporter.take(span)


class _SpanStore:
    """Collects ended spans and writes them a few times a second, independently of the steps.

    A killed process loses at most the last quarter second of spans; the journal and the audit log lose nothing.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.ended: deque[Span] = deque(maxlen=_KEPT_WHILE_DOWN)
        # Errors are not reported: spans are kept, and what needs the database reports that it is away.
        self._loop = Loop("span store", self.flush, every=_FLUSH_SECONDS, at_once=False, longest=_FLUSH_SECONDS)
        self._writing = asyncio.Lock()

    def start(self) -> None:
        self._loop.start()

    async def close(self) -> None:
        await self._loop.close()
        try:
            async with asyncio.timeout(5):
                await self.flush()
        except (InterlockError, TimeoutError):
            return  # shutdown without a database: spans are lost; journal and audit log are not

    async def flush(self) -> None:
        async with self._writing:
            spans = [self.ended.popleft() for _ in range(len(self.ended))]
            rows = [_row(span) for span in spans if names.ORG_ID in span.attributes]
            if not rows:
                return

            async def write() -> None:
                async with self._database.connection(*{row[2] for row in rows}) as connection:
                    await connection.execute(QUERIES["insert_spans"].sql, *zip(*rows, strict=True))

            try:
                await self._database.retrying(write)
            except (Unavailable, asyncio.CancelledError):
                # `close` cancels a flush under way and then flushes again, so a span may be written twice.
                self.ended.extendleft(reversed(spans))
                raise


def _row(span: Span) -> _SpanRow:
    attributes = finished_attributes(span)
    try:
        text = _encode(attributes)
    except ValueError:  # a lone surrogate
        text = _encode(_storable(attributes))
    if "\\u0000" in text:
        text = _encode(_storable(attributes))
    org = str(attributes[names.ORG_ID])
    name = str(_storable(span.name))
    return (span.trace_id, span.span_id, org, span.parent_id, name, span.start_ns, span.end_ns, span.ok, text)


def _encode(attributes: object) -> str:
    return to_json(attributes, fallback=str, bytes_mode="base64", inf_nan_mode="null").decode()


def _storable(value: object) -> object:
    # A database text can contain neither NUL nor a lone surrogate; one such span would block all later ones.
    if isinstance(value, str):
        return value.replace("\0", "").encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, tuple | list) else value
