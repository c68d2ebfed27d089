"""The audit log as its readers use it: pages, export, verification, public keys."""

from __future__ import annotations

from collections.abc import AsyncIterator

from interlock.audit.records import AuditRecords
from interlock.identity.principal import Principal
from interlock.services.views.audit import AuditEntryView, AuditKeys, AuditVerdict


class AuditTrail:
    """Reads the log of the principal's organisation."""

    def __init__(self, records: AuditRecords) -> None:
        self._records = records

    async def page(
        self, principal: Principal, *, after: int = 0, run_id: str | None = None, limit: int = 100
    ) -> list[AuditEntryView]:
        """Entries after a sequence number, in order."""
        principal.require("audit.read")
        rows = await self._records.page(principal.org_id, after=after, run_id=run_id, limit=limit)
        return [AuditEntryView.model_validate(row) for row in rows]

    async def verify(self, principal: Principal) -> AuditVerdict:
        """Verifies the organisation's whole log."""
        principal.require("audit.read")
        found = await self._records.verify(principal.org_id)
        return AuditVerdict(ok=found.ok, verified=found.verified, problem=found.problem, last_hash=found.last_hash)

    async def public_keys(self, principal: Principal) -> AuditKeys:
        """The keys that verify this installation's entries."""
        principal.require("audit.read")
        return AuditKeys(keys={key_id: raw.hex() for key_id, raw in self._records.public_keys.items()})

    async def export(self, principal: Principal) -> AsyncIterator[AuditEntryView]:
        """The whole log in order. The permission is checked before the iterator is returned."""
        principal.require("audit.read")
        return self._rows(principal.org_id)

    async def _rows(self, org_id: str) -> AsyncIterator[AuditEntryView]:
        async for row in self._records.all(org_id):
            yield AuditEntryView.model_validate(row)
