"""One JSON object per line, with the documented fields and without credentials."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from interlock.store.database import Database
from interlock.telemetry import logs, names
from interlock.telemetry.logs import log, scrub
from interlock.telemetry.spans import current_ids
from interlock.telemetry.tracing import Tracing

Lines = Callable[[], list[dict[str, Any]]]

FIELDS = {"timestamp", "trace_id", "span_id", "level", "event_type", "message", "structured_data"}

SECRETS = [
    "il_0123456789abcdef_" + "0123456789" * 4,
    "sk-proj-abcdefgh12345678",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "xoxb-123456789012-abcdef",
]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    path = tmp_path / "log" / "interlock.jsonl"
    logs.configure(level="info", file=path)
    yield lambda: [json.loads(line) for line in path.read_text().split("\n") if line]
    structlog.reset_defaults()


def test_a_line_has_the_fields_that_were_asked_for(lines: Lines) -> None:
    log(names.LOG_RUN_STARTED, "a run began", run_id="run_1", count=3, ratio=0.5, flag=None)
    log(names.LOG_STEP_FAILED, level="warning")
    first, second = lines()
    assert set(first) == set(second) == FIELDS
    assert first["event_type"] == "run.started"
    assert first["message"] == "a run began"
    assert first["level"] == "info"
    assert first["structured_data"] == {"run_id": "run_1", "count": 3, "ratio": 0.5, "flag": None}
    assert (first["trace_id"], first["span_id"]) == (None, None)
    stamp = datetime.fromisoformat(first["timestamp"])
    assert stamp.utcoffset() is not None
    assert (second["level"], second["message"], second["structured_data"]) == ("warning", "", {})


def test_a_full_disk_fails_no_caller(capfd: pytest.CaptureFixture[str]) -> None:
    """The device refuses every write with ENOSPC."""
    logs.configure(level="info", file=Path("/dev/full"))
    for _ in range(3):
        log(names.LOG_RUN_STARTED, "a run began")
    structlog.reset_defaults()
    assert capfd.readouterr().err == (
        "the log cannot be written ([Errno 28] No space left on device); its lines are dropped until it can\n"
    )


def test_warnings_of_libraries_are_lines_without_stacks(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        try:
            raise ConnectionRefusedError("no")
        except ConnectionRefusedError:
            logging.getLogger("asyncpg.pool").warning("Failed to restore the %s", "pool", exc_info=True)
    (line,) = lines()
    assert (line["event_type"], line["level"]) == ("library", "warning")
    assert line["message"] == "asyncpg.pool: Failed to restore the pool"
    assert line["structured_data"] == {"error": "ConnectionRefusedError"}
    assert capfd.readouterr().err == ""


async def test_a_line_says_in_which_span_it_was_written(lines: Lines, database: Database) -> None:
    tracing = Tracing(database, service="test")
    with tracing.span("step", {}):
        ids = current_ids()
        log(names.LOG_STEP_FINISHED)
    await tracing.close()
    (line,) = lines()
    assert ids is not None
    assert (line["trace_id"], line["span_id"]) == (ids.trace_id, ids.span_id)


def test_lower_levels_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    logs.configure(level="error", file=path)
    try:
        for level in ("debug", "info", "warning", "error"):
            log(names.LOG_INTERNAL, level=level)
        assert [json.loads(line)["level"] for line in path.read_text().splitlines()] == ["error"]
    finally:
        structlog.reset_defaults()


def test_a_value_cannot_make_a_line_of_its_own(lines: Lines) -> None:
    log(names.LOG_INTERNAL, 'x\n{"event_type": "forged"}', detail='"}\r\n{"forged": 1}\u2028')
    (line,) = lines()
    assert line["event_type"] == names.LOG_INTERNAL


@pytest.mark.parametrize("secret", SECRETS)
def test_no_credential_gets_into_a_line(lines: Lines, tmp_path: Path, secret: str) -> None:
    class Odd:
        def __repr__(self) -> str:
            return f"<Odd {secret}>"

    try:
        raise ValueError(f"refused: {secret}")
    except ValueError as caught:
        error = caught
    log(
        names.LOG_INTERNAL,
        f"the key {secret} was refused",
        level="error",
        text=f"x{secret}",
        nested={"a": [{"b": secret}, (secret,)], secret: 1},
        odd=Odd(),
        bytes=secret.encode(),
        error=error,
        exc_info=error,
    )
    (line,) = lines()
    assert "ValueError" in line["structured_data"]["exception"]  # it does say what happened
    assert secret not in (tmp_path / "log" / "interlock.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Authorization: Bearer abcdefgh.12345678", "Authorization: Bearer [secret]"),
        ("authorization: bearer abcdefgh12345678==", "authorization: bearer [secret]"),
        ("postgresql://ada:hunter2@db/x", "postgresql://[secret]@db/x"),
        ("redis://:hunter2@cache:6379", "redis://[secret]@cache:6379"),
        ("https://example.com/a:b@c", "https://example.com/a:b@c"),
        ("nothing to hide, at 10:30", "nothing to hide, at 10:30"),
        (f"{SECRETS[0]},{SECRETS[1]}", "[secret],[secret]"),
    ],
)
def test_what_is_scrubbed_and_what_is_not(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


@given(st.text(max_size=40), st.sampled_from(SECRETS), st.text(max_size=40))
def test_a_credential_is_scrubbed_wherever_it_stands(before: str, secret: str, after: str) -> None:
    assert secret not in scrub(f"{before}{secret} {after}")
