"""The worker of a process: kernel, engine, worker registry, relay of events, schedule, watch over the health of tools."""

from __future__ import annotations

import os

from interlock.admission.breakers import Breakers
from interlock.admission.gate import CallGate
from interlock.admission.quotas import CallQuotas
from interlock.admission.refresh import Refresh, StateRefresh
from interlock.admission.tool_health import Poller, ToolHealth
from interlock.app.core import Core
from interlock.base.errors import Unavailable
from interlock.engines.postgres.worker import PostgresEngine
from interlock.execution.approvals import Approvals
from interlock.execution.batch.calls import BatchedCalls
from interlock.execution.effects import EffectLedger
from interlock.execution.engine import Engine, EngineServices
from interlock.execution.executors.models import DirectTransport, ModelExecutor
from interlock.execution.executors.tools import ToolExecutor
from interlock.execution.inputs.calls import Models, StepCalls
from interlock.execution.judge import Judge
from interlock.execution.kernel import Kernel
from interlock.execution.results import KeptResults
from interlock.execution.steps import Steps
from interlock.fleet.schedule import Schedule, ScheduledJob
from interlock.fleet.workers import WorkerRegistry
from interlock.gateway.catalog import ModelCatalog
from interlock.notify.webhook import Webhook, to_log, webhook_key
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.store.outbox import Relay, Sink
from interlock.store.sweeper import EVERY_SECONDS, ObjectSweeper
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.tools.health_check import HealthChecks
from interlock.tools.output import OnToolOutput, redacted_output
from interlock.tools.registry import Tools


class WorkerRole:
    """Drives runs in the process of `core`, which closes what is started here.

    Args:
        models: replaces the providers of the settings; for tests and benchmarks.

    Attributes:
        engine: what drives the runs; None before `start` and after `drain`.
        registry: this worker's entry among all workers; set by `start`.
    """

    def __init__(self, core: Core, *, models: Models | None = None) -> None:
        self._core = core
        self._models = models
        self.engine: Engine | None = None
        self.registry: WorkerRegistry

    async def start(self, on_output: OnToolOutput | None = None) -> None:
        """Starts everything in order; an error leaves what was started to the core's closing.

        Args:
            on_output: called with the output of each call of a tool: tool, place (run, step and attempt), text, redacted.
        """
        core, settings = self._core, self._core.settings
        sandbox = BubblewrapSandbox(warm=settings.sandbox.warm, on_egress=_log_egress)
        core.on_close(sandbox.close)
        tools = Tools(sandbox, core.versions.locate, None if on_output is None else redacted_output(on_output))
        services = EngineServices(
            database=core.database,
            committer=core.committer,
            artifacts=core.artifacts,
            versions=core.versions,
            steps=await self._make_steps(tools),
            policies=core.policies,
            tracing=core.tracing,
            clock=core.clock,
        )
        self.engine = make_engine(core, services)
        every = settings.worker.lease_seconds / 3
        self.registry = WorkerRegistry(
            core.database, worker_id=self.engine.worker_id, engine=settings.engine, every=every
        )
        core.on_close(self.registry.close)  # after the drain: until then the worker is there
        await self.engine.start()
        core.on_close(self.drain)
        await self.registry.start()
        self._start_relay()
        self._start_schedule()

    async def drain(self) -> None:
        """Stops driving runs; what else this process does goes on."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.drain()
            await self.registry.close()

    async def _make_steps(self, tools: Tools) -> Steps:
        """Makes the kernel, and what makes its calls of the steps of runs."""
        core = self._core
        models = self._models
        if models is None:
            models = catalog = ModelCatalog(os.environ, core.settings.providers, core.outbound)
            core.on_close(catalog.close)
        health, quotas = await self._start_health(tools)
        batched = BatchedCalls(core.database, core.committer, core.settings.batch)
        kernel = Kernel(
            models=ModelExecutor(direct=DirectTransport(), batch=batched),
            results=KeptResults(core.database, core.clock),
            tools=ToolExecutor(tools, core.clock),
            effects=EffectLedger(core.database, core.committer),
            gate=health,
            quotas=quotas,
            tracing=core.tracing,
            clock=core.clock,
            judge=Judge(Approvals(core.database, core.approving.key), core.clock),
        )
        return Steps(kernel, StepCalls(models, batched, core.clock), core.tracing, core.clock)

    async def _start_health(self, tools: Tools) -> tuple[CallGate, CallQuotas]:
        """Starts the call gate, the quotas and the active policies, refreshed until the application closes."""
        core = self._core
        breakers = Breakers(core.database, core.settings.breaker, core.clock)
        tool_health, quotas = ToolHealth(core.database), CallQuotas(core.database)
        health = CallGate(breakers, tool_health)
        core.on_close(health.close)
        core.on_close(quotas.close)
        refreshes: list[Refresh] = [
            core.active_policies.refresh,
            breakers.refresh,
            tool_health.refresh,
            quotas.refresh,
        ]
        watch = StateRefresh(core.database, refreshes)
        await watch.start()
        core.on_close(watch.close)
        poller = Poller(core.database, HealthChecks(tools).ask)
        poller.start()
        core.on_close(poller.close)
        return health, quotas

    def _start_relay(self) -> None:
        core = self._core
        sinks: dict[str, Sink] = {"log": to_log}
        if core.settings.events.webhook:
            webhook = Webhook(core.settings.events.webhook, webhook_key(core.master_key), core.outbound)
            core.on_close(webhook.close)
            sinks["webhook"] = webhook
        relay = Relay(core.database, sinks, complain=_log_undelivered)
        relay.start()
        core.on_close(relay.close)

    def _start_schedule(self) -> None:
        core = self._core
        sweeper = ObjectSweeper(core.database, core.objects)
        schedule = Schedule(core.database, [ScheduledJob("sweep objects", sweeper.sweep, every=EVERY_SECONDS)])
        schedule.start()
        core.on_close(schedule.close)


def make_engine(core: Core, services: EngineServices) -> Engine:
    """Makes the engine of the settings; raises Unavailable if its package is not installed."""
    settings = core.settings
    worker = settings.worker
    if settings.engine == "postgres":
        return PostgresEngine(services, concurrency=worker.concurrency, lease_seconds=worker.lease_seconds)
    try:
        from interlock.engines.temporal.worker import TemporalEngine  # noqa: PLC0415  an optional extra
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("temporalio"):
            raise
        raise Unavailable(
            'the Temporal engine needs a package that is not installed; run pip install "interlock[temporal]"'
        ) from error
    return TemporalEngine(
        services,
        settings.temporal,
        master_key=core.master_key,
        concurrency=worker.concurrency,
        lease_seconds=worker.lease_seconds,
    )


def _log_undelivered(error: Exception) -> None:
    log(names.LOG_UNDELIVERED, str(error), level="error", detail=getattr(error, "detail", None))


def _log_egress(tool: str, host: str, port: int, allowed: bool) -> None:
    log(names.LOG_EGRESS, level="info" if allowed else "warning", tool=tool, host=host, port=port, allowed=allowed)
