"""Logs: one JSON object per line, with trace_id and span_id, without credentials."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import structlog
from structlog.typing import EventDict, WrappedLogger

from interlock.base.credentials import scrub_keys
from interlock.base.json import Json
from interlock.telemetry.spans import current_ids

# Shapes of credentials: ours (il_…), providers' (sk-…, AWS, GitHub, Slack), bearer tokens,
# URL passwords.


def scrub(text: str) -> str:
    """The text without credentials."""
    return scrub_keys(text, "[secret]")


_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Below this level `log` returns at once; structlog alone needs longer to decide that.
_threshold = logging.NOTSET


def configure(*, level: str, file: Path | None = None) -> None:
    """Sends structured logs to a file, or to standard error."""
    global _threshold  # noqa: PLW0603  one per process, like structlog's own configuration
    _threshold = logging.getLevelNamesMapping()[level.upper()]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a", encoding="utf-8", buffering=1)
    else:
        stream = sys.stderr  # type: ignore[assignment]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            _trace_ids,
            structlog.processors.format_exc_info,
            _shape,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_threshold),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


def log(event_type: str, message: str = "", *, level: str = "info", **data: object) -> None:
    """Writes one log event; `event_type` is a name from `names`."""
    if _LEVELS[level] >= _threshold:
        getattr(structlog.get_logger(), level)(event_type, message=message, **data)


def stack_of(error: BaseException) -> str:
    """Place at which an error was raised, without its text, which may contain data of a person, a model or a tool."""
    return "".join(traceback.format_tb(error.__traceback__))


def _trace_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    ids = current_ids()
    if ids is not None:
        event["trace_id"], event["span_id"] = ids.trace_id, ids.span_id
    return event


def _shape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Arranges an event as the fields timestamp, trace_id, span_id, level, event_type, message and structured_data."""
    head = {key: event.pop(key, None) for key in ("timestamp", "level", "trace_id", "span_id", "message")}
    line = {"event_type": event.pop("event"), **head}
    line["structured_data"] = _scrubbed(event)
    line["message"] = scrub(str(line["message"] or ""))
    return line


def _scrubbed(value: object) -> Json:
    """JSON without credentials at any depth; a value that is not JSON becomes text first, and is scrubbed too."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {scrub(str(key)): _scrubbed(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_scrubbed(item) for item in value]
    return scrub(value if isinstance(value, str) else repr(value))
