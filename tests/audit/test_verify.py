"""The verifier on exported rows: every change is found, and the first bad place named."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interlock.audit.log import AuditLog
from interlock.audit.verify import verify

from .logs import AUDIT_KEY, NEXT_KEY, entry, export, trusted

Rows = list[dict[str, Any]]

LOG = export("acme", 7, keys=(AUDIT_KEY, NEXT_KEY))
KEYS = trusted(AUDIT_KEY, NEXT_KEY)


def problem(rows: Rows, **options: Any) -> str:
    verdict = verify(rows, options.get("keys", KEYS), org_id="acme")
    assert not verdict.ok
    assert verdict.problem is not None
    return verdict.problem


def test_an_intact_log_is_verified_across_a_change_of_keys() -> None:
    verdict = verify(LOG, KEYS, org_id="acme")
    assert (verdict.ok, verdict.verified, verdict.last_seq) == (True, 7, 7)
    assert verdict.last_hash == LOG[-1]["hash"]
    assert verify([], KEYS, org_id="acme").verified == 0


def change(rows: Rows) -> None:
    rows[3]["entry"]["decision"] = "deny"


def remove(rows: Rows) -> None:
    del rows[3]


def remove_the_first(rows: Rows) -> None:
    del rows[0]


def cut_out_the_middle(rows: Rows) -> None:
    del rows[2:5]


def double(rows: Rows) -> None:
    rows.insert(3, copy.deepcopy(rows[2]))


def swap_places(rows: Rows) -> None:
    rows[2], rows[3] = rows[3], rows[2]


def swap_entries(rows: Rows) -> None:
    rows[2]["entry"], rows[3]["entry"] = rows[3]["entry"], rows[2]["entry"]


def renumber_after_removal(rows: Rows) -> None:
    del rows[3]
    for row in rows[3:]:
        row["seq"] -= 1


def insert_with_another_key(rows: Rows) -> None:
    forged, _, _ = AuditLog(bytes(32)).seal([entry("acme", 99)], 3, rows[2]["hash"])
    rows.insert(3, asdict(forged[0]))


def rewrite_from_here_with_another_key(rows: Rows) -> None:
    forged, _, _ = AuditLog(bytes(32)).seal([entry("acme", n) for n in range(90, 94)], 3, rows[2]["hash"])
    rows[3:] = map(asdict, forged)


def rewrite_and_claim_our_key(rows: Rows) -> None:
    rewrite_from_here_with_another_key(rows)
    for row in rows[3:]:
        row["key_id"] = rows[0]["key_id"]


def take_from_another_organisation(rows: Rows) -> None:
    rows[3] = export("globex", 7, keys=(AUDIT_KEY, NEXT_KEY))[3]


@pytest.mark.parametrize(
    ("tamper", "place"),
    [
        (change, "entry 4: was changed"),
        (remove, "entry 4: is missing"),
        (remove_the_first, "entry 1: is missing"),
        (cut_out_the_middle, "entry 3: is missing"),
        (double, "entry 4: is missing; the next one there is 3"),
        (swap_places, "entry 3: is missing; the next one there is 4"),
        (swap_entries, "entry 3: was changed"),
        (renumber_after_removal, "entry 4: does not follow"),
        (insert_with_another_key, "entry 4: is signed with key"),
        (rewrite_from_here_with_another_key, "entry 4: is signed with key"),
        (rewrite_and_claim_our_key, "entry 4: has a signature that does not fit"),
        (take_from_another_organisation, "entry 4: belongs to another organisation"),
    ],
)
def test_tampering_is_found_and_its_place_named(tamper: Callable[[Rows], None], place: str) -> None:
    rows = copy.deepcopy(LOG)
    tamper(rows)
    assert problem(rows).startswith(place)
    verdict = verify(rows, KEYS, org_id="acme")
    assert verdict.verified == verdict.last_seq == int(place.split()[1].rstrip(":")) - 1


def test_a_whole_log_of_another_organisation_is_not_ours() -> None:
    assert problem(export("globex", 3)).startswith("entry 1: belongs to another organisation")
    claimed = export("globex", 3)
    for row in claimed:
        row["org_id"] = "acme"
    assert problem(claimed).startswith("entry 1: was changed")


def test_a_key_that_nobody_vouches_for_proves_nothing() -> None:
    assert "not among the known keys" in problem(LOG, keys={})
    assert problem(LOG, keys=trusted(AUDIT_KEY)).startswith("entry 5: is signed with key")
    (name,) = trusted(AUDIT_KEY)
    assert problem(LOG, keys={name: next(iter(trusted(NEXT_KEY).values()))}).startswith("entry 1: has a signature")


def test_a_cut_off_end_shows_only_against_a_copy_kept_elsewhere() -> None:
    verdict = verify(LOG[:5], KEYS, org_id="acme")
    assert verdict.ok  # nothing inside a log can say what came after it
    kept_elsewhere = (LOG[-1]["seq"], LOG[-1]["hash"])
    assert (verdict.last_seq, verdict.last_hash) != kept_elsewhere
    assert verify(LOG, KEYS, org_id="acme").last_hash == kept_elsewhere[1]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree_head(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if len(leaves) == 1:
        return sha(b"\x00" + leaves[0])
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return sha(b"\x01" + tree_head(leaves[:middle]) + tree_head(leaves[middle:]))


def audit_path(place: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    if place < middle:
        return [*audit_path(place, leaves[:middle]), tree_head(leaves[middle:])]
    return [*audit_path(place - middle, leaves[middle:]), tree_head(leaves[:middle])]


@pytest.mark.parametrize("count", [*range(1, 18), 31, 32, 33, 100])
def test_entries_written_together_share_a_signature_and_each_has_its_proof(count: int) -> None:
    rows = export("acme", count)
    hashes = [bytes.fromhex(row["hash"]) for row in rows]
    (raw,) = trusted(AUDIT_KEY).values()
    (signature,) = {row["signature"] for row in rows}
    signed = b"interlock audit\x00" + count.to_bytes(8, "big") + tree_head(hashes)
    Ed25519PublicKey.from_public_bytes(raw).verify(bytes.fromhex(signature), signed)
    for place, row in enumerate(rows):
        assert row["proof"] == f"{place}/{count}:" + b"".join(audit_path(place, hashes)).hex()
    assert verify(rows, trusted(AUDIT_KEY), org_id="acme").verified == count


@pytest.mark.parametrize(
    "proof",
    [
        lambda place, leaves, path: f"{place}/{leaves + 1}:{path}",
        lambda place, leaves, path: f"{place + 1}/{leaves}:{path}",
        lambda place, leaves, path: f"{place + leaves}/{leaves}:{path}",
        lambda place, leaves, path: f"{place}/{leaves}:{path[64:]}",
        lambda place, leaves, path: f"{place}/{leaves}:{path}{path[:64]}",
        lambda place, leaves, path: f"0{place}/{leaves}:{path}",
        lambda place, leaves, path: f"{place}/{leaves}:{path.upper()}",
        lambda place, leaves, path: f"{place}/{leaves}:{path}\n",
        lambda place, leaves, path: f"0/1:{path}",
        lambda place, leaves, path: "0/1:",
        lambda place, leaves, path: f"0/0:{path}",
        lambda place, leaves, path: "",
    ],
)
def test_another_proof_is_found(proof: Callable[[int, int, str], str]) -> None:
    for place in range(5):
        rows = export("acme", 5)
        head, _, path = rows[place]["proof"].partition(":")
        assert head == f"{place}/5"
        rows[place]["proof"] = proof(place, 5, path)
        assert problem(rows).startswith(f"entry {place + 1}: has a ")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every field in a JSON value, the inner ones too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
PLACES = [(index, *path) for index, row in enumerate(LOG) for path in places(row)]


def slightly(draw: Callable[..., Any], value: Any) -> Any:
    """Something near the old value: what a forger would try, and what a lenient parser would let pass."""
    if isinstance(value, str) and value:
        at = draw(st.integers(0, len(value) - 1))
        other = draw(st.sampled_from([value[at].upper(), value[at].lower(), "0", "f", " ", ""]))
        return draw(st.sampled_from([value[:at] + other + value[at + 1 :], value + " ", " " + value, value.upper()]))
    if isinstance(value, int):
        return draw(st.sampled_from([value + 1, float(value), str(value), bool(value), -value]))
    if isinstance(value, dict):
        return draw(st.sampled_from([{**value, "more": 1}, dict(list(value.items())[1:]), [value]]))
    return draw(SCALARS)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_any_change_of_any_field_is_found(data: st.DataObject) -> None:
    rows = copy.deepcopy(LOG)
    *path, last = data.draw(st.sampled_from(PLACES))
    holder: Any = rows
    for key in path:
        holder = holder[key]
    how = data.draw(st.sampled_from(["replace", "slightly", "delete"]))
    if how == "delete":
        del holder[last]
    else:
        holder[last] = data.draw(ANYTHING) if how == "replace" else slightly(data.draw, holder[last])
    assume(json.dumps(rows, sort_keys=True) != json.dumps(LOG, sort_keys=True))
    assert problem(rows)


def test_every_field_is_among_those_changed_above() -> None:
    assert {path[1] for path in PLACES} == {
        "org_id", "seq", "event_id", "entry", "prev_hash", "hash", "key_id", "signature", "proof",
    }  # fmt: skip
    assert {"timestamp", "trace_id", "event_type", "actor", "action", "resource", "decision", "policy_version",
            "risk_score", "run_id", "event_id", "detail"} == {path[2] for path in PLACES if len(path) == 3}  # fmt: skip


@pytest.mark.parametrize("row", [None, 7, "entry", [], {}, {"seq": 1}, {**LOG[0], "entry": {"x": float("nan")}}])
def test_what_is_no_entry_is_a_finding_and_not_a_crash(row: Any) -> None:
    assert problem([row]).startswith("entry 1: ")
