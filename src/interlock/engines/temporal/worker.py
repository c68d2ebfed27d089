"""A worker of the Temporal engine: workflows, activities and the bridge in one process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from datetime import timedelta
from importlib import metadata, resources
from typing import Any

from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkerDeploymentConfig

from interlock.base.background import Loop
from interlock.base.errors import Unavailable
from interlock.base.ids import new_id
from interlock.base.settings import TemporalSettings
from interlock.engines.temporal.activity import Performer
from interlock.engines.temporal.bridge import Bridge, complain
from interlock.engines.temporal.client import connect
from interlock.engines.temporal.codec import blinded
from interlock.engines.temporal.workflow import InterlockRun
from interlock.execution.engine import EngineServices
from interlock.telemetry import names
from interlock.telemetry.logs import log

DEPLOYMENT = "interlock"
# What decides, beside our own code, how a history is replayed.
_REPLAYED_THROUGH = ("temporalio", "common-expression-language", "pydantic", "jsonschema-rs")
# Workflow tasks that were bound to a worker that left go to the others after this long.
_STICKY_SECONDS = 2.0
_AGAIN_SECONDS = 1.0  # after the library's worker failed
_PATIENCE = timedelta(days=1)  # for steps under way when a worker drains; their own timeouts end them
# What decides how a history replays: a change of any of these is a new build.
_SOURCES = ("interlock.workflows", "interlock.engines.temporal", "interlock.base")


class TemporalEngine:
    """Fulfils `runtime.engine.Engine`. As many of these as one likes share one namespace and task queue."""

    def __init__(
        self,
        services: EngineServices,
        settings: TemporalSettings,
        *,
        master_key: bytes,
        concurrency: int,
        lease_seconds: float,
    ) -> None:
        self._services = services
        self._settings = settings
        self._master_key = master_key
        self._concurrency = concurrency
        self._lease = lease_seconds
        self.worker_id = new_id("wrk")
        self._performer = Performer(services)
        self._bridge: Bridge | None = None
        self._client: Client
        self._prepared: Worker | None = None
        self._worker: Worker | None = None
        self._loop = Loop("temporal worker", self._work, every=_AGAIN_SECONDS, longest=_AGAIN_SECONDS, report=complain)

    async def start(self) -> None:
        """Raises as `connect`, and Unavailable if the server cannot pin versions."""
        client = self._client = await connect(self._settings, self._master_key, identity=self.worker_id)
        build, note = None, ""
        if self._settings.versioned:
            build, current = build_id(), await _current_build(client, self._settings)
            if current != build:
                note = f"new runs come here once {build} is the current version of deployment {DEPLOYMENT}; it is {current}"
        self._bridge = Bridge(
            self._services,
            client,
            worker_id=self.worker_id,
            task_queue=self._settings.task_queue,
            heartbeat=self._lease,
            limits={"events": self._settings.history_events, "bytes": self._settings.history_bytes},
            blind=functools.partial(blinded, self._master_key),
        )
        self._prepared = self._make_worker()  # here, so that an error in its settings ends the start
        self._loop.start()
        self._bridge.start()
        level: Any = "warning" if note else "info"
        started = {"worker": self.worker_id, "concurrency": self._concurrency, "build": build}
        log(names.LOG_WORKER_STARTED, note, level=level, **started)

    async def drain(self) -> None:
        """Finishes the steps under way; Temporal gives everything else to other workers."""
        if self._bridge is not None:
            await self._bridge.close()
        self._loop.finish()
        if self._worker is not None:
            with contextlib.suppress(Exception):  # it may have ended by itself
                await self._worker.shutdown()
        await self._loop.stop()
        log(names.LOG_WORKER_STOPPED, worker=self.worker_id)

    async def _work(self) -> None:
        """Runs one worker of the library, until it is shut down or fails; it cannot run a second time."""
        worker, self._prepared = self._prepared or self._make_worker(), None
        self._worker = worker
        try:
            await worker.run()
        finally:
            self._worker = None

    def _make_worker(self) -> Worker:
        versioning: Any = {}
        if self._settings.versioned:
            versioning["deployment_config"] = WorkerDeploymentConfig(
                version=WorkerDeploymentVersion(DEPLOYMENT, build_id()),
                use_worker_versioning=True,
                default_versioning_behavior=VersioningBehavior.PINNED,
            )
        return Worker(
            self._client,
            task_queue=self._settings.task_queue,
            workflows=[InterlockRun],
            activities=[self._performer.perform],
            # The sandbox guards against impure workflow code. Ours is the machine, which import contracts keep pure and
            # whose histories the tests replay; importing pydantic and CEL anew for every run would cost more than a step.
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_cached_workflows=self._settings.cached_runs,
            max_concurrent_activities=self._concurrency,
            graceful_shutdown_timeout=_PATIENCE,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=_STICKY_SECONDS),
            **versioning,
        )


async def _current_build(client: Client, settings: TemporalSettings) -> str | None:
    """The build that new runs go to; None before an operator has chosen one.

    Raises:
        Unavailable: the server knows no worker deployments.
    """
    request = DescribeWorkerDeploymentRequest(namespace=settings.namespace, deployment_name=DEPLOYMENT)
    try:
        answer = await client.workflow_service.describe_worker_deployment(request)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None  # the first worker of the deployment
        if error.status is RPCStatusCode.UNIMPLEMENTED:
            raise Unavailable(
                f"the Temporal server at {settings.address} cannot pin runs to worker versions (that needs 1.29.1 or newer); "
                "upgrade it, or use --unversioned (temporal.versioned = false)"
            ) from error
        raise Unavailable(
            f"the Temporal server at {settings.address} refused to describe its deployments: {error.status.name}"
        ) from error
    return answer.worker_deployment_info.routing_config.current_deployment_version.build_id or None


@functools.cache
def build_id() -> str:
    """Interlock's version and a hash of the code that replays: two builds with one id must replay alike."""
    digest = hashlib.sha256()
    for package in _SOURCES:
        files = [file for file in resources.files(package).iterdir() if file.name.endswith(".py")]
        for file in sorted(files, key=lambda one: one.name):
            digest.update(f"{package}/{file.name}\0".encode() + file.read_bytes() + b"\0")
    for library in _REPLAYED_THROUGH:
        digest.update(f"{library} {metadata.version(library)}\0".encode())
    return f"{metadata.version('interlock')}-{digest.hexdigest()[:12]}"
