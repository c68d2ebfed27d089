"""Spans: timed pieces of work, and their ids."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from interlock.base.entropy import random_bytes
from interlock.base.errors import InterlockError
from interlock.base.json import Json, JsonObject
from interlock.base.values import value
from interlock.telemetry import names


@value(frozen=True, slots=True)
class TraceIds:
    """Trace id and root span id of a run, hexadecimal; created when the run is accepted and stored in its row."""

    trace_id: str
    span_id: str

    @classmethod
    def new(cls) -> TraceIds:
        return cls(random_bytes(16).hex(), random_bytes(8).hex())


class Span:
    """A timed piece of work. Not the SDK's class, whose spans took a quarter of a step's processor time; `Exporter`
    converts spans for a collector.

    As a context manager it is the task's current span until the block ends; an exception marks it as failed.
    """

    __slots__ = (
        "_done",
        "_token",
        "attributes",
        "end_ns",
        "name",
        "ok",
        "parent_id",
        "span_id",
        "start_ns",
        "trace_id",
    )

    def __init__(
        self,
        name: str,
        ids: TraceIds,
        attributes: JsonObject,
        *,
        parent_id: str | None,
        start_ns: int,
        done: Callable[[Span], None],
    ) -> None:
        self.name = name
        self.trace_id, self.span_id = ids.trace_id, ids.span_id
        self.parent_id = parent_id
        self.attributes: dict[str, Json] = dict(attributes)
        self.start_ns, self.end_ns = start_ns, 0
        self.ok = True
        self._done = done
        self._token: Token[Span | None] | None = None

    def set_attribute(self, name: str, value: Json) -> None:
        self.attributes[name] = value

    def set_attributes(self, attributes: JsonObject) -> None:
        self.attributes.update(attributes)

    def end(self, end_ns: int) -> None:
        self.end_ns = end_ns
        self._done(self)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            mark_failed(self, error)
        if self._token is not None:
            _current.reset(self._token)
        self.end(time.time_ns())


_current: ContextVar[Span | None] = ContextVar("span", default=None)


def mark_failed(span: Span, error: BaseException) -> None:
    """Marks a span as failed, with the error's code and never its message, which may contain output of a tool or a model."""
    span.set_attribute(names.ERROR_TYPE, error.code if isinstance(error, InterlockError) else type(error).__name__)
    span.ok = False


def current_ids() -> TraceIds | None:
    """Trace id and span id of the running code, for log lines."""
    span = _current.get()
    return TraceIds(span.trace_id, span.span_id) if span is not None else None


def finished_attributes(span: Span) -> dict[str, Json]:
    """Attributes of an ended span, including the two that every span has."""
    return {
        names.SUCCESS: span.ok,
        **span.attributes,
        names.LATENCY_MS: round((span.end_ns - span.start_ns) / 1e6, 3),
    }
