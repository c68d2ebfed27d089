"""Reading the audit log of an organisation: pages, export, verification."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from interlock.audit.heads import Heads
from interlock.audit.verify import Record, Verification, verify
from interlock.base.errors import IntegrityError
from interlock.store.database import Database

_PAGE = 1000


class AuditRecords:
    """The stored log.

    Args:
        public_keys: keys that this installation trusts, by id; no row of the database can add one.
        kept: gives the heads that are kept outside the database; raises IntegrityError.
    """

    def __init__(self, database: Database, public_keys: dict[str, bytes], kept: Callable[[], Heads]) -> None:
        self._database = database
        self._kept = kept
        self.public_keys = public_keys

    async def page(self, org_id: str, *, after: int = 0, run_id: str | None = None, limit: int = 100) -> list[Record]:
        """Rows after a sequence number, in order."""
        rows = await self._database.rows("list_audit", org_id, after, run_id, min(limit, _PAGE), org=org_id)
        return [
            Record(
                org_id=org_id,
                seq=row["seq"],
                event_id=row["event_id"],
                entry=_entry(row["entry"]),
                prev_hash=row["prev_hash"],
                hash=row["hash"],
                key_id=row["key_id"],
                signature=row["signature"],
                proof=row["proof"],
            )
            for row in rows
        ]

    async def all(self, org_id: str) -> AsyncIterator[Record]:
        """Every row, in order, in the form that `verify.py` reads."""
        after = 0
        while rows := await self.page(org_id, after=after, limit=_PAGE):
            for row in rows:
                yield row
            after = rows[-1]["seq"]

    async def verify(self, org_id: str) -> Verification:
        """Verifies the whole log, and that it reaches as far as the heads say, in the database and outside of it."""
        try:
            kept = await asyncio.to_thread(self._kept)
        except IntegrityError as error:
            return Verification(0, error.message)
        stored = await self._database.row("audit_heads", [org_id], org=org_id)
        heads = [("audit_heads", (stored["seq"], stored["hash"]))] if stored is not None else []
        heads += [("the file of kept heads", kept[org_id])] if org_id in kept else []
        rows = [row async for row in self.all(org_id)]  # after the heads, so it is at least as long
        found = await asyncio.to_thread(verify, rows, self.public_keys, org_id=org_id)
        for place, head in heads if found.ok else []:
            problem = _problem_of(rows, head, place)
            if problem is not None:
                return replace(found, problem=problem)
        return found


def _problem_of(rows: list[Record], head: tuple[int, str], place: str) -> str | None:
    """The first entry of a valid log that is not there, or is not the one that was there when the head was noted."""
    seq, digest = head
    if seq > len(rows):
        return f"entry {len(rows) + 1}: is missing; by {place} the log has {seq} entries"
    if seq and rows[seq - 1]["hash"] != digest:
        return f"entry {seq}: is another one than {place} says"
    return None


def _entry(text: str) -> dict[str, object]:
    """The stored entry; empty if it is no JSON object that Python reads, so that its hash is found not to fit."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):  # a number of 5,000 digits, 3,000 levels
        return {}
    return entry if isinstance(entry, dict) else {}
