"""The composition root: the only module that chooses implementations."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from interlock.audit.log import AuditLog, Entry
from interlock.audit.records import AuditRecords
from interlock.base.clock import SystemClock
from interlock.base.errors import Unauthenticated
from interlock.base.settings import Settings
from interlock.engines.postgres.driver import Services
from interlock.engines.postgres.worker import PostgresEngine
from interlock.gateway.catalog import ModelCatalog
from interlock.identity.auth import Authenticator, key_id_of
from interlock.identity.principal import Principal
from interlock.review.notify import Webhook, to_log
from interlock.review.queue import ReviewQueue
from interlock.runtime.effects import EffectLedger
from interlock.runtime.executors import ModelExecutor, Models, ToolExecutor
from interlock.runtime.intake import Intake
from interlock.runtime.kernel import Kernel
from interlock.runtime.project import Project, read_project
from interlock.runtime.runs import Runs
from interlock.runtime.versions import Versions
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.embedded import EmbeddedPostgres
from interlock.store.keys import KeyStore, load_or_create_secret
from interlock.store.migrate import app_url, is_privileged, migrate
from interlock.store.objects import Objects
from interlock.store.outbox import Relay, Sink
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.telemetry.tracing import Tracing
from interlock.tools.registry import Tools

LOCAL_ORG = "local"


class App:
    """One process's worth of Interlock: opened with `async with`, everything closed in reverse order.

    Args:
        models: instead of the providers that the settings name; for tests and benchmarks.

    Attributes:
        migrated: migrations that opening applied.
    """

    def __init__(self, project: Path, settings: Settings, *, models: Models | None = None) -> None:
        self._models = models
        self.project = project
        self.settings = settings
        self.data = settings.data_dir
        self.clock = SystemClock()
        self.migrated: list[str] = []
        self._postgres: EmbeddedPostgres | None = None
        self._worker: PostgresEngine | None = None
        self._closers: list[Any] = []

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    # -- opening -----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        settings = self.settings
        self.master_key = load_or_create_secret(self.data / "keys" / "master.key")
        preparing = asyncio.ensure_future(asyncio.to_thread(self.prepare_database))
        try:
            url = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            await asyncio.wait([preparing])  # a thread cannot be cancelled, and what it starts we must stop
            raise
        self.database = Database(url, pool_size=settings.database.pool_size)
        await self.database.open()
        self._closers.append(self.database.close)
        audit = AuditLog(load_or_create_secret(self.data / "keys" / "audit.key"))
        self.committer = Committer(self.database, audit.seal)
        self.committer.start()
        self._closers.append(self.committer.close)
        self.audit = AuditRecords(self.database, {audit.key_id: audit.public_key})
        self.tracing = Tracing(self.database, service=settings.name, otlp_endpoint=settings.telemetry.otlp_endpoint)
        self.tracing.start()
        self._closers.append(self.tracing.close)
        self.keys = KeyStore(self.database, self.master_key)
        objects = Objects.local(self.data / "objects")
        self.artifacts = Artifacts(self.database, self.keys, objects, limit_bytes=settings.limits.payload_bytes)
        self.versions = Versions(self.database, objects, self.data / "bundles")
        self.authenticator = Authenticator(self.database)
        self.intake = Intake(
            self.database,
            self.committer,
            self.versions,
            self.artifacts,
            self.keys,
            self.clock,
            block_injections=settings.guard.on_injection == "block",
        )
        self.runs = Runs(self.database, self.committer, self.versions, self.artifacts, self.clock)
        self.reviews = ReviewQueue(self.database, self.committer, self.artifacts, self.clock)

    def prepare_database(self) -> str:
        """Starts the embedded server if no URL is set, migrates, and returns the unprivileged URL. Blocking."""
        url = self.settings.database.url
        if url is None:
            self._postgres = EmbeddedPostgres(self.data / "pg", self.master_key)
            url = self._postgres.start()
        elif not is_privileged(url):
            return url  # someone else migrates
        self.migrated = migrate(url, self.master_key)
        return app_url(url, self.master_key)

    async def _close(self) -> None:
        try:
            while self._closers:
                close = self._closers.pop()
                try:
                    await close()
                except Exception as error:  # noqa: BLE001  the others must be closed all the same
                    log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)
        finally:
            if self._postgres is not None:
                await asyncio.to_thread(self._postgres.stop)
                self._postgres = None

    # -- roles of a process ------------------------------------------------------------------------------------

    async def start_worker(self) -> None:
        """Begins to drive runs in this process, until the app closes."""
        settings = self.settings
        sandbox = BubblewrapSandbox(warm=settings.sandbox.warm, on_egress=_log_egress)
        self._closers.append(sandbox.close)
        models = self._models
        if models is None:
            models = catalog = ModelCatalog(os.environ)
            self._closers.append(catalog.close)
        kernel = Kernel(
            models=ModelExecutor(models),
            tools=ToolExecutor(Tools(sandbox, self.versions.locate), self.clock),
            effects=EffectLedger(self.database, self.committer),
            tracing=self.tracing,
            clock=self.clock,
        )
        services = Services(
            database=self.database,
            committer=self.committer,
            artifacts=self.artifacts,
            versions=self.versions,
            kernel=kernel,
            tracing=self.tracing,
            clock=self.clock,
        )
        self._worker = PostgresEngine(
            services, concurrency=settings.worker.concurrency, lease_seconds=settings.worker.lease_seconds
        )
        await self._worker.start()
        self._closers.append(self._worker.drain)
        self._start_relay()

    def _start_relay(self) -> None:
        sinks: list[Sink] = [to_log]
        if self.settings.events.webhook:
            key = hmac.new(self.master_key, b"webhook", hashlib.sha256).digest()
            webhook = Webhook(self.settings.events.webhook, key)
            self._closers.append(webhook.close)
            sinks.append(webhook)
        relay = Relay(self.database, sinks, complain=_log_undelivered)
        relay.start()
        self._closers.append(relay.close)

    # -- what doors need beside the services -------------------------------------------------------------------

    def read_project(self) -> Project:
        """The project directory, read and checked; raises InvalidSpec with every fault."""
        return read_project(self.project, self.settings)

    async def deploy(self, principal: Principal, project: Project) -> list[str]:
        """Deploys every workflow of a project; returns `name@version` of those that are new."""
        principal.require("workflow.deploy")
        deployed = [
            f"{definition.name}@{definition.version}"
            for definition in project.definitions.values()
            if await self.versions.deploy(principal.org_id, definition, project.bundles, by=principal.user_id)
        ]
        if deployed:
            await self._record(principal, "workflow.deployed", "deploy", [f"workflow:{name}" for name in deployed])
        return deployed

    async def issue_key(self, principal: Principal, user_id: str, roles: frozenset[str]) -> str:
        """A new API key in the principal's organisation, on record."""
        principal.require("key.manage")
        key = await self.authenticator.issue(principal.org_id, user_id, roles)
        await self._record(principal, "key.created", "create_key", [f"key:{key_id_of(key)}"])
        return key

    async def revoke_key(self, principal: Principal, key_id: str) -> None:
        principal.require("key.manage")
        await self.authenticator.revoke(principal.org_id, key_id)
        await self._record(principal, "key.revoked", "revoke_key", [f"key:{key_id}"])

    async def local_principal(self) -> tuple[Principal, str]:
        """The organisation and admin key of a single-machine installation; made on first use, kept in `client.json`."""
        path = self.data / "client.json"
        await self.authenticator.ensure_org(LOCAL_ORG, "Local")
        principal = Principal("local-admin", LOCAL_ORG, frozenset({"admin"}))
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, Unauthenticated):
            # The file may be older than the database, or the key revoked: whoever can read our keys can make another.
            key = str(json.loads(path.read_text())["api_key"])
            await self.authenticator.authenticate(key)
            return principal, key
        key = await self.issue_key(principal, principal.user_id, principal.roles)
        write_private(path, json.dumps({"api_key": key}))
        return principal, key

    async def _record(self, principal: Principal, event_type: Any, action: str, resources: list[str]) -> None:
        now = self.clock.now()
        entries = [
            Entry(principal.org_id, event_type, principal.actor, action, resource, now, decision="allow")
            for resource in resources
        ]
        await self.committer.submit(Commit(principal.org_id, audit=entries))


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fsync(file.fileno())
    temporary.replace(path)


def _log_undelivered(error: Exception) -> None:
    log(names.LOG_UNDELIVERED, str(error), level="error", detail=getattr(error, "detail", None))


def _log_egress(tool: str, host: str, port: int, allowed: bool) -> None:
    log(names.LOG_EGRESS, level="info" if allowed else "warning", tool=tool, host=host, port=port, allowed=allowed)
