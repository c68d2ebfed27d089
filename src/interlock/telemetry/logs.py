"""Logs: one JSON object per line, with trace_id and span_id, without credentials."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from interlock.base.credentials import scrub_keys
from interlock.base.json import Json
from interlock.telemetry import names
from interlock.telemetry.spans import current_ids

# Shapes of credentials: ours (il_…), providers' (sk-…, AWS, GitHub, Slack), bearer tokens,
# URL passwords.


def scrub(text: str) -> str:
    """The text without credentials."""
    return scrub_keys(text, "[secret]")


_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_REPEAT_SECONDS = 60.0  # until a library's same message is written again
_REMEMBERED = 200  # messages
# Below this level `log` returns at once; structlog alone needs longer to decide that.
_threshold = logging.NOTSET


def configure(*, level: str, file: Path | None = None) -> None:
    """Sends structured logs to a file, or to standard error."""
    global _threshold  # noqa: PLW0603  one per process, like structlog's own configuration
    _threshold = logging.getLevelNamesMapping()[level.upper()]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream: TextIO = file.open("a", encoding="utf-8", buffering=1)
    else:
        stream = sys.stderr
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _LibraryLog)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryLog(logging.WARNING))
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
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unfailing(stream))),
        cache_logger_on_first_use=False,
    )


class _Unfailing:
    """The stream of the log. A line that cannot be written, as on a full disk, is dropped: logging must not fail a caller.

    The first dropped line of a row is said on standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failing = False

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
            self._failing = False
        except (OSError, ValueError) as error:
            if not self._failing:
                self._failing = True
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(f"the log cannot be written ({error}); its lines are dropped until it can\n")
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` has flushed."""


class _LibraryLog(logging.Handler):
    """Writes warnings of other libraries as log events; Python's default prints them, with their stacks, to the terminal.

    The same message is written at most once in a minute, because a library may repeat it while the database is away.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._written: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = f"{record.name}: {record.getMessage()}"
        except Exception:  # noqa: BLE001  a library's wrong format must not fail its caller
            message = f"{record.name}: {record.msg}"
        now = time.monotonic()
        if now - self._written.get(message, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return
        if len(self._written) > _REMEMBERED:
            self._written.clear()
        self._written[message] = now
        error = record.exc_info[1] if record.exc_info else None
        level = "error" if record.levelno >= logging.ERROR else "warning"
        log(names.LOG_LIBRARY, message, level=level, error=None if error is None else type(error).__name__)


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
