"""The log in the database: what is written verifies after the way through jsonb, and the owner's tampering shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.audit.heads import FILE, KeptHeads
from interlock.audit.log import AuditLog
from interlock.audit.records import AuditRecords
from interlock.audit.verify import entry_hash
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database

from .logs import AUDIT_KEY, entry, trusted

if TYPE_CHECKING:
    from conftest import Tenant

Write = Callable[..., Awaitable[None]]


@pytest.fixture
async def write(database: Database) -> AsyncIterator[Write]:
    """Appends entries to an organisation's log."""
    committer = Committer(database, AuditLog(AUDIT_KEY).seal)
    committer.start()

    async def write(org_id: str, count: int, **detail: Any) -> None:
        await committer.submit(Commit(org_id, audit=[entry(org_id, n, **detail) for n in range(count)]))

    yield write
    await committer.close()


class Heads:
    """The file of heads of one process, and the heads that the process knows."""

    def __init__(self, directory: Path, owner: psycopg.Connection[Any]) -> None:
        self.file = directory / FILE
        self.known: dict[str, tuple[int, str]] = {}
        self.kept = KeptHeads(directory, AuditLog(AUDIT_KEY), lambda: self.known)
        self._owner = owner

    def stored(self, org: str) -> tuple[int, str]:
        (head,) = self._owner.execute("select seq, hash from audit_heads where org_id = %s", (org,)).fetchall()
        return head

    async def note(self, org: str) -> None:
        """The process reads the log's head and writes it down."""
        self.known[org] = self.stored(org)
        await self.kept.keep()


@pytest.fixture
def heads(tmp_path: Path, owner: psycopg.Connection[Any]) -> Heads:
    return Heads(tmp_path, owner)


@pytest.fixture
def records(database: Database, heads: Heads) -> AuditRecords:
    return AuditRecords(database, trusted(AUDIT_KEY), heads.kept.read)


@pytest.fixture
def orgs(tenants: tuple[Tenant, Tenant]) -> tuple[str, str]:
    return tenants[0].org_id, tenants[1].org_id


async def test_an_intact_log_is_verified(records: AuditRecords, write: Write, orgs: tuple[str, str]) -> None:
    assert (await records.verify(orgs[0])).verified == 0
    for count in (1, 2, 1005):  # more than a page
        await write(orgs[0], count)
    await write(orgs[1], 3)
    verdicts = [await records.verify(org) for org in orgs]
    assert [(verdict.ok, verdict.verified) for verdict in verdicts] == [(True, 1008), (True, 3)]


async def test_an_entry_has_every_field_that_was_promised(
    records: AuditRecords, write: Write, orgs: tuple[str, str]
) -> None:
    await write(orgs[0], 1)
    (row,) = await records.page(orgs[0])
    assert row["entry"] == {
        "event_id": row["event_id"],
        "timestamp": "1970-01-12T13:46:40.250000+00:00",
        "trace_id": "0" * 32,
        "run_id": "run_0",
        "event_type": "tool.call",
        "actor": "user:ada",
        "action": "call_tool",
        "resource": "tool:pay",
        "decision": "allow",
        "policy_version": "p1",
        "risk_score": 0,
        "detail": {"n": 0},
    }
    assert row["event_id"].startswith("evt_")
    assert len(bytes.fromhex(row["signature"])) == 64


TEXT = st.text(st.characters(codec=None, categories=None), max_size=8)  # surrogates and NUL as well
DETAIL = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(details=st.lists(DETAIL, min_size=1, max_size=8))
async def test_whatever_a_detail_holds_it_verifies_after_the_way_through_the_database(
    records: AuditRecords,
    write: Write,
    owner: psycopg.Connection[Any],
    orgs: tuple[str, str],
    details: list[Any],
) -> None:
    before = owner.execute("select seq from audit_heads where org_id = %s", (orgs[0],)).fetchone()
    assert before is not None
    await write(orgs[0], 1, values=details)
    (row,) = await records.page(orgs[0], after=before[0])
    assert entry_hash(orgs[0], row["seq"], row["prev_hash"], row["entry"]) == row["hash"]


@pytest.mark.parametrize(
    "value", [1e16, 1e-7, -0.0, 1.0, 1e300, float("inf"), float("nan"), {2: "b", 10: "a"}, "\0", "\ud800"]
)
async def test_values_that_change_their_spelling_on_the_way(
    records: AuditRecords, write: Write, orgs: tuple[str, str], value: Any
) -> None:
    await write(orgs[0], 1, value=value)
    assert (await records.verify(orgs[0])).ok


async def test_pages_and_runs(records: AuditRecords, write: Write, orgs: tuple[str, str]) -> None:
    await write(orgs[0], 6)
    await write(orgs[1], 2)
    assert [row["seq"] for row in await records.page(orgs[0], after=2, limit=3)] == [3, 4, 5]
    assert [row["seq"] for row in await records.page(orgs[0], run_id="run_4")] == [5]
    everything = [row async for row in records.all(orgs[1])]
    assert [(row["org_id"], row["seq"]) for row in everything] == [(orgs[1], 1), (orgs[1], 2)]


TAMPERING = [
    ("update audit set entry = jsonb_set(entry, '{decision}', '\"deny\"') where seq = 3", "entry 3: was changed"),
    ("update audit set entry = jsonb_set(entry, '{detail, n}', '9') where seq = 3", "entry 3: was changed"),
    ("update audit set event_id = 'evt_other' where seq = 3", "entry 3: is listed"),
    ("delete from audit where seq = 3", "entry 3: is missing"),
    ("delete from audit where seq <= 2", "entry 1: is missing"),
    ("update audit set seq = seq + 1 where seq >= 5; ", "entry 5: is missing"),
    (
        "update audit a set entry = b.entry, event_id = b.event_id from audit b "
        "where a.org_id = b.org_id and a.seq = 3 and b.seq = 4",
        "entry 3: was changed",
    ),
    (
        "update audit set seq = -seq where seq in (3, 4); update audit set seq = 7 + seq where seq < 0",
        "entry 3: does not follow",
    ),
    (
        "update audit a set entry = b.entry, event_id = b.event_id, hash = b.hash, signature = b.signature "
        "from audit b where a.org_id = 'acme' and b.org_id = 'globex' and a.seq = b.seq and a.seq = 3",
        "entry 3: was changed",
    ),
    ("update audit set key_id = 'unknown' where seq = 3", "entry 3: is signed with key unknown"),
    ("update audit set signature = repeat('0', 128) where seq = 3", "entry 3: has a signature"),
    (
        "insert into audit select org_id, 7, 'evt_more', jsonb_set(entry, '{event_id}', '\"evt_more\"'), hash, hash, "
        "key_id, signature, proof from audit where seq = 6",
        "entry 7: was changed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "place"), TAMPERING)
async def test_the_owners_tampering_shows(
    records: AuditRecords,
    write: Write,
    owner: psycopg.Connection[Any],
    orgs: tuple[str, str],
    statements: str,
    place: str,
) -> None:
    for org in orgs:
        await write(org, 6)
    owner.execute("alter table audit drop constraint audit_pkey")  # whoever owns the table can do even this
    owner.execute("set session_replication_role = replica")
    owner.execute(statements.strip())
    verdict = await records.verify(orgs[0])
    assert not verdict.ok
    assert str(verdict.problem).startswith(place)


async def test_a_forger_with_a_key_of_their_own_is_not_believed(
    records: AuditRecords, write: Write, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    """The whole log written anew, correctly chained and signed, heads included."""
    await write(orgs[0], 3)
    forged, seq, head = AuditLog(bytes(32)).seal([entry(orgs[0], n, forged=True) for n in range(3)], 0, "")
    owner.execute("set session_replication_role = replica")
    for row in forged:
        owner.execute(
            "update audit set entry = %s, event_id = %s, prev_hash = %s, hash = %s, key_id = %s, signature = %s, "
            "proof = %s where seq = %s",
            (psycopg.types.json.Jsonb(row.entry), row.event_id, row.prev_hash, row.hash, row.key_id, row.signature,
             row.proof, row.seq),
        )  # fmt: skip
    owner.execute("update audit_heads set seq = %s, hash = %s where org_id = %s", (seq, head, orgs[0]))
    assert "not among the known keys" in str((await records.verify(orgs[0])).problem)


# -- a log whose end is gone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 4, 8])
async def test_a_cut_off_end_shows_by_the_head_in_the_database(
    records: AuditRecords, write: Write, owner: psycopg.Connection[Any], orgs: tuple[str, str], left: int
) -> None:
    for org in orgs:
        await write(org, 9)
    owner.execute("set session_replication_role = replica")
    owner.execute("delete from audit where org_id = %s and seq > %s", (orgs[0], left))
    verdict = await records.verify(orgs[0])
    assert verdict.problem == f"entry {left + 1}: is missing; by audit_heads the log has 9 entries"
    assert verdict.verified == left
    assert (await records.verify(orgs[1])).ok


@pytest.mark.parametrize("left", [0, 4])
async def test_a_log_and_its_head_set_back_show_by_the_kept_head(
    records: AuditRecords, write: Write, owner: psycopg.Connection[Any], orgs: tuple[str, str], left: int, heads: Heads
) -> None:
    await write(orgs[0], left)
    before = heads.stored(orgs[0])
    await write(orgs[0], 9 - left)
    await heads.note(orgs[0])
    owner.execute("set session_replication_role = replica")
    owner.execute("delete from audit where org_id = %s and seq > %s", (orgs[0], left))
    owner.execute("update audit_heads set seq = %s, hash = %s where org_id = %s", (*before, orgs[0]))
    missing = f"entry {left + 1}: is missing; by the file of kept heads the log has 9 entries"
    assert (await records.verify(orgs[0])).problem == missing
    await heads.note(orgs[0])  # the file does not go back
    assert (await records.verify(orgs[0])).problem == missing


async def test_another_log_of_the_same_length_shows_by_the_kept_head(
    records: AuditRecords, write: Write, orgs: tuple[str, str], heads: Heads
) -> None:
    """As after a database was set back, and the installation went on from there."""
    await write(orgs[0], 3)
    heads.known[orgs[0]] = (3, "0" * 64)
    await heads.kept.keep()
    assert (await records.verify(orgs[0])).problem == "entry 3: is another one than the file of kept heads says"


async def test_a_longer_log_than_the_heads_say_is_intact(
    records: AuditRecords, write: Write, orgs: tuple[str, str], heads: Heads
) -> None:
    await write(orgs[0], 2)
    await heads.note(orgs[0])
    await write(orgs[0], 2)
    assert (await records.verify(orgs[0])).verified == 4


@pytest.mark.parametrize("how", ["a number", "the signature", "no JSON", "a list", "deep"])
async def test_an_altered_file_of_heads_is_found_and_kept(
    records: AuditRecords, write: Write, orgs: tuple[str, str], heads: Heads, how: str
) -> None:
    await write(orgs[0], 3)
    await heads.note(orgs[0])
    assert heads.file.stat().st_mode & 0o077 == 0
    whole = json.loads(heads.file.read_text())
    altered = {
        "a number": json.dumps({**whole, "heads": {orgs[0]: [1, whole["heads"][orgs[0]][1]]}}),
        "the signature": json.dumps({**whole, "signature": "00" * 64}),
        "no JSON": "x",
        "a list": "[1]",
        "deep": "[" * 100_000,
    }[how]
    heads.file.write_text(altered)
    assert f"{heads.file}: was altered" in str((await records.verify(orgs[0])).problem)
    await write(orgs[0], 1)
    await heads.note(orgs[0])
    assert heads.file.read_text() == altered


@pytest.mark.parametrize("detail", ["1" + "0" * 5000, "[" * 3000 + "]" * 3000, "1e400"])
async def test_an_entry_that_python_cannot_read_is_a_finding(
    records: AuditRecords, write: Write, owner: psycopg.Connection[Any], orgs: tuple[str, str], detail: str
) -> None:
    await write(orgs[0], 3)
    owner.execute("set session_replication_role = replica")
    owner.execute("update audit set entry = jsonb_set(entry, '{detail}', %s) where seq = 2", (detail,))
    assert str((await records.verify(orgs[0])).problem).startswith("entry 2: was changed")
    assert [row["seq"] for row in await records.page(orgs[0])] == [1, 2, 3]
