"""Values: stored once, encrypted, named by a digest that only we can compute, and gone for good when their subject goes."""

from __future__ import annotations

import hashlib
import hmac
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.base.errors import Erased, IntegrityError, NotFound, PayloadTooLarge
from interlock.base.labels import DEFINED, Labels
from interlock.base.refs import Ref, canonical_json
from interlock.guard.gate import composed
from interlock.store.artifacts import INLINE_BYTES, Artifacts
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.keys import KeyStore
from interlock.store.objects import Objects
from interlock.store.sweeper import ObjectSweeper

from .conftest import MASTER_KEY

if TYPE_CHECKING:
    from conftest import Tenant

LIMIT = 1024 * 1024
VALUE = {"card": "4111 1111 1111 1111"}


def about(*subjects: str) -> Labels:
    return replace(DEFINED, subjects=frozenset(subjects))


class Process:
    """The keys and artifacts of one process of the installation."""

    def __init__(self, database: Database, committer: Committer, objects: Path, master_key: bytes = MASTER_KEY) -> None:
        self.keys = KeyStore(database, master_key)
        self.artifacts = Artifacts(database, self.keys, Objects.local(objects), limit_bytes=LIMIT)
        self._committer = committer

    async def store(self, org_id: str, value: Any, labels: Labels | None = None) -> Ref:
        sealed = await self.artifacts.seal(org_id, composed(value), labels or DEFINED)
        await self._committer.submit(Commit(org_id, artifacts=[sealed.row]))
        return sealed.ref


@pytest.fixture
def new_process(database: Database, committer: Committer, tmp_path: Path) -> Callable[..., Process]:
    return lambda **options: Process(database, committer, tmp_path / "objects", **options)


@pytest.fixture
def process(new_process: Callable[..., Process]) -> Process:
    return new_process()


@pytest.fixture
def org(tenants: tuple[Tenant, Tenant]) -> str:
    return tenants[0].org_id


@pytest.fixture
def other(tenants: tuple[Tenant, Tenant]) -> str:
    return tenants[1].org_id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, subjects=st.frozensets(st.sampled_from("abc")))
async def test_what_is_stored_comes_back(process: Process, org: str, value: Any, subjects: frozenset[str]) -> None:
    ref = await process.store(org, value, replace(DEFINED, subjects=subjects))
    assert await process.artifacts.open(org, ref) == value
    assert ref.size == len(canonical_json(value))


async def test_one_value_has_one_name_in_one_place_only(process: Process, org: str, other: str) -> None:
    names = {
        (await process.store(place, VALUE, labels)).digest
        for place in (org, other)
        for labels in (about(), about("a"), about("b"), about("a", "b"))
        for _ in range(2)
    }
    assert len(names) == 8


async def test_the_name_does_not_confirm_a_guess(process: Process, owner: psycopg.Connection[Any], org: str) -> None:
    plain = canonical_json(VALUE)
    digest = (await process.store(org, VALUE, about("a"))).digest
    # Everything that somebody with a copy of the database has to try, without the master key.
    known = [row[0] for row in owner.execute("select wrapped from subject_keys").fetchall()]
    known += [b"", org.encode(), b"a", bytes(32)]
    guesses = {hashlib.sha256(plain).hexdigest()} | {hmac.new(key, plain, hashlib.sha256).hexdigest() for key in known}
    assert digest not in guesses


async def test_nothing_readable_is_stored(
    process: Process, owner: psycopg.Connection[Any], org: str, tmp_path: Path
) -> None:
    secret = "a sentence that must not be found"
    await process.store(org, {"text": secret}, about(process.keys.pseudonym(org, "Ada Lovelace")))
    await process.store(org, {"text": secret * 10_000})
    stored = b"".join(bytes(row[0]) for row in owner.execute("select ciphertext from artifacts where object is null"))
    files = [path.read_bytes() for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert stored
    assert files
    for bytes_ in [stored, *files]:
        assert secret.encode() not in bytes_
    everything = str(
        owner.execute("select * from artifacts").fetchall() + owner.execute("select * from subject_keys").fetchall()
    )
    assert "Lovelace" not in everything


async def test_a_pseudonym_is_stable_and_tells_nothing(process: Process, org: str, other: str) -> None:
    name = process.keys.pseudonym(org, "ada")
    assert name == process.keys.pseudonym(org, "ada")
    assert "ada" not in name
    assert len({name, process.keys.pseudonym(other, "ada"), process.keys.pseudonym(org, "eve")}) == 3


async def test_another_organisation_cannot_open_a_reference(process: Process, org: str, other: str) -> None:
    ref = await process.store(org, VALUE)
    with pytest.raises(NotFound):
        await process.artifacts.open(other, ref)


async def test_altered_bytes_are_found(
    process: Process, owner: psycopg.Connection[Any], org: str, tmp_path: Path
) -> None:
    small, large = await process.store(org, VALUE), await process.store(org, "x" * INLINE_BYTES)
    stored = owner.execute("select ciphertext from artifacts where digest = %s", (small.digest,)).fetchone()
    assert stored is not None
    for position in (0, 12, len(stored[0]) - 1):  # the nonce, the text, the tag
        altered = bytearray(stored[0])
        altered[position] ^= 1
        owner.execute("update artifacts set ciphertext = %s where digest = %s", (bytes(altered), small.digest))
        with pytest.raises(IntegrityError):
            await process.artifacts.open(org, small)
    owner.execute("update artifacts set ciphertext = '' where digest = %s", (small.digest,))
    with pytest.raises(IntegrityError):
        await process.artifacts.open(org, small)

    (file,) = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        await process.artifacts.open(org, large)
    file.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        await process.artifacts.open(org, large)


async def test_one_stored_value_cannot_stand_in_for_another(
    process: Process, owner: psycopg.Connection[Any], org: str, other: str
) -> None:
    poor, rich = await process.store(org, {"balance": 1}), await process.store(org, {"balance": 10**6})
    owner.execute(
        "update artifacts set ciphertext = (select ciphertext from artifacts where digest = %s) where digest = %s",
        (rich.digest, poor.digest),
    )
    with pytest.raises(IntegrityError):
        await process.artifacts.open(org, poor)
    owner.execute("insert into artifacts select %s, digest, size, subjects, ciphertext from artifacts", (other,))
    with pytest.raises(IntegrityError):
        await process.artifacts.open(other, rich)


async def test_another_master_key_opens_nothing(
    process: Process, new_process: Callable[..., Process], org: str
) -> None:
    ref = await process.store(org, VALUE)
    stranger = new_process(master_key=bytes(32))
    with pytest.raises(IntegrityError, match="master key"):
        await stranger.artifacts.open(org, ref)
    with pytest.raises(IntegrityError, match="master key"):
        await stranger.store(org, "new")


async def test_two_processes_make_one_key(new_process: Callable[..., Process], org: str) -> None:
    processes = [new_process() for _ in range(5)]
    refs = [await process.store(org, n, about("new")) for n, process in enumerate(processes)]
    for process in processes:
        assert [await process.artifacts.open(org, ref) for ref in refs] == [0, 1, 2, 3, 4]


async def test_erasing_a_subject_erases_everything_about_them_and_nothing_else(
    process: Process, new_process: Callable[..., Process], owner: psycopg.Connection[Any], org: str, other: str
) -> None:
    bystander = new_process()  # another process, which has all the keys in its memory
    gone = [
        await process.store(org, {"n": n, "text": "x" * size}, labels)
        for n, labels in enumerate((about("a"), about("a", "b"), about("a", "b", "c")))
        for size in (1, INLINE_BYTES)
    ]
    kept = {
        place: [
            await process.store(place, {"n": n}, labels)
            for n, labels in enumerate((about(), about("b"), about("b", "c")))
        ]
        for place in (org, other)
    }
    kept[other].append(await process.store(other, {"n": 3}, about("a")))  # the same name, another organisation's person
    for one in (process, bystander):
        for ref in gone:
            assert await one.artifacts.open(org, ref)
        for place, refs in kept.items():
            assert [await one.artifacts.open(place, ref) for ref in refs] == [{"n": n} for n in range(len(refs))]

    assert await process.keys.destroy(org, "a")
    assert not await process.keys.destroy(org, "a")

    for one in (process, bystander, new_process()):
        for ref in gone:
            with pytest.raises(Erased):
                await one.artifacts.open(org, ref)
        with pytest.raises(Erased):
            await one.store(org, {"n": "new"}, about("a"))
        with pytest.raises(Erased):
            await one.store(org, {"n": "new"}, about("b", "a"))
        for place, refs in kept.items():
            assert [await one.artifacts.open(place, ref) for ref in refs] == [{"n": n} for n in range(len(refs))]
        assert await one.artifacts.open(org, await one.store(org, "new", about("b"))) == "new"
    wrapped = owner.execute(
        "select wrapped, destroyed_at is not null from subject_keys where (org_id, subject) = (%s, 'a')", (org,)
    )
    assert wrapped.fetchall() == [(None, True)]


async def test_erasing_somebody_unknown_changes_nothing(process: Process, org: str) -> None:
    assert not await process.keys.destroy(org, "nobody")
    assert await process.artifacts.open(org, await process.store(org, VALUE, about("nobody"))) == VALUE


@pytest.mark.parametrize(("size", "inline"), [(INLINE_BYTES - 28, True), (INLINE_BYTES - 27, False), (LIMIT, False)])
async def test_large_values_go_to_the_object_store(
    process: Process, owner: psycopg.Connection[Any], org: str, tmp_path: Path, size: int, inline: bool
) -> None:
    value = "x" * (size - 2)  # and two quotation marks; sealing adds a nonce of 12 bytes and a tag of 16
    ref = await process.store(org, value)
    assert ref.size == size
    row = owner.execute("select ciphertext is not null, object is not null from artifacts").fetchone()
    assert row == (inline, not inline)
    files = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert len(files) == (not inline)
    assert await process.artifacts.open(org, ref) == value
    assert (await process.store(org, value)).digest == ref.digest  # stored again, it is the same
    assert await process.artifacts.open(org, ref) == value


async def test_a_value_over_the_limit_is_refused_before_anything_is_stored(
    process: Process, owner: psycopg.Connection[Any], org: str, tmp_path: Path
) -> None:
    with pytest.raises(PayloadTooLarge, match=str(LIMIT)):
        await process.store(org, "x" * (LIMIT - 1))
    assert owner.execute("select count(*) from artifacts").fetchone() == (0,)
    assert not any(path.is_file() for path in (tmp_path / "objects").rglob("*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: object()}, {1, 2}])
async def test_what_is_not_json_is_refused(process: Process, org: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        await process.store(org, value)


# -- objects and rows --------------------------------------------------------------------------------------------

# Stores a large value, and dies before the commit that would name it.
DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from interlock.base.labels import DEFINED, Labels
from interlock.guard.gate import composed
from interlock.store.artifacts import Artifacts
from interlock.store.database import Database
from interlock.store.keys import KeyStore
from interlock.store.objects import Objects


async def main() -> None:
    database = Database(sys.argv[1])
    await database.open()
    keys, objects = KeyStore(database, bytes.fromhex(sys.argv[4])), Objects.local(Path(sys.argv[2]))
    artifacts = Artifacts(database, keys, objects, limit_bytes=10**6)
    await artifacts.seal(sys.argv[3], composed("x" * 200_000), DEFINED)
    os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(main())
"""


def stored(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def named(owner: psycopg.Connection[Any]) -> set[str]:
    return {row[0] for row in owner.execute("select object from artifacts where object is not null")}


def sweeper_of(database: Database, directory: Path) -> ObjectSweeper:
    return ObjectSweeper(database, Objects.local(directory))


async def test_a_digest_stores_nothing(
    process: Process, org: str, owner: psycopg.Connection[Any], tmp_path: Path
) -> None:
    artifacts = process.artifacts
    digest = await artifacts.digest(org, "x" * 200_000, about("anna"))
    assert stored(tmp_path / "objects") == set()
    for table in ("artifacts", "pending_objects"):
        assert owner.execute(f"select count(*) from {table}").fetchone() == (0,)
    assert (await artifacts.seal(org, composed("x" * 200_000), about("anna"))).ref.digest == digest


async def test_a_process_that_dies_between_object_and_commit_leaves_work_for_the_sweeper(
    process: Process,
    org: str,
    database: Database,
    committer: Committer,
    owner: psycopg.Connection[Any],
    tmp_path: Path,
) -> None:
    objects = tmp_path / "objects"
    artifacts = process.artifacts
    kept = await artifacts.seal(org, composed("y" * 200_000), DEFINED)
    await committer.submit(Commit(org, artifacts=[kept.row]))
    again = await artifacts.seal(org, composed("y" * 200_000), DEFINED)
    await committer.submit(
        Commit(org, artifacts=[again.row])
    )  # the same value: the first object stays the one that counts
    command = [sys.executable, "-c", DIES, database.url, str(objects), org, MASTER_KEY.hex()]
    died = subprocess.run(command, check=False, capture_output=True, env={**os.environ})
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert len(stored(objects)) == 3
    assert named(owner) == {kept.row.object}

    sweeper = sweeper_of(database, objects)
    assert await sweeper.sweep() == 0, "it may be about to be committed"
    assert await sweeper.sweep(grace_seconds=0) == 2
    assert stored(objects) == named(owner) == {kept.row.object}
    assert owner.execute("select count(*) from pending_objects").fetchone() == (0,)
    assert await artifacts.open(org, again.ref) == "y" * 200_000


async def test_a_commit_that_comes_after_the_sweeper_is_refused(
    process: Process,
    org: str,
    database: Database,
    committer: Committer,
    owner: psycopg.Connection[Any],
    tmp_path: Path,
) -> None:
    late = await process.artifacts.seal(org, composed("x" * 200_000), DEFINED)
    # A sweeper that dies after its mark: the object is there, and the next one deletes it.
    assert [row["name"] for row in await database.rows("sweep_objects", 0.0, 10)] == [late.row.object]
    with pytest.raises(asyncpg.PostgresError, match="swept"):
        await committer.submit(Commit(org, artifacts=[late.row]))
    assert named(owner) == set()
    assert await sweeper_of(database, tmp_path / "objects").sweep(grace_seconds=0) == 1
    assert stored(tmp_path / "objects") == set()
