"""Composition root: the only module that chooses implementations."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from interlock.admission.breakers import Breakers
from interlock.admission.gate import CallGate
from interlock.admission.quotas import CallQuotas
from interlock.admission.refresh import Refresh, StateRefresh
from interlock.admission.tool_health import Poller, ToolHealth
from interlock.audit.log import AuditLog
from interlock.audit.records import AuditRecords
from interlock.base.clock import Clock
from interlock.base.errors import Unavailable
from interlock.base.settings import Settings
from interlock.definitions.project import Project, read_project
from interlock.definitions.versions import Versions
from interlock.engines.postgres.worker import PostgresEngine
from interlock.execution.approvals import Approvals, approval_key
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
from interlock.identity.auth import Authenticator
from interlock.notify.webhook import Webhook, to_log
from interlock.policy.active import ActivePolicies
from interlock.policy.decision import Policies
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.services.access import Access
from interlock.services.administration import Administration
from interlock.services.audit_trail import AuditTrail
from interlock.services.dead_letters import DeadLetters
from interlock.services.followers import Followers
from interlock.services.health import Health
from interlock.services.ingest import Redaction
from interlock.services.policies import PolicySets
from interlock.services.reviews import Approving, ReviewQueue
from interlock.services.runs import Runs
from interlock.services.signals import Signals
from interlock.services.submit import Submission
from interlock.services.tool_answers import ToolAnswers
from interlock.services.use_cases import Services
from interlock.store.artifacts import Artifacts
from interlock.store.clock import DatabaseClock
from interlock.store.commit import Committer
from interlock.store.database import Database
from interlock.store.embedded import EmbeddedPostgres
from interlock.store.keys import KeyStore, load_or_create_secret
from interlock.store.migrate import app_url, is_privileged, migrate
from interlock.store.objects import Objects
from interlock.store.outbox import Relay, Sink
from interlock.store.sweeper import EVERY_SECONDS, ObjectSweeper
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.telemetry.tracing import Tracing
from interlock.tools.health_check import HealthChecks
from interlock.tools.registry import Tools


class App:
    """All services of one process: opened with `async with`, closed in reverse order.

    Args:
        models: replaces the providers of the settings; for tests and benchmarks.
        clock: replaces the database's clock; for tests.
        policies: replaces the active Cedar policies, for instance by an engine behind HTTP.

    Attributes:
        services: the use cases; all that an entry point needs of an open application.
        migrated: migrations applied by opening.
    """

    def __init__(
        self,
        project: Path,
        settings: Settings,
        *,
        models: Models | None = None,
        clock: Clock | None = None,
        policies: Policies | None = None,
    ) -> None:
        self._models = models
        self.project = project
        self.settings = settings
        self.data = settings.data_dir
        self._clock = clock
        self._policies = policies
        self.clock: Clock
        self.migrated: list[str] = []
        self._postgres: EmbeddedPostgres | None = None
        self._worker: Engine | None = None
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    # -- opening -----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        settings = self.settings
        self._closing.push_async_callback(self._stop_postgres)
        self.master_key = load_or_create_secret(self.data / "keys" / "master.key")
        preparing = asyncio.ensure_future(asyncio.to_thread(self.prepare_database))
        try:
            url = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            await asyncio.wait([preparing])  # a thread cannot be cancelled, and the server it starts must be stopped
            raise
        self.database = Database(url, pool_size=settings.database.pool_size)
        await self.database.open()
        self._on_close(self.database.close)
        self.clock = self._clock or await self._follow_database()
        audit = AuditLog(load_or_create_secret(self.data / "keys" / "audit.key"))
        self.committer = Committer(self.database, audit.seal)
        self.committer.start()
        self._on_close(self.committer.close)
        self.audit = AuditRecords(self.database, {audit.key_id: audit.public_key})
        self.tracing = Tracing(self.database, service=settings.name, otlp_endpoint=settings.telemetry.otlp_endpoint)
        self.tracing.start()
        self._on_close(self.tracing.close)
        self.keys = KeyStore(self.database, self.master_key)
        objects = self._objects = Objects.local(self.data / "objects")
        self.artifacts = Artifacts(self.database, self.keys, objects, limit_bytes=settings.limits.payload_bytes)
        self.versions = Versions(self.database, objects, self.data / "bundles")
        self.active_policies = ActivePolicies(self.database)
        self.policies: Policies = self._policies or self.active_policies
        policy_sets = PolicySets(self.database, self.committer, self.clock, refresh=self.active_policies.refresh)
        self.authenticator = Authenticator(self.database)
        self.submission = Submission(
            self.database,
            self.committer,
            self.versions,
            self.artifacts,
            self.keys,
            self.clock,
            engine=settings.engine,
            block_injections=settings.guard.on_injection == "block",
        )
        self.runs = Runs(self.database, self.committer, self.versions, self.artifacts, self.tracing, self.clock)
        redaction = self.redaction = Redaction(
            self.database, self.artifacts, block_injections=settings.guard.on_injection == "block"
        )
        self.approving = Approving(
            approval_key(self.master_key),
            seconds=settings.review.approval_ttl,
            by_requester=bool(settings.review.self_approval),
        )
        self.reviews = ReviewQueue(
            self.database,
            self.committer,
            self.artifacts,
            self.clock,
            redaction=redaction,
            answers=ToolAnswers(self.database, self.versions),
            approving=self.approving,
        )
        self.signals = Signals(self.database, self.committer, self.versions, redaction, self.clock)
        self.admin = Administration(
            self.database, self.committer, self.versions, self.authenticator, policy_sets, self.clock, data=self.data
        )
        self.dead_letters = DeadLetters(
            self.database, self.committer, self.versions, self.artifacts, self.submission, redaction, self.clock
        )
        server = settings.server
        followers = Followers(self.database, most=server.followers, most_per_org=server.followers_per_org)
        self._on_close(followers.close)
        self.services = Services(
            access=Access(self.authenticator),
            submission=self.submission,
            runs=self.runs,
            followers=followers,
            signals=self.signals,
            reviews=self.reviews,
            dead_letters=self.dead_letters,
            administration=self.admin,
            policies=policy_sets,
            audit=AuditTrail(self.audit),
            health=Health(self.database),
        )

    async def _follow_database(self) -> Clock:
        clock = DatabaseClock(self.database)
        await clock.open()
        self._on_close(clock.close)
        return clock

    def prepare_database(self) -> str:
        """Starts the embedded server if no URL is set, migrates, and returns the unprivileged URL. Blocking."""
        url = self.settings.database.url
        if url is None:
            self._postgres = EmbeddedPostgres(self.data / "pg", self.master_key)
            url = self._postgres.start()
        elif not is_privileged(url):
            return url  # an administrator migrates
        self.migrated = migrate(url, self.master_key)
        return app_url(url, self.master_key)

    def _on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Has `close` called when the app closes, before what was registered earlier.

        An error is logged, and a cancellation cancels only what is being closed: the others are closed all the same.
        """

        async def quietly() -> None:
            try:
                await close()
            except Exception as error:  # noqa: BLE001  the others must be closed
                log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)

        self._closing.push_async_callback(quietly)

    async def _stop_postgres(self) -> None:
        if self._postgres is not None:
            await asyncio.to_thread(self._postgres.stop)
            self._postgres = None

    # -- roles of a process ------------------------------------------------------------------------------------

    async def start_worker(self) -> None:
        """Starts to drive runs in this process, until the app closes."""
        settings = self.settings
        sandbox = BubblewrapSandbox(warm=settings.sandbox.warm, on_egress=_log_egress)
        self._on_close(sandbox.close)
        models = self._models
        if models is None:
            models = catalog = ModelCatalog(os.environ)
            self._on_close(catalog.close)
        tools = Tools(sandbox, self.versions.locate)
        health, quotas = await self._start_health(tools)
        batched = BatchedCalls(self.database, self.committer, settings.batch)
        kernel = Kernel(
            models=ModelExecutor(direct=DirectTransport(), batch=batched),
            results=KeptResults(self.database, self.clock),
            tools=ToolExecutor(tools, self.clock),
            effects=EffectLedger(self.database, self.committer),
            gate=health,
            quotas=quotas,
            tracing=self.tracing,
            clock=self.clock,
            judge=Judge(Approvals(self.database, self.approving.key), self.clock),
        )
        services = EngineServices(
            database=self.database,
            committer=self.committer,
            artifacts=self.artifacts,
            versions=self.versions,
            steps=Steps(kernel, StepCalls(models, batched, self.clock), self.tracing, self.clock),
            policies=self.policies,
            tracing=self.tracing,
            clock=self.clock,
        )
        self._worker = self._engine(services)
        every = self.settings.worker.lease_seconds / 3
        self.worker_registry = WorkerRegistry(
            self.database, worker_id=self._worker.worker_id, engine=settings.engine, every=every
        )
        self._on_close(self.worker_registry.close)  # after the drain: until then the worker is there
        await self._worker.start()
        self._on_close(self.drain_worker)
        await self.worker_registry.start()
        self._start_relay()
        sweeper = ObjectSweeper(self.database, self._objects)
        schedule = Schedule(self.database, [ScheduledJob("sweep objects", sweeper.sweep, every=EVERY_SECONDS)])
        schedule.start()
        self._on_close(schedule.close)

    def _engine(self, services: EngineServices) -> Engine:
        worker = self.settings.worker
        if self.settings.engine == "postgres":
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
            self.settings.temporal,
            master_key=self.master_key,
            concurrency=worker.concurrency,
            lease_seconds=worker.lease_seconds,
        )

    async def _start_health(self, tools: Tools) -> tuple[CallGate, CallQuotas]:
        """Starts the call gate, the quotas and the active policies, refreshed until the app closes."""
        breakers = Breakers(self.database, self.settings.breaker, self.clock)
        tool_health, quotas = ToolHealth(self.database), CallQuotas(self.database)
        health = CallGate(breakers, tool_health)
        self._on_close(health.close)
        self._on_close(quotas.close)
        refreshes: list[Refresh] = [self.active_policies.refresh, breakers.refresh, tool_health.refresh, quotas.refresh]
        watch = StateRefresh(self.database, refreshes)
        await watch.start()
        self._on_close(watch.close)
        poller = Poller(self.database, HealthChecks(tools).ask)
        poller.start()
        self._on_close(poller.close)
        return health, quotas

    def _start_relay(self) -> None:
        sinks: dict[str, Sink] = {"log": to_log}
        if self.settings.events.webhook:
            key = hmac.new(self.master_key, b"webhook", hashlib.sha256).digest()
            webhook = Webhook(self.settings.events.webhook, key)
            self._on_close(webhook.close)
            sinks["webhook"] = webhook
        relay = Relay(self.database, sinks, complain=_log_undelivered)
        relay.start()
        self._on_close(relay.close)

    # -- for entry points, beside the services -----------------------------------------------------------------

    def read_project(self) -> Project:
        """Reads and checks the project directory; raises InvalidSpec with every fault."""
        return read_project(self.project, self.settings)

    async def drain_worker(self) -> None:
        """Stops driving runs; what else this process does goes on."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.drain()
            await self.worker_registry.close()


def _log_undelivered(error: Exception) -> None:
    log(names.LOG_UNDELIVERED, str(error), level="error", detail=getattr(error, "detail", None))


def _log_egress(tool: str, host: str, port: int, allowed: bool) -> None:
    log(names.LOG_EGRESS, level="info" if allowed else "warning", tool=tool, host=host, port=port, allowed=allowed)
