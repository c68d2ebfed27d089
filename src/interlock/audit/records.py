"""Reading the audit log of an organisation: pages, export, verification."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from interlock.audit.verify import Record, Verification, verify
from interlock.store.database import Database

_PAGE = 1000


class AuditRecords:
    """The stored log. `public_keys` are the keys this installation trusts, by id; no row of the database can add one."""

    def __init__(self, database: Database, public_keys: dict[str, bytes]) -> None:
        self._database = database
        self.public_keys = public_keys

    async def page(self, org_id: str, *, after: int = 0, run_id: str | None = None, limit: int = 100) -> list[Record]:
        """Rows after a sequence number, in order."""
        rows = await self._database.rows("list_audit", org_id, after, run_id, min(limit, _PAGE), org=org_id)
        return [
            Record(
                org_id=org_id,
                seq=row["seq"],
                event_id=row["event_id"],
                entry=row["entry"],
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
        """Verifies the whole log, in a thread, because a long log takes some time."""
        rows = [row async for row in self.all(org_id)]
        return await asyncio.to_thread(verify, rows, self.public_keys, org_id=org_id)
