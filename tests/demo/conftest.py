from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.harness import Model, bank_rows, clean_environment, read_log, until

CLASSIFY, REPLY = "Output of the step classify", "Output of the step draft_reply"


@pytest.fixture
def home() -> Iterator[Path]:
    """Where a demo lives; its path is short because PostgreSQL's socket is in it."""
    directory = Path(tempfile.mkdtemp(prefix="ild-"))
    yield directory / "home"
    for process in _named(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    """Finds that every customer wants their money back."""
    async with Model() as fake:
        classified = {"category": "payments", "summary": "wants money back", "urgency": 3, "wants_refund": True}
        fake.answers = {CLASSIFY: classified, REPLY: {"reply": "Thank you, a colleague will write to you today."}}
        yield fake


class Demo:
    """One `interlock demo` in a session of its own, so that one signal reaches all of it, but PostgreSQL."""

    def __init__(self, home: Path, *arguments: str, models: dict[str, str] | None = None) -> None:
        self.home = home
        self._output = home.with_name(f"output{len(list(home.parent.glob('output*')))}")
        given = {"INTERLOCK_MODELS": json.dumps(models)} if models else {}
        # The lease is how long the runs of a dead worker wait.
        temporary = home.with_name("tmp")  # what a killed process leaves behind goes with the test
        temporary.mkdir(exist_ok=True)
        environment = clean_environment(
            **given, INTERLOCK_WORKER__LEASE_SECONDS="3", COLUMNS="200", TMPDIR=str(temporary)
        )
        command = [str(Path(sys.executable).with_name("interlock")), "demo", "--home", str(home), *arguments]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=home.parent, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    async def ended(self, seconds: float = 300) -> int:
        """Waits for its end; the exit status."""
        await until(lambda: not self.running, lambda: f"it does not end: {self.said}", seconds)
        return int(self.process.returncode)

    def kill(self) -> None:
        """kill -9 of the whole group, whatever it is doing."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def log(self) -> list[dict[str, Any]]:
        return read_log(self.home / "interlock.jsonl")

    def logged(self, event_type: str, **data: Any) -> list[dict[str, Any]]:
        return [
            line["structured_data"]
            for line in self.log
            if line["event_type"] == event_type and data.items() <= line["structured_data"].items()
        ]

    def bank(self, table: str) -> list[dict[str, Any]]:
        """Rows of the bank's own file; none before it is made."""
        with contextlib.suppress(sqlite3.OperationalError):
            return bank_rows(self.home / "bank.sqlite", table)
        return []


def kill_postgres(home: Path) -> int | None:
    """kill -9 of the demo's server; its process number if it lived."""
    try:
        pid = int((home / "data" / "pg" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError, IndexError):
        return None
    return pid


def processes_of(home: Path) -> list[str]:
    """Command lines that name the demo's directory, of processes that live."""
    return list(_named(home).values())


def _named(home: Path) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if str(home) in line:
                found[int(entry.name)] = line
    return found
