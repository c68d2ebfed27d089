"""Verifies an audit log. Stand-alone: standard library plus one signature library; reads JSON lines, needs no database.

    python verify.py audit.jsonl --public-key KEY_ID=HEX

Guarantees of an entry: `hash` covers the entry, its position (`org_id`, `seq`) and the previous hash. Entries that were written
together are the leaves of a hash tree (RFC 6962, section 2.1); `signature` is Ed25519 (RFC 8032) over its root, and `proof` is the
entry's place in the tree, number of leaves and inclusion path. So each entry can be verified alone, and a changed, removed,
inserted or moved entry is detected, and the first bad position named. Not detectable from the log alone: missing entries at its
end; compare `seq` with a copy stored elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Record(TypedDict):
    """A stored entry, as exported."""

    org_id: str
    seq: int
    event_id: str
    entry: Mapping[str, object]
    prev_hash: str
    hash: str
    key_id: str
    signature: str
    proof: str


@dataclass(frozen=True)
class Verification:
    """Number of valid entries, and the first problem (None if there is none)."""

    verified: int
    problem: str | None = None
    last_hash: str = ""
    last_seq: int = 0

    @property
    def ok(self) -> bool:
        return self.problem is None


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def entry_hash(org_id: str, seq: int, prev_hash: str, entry: Mapping[str, object]) -> str:
    """SHA-256 over canonical JSON: sorted keys, no spaces, ASCII. Hexadecimal."""
    body = {"org_id": org_id, "seq": seq, "prev_hash": prev_hash, "entry": entry}
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def leaf_hash(entry: bytes) -> bytes:
    """Hash of a leaf of the tree: RFC 6962, with an entry's hash as its data."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of a node with two children, as in RFC 6962."""
    return hashlib.sha256(b"\1" + left + right).digest()


def signed_text(root: bytes, leaves: int) -> bytes:
    """The bytes that are signed for a tree."""
    return b"interlock audit\0" + leaves.to_bytes(8, "big") + root


# One spelling for each proof: otherwise two copies of an intact log could differ. Of 30 levels at most.
_PROOF = re.compile(r"(0|[1-9][0-9]{0,8})/([1-9][0-9]{0,8}):((?:[0-9a-f]{64}){0,30})")


def _signed(digest: str, proof: str) -> bytes | None:
    """The bytes that were signed, by an entry's hash and proof; None for a proof that is not of this form."""
    match = _PROOF.fullmatch(proof)
    if match is None:
        return None
    place, width, path = int(match[1]), int(match[2]), bytes.fromhex(match[3])
    leaves, used, node = width, 0, leaf_hash(bytes.fromhex(digest))
    while width > 1:
        if place ^ 1 < width:  # the last node of a level may have no sibling; it moves up as it is
            sibling, used = path[used : used + 32], used + 32
            node = node_hash(sibling, node) if place & 1 else node_hash(node, sibling)
        place, width = place >> 1, (width + 1) >> 1
    return signed_text(node, leaves) if place == 0 and used == len(path) else None


class _Signatures:
    """Checks signatures; entries of one tree have the same, which is checked once."""

    def __init__(self, public_keys: Mapping[str, bytes]) -> None:
        self._keys = {key_id: Ed25519PublicKey.from_public_bytes(raw) for key_id, raw in public_keys.items()}
        self._good: tuple[str, str, bytes] | None = None

    def problem(self, row: Record) -> str | None:
        key, text = self._keys.get(row["key_id"]), _signed(row["hash"], row["proof"])
        if key is None:
            return f"is signed with key {row['key_id']}, which is not among the known keys"
        if text is None:
            return "has a proof that is none"
        if self._good == (row["key_id"], row["signature"], text):
            return None
        signature = bytes.fromhex(row["signature"])
        try:
            key.verify(signature, text)
        except InvalidSignature:
            return "has a signature that does not fit"
        if signature.hex() != row["signature"]:
            return "has a signature in another spelling"
        self._good = (row["key_id"], row["signature"], text)
        return None


def verify(rows: Iterable[Record], public_keys: Mapping[str, bytes], *, org_id: str) -> Verification:
    """Checks rows in order of `seq`, from 1; one in another form than `Record` is a problem of the log."""
    signatures = _Signatures(public_keys)
    expected, previous, count = 1, "", 0
    for row in rows:
        try:
            problem = _row_problem(row, expected, previous, org_id) or signatures.problem(row)
        except (KeyError, TypeError, ValueError, RecursionError):
            problem = "does not have the form of an entry"
        if problem is not None:
            return Verification(count, f"entry {expected}: {problem}", previous, expected - 1)
        expected, previous, count = expected + 1, row["hash"], count + 1
    return Verification(count, None, previous, expected - 1)


def _row_problem(row: Record, expected: int, previous: str, org_id: str) -> str | None:
    if row["seq"] != expected:
        return f"is missing; the next one there is {row['seq']}"
    if row["org_id"] != org_id:
        return f"belongs to another organisation, {row['org_id']}"
    if row["prev_hash"] != previous:
        return "does not follow the entry before it"
    if entry_hash(org_id, row["seq"], row["prev_hash"], row["entry"]) != row["hash"]:
        return "was changed after it was written"
    if row["event_id"] != row["entry"]["event_id"]:
        return "is listed under the id of another event"
    return None


def main() -> int:
    """Command line: 0 verified, 1 tampered with, 2 unusable arguments."""
    parser = argparse.ArgumentParser(description="verify an exported Interlock audit log")
    parser.add_argument("log", type=Path, help="JSON lines, as written by `interlock audit export`")
    parser.add_argument(
        "--public-key", action="append", default=[], metavar="KEY_ID=HEX", help="from `interlock audit key`"
    )
    arguments = parser.parse_args()
    try:
        keys = {name: bytes.fromhex(value) for name, _, value in (item.partition("=") for item in arguments.public_key)}
        rows = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").split("\n") if line]
        verdict = verify(rows, keys, org_id=rows[0].get("org_id", "") if rows else "")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        print(f"cannot read: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"audit: {verdict.verified} entries verified" if verdict.ok else f"audit: TAMPERED: {verdict.problem}")  # noqa: T201
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
