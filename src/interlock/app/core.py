"""The part of the application that every process has: database, clock, audit, committer, stores and use cases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from interlock.audit.heads import KeptHeads
from interlock.audit.log import AuditLog
from interlock.audit.records import AuditRecords
from interlock.base.background import Loop
from interlock.base.clock import Clock
from interlock.base.errors import Unavailable
from interlock.base.outbound import Outbound
from interlock.base.settings import Settings
from interlock.definitions.project import Project, read_project, read_sound_parts
from interlock.definitions.versions import Versions
from interlock.execution.approvals import approval_key
from interlock.identity.auth import Authenticator
from interlock.notify.webhook import webhook_key
from interlock.policy.active import ActivePolicies
from interlock.policy.decision import Policies
from interlock.services.access import Access
from interlock.services.administration import Administration
from interlock.services.audit_trail import AuditTrail
from interlock.services.dead_letters import DeadLetters
from interlock.services.followers import Followers
from interlock.services.health import Health
from interlock.services.ingest import Redaction
from interlock.services.policies import PolicySets
from interlock.services.refusals import Refusals
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
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.telemetry.tracing import Tracing

_REVIVE_SECONDS = 1.0
_OF_DEFINITIONS = ("models", "variables")  # settings that only reading a project uses


class Core:
    """Database, stores and use cases of one process: opened with `async with`, closed in reverse order.

    Args:
        clock: replaces the database's clock; for tests.
        policies: replaces the active Cedar policies, for instance by an engine behind HTTP.
        notice: receives sentences for the operator, such as that the database was started again.

    Attributes:
        outbound: decides which addresses this process's own connections may reach.
        policies: in force for the calls of this process.
        services: the use cases; all that an entry point needs of an open application.
        migrated: migrations applied by opening.
    """

    def __init__(
        self,
        project: Path,
        settings: Settings,
        *,
        clock: Clock | None = None,
        policies: Policies | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.project = project
        self.settings = settings
        self.data = settings.data_dir
        self.outbound = Outbound(settings.network.private)
        self._clock = clock
        self._policies = policies
        self._notice = notice
        self.clock: Clock
        self.migrated: list[str] = []
        self._postgres: EmbeddedPostgres | None = None
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

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Has `close` called when the application closes, before what was registered earlier.

        An error is logged, and a cancellation cancels only what is being closed: the others are closed all the same.
        """

        async def quietly() -> None:
            try:
                await close()
            except Exception as error:  # noqa: BLE001  the others must be closed
                log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)

        self._closing.push_async_callback(quietly)

    def read_sound_parts(self) -> tuple[Project, list[str]]:
        """Reads the project directory: its sound workflows, and all faults."""
        return read_sound_parts(self.project, self.settings)

    def reload_definition_settings(self, settings: Settings) -> list[str]:
        """Takes over the models and variables of changed settings; the names of other settings that differ."""
        changed = [
            name for name in type(settings).model_fields if getattr(settings, name) != getattr(self.settings, name)
        ]
        taken = {name: getattr(settings, name) for name in _OF_DEFINITIONS}
        self.settings = self.settings.model_copy(update=taken)
        return [name for name in changed if name not in _OF_DEFINITIONS]

    def read_project(self) -> Project:
        """Reads and checks the project directory; raises InvalidSpec with every fault."""
        return read_project(self.project, self.settings)

    # -- opening -----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._closing.push_async_callback(self._stop_postgres)
        self.master_key = load_or_create_secret(self.data / "keys" / "master.key")
        await self._open_database()
        self._open_stores()
        self._open_use_cases()
        self.services = self._bundle()

    async def _open_database(self) -> None:
        preparing = asyncio.ensure_future(asyncio.to_thread(self.prepare_database))
        try:
            url = await asyncio.shield(preparing)
        except asyncio.CancelledError:
            await asyncio.wait([preparing])  # a thread cannot be cancelled, and the server it starts must be stopped
            raise
        if self._postgres is not None:
            watch = Loop("embedded database", self._revive_postgres, every=_REVIVE_SECONDS, report=self._not_revived)
            watch.start()
            self.on_close(watch.close)
        self.database = Database(url, pool_size=self.settings.database.pool_size)
        await self.database.open()
        self.on_close(self.database.close)
        self.clock = self._clock or await self._follow_database()

    def _open_stores(self) -> None:
        settings = self.settings
        audit = AuditLog(load_or_create_secret(self.data / "keys" / "audit.key"))
        self.committer = Committer(self.database, audit.seal)
        self.committer.start()
        heads = KeptHeads(self.data, audit, lambda: self.committer.heads)
        heads.start()
        self.on_close(heads.close)  # after the committer, which is closed first
        self.on_close(self.committer.close)
        self.audit = AuditRecords(self.database, {audit.key_id: audit.public_key}, heads.read)
        endpoint = settings.telemetry.otlp_endpoint
        self.tracing = Tracing(self.database, service=settings.name, otlp_endpoint=endpoint, outbound=self.outbound)
        self.tracing.start()
        self.on_close(self.tracing.close)
        self.keys = KeyStore(self.database, self.master_key)
        self.objects = Objects.local(self.data / "objects")
        self.artifacts = Artifacts(self.database, self.keys, self.objects, limit_bytes=settings.limits.payload_bytes)
        self.versions = Versions(self.database, self.objects, self.data / "bundles")
        self.authenticator = Authenticator(self.database)
        self.active_policies = ActivePolicies(self.database)
        self.policies: Policies = self._policies or self.active_policies

    def _open_use_cases(self) -> None:
        settings = self.settings
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
            versions=self.versions,
        )
        self.signals = Signals(self.database, self.committer, self.versions, redaction, self.clock)
        self.policy_sets = PolicySets(self.database, self.committer, self.clock, refresh=self.active_policies.refresh)
        self.admin = Administration(
            self.database,
            self.committer,
            self.versions,
            self.authenticator,
            self.policy_sets,
            self.clock,
            data=self.data,
            webhook_key=webhook_key(self.master_key).hex(),
        )
        self.dead_letters = DeadLetters(
            self.database, self.committer, self.versions, self.artifacts, self.submission, redaction, self.clock
        )

    def _bundle(self) -> Services:
        server = self.settings.server
        followers = Followers(self.database, most=server.followers, most_per_org=server.followers_per_org)
        self.on_close(followers.close)
        refusals = Refusals(self.committer, self.clock, ensure_org=self.admin.ensure_org)
        refusals.start()
        self.on_close(refusals.close)
        return Services(
            access=Access(self.authenticator),
            submission=self.submission,
            runs=self.runs,
            followers=followers,
            signals=self.signals,
            reviews=self.reviews,
            dead_letters=self.dead_letters,
            administration=self.admin,
            policies=self.policy_sets,
            audit=AuditTrail(self.audit),
            health=Health(self.database, self.data),
            refusals=refusals,
        )

    async def _follow_database(self) -> Clock:
        clock = DatabaseClock(self.database)
        await clock.open()
        self.on_close(clock.close)
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

    async def _revive_postgres(self) -> None:
        """Starts the embedded server again if it has ended, such as by the system for want of memory."""
        assert self._postgres is not None, "the loop runs only with it"
        if await asyncio.to_thread(self._postgres.revive):
            self._say("PostgreSQL ended by itself and was started again")

    def _not_revived(self, error: Exception) -> None:
        self._say(str(error))

    def _say(self, sentence: str) -> None:
        log(names.LOG_DATABASE_DOWN, sentence, level="warning")
        if self._notice is not None:
            self._notice(sentence)

    async def prepare_to_close(self) -> None:
        """Has the operations still under way end at once if the database is away."""
        try:
            await self.services.health.database()
        except Unavailable:
            self.database.give_up()

    async def _stop_postgres(self) -> None:
        if self._postgres is not None:
            await asyncio.to_thread(self._postgres.stop)
            self._postgres = None
