"""Audit log: actor, action, resource and decision of every call, chained by hash and signed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from interlock.audit.verify import entry_hash, leaf_hash, node_hash, signed_text
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

    def sign(self, text: bytes) -> str:
        """Signature, hexadecimal. A text begins with what it is, so that no signature can stand for one of another kind."""
        return self._key.sign(text).hex()

    def signed(self, text: bytes, signature: str) -> bool:
        """True if the signature is this key's; raises ValueError if it is not hexadecimal."""
        try:
            self._key.public_key().verify(bytes.fromhex(signature), text)
        except InvalidSignature:
            return False
        return True

    def seal(self, entries: list[Entry], seq: int, head: str) -> tuple[list[AuditRow], int, str]:
        """Rows for entries of one organisation after entry number `seq` with hash `head`; also returns the new head.

        One signature covers them all, because it takes ten times as long as the rest of a row.
        """
        hashes, bodies = [head], []
        for number, entry in enumerate(entries, seq + 1):
            bodies.append(_body(new_id("evt"), entry))
            hashes.append(entry_hash(entry.org_id, number, hashes[-1], bodies[-1]))
        root, proofs = _tree(hashes[1:])
        signature = self.sign(signed_text(root, len(entries)))
        rows = [
            AuditRow(
                org_id=entry.org_id,
                seq=number,
                event_id=str(body["event_id"]),
                entry=body,
                prev_hash=previous,
                hash=digest,
                key_id=self.key_id,
                signature=signature,
                proof=proof,
            )
            for number, (entry, body, previous, digest, proof) in enumerate(
                zip(entries, bodies, hashes[:-1], hashes[1:], proofs, strict=True), seq + 1
            )
        ]
        return rows, seq + len(entries), hashes[-1]


def _tree(hashes: list[str]) -> tuple[bytes, list[str]]:
    """Root of the hash tree over entries, and each entry's proof as `verify` reads it."""
    level = [leaf_hash(bytes.fromhex(digest)) for digest in hashes]
    lower: list[list[str]] = []
    while len(level) > 1:
        lower.append([node.hex() for node in level])
        pairs = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = [*pairs, level[-1]] if len(level) % 2 else pairs
    proofs = []
    for leaf in range(len(hashes)):
        path, place = "", leaf
        for nodes in lower:
            if place ^ 1 < len(nodes):
                path += nodes[place ^ 1]
            place >>= 1
        proofs.append(f"{leaf}/{len(hashes)}:{path}")
    return level[0], proofs


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
