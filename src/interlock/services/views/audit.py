"""Views of the audit log."""

from __future__ import annotations

from interlock.base.json import JsonField
from interlock.services.views.base import View


class AuditEntryView(View):
    """An entry with its place in the chain; the hash covers `entry` letter for letter.

    Attributes:
        signature: of the hash tree over the entries that were written together.
        proof: the entry's place in the tree, the number of leaves and the inclusion path: `PLACE/LEAVES:PATH`.
    """

    org_id: str
    seq: int
    event_id: str
    entry: dict[str, JsonField]
    prev_hash: str
    hash: str
    key_id: str
    signature: str
    proof: str


class AuditPage(View):
    """Entries in order. `next` is the `after` of the next page; null if this one is not full."""

    entries: list[AuditEntryView]
    next: int | None = None


class AuditVerdict(View):
    """`verified` counts the good entries before the first problem; `last_hash` is that of the last good one."""

    ok: bool
    verified: int
    problem: str | None
    last_hash: str


class AuditKeys(View):
    """Public keys that verify entries, hexadecimal, by id."""

    keys: dict[str, str]
