"""The write path: what many runs have to say at the same moment goes into one transaction and one round trip.

There is no waiting for company: whatever has gathered while the last transaction was under way makes the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from pydantic_core import to_json

from interlock.base.errors import Conflict, InvalidInput, LeaseLost, NotFound, Unavailable
from interlock.store.database import DOWN, Connection, Database
from interlock.store.queries import QUERIES

JsonRow = dict[str, Any]

_SETTLE = "select settle($1)"
LEASE_LOST, HEAD_MOVED, NOT_OPEN = "IL001", "IL002", "IL005"

Seal = Callable[[list[Any], int, str], tuple[list[JsonRow], int, str]]
"""Chains audit entries of one organisation: (entries, seq, head) → (rows, seq, head)."""


class Commit:
    """What one run, or one request, wants written together.

    The lists are the parts of a batch; `settle` in sql/functions/settle.sql says what each holds. One that nobody names costs
    nothing: it is made when it is first asked for.

    Attributes:
        fence: (run_id, fence) that must still hold; None for writes that need no lease.
        claim: (run_id, command, fence) that must still hold and not be done, on an engine that leases single commands.
        recorded: journal rows of a run that nobody leases: refused if another process wrote one of their numbers first.
        audit: entries, not yet chained.
    """

    artifacts: list[JsonRow]
    new_runs: list[JsonRow]
    new_vaults: list[JsonRow]
    revived: list[JsonRow]
    new_claims: list[JsonRow]
    journal: list[JsonRow]
    recorded: list[JsonRow]
    runs: list[JsonRow]
    effects: list[JsonRow]
    done_claims: list[JsonRow]
    settled_claims: list[JsonRow]
    new_reviews: list[JsonRow]
    closed_reviews: list[JsonRow]
    decided_reviews: list[JsonRow]
    results: list[JsonRow]
    new_dead_letters: list[JsonRow]
    closed_dead_letters: list[JsonRow]
    decided_dead_letters: list[JsonRow]
    signal_ids: list[JsonRow]
    new_signals: list[JsonRow]
    crashed: list[JsonRow]
    requeued: list[JsonRow]
    used_signals: list[JsonRow]
    forwarded_at: list[JsonRow]
    outbox: list[JsonRow]
    let_go: list[JsonRow]
    finished: list[JsonRow]
    places: list[JsonRow]
    released: list[JsonRow]

    def __init__(
        self,
        org_id: str,
        *,
        fence: tuple[str, int] | None = None,
        claim: tuple[str, str, int] | None = None,
        audit: list[Any] | None = None,
        **parts: list[JsonRow],
    ) -> None:
        if not parts.keys() <= PARTS:
            raise TypeError(f"a commit has no {', '.join(sorted(parts.keys() - PARTS))}")
        self.org_id, self.fence, self.claim = org_id, fence, claim
        self.audit = audit if audit is not None else []
        self.__dict__.update(parts)

    def __getattr__(self, part: str) -> list[JsonRow]:
        if part not in PARTS:
            raise AttributeError(part)
        rows: list[JsonRow] = []
        self.__dict__[part] = rows
        return rows


PARTS = frozenset(Commit.__annotations__)


@dataclass(slots=True)
class _Attempts:
    """What is known about the attempts to commit a batch.

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

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="committer")

    async def close(self) -> None:
        """Commits what is waiting, then stops; whoever comes later is refused."""
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
            Conflict: a review or a dead letter that was to be decided is not open any more; nothing was written.
            NotFound: the organisation does not exist; nothing was written.
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
            except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or they wait forever
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
        batch = _batch_of(commits)
        entries: dict[str, list[Any]] = {}
        for commit in commits:
            if commit.audit:
                entries.setdefault(commit.org_id, []).extend(commit.audit)
        connection = await self._connected()
        if lock:
            async with connection.transaction():
                heads = await self._read_heads(connection, sorted(entries), lock=True)
                if not (attempts.lost and await self._landed(connection, batch, attempts.marks)):
                    heads |= self._chain(batch, entries, heads, attempts)
                    await connection.execute(_SETTLE, _encode(batch))
        else:
            unknown = sorted(entries.keys() - self._heads.keys())
            if unknown:
                self._heads |= await self._read_heads(connection, unknown, lock=False)
            heads = self._chain(batch, entries, self._heads, attempts)
            await connection.execute(_SETTLE, _encode(batch))
        self._heads |= heads

    async def _landed(self, connection: Connection, batch: dict[str, Any], marks: list[tuple[str, int, str]]) -> bool:
        """Whether an attempt whose answer was lost took place. A batch is all or nothing, so one row of it tells.

        What has neither audit entries, nor a journal, nor new runs says the same when it is written twice.
        """
        await connection.execute("select set_config('interlock.orgs', $1, true)", batch["orgs"])
        for mark in marks:
            if await connection.fetchval(QUERIES["audit_has"], *mark):
                return True
        # Nobody but us writes these keys: the lease says so of the one, chance of the other.
        for row in batch.get("journal", ())[:1]:
            return bool(await connection.fetchval(QUERIES["journal_has"], row["run_id"], row["seq"]))
        for row in batch.get("new_runs", ())[:1]:
            return bool(await connection.fetchval(QUERIES["run_exists"], row["run_id"]))
        return False

    async def _connected(self) -> Connection:
        """A connection of the committer's own: one round trip a commit, no borrowing and no resetting."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.dedicated()
        return self._connection

    async def _read_heads(self, connection: Connection, orgs: list[str], *, lock: bool) -> dict[str, tuple[int, str]]:
        await connection.execute("select set_config('interlock.orgs', $1, $2)", ",".join(orgs), lock)
        rows = await connection.fetch(QUERIES["lock_audit_heads" if lock else "audit_heads"], orgs)
        return {row["org_id"]: (row["seq"], row["hash"]) for row in rows}

    def _chain(
        self,
        batch: dict[str, Any],
        entries: dict[str, list[Any]],
        heads: dict[str, tuple[int, str]],
        attempts: _Attempts,
    ) -> dict[str, tuple[int, str]]:
        moved: dict[str, tuple[int, str]] = {}
        if entries:
            batch["audit"], batch["heads"] = [], []
        for org, of_org in sorted(entries.items()):
            if org not in heads:
                raise NotFound(f'organisation "{org}" does not exist')
            expected, head = heads[org]
            rows, seq, digest = self._seal(of_org, expected, head)
            batch["audit"] += rows
            batch["heads"].append({"org_id": org, "expected": expected, "seq": seq, "hash": digest})
            moved[org] = (seq, digest)
        attempts.marks += [(org, seq, digest) for org, (seq, digest) in list(moved.items())[:1]]
        return moved


def _batch_of(commits: list[Commit]) -> dict[str, Any]:
    """What `settle` takes: the parts that hold something."""
    batch: dict[str, Any] = {"orgs": ",".join(sorted({commit.org_id for commit in commits}))}
    for commit in commits:
        for part, rows in vars(commit).items():
            if rows and part in PARTS:
                batch.setdefault(part, []).extend(rows)
    fences = [{"run_id": one.fence[0], "fence": one.fence[1]} for one in commits if one.fence]
    if fences:
        batch["fences"] = fences
    claims = [one.claim for one in commits if one.claim]
    if claims:
        batch["claims"] = [{"run_id": run_id, "command": command, "fence": fence} for run_id, command, fence in claims]
    return batch


def _encode(batch: dict[str, Any]) -> str:
    try:
        return to_json(batch).decode()
    except ValueError as error:
        json.dumps(batch)  # a TypeError for what is no JSON at all: that is our own mistake, not the request's
        raise InvalidInput("a text holds half a character (a lone surrogate); correct the request") from error


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _refuse(done: asyncio.Future[None], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
