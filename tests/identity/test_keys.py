"""API keys: shown once, kept as a hash, refused without a hint, gone when revoked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from interlock.app import App
from interlock.base.errors import Denied, InvalidInput, NotFound, Unauthenticated
from interlock.identity import auth as module
from interlock.identity.auth import Authenticator, key_id_of
from interlock.identity.principal import Principal
from interlock.store.database import Database
from settled import issue_key, revoke_key

if TYPE_CHECKING:
    from conftest import AppFactory, Tenant

ROLES = frozenset({"operator", "reviewer"})


@pytest.fixture
def authenticator(database: Database) -> Authenticator:
    return Authenticator(database)


@pytest.fixture
def org(tenants: tuple[Tenant, Tenant]) -> str:
    return tenants[0].org_id


async def test_a_key_stands_for_a_user_an_organisation_and_roles(
    database: Database, authenticator: Authenticator, tenants: tuple[Tenant, Tenant]
) -> None:
    for tenant in tenants:
        key = await issue_key(database, tenant.org_id, "eve", ROLES)
        for _ in range(2):  # the second time from memory
            assert await authenticator.authenticate(key) == Principal("eve", tenant.org_id, ROLES)


async def test_keys_differ_and_are_long(database: Database, org: str) -> None:
    keys = [await issue_key(database, org, "eve", ROLES) for _ in range(20)]
    secrets = {key.split("_")[2] for key in keys}
    assert len(secrets) == len({key_id_of(key) for key in keys}) == 20
    assert {len(secret) * 5 for secret in secrets} == {200}  # bits


async def test_what_is_no_key_of_ours_is_refused_in_one_way(
    database: Database, authenticator: Authenticator, org: str
) -> None:
    key, other = [await issue_key(database, org, name, ROLES) for name in ("eve", "bob")]
    _, key_id, secret = key.split("_")
    unknown = [
        f"il_{key_id}_{other.split('_')[2]}",
        f"il_{key_id_of(other)}_{secret}",
        f"il_{'0' * 16}_{secret}",
        f"il_{key_id}_{secret[:-1]}{'0' if secret[-1] != '0' else '1'}",
    ]
    await authenticator.authenticate(key)  # so that it is in memory, too
    messages = set()
    for presented in unknown:
        with pytest.raises(Unauthenticated) as error:
            await authenticator.authenticate(presented)
        messages.add(error.value.message)
    assert len(messages) == 1  # whether the id exists is not told
    for presented in (None, "", key_id, f"il_{key_id}", key.upper(), f"{key} ", f"{key}\n", f" {key}", f"{key}0",
                      f"Bearer {key}", key.replace("il_", "il-"), "il_' or true --", "é" * 60):  # fmt: skip
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(presented)


async def test_a_revoked_key_is_refused_at_once_here_and_soon_elsewhere(
    database: Database, authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch, org: str
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    elsewhere = Authenticator(database)
    key = await issue_key(database, org, "eve", ROLES)
    for process in (authenticator, elsewhere):
        await process.authenticate(key)
    await revoke_key(database, org, key_id_of(key))
    authenticator.forget(key_id_of(key))
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(key)
    now += module._CACHE_SECONDS
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(key)
    assert module._CACHE_SECONDS <= 5  # the promise of the kill switch
    with pytest.raises(asyncpg.PostgresError, match="no such key"):
        await revoke_key(database, org, key_id_of(key))


async def test_only_its_own_organisation_can_revoke_a_key(app: App, admin: Principal, other_admin: Principal) -> None:
    key = await app.admin.issue_key(admin, "eve", ROLES)
    with pytest.raises(NotFound):
        await app.admin.revoke_key(other_admin, key_id_of(key))
    assert (await app.authenticator.authenticate(key)).user_id == "eve"
    await app.admin.revoke_key(admin, key_id_of(key))
    with pytest.raises(NotFound):
        await app.admin.revoke_key(admin, key_id_of(key))


@pytest.mark.parametrize("roles", [set(), {"root"}, {"admin", "root"}, {"Admin"}, {""}])
async def test_unknown_roles_are_refused(
    database: Database, owner: psycopg.Connection[Any], org: str, roles: set[str]
) -> None:
    with pytest.raises(InvalidInput, match=r"use some of admin, developer, operator, reviewer, viewer"):
        await issue_key(database, org, "eve", frozenset(roles))
    assert owner.execute("select count(*) from api_keys").fetchone() == (0,)


@pytest.mark.parametrize("user", ["", "x" * 201, "nul \0"])
async def test_a_key_needs_a_user(database: Database, org: str, user: str) -> None:
    with pytest.raises(InvalidInput):
        await issue_key(database, org, user, ROLES)


@pytest.mark.parametrize("org_id", ["", "Acme", "1acme", "-acme", "ac me", "a,b", "acme\n", "a" * 64, "ä", "a_b", "*"])
async def test_an_organisations_name_cannot_be_mistaken_for_several(
    app: App, owner: psycopg.Connection[Any], org_id: str
) -> None:
    before = owner.execute("select count(*) from orgs").fetchone()
    with pytest.raises(InvalidInput):
        await app.admin.ensure_org(org_id, "An organisation")
    assert owner.execute("select count(*) from orgs").fetchone() == before


async def test_an_organisation_is_made_once_and_on_record(
    app_factory: AppFactory, owner: psycopg.Connection[Any]
) -> None:
    first, second = await app_factory(), await app_factory()
    await asyncio.gather(*(one.admin.ensure_org("initech-2", "Initech") for one in (first, second, first, second)))
    await second.admin.ensure_org("initech-2", "Another")
    assert owner.execute("select name from orgs where org_id = 'initech-2'").fetchall() == [("Initech",)]
    assert owner.execute("select seq from audit_heads where org_id = 'initech-2'").fetchall() == [(1,)]
    entries = owner.execute("select entry ->> 'event_type' from audit where org_id = 'initech-2'").fetchall()
    assert entries == [("org.created",)]
    assert (await first.audit.verify("initech-2")).ok


async def test_the_secret_is_stored_nowhere(
    app: App, owner: psycopg.Connection[Any], tmp_path_factory: pytest.TempPathFactory, admin: Principal
) -> None:
    key = await app.admin.issue_key(admin, "eve", ROLES)
    await app.authenticator.authenticate(key)
    await app.admin.revoke_key(admin, key_id_of(key))
    tables = owner.execute(
        "select format('%I.%I', n.nspname, relname) from pg_class c join pg_namespace n on n.oid = relnamespace "
        "where relkind = 'r' and nspname = 'public'"
    ).fetchall()
    dump = "\n".join(str(row[0]) for (table,) in tables for row in owner.execute(f"select t::text from {table} t"))
    secret = key.split("_")[2]
    assert key_id_of(key) in dump  # so we did look in the right place
    assert secret not in dump
    assert secret.encode().hex() not in dump
    files = [path for path in app.data.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret.encode() in path.read_bytes()]


async def test_issuing_and_revoking_are_on_record(app: App, admin: Principal, other_admin: Principal) -> None:
    key = await app.admin.issue_key(admin, "eve", ROLES)
    await app.admin.revoke_key(admin, key_id_of(key))
    rows = [row["entry"] async for row in app.audit.all(admin.org_id)]
    recorded = [(row["event_type"], row["actor"], row["resource"]) for row in rows if "key" in row["event_type"]]
    resource = f"key:{key_id_of(key)}"
    assert recorded == [("key.created", "user:ada", resource), ("key.revoked", "user:ada", resource)]
    assert not [row async for row in app.audit.all(other_admin.org_id) if "key" in row["entry"]["event_type"]]


async def test_only_an_admin_manages_keys(app: App, admin: Principal) -> None:
    key = await app.admin.issue_key(admin, "eve", frozenset({"developer", "operator", "reviewer", "viewer"}))
    eve = await app.authenticator.authenticate(key)
    with pytest.raises(Denied):
        await app.admin.issue_key(eve, "eve", frozenset({"admin"}))
    with pytest.raises(Denied):
        await app.admin.revoke_key(eve, key_id_of(key))
    assert (await app.authenticator.authenticate(key)).user_id == "eve"


async def test_the_local_key_is_made_once_and_private(app_factory: AppFactory) -> None:
    app = await app_factory()
    principal, key = await app.admin.local_principal()
    assert principal.roles == {"admin"}
    assert await app.authenticator.authenticate(key) == principal
    path = app.data / "client.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await (await app_factory()).admin.local_principal())[1] == key
