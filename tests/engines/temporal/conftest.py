from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import Client, WorkflowHandle, WorkflowHistory

from engines.harness import PATIENCE
from interlock.base.settings import TemporalSettings
from interlock.engines.temporal.worker import connect

MASTER_KEY = bytes(range(32))

# The server dies with its suite: when that is killed, its end of the pipe closes.
_WATCH = """
import os, signal, sys
sys.stdin.read()
try:
    os.kill(int(sys.argv[1]), signal.SIGKILL)
except OSError:
    pass
"""


class TemporalServer:
    """The official test server as a process, without time skipping."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        # The wheel has no module: its one file is this program.
        program = Path(sys.executable).with_name("temporal-test-server")
        self._process = subprocess.Popen([str(program), str(port)], stdout=self._log, stderr=self._log)
        command = [sys.executable, "-c", _WATCH, str(self._process.pid)]
        self._watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while not self._answers(port):
            assert self._process.poll() is None, "the Temporal test server ended"
            assert time.monotonic() < deadline, "the Temporal test server does not start"
            time.sleep(0.05)

    def _answers(self, port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._watch.communicate()
        self._log.close()


@pytest.fixture(scope="session")
def temporal_server() -> Iterator[TemporalServer]:
    server = TemporalServer()
    yield server
    server.close()


_QUEUES = itertools.count(1)


@pytest.fixture
def temporal(temporal_server: TemporalServer, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Section `[temporal]` of this test: the session's server, a task queue of its own. Indirect parameters replace."""
    return {
        "address": temporal_server.address,
        "task_queue": f"test-{next(_QUEUES)}",
        "versioned": False,
        "cached_runs": 0,  # this server keeps a workflow task for ever for the worker that had the run
        **getattr(request, "param", {}),
    }


@pytest.fixture
def settings(settings: dict[str, Any], temporal: dict[str, Any]) -> dict[str, Any]:
    """As of the tests beside, on this engine."""
    return {**settings, "engine": "temporal", "temporal": temporal}


class Histories:
    """Looks at the server past our codec: what its operators could read."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def handle(self, run_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(run_id)

    async def fetch(self, run_id: str) -> WorkflowHistory:
        return await self.handle(run_id).fetch_history()

    async def chain(self, run_id: str) -> list[list[HistoryEvent]]:
        """The histories of a run, oldest first: one, and one more each time it continued as new."""
        found: list[list[HistoryEvent]] = []
        last = (await self.handle(run_id).describe()).run_id
        started = (await self._events(run_id, last))[0].workflow_execution_started_event_attributes
        following: str | None = started.first_execution_run_id or last
        while following:
            events = await self._events(run_id, following)
            found.append(events)
            attributes = events[-1].workflow_execution_continued_as_new_event_attributes
            following = attributes.new_execution_run_id or None
        return found

    async def _events(self, run_id: str, execution: str) -> list[HistoryEvent]:
        events: list[HistoryEvent] = []
        token = b""
        while True:
            request = GetWorkflowExecutionHistoryRequest(
                namespace=self.client.namespace,
                execution=WorkflowExecution(workflow_id=run_id, run_id=execution),
                next_page_token=token,
            )
            answer = await self.client.workflow_service.get_workflow_execution_history(request)
            events += answer.history.events
            token = answer.next_page_token
            if not token:
                return events

    async def count(self, run_id: str, kind: EventType.ValueType) -> int:
        return sum(event.event_type == kind for events in await self.chain(run_id) for event in events)


@pytest.fixture
async def histories(temporal: dict[str, Any]) -> Histories:
    return Histories(await connect(TemporalSettings(**temporal), MASTER_KEY, identity="observer"))
