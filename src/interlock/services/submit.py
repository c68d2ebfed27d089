"""Intake: from a request at the door to a run in the queue. Validated, scanned raw, redacted, stored as a labelled ref."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from interlock.base.clock import Clock
from interlock.base.errors import Conflict, InvalidInput
from interlock.base.ids import new_id
from interlock.base.json import Json, JsonObject, accept_json
from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.base.refs import RefJson
from interlock.definitions.versions import Version, Versions
from interlock.guard.gate import Stage, inspect, secret
from interlock.guard.pii import Redactor
from interlock.identity.principal import Principal
from interlock.machine import version as machine_version
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database, Row
from interlock.store.entries import Entry
from interlock.store.keys import KeyStore
from interlock.store.rows import EngineName, NewRun, RunVault
from interlock.telemetry.spans import TraceIds
from interlock.workflows.bindings import dig, parse
from interlock.workflows.schemas import check_value

_MAX_KEY = 200
_MAX_PRIORITY = 100
_ONCE = "runs_org_id_workflow_idempotency_key_key"


class Submission:
    """Accepts runs. Accepting is durable: once `accept` returns, the run will be driven to its end."""

    def __init__(
        self,
        database: Database,
        committer: Committer,
        versions: Versions,
        artifacts: Artifacts,
        keys: KeyStore,
        clock: Clock,
        *,
        engine: EngineName = "postgres",
        block_injections: bool,
    ) -> None:
        self._database = database
        self._committer = committer
        self._versions = versions
        self._artifacts = artifacts
        self._keys = keys
        self._clock = clock
        self._block = block_injections
        self._engine = engine

    async def accept(
        self, principal: Principal, workflow: str, value: object, idempotency_key: str | None, *, priority: int = 0
    ) -> tuple[str, bool]:
        """(run id, whether it is new). The same key with the same input is the same run.

        Args:
            priority: -100 to 100; among runs of the same workflow that wait, the higher goes first.

        Raises:
            NotFound: no such workflow.
            ContractViolation: the input does not fit the workflow's schema; names the place.
            Conflict: the key was used with another input.
            Denied: the role may not, or the input holds an injected order and the settings say `block`.
        """
        principal.require("run.start")
        value = accept_json(value)
        if checked_key(idempotency_key):
            # First: what was accepted once is not held against what has been deployed since.
            existing = await self._existing(principal, workflow, str(idempotency_key), value)
            if existing is not None:
                return existing, False
        key, version = await self._checked(principal, workflow, value, idempotency_key, priority)
        try:
            run_id, commit = await self._proposed(principal, version, value, key, priority)
            await self._committer.submit(commit)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != _ONCE:
                raise
            # The same request twice at the same moment: the other one was committed.
            existing = await self._existing(principal, workflow, key, value)
            assert existing is not None
            return existing, False
        return run_id, True

    async def propose(self, principal: Principal, workflow: str, value: object, key: str) -> tuple[str, Commit]:
        """As `accept`, but the new run is the caller's to commit, together with what made it start."""
        principal.require("run.start")
        value = accept_json(value)
        _, version = await self._checked(principal, workflow, value, key, 0)
        return await self._proposed(principal, version, value, key, 0)

    async def propose_again(self, row: Row, value: Json, key: str, *, actor: str) -> tuple[str, Commit]:
        """A new run of the same workflow's head version, for the same principal and with the same stored input.

        Args:
            row: the earlier run.
            value: its input with the personal data in it; must fit the head version.

        Raises:
            NotFound: the workflow is not deployed any more.
            ContractViolation: the input does not fit the head version.
        """
        version = await self._versions.head(row["org_id"], row["workflow"])
        check_value(version.input_validator, value, what="input")
        again = _Stored(row["input"], row["vault"], row["flags"], row["priority"])
        return self._queued(row["org_id"], version, key, again, principal=row["principal"], actor=actor)

    async def _checked(
        self, principal: Principal, workflow: str, value: Json, idempotency_key: str | None, priority: int
    ) -> tuple[str, Version]:
        if not -_MAX_PRIORITY <= priority <= _MAX_PRIORITY:
            raise InvalidInput(f"priority must be -{_MAX_PRIORITY} to {_MAX_PRIORITY}")
        key = checked_key(idempotency_key) or new_id("once")
        version = await self._versions.head(principal.org_id, workflow)
        check_value(version.input_validator, value, what="input", to_sender=True)
        return key, version

    async def _existing(self, principal: Principal, workflow: str, key: str, value: Json) -> str | None:
        row = await self._database.row("find_run_by_key", principal.org_id, workflow, key, org=principal.org_id)
        if row is None:
            return None
        version = await self._versions.get(principal.org_id, workflow, row["version"])
        # Compared by the keyed digest of the raw input, which the vault holds: redacted inputs differ in their tokens.
        labels = self._labels(principal, version, value, pii=False)
        if row["vault"]["raw_digest"] != await self._artifacts.digest(principal.org_id, value, labels):
            raise Conflict(
                f'Idempotency-Key "{key}" was used for another input of {version.name} (run {row["run_id"]}); choose a new key'
            )
        return str(row["run_id"])

    async def _proposed(
        self, principal: Principal, version: Version, value: Json, key: str, priority: int
    ) -> tuple[str, Commit]:
        redactor = Redactor.new()
        inspection = await inspect(value, Stage.INPUT, principal.org_id, redactor=redactor, block=self._block)
        labels = self._labels(principal, version, value, pii=bool(redactor.counts))
        hidden = labels.secret()
        about = self._labels(principal, version, value, pii=False)
        raw_digest = await self._artifacts.digest(principal.org_id, value, about)
        stored = await self._artifacts.seal(principal.org_id, inspection.accepted, labels)
        vault = await self._artifacts.seal(principal.org_id, secret(redactor.vault), hidden)
        taken = _Stored(
            stored.ref.to_json(),
            {"ref": vault.ref.to_json(), "raw_digest": raw_digest},
            inspection.flags,
            priority,
        )
        run_id, commit = self._queued(
            principal.org_id, version, key, taken, principal=principal.to_json(), actor=principal.actor
        )
        commit.artifacts += [stored.row, vault.row]
        return run_id, commit

    def _queued(
        self, org_id: str, version: Version, key: str, taken: _Stored, *, principal: JsonObject, actor: str
    ) -> tuple[str, Commit]:
        """A run's row and its audit entry.

        Args:
            principal: in whose name it runs; `actor` is who started it.
        """
        run_id, trace = new_id("run"), TraceIds.new()
        entry = Entry(
            org_id=org_id,
            event_type="run.created",
            actor=actor,
            action="start_run",
            resource=f"workflow:{version.name}@{version.version}",
            at=self._clock.now(),
            decision="allow",
            run_id=run_id,
            trace_id=trace.trace_id,
            detail={"input": taken.input["digest"], "flags": taken.flags},
        )
        row = NewRun(
            run_id=run_id,
            org_id=org_id,
            workflow=version.name,
            version=version.version,
            principal=principal,
            idempotency_key=key,
            input=taken.input,
            vault=taken.vault,
            flags=taken.flags,
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            engine=self._engine,
            priority=taken.priority,
            machine=machine_version.MACHINE_VERSION,
        )
        return run_id, Commit(org_id, new_runs=[row], audit=[entry])

    def _labels(self, principal: Principal, version: Version, value: Json, *, pii: bool) -> Labels:
        subjects: frozenset[str] = frozenset()
        if version.workflow.subject is not None:
            reference = parse(version.workflow.subject)
            name = dig(value, reference.path) if reference is not None else version.workflow.subject
            if name is not None:
                subjects = frozenset({self._keys.pseudonym(principal.org_id, str(name))})
        sensitivity = Sensitivity.PII if pii or subjects else Sensitivity.INTERNAL
        return Labels(trust=Trust.USER, sensitivity=sensitivity, subjects=subjects, origins=frozenset({"input"}))


@dataclass(frozen=True, slots=True)
class _Stored:
    """The part of a run that comes from its input."""

    input: RefJson
    vault: RunVault | None
    flags: list[str]
    priority: int


def checked_key(key: str | None) -> str | None:
    """An idempotency key as it came; None if there is none.

    Raises:
        InvalidInput: too long, or not to be printed.
    """
    if key and (len(key) > _MAX_KEY or not key.isprintable()):
        raise InvalidInput(f"Idempotency-Key must be 1 to {_MAX_KEY} printable characters")
    return key
