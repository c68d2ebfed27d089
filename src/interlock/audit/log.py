"""Audit log: actor, action, resource and decision of every call, chained by hash and signed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from interlock.audit.verify import entry_hash
from interlock.base.ids import new_id
from interlock.base.json import Json
from interlock.store.entries import Entry
from interlock.store.rows import AuditRow


class AuditLog:
    """Makes chained, signed rows of entries. The caller keeps the chain's head: it commits rows and head together."""

    def __init__(self, private_key: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.key_id = hashlib.sha256(self.public_key).hexdigest()[:16]

    def seal(self, entries: list[Entry], seq: int, head: str) -> tuple[list[AuditRow], int, str]:
        """Rows for entries of one organisation after entry number `seq` with hash `head`; also returns the new head."""
        rows = []
        for entry in entries:
            seq += 1
            event_id = new_id("evt")
            body = _body(event_id, entry)
            digest = entry_hash(entry.org_id, seq, head, body)
            rows.append(
                AuditRow(
                    org_id=entry.org_id,
                    seq=seq,
                    event_id=event_id,
                    entry=body,
                    prev_hash=head,
                    hash=digest,
                    key_id=self.key_id,
                    signature=self._key.sign(bytes.fromhex(digest)).hex(),
                )
            )
            head = digest
        return rows, seq, head


def _body(event_id: str, entry: Entry) -> dict[str, Json]:
    return {
        "event_id": event_id,
        "timestamp": datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="microseconds"),
        "trace_id": entry.trace_id,
        "run_id": entry.run_id,
        "event_type": entry.event_type,
        "actor": entry.actor,
        "action": entry.action,
        "resource": entry.resource,
        "decision": entry.decision,
        "policy_version": entry.policy_version,
        "risk_score": entry.risk_score,
        "detail": _exact(entry.detail),
    }


def _exact(value: Json) -> Json:
    """The value in a form that the database returns unchanged; otherwise it would no longer match its hash.

    A float may come back in another notation, and a key that is not a string at another position; a text may not
    contain NUL.
    """
    if (type(value) is str and value.isascii() and "\0" not in value) or value is None or isinstance(value, int):
        return value  # nearly all values
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return {_name(str(key)): _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    return value


def _name(text: str) -> str:
    return text if text.isascii() and "\0" not in text else _text(text)


def _text(text: str) -> str:
    return text.replace("\0", "").encode(errors="replace").decode()
