"""The write path: what many runs have to say at the same moment goes into one transaction and one round trip.

No delay is added: commits that arrive while a transaction is under way form the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import get_args, get_origin, get_type_hints

import asyncpg
from pydantic_core import CoreConfig, SchemaSerializer, core_schema

from interlock.base.errors import ApprovalInvalid, Conflict, InvalidInput, LeaseLost, NotFound, Unavailable
from interlock.store import admin_rows, people_rows, rows
from interlock.store.database import DOWN, Connection, Database
from interlock.store.entries import Entry
from interlock.store.lazy_lists import with_lists_on_first_use
from interlock.store.queries import QUERIES
from interlock.store.rows import AuditHead, AuditRow, Claim, Fence

SETTLE = "select settle_v1($1)"
LEASE_LOST, HEAD_MOVED, NOT_OPEN, NOT_APPROVED, NOT_THERE = "IL001", "IL002", "IL005", "IL007", "IL008"

Seal = Callable[[list[Entry], int, str], tuple[list[AuditRow], int, str]]
"""Chains audit entries of one organisation: (entries, seq, head) → (rows, seq, head)."""


@with_lists_on_first_use
class Commit:
    """Everything that one run, or one request, writes together.

    The lists are the parts of a batch; `settle_v1` writes those that hold something.

    Attributes:
        fence: (run_id, fence) that must still hold; None for writes that need no lease.
        claim: (run_id, command, fence) that must still hold and not be done, on an engine that leases single commands.
        audit: entries, not yet chained.
        recorded: journal rows of a run without a lease: refused if another process wrote one of their numbers first.
    """

    org_id: str
    _: KW_ONLY
    fence: tuple[str, int] | None = None
    claim: tuple[str, str, int] | None = None
    audit: list[Entry] = field(default_factory=list)
    revived: list[rows.RevivedRun] = field(default_factory=list)
    new_claims: list[rows.NewClaim] = field(default_factory=list)
    artifacts: list[rows.ArtifactRow] = field(default_factory=list)
    new_runs: list[rows.NewRun] = field(default_factory=list)
    new_vaults: list[rows.NewVault] = field(default_factory=list)
    journal: list[rows.JournalRow] = field(default_factory=list)
    recorded: list[rows.JournalRow] = field(default_factory=list)
    runs: list[rows.RunUpdate] = field(default_factory=list)
    consumed_approvals: list[people_rows.ConsumedApproval] = field(default_factory=list)
    effects: list[rows.EffectRow] = field(default_factory=list)
    done_claims: list[rows.DoneClaim] = field(default_factory=list)
    used_reservations: list[rows.UsedReservation] = field(default_factory=list)
    settled_reservations: list[rows.SettledReservation] = field(default_factory=list)
    new_reviews: list[people_rows.NewReview] = field(default_factory=list)
    closed_reviews: list[people_rows.ClosedReview] = field(default_factory=list)
    decided_reviews: list[people_rows.DecidedReview] = field(default_factory=list)
    new_approvals: list[people_rows.NewApproval] = field(default_factory=list)
    revoked_approvals: list[people_rows.RevokedApproval] = field(default_factory=list)
    results: list[rows.KeptResult] = field(default_factory=list)
    new_dead_letters: list[people_rows.NewDeadLetter] = field(default_factory=list)
    closed_dead_letters: list[people_rows.ClosedDeadLetter] = field(default_factory=list)
    decided_dead_letters: list[people_rows.DecidedDeadLetter] = field(default_factory=list)
    new_policies: list[rows.NewPolicySet] = field(default_factory=list)
    activated_policies: list[rows.ActivatedPolicy] = field(default_factory=list)
    new_orgs: list[admin_rows.NewOrg] = field(default_factory=list)
    new_keys: list[admin_rows.NewKey] = field(default_factory=list)
    revoked_keys: list[admin_rows.RevokedKey] = field(default_factory=list)
    new_quotas: list[admin_rows.NewQuota] = field(default_factory=list)
    removed_quotas: list[admin_rows.RemovedQuota] = field(default_factory=list)
    new_versions: list[admin_rows.NewVersion] = field(default_factory=list)
    moved_heads: list[admin_rows.MovedHead] = field(default_factory=list)
    drained_workers: list[admin_rows.DrainedWorker] = field(default_factory=list)
    requeued_deliveries: list[admin_rows.RequeuedDelivery] = field(default_factory=list)
    signal_ids: list[rows.SignalId] = field(default_factory=list)
    new_signals: list[rows.NewSignal] = field(default_factory=list)
    crashed: list[rows.CrashedRun] = field(default_factory=list)
    requeued: list[rows.RequeuedRun] = field(default_factory=list)
    used_signals: list[rows.UsedSignal] = field(default_factory=list)
    forwarded_signals: list[rows.ForwardedSignal] = field(default_factory=list)
    outbox: list[rows.OutboxRow] = field(default_factory=list)
    abandoned_calls: list[rows.AbandonedCall] = field(default_factory=list)
    finished: list[rows.FinishedRun] = field(default_factory=list)
    places: list[rows.PlaceRow] = field(default_factory=list)
    released: list[rows.ReleasedRun] = field(default_factory=list)


_OF_COMMITS = {name: get_args(hint)[0] for name, hint in get_type_hints(Commit).items() if get_origin(hint) is list}
del _OF_COMMITS["audit"]
PARTS: dict[str, type] = _OF_COMMITS | {"audit": AuditRow, "heads": AuditHead, "fences": Fence, "claims": Claim}
"""The class of the rows of each part of a batch."""

Batch = dict[str, list[object]]
"""The parts that hold something, by name."""


@dataclass(slots=True)
class _Attempts:
    """Knowledge about the attempts to commit a batch.

    Attributes:
        lost: one of them broke off, so it may have taken place without our hearing of it.
        marks: (org_id, seq, hash) of an audit entry of every attempt; where one is found, that attempt took place.
    """

    lost: bool = False
    marks: list[tuple[str, int, str]] = field(default_factory=list)


class Committer:
    """Group commit for one process. `submit` returns when the commit is durable, or raises why it is not."""

    def __init__(self, database: Database, seal: Seal, *, batch: int = 256) -> None:
        self._database = database
        self._seal = seal
        self._batch = batch
        self._waiting: asyncio.Queue[tuple[Commit, asyncio.Future[None]] | None] = asyncio.Queue()
        self._heads: dict[str, tuple[int, str]] = {}
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._closed = False

    @property
    def heads(self) -> Mapping[str, tuple[int, str]]:
        """Number and hash of the last entry of each audit log that this process appends to."""
        return self._heads

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="committer")

    async def close(self) -> None:
        """Commits what is waiting, then stops; later commits are refused."""
        self._closed = True
        if self._task is None:
            return
        self._waiting.put_nowait(None)
        await self._task
        self._task = None
        if self._connection is not None:
            with contextlib.suppress(*DOWN):
                await self._connection.close(timeout=5)
            self._connection = None

    async def submit(self, commit: Commit) -> None:
        """Makes a commit durable.

        Raises:
            LeaseLost: the run belongs to another worker now; nothing was written.
            ApprovalInvalid: an approval that was to be used up is used, revoked, expired or missing; nothing was written.
            Conflict: a review or a dead letter that was to be decided is not open any more; nothing was written.
            NotFound: the organisation, or a key or quota that was to end, does not exist; nothing was written.
            Unavailable: the database stayed away; the commit was written once or not at all, and the database tells which
                when it is back.
            asyncpg.PostgresError: a constraint refused it; nothing was written.
        """
        if self._closed:
            raise Unavailable("this process is shutting down; another one will answer")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((commit, done))
        await done

    async def _run(self) -> None:
        closing = False
        while not closing:
            batch = []
            waiting: tuple[Commit, asyncio.Future[None]] | None = await self._waiting.get()
            while waiting is not None:
                batch.append(waiting)
                if len(batch) == self._batch or self._waiting.empty():
                    break
                waiting = self._waiting.get_nowait()
            closing = waiting is None
            if not batch:
                continue
            try:
                await self._commit_or_split(batch)
            except asyncio.CancelledError:
                for _, done in batch:
                    done.cancel()
                raise
            except Exception as error:  # noqa: BLE001  every waiting caller must get the error, or it waits for ever
                for _, done in batch:
                    _refuse(done, error)

    async def _commit_or_split(self, batch: list[tuple[Commit, asyncio.Future[None]]]) -> None:
        """Commits the batch; if something in it is refused, commits one by one, so that only the guilty fail."""
        try:
            await self._commit([commit for commit, _ in batch])
        except Exception as error:
            if len(batch) == 1 or isinstance(error, Unavailable):
                raise
            for commit, done in batch:
                try:
                    await self._commit([commit])
                    _resolve(done)
                except Unavailable:
                    raise
                except Exception as single:  # noqa: BLE001  a constraint's refusal, or a row that is not even JSON
                    _refuse(done, single)
        else:
            for _, done in batch:
                _resolve(done)

    async def _commit(self, commits: list[Commit]) -> None:
        attempts = _Attempts()

        async def attempt() -> None:
            try:
                await self._settle_at_head(commits, attempts)
            except DOWN:
                attempts.lost = True
                if self._connection is not None:
                    self._connection.terminate()  # it may not know its own end yet, and would break again
                    self._connection = None
                raise

        try:
            await self._database.retrying(attempt)
        except asyncpg.PostgresError as error:
            self._heads.clear()
            if error.sqlstate == LEASE_LOST:
                raise LeaseLost("the run belongs to another worker now", detail=error.detail) from error
            if error.sqlstate == NOT_OPEN:
                raise Conflict("this was already decided or is no longer needed") from error
            if error.sqlstate == NOT_THERE:
                raise NotFound("this does not exist or has ended already") from error
            if error.sqlstate == NOT_APPROVED:
                raise ApprovalInvalid("the approval of this call is used, revoked, expired or missing") from error
            raise

    async def _settle_at_head(self, commits: list[Commit], attempts: _Attempts) -> None:
        try:
            await self._settle(commits, attempts, lock=attempts.lost)
        except asyncpg.PostgresError as error:
            if error.sqlstate != HEAD_MOVED:
                raise
            # Another process appended to the same log; this time take the head's lock first.
            await self._settle(commits, attempts, lock=True)

    async def _settle(self, commits: list[Commit], attempts: _Attempts, *, lock: bool) -> None:
        batch, orgs = batch_of(commits), ",".join(sorted({commit.org_id for commit in commits}))
        entries: dict[str, list[Entry]] = {}
        for commit in commits:
            if commit.audit:
                entries.setdefault(commit.org_id, []).extend(commit.audit)
        begun = {org.org_id: (0, "") for commit in commits for org in commit.new_orgs}
        connection = await self._connected()
        if lock:
            async with connection.transaction():
                heads = begun | await self._read_heads(connection, sorted(entries), lock=True)
                if not (attempts.lost and await self._landed(connection, commits, orgs, attempts.marks)):
                    heads |= self._chain(batch, entries, heads, attempts)
                    await connection.execute(SETTLE, encode(orgs, batch))
        else:
            unknown = sorted(entries.keys() - self._heads.keys())
            if unknown:
                self._heads |= await self._read_heads(connection, unknown, lock=False)
            heads = self._chain(batch, entries, begun | self._heads, attempts)
            await connection.execute(SETTLE, encode(orgs, batch))
        self._heads |= heads

    async def _landed(
        self, connection: Connection, commits: list[Commit], orgs: str, marks: list[tuple[str, int, str]]
    ) -> bool:
        """True if an attempt whose answer was lost took place. A batch is all or nothing, so one row of it tells.

        What has neither audit entries, nor a journal, nor new runs says the same when it is written twice.
        """
        await connection.execute("select set_config('interlock.orgs', $1, true)", orgs)
        for mark in marks:
            if await connection.fetchval(QUERIES["audit_has"].sql, *mark):
                return True
        # No other process writes these keys: the lease guarantees it for the one, randomness for the other.
        for row in (row for commit in commits for row in commit.journal):
            return bool(await connection.fetchval(QUERIES["journal_has"].sql, row.run_id, row.seq))
        for run in (run for commit in commits for run in commit.new_runs):
            return bool(await connection.fetchval(QUERIES["run_exists"].sql, run.run_id))
        return False

    async def _connected(self) -> Connection:
        """A connection of the committer's own: one round trip a commit, no borrowing and no resetting."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.dedicated()
        return self._connection

    async def _read_heads(self, connection: Connection, orgs: list[str], *, lock: bool) -> dict[str, tuple[int, str]]:
        await connection.execute("select set_config('interlock.orgs', $1, $2)", ",".join(orgs), lock)
        rows = await connection.fetch(QUERIES["lock_audit_heads" if lock else "audit_heads"].sql, orgs)
        return {row["org_id"]: (row["seq"], row["hash"]) for row in rows}

    def _chain(
        self,
        batch: Batch,
        entries: dict[str, list[Entry]],
        heads: dict[str, tuple[int, str]],
        attempts: _Attempts,
    ) -> dict[str, tuple[int, str]]:
        """Adds the audit entries and the new heads of their logs; gives the heads."""
        moved: dict[str, tuple[int, str]] = {}
        if entries:
            batch["audit"], batch["heads"] = [], []
        for org, of_org in sorted(entries.items()):
            if org not in heads:
                raise NotFound(f'organisation "{org}" does not exist')
            expected, head = heads[org]
            sealed, seq, digest = self._seal(of_org, expected, head)
            batch["audit"] += sealed
            batch["heads"].append(AuditHead(org_id=org, expected=expected, seq=seq, hash=digest))
            moved[org] = (seq, digest)
        attempts.marks += [(org, seq, digest) for org, (seq, digest) in list(moved.items())[:1]]
        return moved


def batch_of(commits: list[Commit]) -> Batch:
    """Argument of `settle_v1`: the parts that are not empty."""
    batch: Batch = {}
    for commit in commits:
        for part, of_commit in vars(commit).items():
            if part in _OF_COMMITS and of_commit:
                batch.setdefault(part, []).extend(of_commit)
    fences = [Fence(run_id=one.fence[0], fence=one.fence[1]) for one in commits if one.fence]
    if fences:
        batch["fences"] = [*fences]
    claims = [one.claim for one in commits if one.claim]
    if claims:
        batch["claims"] = [Claim(run_id=run, command=command, fence=fence) for run, command, fence in claims]
    return batch


def _record(row: type) -> core_schema.CoreSchema:
    """How a row becomes JSON: an object of its fields, with values as they are."""
    names = [one.name for one in fields(row)]
    arguments = [core_schema.dataclass_field(name, core_schema.any_schema()) for name in names]
    return core_schema.dataclass_schema(
        row, core_schema.dataclass_args_schema(row.__name__, arguments), names, slots=True
    )


# Half the time of `to_json`, which finds out anew for each row what it is.
_BATCH = SchemaSerializer(
    core_schema.typed_dict_schema(
        {
            part: core_schema.typed_dict_field(core_schema.list_schema(_record(row)), required=False)
            for part, row in PARTS.items()
        }
        | {"orgs": core_schema.typed_dict_field(core_schema.str_schema())}
    ),
    CoreConfig(ser_json_inf_nan="constants"),  # so that the database refuses them; by default they are null
)


def encode(orgs: str, batch: Batch) -> str:
    whole = {"orgs": orgs, **batch}
    try:
        return _BATCH.to_json(whole).decode()
    except ValueError as error:
        # A TypeError for what is no JSON at all: that is our own mistake, not the request's.
        json.dumps(_BATCH.to_python(whole))
        raise InvalidInput("a text holds half a character (a lone surrogate); correct the request") from error


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _refuse(done: asyncio.Future[None], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
