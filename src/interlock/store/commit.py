"""The write path: what many runs have to say at the same moment goes into one transaction and one round trip.

There is no waiting for company: whatever has gathered while the last transaction was under way makes the next one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from interlock.base.errors import Conflict, InterlockError, LeaseLost, Unavailable
from interlock.store.database import Connection, Database
from interlock.store.queries import QUERIES

JsonRow = dict[str, Any]

_SETTLE = "select settle($1)"
LEASE_LOST, HEAD_MOVED, NOT_OPEN = "IL001", "IL002", "IL005"

# The parts of a batch that are plain rows; `settle` in sql/migrations/0003.functions.sql says what each holds.
PARTS = (
    "artifacts",
    "new_runs",
    "journal",
    "runs",
    "effects",
    "new_reviews",
    "closed_reviews",
    "decided_reviews",
    "new_signals",
    "used_signals",
    "outbox",
    "finished",
    "released",
)

Seal = Callable[[list[Any], int, str], tuple[list[JsonRow], int, str]]
"""Chains audit entries of one organisation: (entries, seq, head) → (rows, seq, head)."""


@dataclass(slots=True)
class Commit:
    """What one run, or one request, wants written together.

    Attributes:
        fence: (run_id, fence) that must still hold; None for writes that need no lease.
        audit: entries, not yet chained.
    """

    org_id: str
    fence: tuple[str, int] | None = None
    artifacts: list[JsonRow] = field(default_factory=list)
    new_runs: list[JsonRow] = field(default_factory=list)
    journal: list[JsonRow] = field(default_factory=list)
    runs: list[JsonRow] = field(default_factory=list)
    effects: list[JsonRow] = field(default_factory=list)
    new_reviews: list[JsonRow] = field(default_factory=list)
    closed_reviews: list[JsonRow] = field(default_factory=list)
    decided_reviews: list[JsonRow] = field(default_factory=list)
    new_signals: list[JsonRow] = field(default_factory=list)
    used_signals: list[JsonRow] = field(default_factory=list)
    outbox: list[JsonRow] = field(default_factory=list)
    finished: list[JsonRow] = field(default_factory=list)
    released: list[JsonRow] = field(default_factory=list)
    audit: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    """Commits on their way into one transaction.

    Attributes:
        lost: an attempt broke off, so the transaction may have taken place without our hearing of it.
        marks: (org_id, seq, hash) of an audit entry of every attempt; where one is found, its attempt took place.
    """

    commits: list[Commit]
    lost: bool = False
    marks: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def orgs(self) -> list[str]:
        return sorted({commit.org_id for commit in self.commits})

    def rows(self, part: str) -> list[JsonRow]:
        return [row for commit in self.commits for row in getattr(commit, part)]

    def entries(self) -> dict[str, list[Any]]:
        """Audit entries by organisation."""
        found: dict[str, list[Any]] = {}
        for commit in self.commits:
            if commit.audit:
                found.setdefault(commit.org_id, []).extend(commit.audit)
        return found


class Committer:
    """Group commit for one process. `submit` returns when the commit is durable, or raises why it is not."""

    def __init__(self, database: Database, seal: Seal, *, batch: int = 256) -> None:
        self._database = database
        self._seal = seal
        self._batch = batch
        self._waiting: asyncio.Queue[tuple[Commit, asyncio.Future[None]]] = asyncio.Queue()
        self._heads: dict[str, tuple[int, str]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="committer")

    async def close(self) -> None:
        """Commits what is waiting or under way, then stops; whoever comes later is refused."""
        self._closed = True
        if self._task is None:
            return
        await self._waiting.join()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def submit(self, commit: Commit) -> None:
        """Makes a commit durable.

        Raises:
            LeaseLost: the run belongs to another worker now; nothing was written.
            Conflict: a review that was to be decided is not open any more; nothing was written.
            NotFound: the organisation does not exist; nothing was written.
            Unavailable: the database stayed away; the commit was written once or not at all, and what is in the database
                when it is back tells which.
            asyncpg.PostgresError: a constraint refused it; nothing was written.
        """
        if self._closed:
            raise Unavailable("this process is shutting down; try again with another")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((commit, done))
        await done

    async def _run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                await self._commit_or_split(batch)
            except asyncio.CancelledError:
                for _, done in batch:
                    done.cancel()
                raise
            except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or they wait forever
                for _, done in batch:
                    _refuse(done, error)
            finally:
                for _ in batch:
                    self._waiting.task_done()

    async def _commit_or_split(self, batch: list[tuple[Commit, asyncio.Future[None]]]) -> None:
        """Commits the batch; if something in it is refused, commits one by one, so that only the guilty fail."""
        try:
            await self._commit([commit for commit, _ in batch])
        except Exception as error:  # a row that is not JSON fails in Python, before the database can object
            if len(batch) == 1 or isinstance(error, Unavailable):
                raise
            for commit, done in batch:
                try:
                    await self._commit([commit])
                    _resolve(done)
                except Unavailable:
                    raise
                except Exception as single:  # noqa: BLE001  it is theirs, whatever it is
                    _refuse(done, single)
        else:
            for _, done in batch:
                _resolve(done)

    async def _commit(self, commits: list[Commit]) -> None:
        batch = _Batch(commits)

        async def attempt() -> None:
            try:
                await self._settle(batch, lock=batch.lost)
            except asyncpg.PostgresError as error:
                if error.sqlstate != HEAD_MOVED:
                    raise
                # Another process appended to the same log; this time take the head's lock first.
                await self._settle(batch, lock=True)

        async def attempt_or_doubt() -> None:
            try:
                await attempt()
            except DOWN:
                batch.lost = True
                raise

        try:
            await self._database.retrying(attempt_or_doubt)
        except asyncpg.PostgresError as error:
            self._heads.clear()
            if error.sqlstate == LEASE_LOST:
                raise LeaseLost("the run belongs to another worker now", detail=error.detail) from error
            if error.sqlstate == NOT_OPEN:
                raise Conflict("this review was already decided or is no longer needed") from error
            raise

    async def _settle(self, batch: _Batch, *, lock: bool) -> None:
        entries = batch.entries()
        async with self._database.connection(*batch.orgs) as connection:
            if not lock:
                for org in entries.keys() - self._heads.keys():
                    row = await connection.fetchrow("select seq, hash from audit_heads where org_id = $1", org)
                    if row is not None:
                        self._heads[org] = (row["seq"], row["hash"])
                text, heads = self._write(batch, entries, self._heads)
                await connection.execute("select settle($1)", text)
            else:
                async with connection.transaction():
                    locked = await self._lock(connection, batch, sorted(entries))
                    if batch.lost and await self._landed(connection, batch):
                        self._heads |= locked
                        return
                    text, heads = self._write(batch, entries, locked)
                    await connection.execute("select settle($1)", text)
        self._heads |= heads

    async def _lock(self, connection: Connection, batch: _Batch, orgs: list[str]) -> dict[str, tuple[int, str]]:
        """Locks everything that `settle` would, in the same order, and returns the heads as they are now."""
        runs = [row["run_id"] for part in ("new_signals", "finished", "released") for row in batch.rows(part)]
        runs += [commit.fence[0] for commit in batch.commits if commit.fence]
        await connection.execute(
            "select from queue where run_id = any($1::text[]) order by run_id for update", sorted(runs)
        )
        locked = await connection.fetch(
            "select org_id, seq, hash from audit_heads where org_id = any($1::text[]) order by org_id for update", orgs
        )
        return {row["org_id"]: (row["seq"], row["hash"]) for row in locked}

    async def _landed(self, connection: Connection, batch: _Batch) -> bool:
        """Whether an attempt whose answer was lost took place.

        It is all or nothing, so one row tells. What has neither audit entries nor journal nor new runs may be written twice.
        """
        for org_id, seq, digest in batch.marks:
            query = "select exists(select from audit where org_id = $1 and seq = $2 and hash = $3)"
            if await connection.fetchval(query, org_id, seq, digest):
                return True
        # Only the one who holds the lease writes these keys.
        for row in batch.rows("journal")[:1]:
            query = "select exists(select from journal where run_id = $1 and seq = $2)"
            return bool(await connection.fetchval(query, row["run_id"], row["seq"]))
        for row in batch.rows("new_runs")[:1]:
            query = "select exists(select from runs where run_id = $1)"
            return bool(await connection.fetchval(query, row["run_id"]))
        return False

    def _write(
        self, batch: _Batch, entries: dict[str, list[Any]], heads: dict[str, tuple[int, str]]
    ) -> tuple[str, dict[str, tuple[int, str]]]:
        """What `settle` gets, with the audit entries chained to these heads; and the heads that will be."""
        written: dict[str, Any] = {part: batch.rows(part) for part in PARTS}
        written["orgs"] = ",".join(batch.orgs)
        written["fences"] = [{"run_id": one.fence[0], "fence": one.fence[1]} for one in batch.commits if one.fence]
        moved = self._chain(written, entries, heads)
        for org, (seq, digest) in list(moved.items())[:1]:
            batch.marks.append((org, seq, digest))
        return json.dumps(written, separators=(",", ":")), moved

    def _chain(
        self, written: dict[str, Any], entries: dict[str, list[Any]], heads: dict[str, tuple[int, str]]
    ) -> dict[str, tuple[int, str]]:
        written["audit"], written["heads"], moved = [], [], {}
        for org, of_org in sorted(entries.items()):
            if org not in heads:
                raise NotFound(f'organisation "{org}" does not exist')
            expected, head = heads[org]
            rows, seq, digest = self._seal(of_org, expected, head)
            written["audit"] += rows
            written["heads"].append({"org_id": org, "expected": expected, "seq": seq, "hash": digest})
            moved[org] = (seq, digest)
        return moved


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _refuse(done: asyncio.Future[None], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
