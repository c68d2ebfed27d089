"""Row-level security: what the application's role can see and do, whatever the application's code says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from interlock.store.database import Database
from interlock.store.migrate import migrate

from .conftest import MASTER_KEY
from .rows import contents, populate, tables_with_org

if TYPE_CHECKING:
    from conftest import Tenant

APP = "interlock_app"


@pytest.fixture
def populated(owner: psycopg.Connection[Any], workflow: None, tenants: tuple[Tenant, Tenant]) -> None:
    for tenant in tenants:
        populate(owner, tenant.org_id)
    empty = [
        table
        for table in tables_with_org(owner)
        if owner.execute(f"select count(distinct org_id) from {table}").fetchone() != (2,)
    ]
    assert not empty, f"give {empty} a row in rows.populate, or the tests below say nothing about it"


@pytest.fixture
def app_role(owner_url: str, database_url: str) -> Iterator[psycopg.Connection[Any]]:
    migrate(
        owner_url, MASTER_KEY
    )  # a copy of a database has its tables' privileges but not its own, as after a restore
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert connection.execute("select current_user").fetchone() == (APP,)
        yield connection


def scope(connection: psycopg.Connection[Any], *orgs: str) -> None:
    connection.execute("select set_config('interlock.orgs', %s, false)", (",".join(orgs),))


def count(connection: psycopg.Connection[Any], table: str, condition: str = "true") -> int:
    row = connection.execute(f"select count(*) from {table} where {condition}").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("populated")
def test_without_a_scope_nothing_is_seen(
    owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    tables = tables_with_org(owner)
    assert {"runs", "audit", "artifacts", "spans", "outbox"} <= set(tables)
    assert {table: count(app_role, table) for table in tables} == dict.fromkeys(tables, 0)
    scope(app_role, "")
    assert {table: count(app_role, table) for table in tables} == dict.fromkeys(tables, 0)
    scope(app_role, *(tenant.org_id for tenant in tenants))
    assert all(count(app_role, table) >= 2 for table in tables)


@pytest.mark.usefixtures("populated")
def test_with_a_scope_only_that_organisation_is_seen(
    owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    ours, theirs = (tenant.org_id for tenant in tenants)
    scope(app_role, ours)
    for table in tables_with_org(owner):
        assert count(app_role, table) == count(owner, table, f"org_id = '{ours}'") > 0, table
        assert count(app_role, table, f"org_id = '{theirs}'") == 0, table


@pytest.mark.usefixtures("populated")
def test_rows_of_another_organisation_cannot_be_written(
    owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    ours, theirs = (tenant.org_id for tenant in tenants)
    before = contents(owner)
    scope(app_role, ours)
    for table in tables_with_org(owner):
        row = owner.execute(f"select to_jsonb(t) from {table} t where org_id = %s limit 1", (theirs,)).fetchone()
        assert row is not None
        statement = (
            f"insert into {table} overriding system value select * from jsonb_populate_record(null::{table}, %s)"
        )
        with pytest.raises(errors.InsufficientPrivilege):
            app_role.execute(statement, (Jsonb(row[0]),))
        with pytest.raises(errors.InsufficientPrivilege):  # not even by giving away what is ours
            app_role.execute(f"update {table} set org_id = %s", (theirs,))
    assert contents(owner) == before


@pytest.mark.usefixtures("populated")
def test_rows_of_another_organisation_cannot_be_changed_or_deleted(
    owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    ours, theirs = (tenant.org_id for tenant in tenants)
    before = contents(owner)
    scope(app_role, ours)
    for table in tables_with_org(owner):
        for statement in (
            f"update {table} set org_id = org_id where org_id = '{theirs}'",
            f"delete from {table} where org_id = '{theirs}'",
        ):
            try:
                touched = app_role.execute(statement).rowcount
            except errors.InsufficientPrivilege:
                continue  # nobody may do this here, not even with their own
            assert touched == 0, statement
    assert contents(owner) == before


def test_every_table_is_guarded_or_read_only(owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any]) -> None:
    guarded = set(tables_with_org(owner))
    rows = owner.execute(
        "select c.relname, c.relrowsecurity, c.relowner = 'interlock_app'::regrole, "
        "array(select p.privilege_type::text from information_schema.table_privileges p "
        "      where p.table_name = c.relname and p.grantee in ('interlock_app', 'PUBLIC')) "
        "from pg_class c where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')"
    ).fetchall()
    assert len(rows) > len(guarded)
    for table, secured, owned, privileges in rows:
        assert not owned, table
        assert "TRUNCATE" not in privileges, table
        if table in guarded:
            assert secured, table
        else:
            assert set(privileges) <= {"SELECT"}, table


def test_functions_that_run_as_the_owner_cannot_be_led_astray(owner: psycopg.Connection[Any]) -> None:
    # Without pg_temp at the end of the path, a temporary table named like one of ours would be looked at first.
    rows = owner.execute(
        "select proname, prosecdef, array_to_string(proconfig, ';') from pg_proc "
        "where pronamespace = 'public'::regnamespace and (prosecdef or prorettype = 'trigger'::regtype)"
    ).fetchall()
    assert sum(definer for _, definer, _ in rows) >= 5
    paths = {name: [one for one in settings.split(";") if one.startswith("search_path=")] for name, _, settings in rows}
    assert [name for name, path in paths.items() if path != ["search_path=public, pg_temp"]] == []


REFUSED = [
    "set role postgres",
    "set session authorization postgres",
    "set session_replication_role = replica",
    "alter system set row_security = off",
    "alter role interlock_app superuser",
    "alter role interlock_app bypassrls",
    "create role intruder",
    "alter table audit disable row level security",
    "alter table audit disable trigger all",
    "alter table runs disable trigger moves",
    "alter table runs owner to interlock_app",
    "drop policy tenant on runs",
    "create policy open on runs using (true)",
    "drop table audit",
    "truncate audit",
    "truncate journal",
    "create table stage (x text)",
    "create temporary table queue (run_id text)",
    "create view everything as select * from runs",
    "create materialized view everything as select * from runs",
    "create schema mine",
    "create function mine() returns int language sql as 'select 1'",
    "create function pg_temp.mine() returns int language sql as 'select 1'",
    "create or replace function queue_depth() returns bigint language sql as 'select 0::bigint'",
    "alter function claim_runs(text, double precision, integer, text, integer, integer) owner to interlock_app",
    "create trigger mine before insert on audit for each row execute function refuse_change()",
    "create extension vector",
    "create database mine",
    "insert into run_moves values ('succeeded', 'running')",
    "delete from run_moves",
    "insert into effect_moves values ('succeeded', 'executing')",
    "select * from pg_authid",
    "select pg_read_file('postgresql.conf')",
    "select lo_import('/etc/hostname')",
    "copy audit to program 'cat'",
    "copy audit from '/dev/null'",
    "update audit_heads set seq = 0, hash = ''",
    "insert into audit_heads (org_id) values ('acme')",
    "insert into audit values ('acme', 1, 'e', '{}', '', 'h', 'k', 's', '0/1:')",
    "select lo_create(0)",
    "select lo_creat(-1)",
    "select lo_from_bytea(0, 'x')",
    "select lo_put(1, 0, 'x')",
]


def accepted(connection: psycopg.Connection[Any], statements: list[str]) -> list[str]:
    """Those of the statements that were not refused for want of privileges."""
    found = []
    for statement in statements:
        try:
            connection.execute(sql.SQL(statement))
        except errors.InsufficientPrivilege:
            continue
        found.append(statement)
    return found


def test_ways_around_the_guard_are_refused(app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]) -> None:
    scope(app_role, tenants[0].org_id)
    assert accepted(app_role, REFUSED) == []
    assert accepted(app_role, ["select 1"]) == ["select 1"]


@pytest.mark.usefixtures("populated")
def test_switching_row_security_off_shows_nothing(
    owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any]
) -> None:
    # Anybody may set this variable; for a role that security applies to it means "fail rather than filter".
    app_role.execute("set row_security = off")
    for table in tables_with_org(owner):
        with pytest.raises(errors.InsufficientPrivilege):
            app_role.execute(f"select * from {table}")


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("table", ["audit", "journal"])
@pytest.mark.parametrize("statement", ["update {} set org_id = org_id", "delete from {}", "truncate {}"])
def test_the_record_is_append_only_for_everybody(
    owner: psycopg.Connection[Any],
    app_role: psycopg.Connection[Any],
    tenants: tuple[Tenant, Tenant],
    table: str,
    statement: str,
) -> None:
    before = contents(owner)
    scope(app_role, tenants[0].org_id)
    with pytest.raises(errors.InsufficientPrivilege):
        app_role.execute(statement.format(table))
    with pytest.raises(psycopg.Error) as refused:
        owner.execute(statement.format(table))
    assert refused.value.sqlstate == "IL003"
    assert contents(owner) == before


@pytest.mark.usefixtures("populated")
def test_what_may_not_vanish_cannot_be_removed(
    app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    kept = (
        "artifacts",
        "workflow_versions",
        "policy_sets",
        "active_policies",
        "runs",
        "effects",
        "reviews",
        "approvals",
        "orgs",
        "api_keys",
        "subject_keys",
        "audit_heads",
    )
    changes = ["update artifacts set ciphertext = null", "update workflow_versions set definition = '{}'"]
    changes.append("update policy_sets set text = 'permit(principal, action, resource);'")
    scope(app_role, tenants[0].org_id)
    assert accepted(app_role, changes + [f"delete from {table}" for table in kept]) == []


@pytest.mark.usefixtures("populated")
def test_rows_cannot_be_planted_at_a_run_of_another_organisation(
    owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    """A planted row could take the next number of a journal, and its refusal could tell whether a run exists."""
    ours, theirs = (tenant.org_id for tenant in tenants)
    before = contents(owner)
    scope(app_role, ours)
    tables = owner.execute(
        "select table_name from information_schema.columns where table_schema = 'public' and column_name in ('run_id', 'org_id') "
        "and table_name not in ('runs', 'followed_runs') group by 1 having count(*) = 2 order by 1"
    ).fetchall()
    assert len(tables) >= 11
    free = {"seq": 999, "signal_id": 999, "vault_id": 999, "step": "free", "command": "free", "idempotency_key": "free",
            "review_id": "free", "dead_letter_id": "free", "call_id": "free"}  # fmt: skip
    answers = set()
    for (table,) in tables:
        row = owner.execute(f"select to_jsonb(t) from {table} t where org_id = %s limit 1", (ours,)).fetchone()
        assert row is not None
        for run_id in (f"run_{theirs}", "run_unknown"):
            kept = {name: value for name, value in free.items() if name in row[0]}
            if isinstance(row[0].get("signal_id"), str):
                kept["signal_id"] = "free"
            if table == "queue":  # one row a run
                owner.execute("delete from queue where run_id = %s", (run_id,))
                before["queue"] = contents(owner)["queue"]
            statement = (
                f"insert into {table} overriding system value select * from jsonb_populate_record(null::{table}, %s)"
            )
            with pytest.raises(psycopg.Error) as refused:
                app_role.execute(statement, (Jsonb({**row[0], **kept, "run_id": run_id}),))
            answers.add((table, refused.value.sqlstate))
    assert contents(owner) == before
    assert len(answers) == len(tables), "the same answer for both"
    assert {state for _, state in answers} <= {"23503", "IL007"}


def test_a_head_moves_only_with_entries_that_continue_the_log(
    owner: psycopg.Connection[Any], app_role: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    ours, theirs = (tenant.org_id for tenant in tenants)
    owner.execute("update audit_heads set seq = 5, hash = 'h5'")
    scope(app_role, ours)

    def row(org_id: str, seq: int, prev_hash: str) -> dict[str, Any]:
        rest = {"event_id": "e", "entry": {}, "key_id": "k", "signature": "s", "proof": "0/1:"}
        return {"org_id": org_id, "seq": seq, "prev_hash": prev_hash, "hash": f"h{seq}", **rest}

    def head(org_id: str, expected: int, seq: int, digest: str) -> dict[str, Any]:
        return {"org_id": org_id, "expected": expected, "seq": seq, "hash": digest}

    def move(heads: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        app_role.execute("select settle_v1_audit(%s, %s)", (Jsonb(heads), Jsonb(rows)))

    for heads, rows in (
        ([head(ours, 5, 0, "")], []),  # back
        ([head(ours, 5, 6, "h6")], []),  # without entries
        ([head(ours, 5, 6, "other")], [row(ours, 6, "h5")]),  # to another hash
        ([head(ours, 5, 7, "h7")], [row(ours, 7, "h5")]),  # past a gap
        ([head(ours, 5, 6, "h6")], [row(ours, 6, "h4")]),  # from another place
        ([head(ours, 5, 6, "h6")], [row(ours, 6, "h5"), row(theirs, 6, "h5")]),
        ([head(theirs, 5, 6, "h6")], [row(theirs, 6, "h5")]),
        ([], [row(ours, 6, "h5")]),
    ):
        with pytest.raises(psycopg.Error) as refused:
            move(heads, rows)
        assert refused.value.sqlstate == "IL003", (heads, rows)
    with pytest.raises(psycopg.Error) as refused:
        move([head(ours, 4, 5, "h5")], [row(ours, 5, "h4")])
    assert refused.value.sqlstate == "IL002"
    assert app_role.execute("select * from lock_audit_heads(%s)", ([ours, theirs],)).fetchall() == [(ours, 5, "h5")]
    move([head(ours, 5, 7, "h7")], [row(ours, 6, "h5"), row(ours, 7, "h6")])
    assert owner.execute("select seq, hash from audit_heads order by org_id").fetchall() == [(7, "h7"), (5, "h5")]


async def test_what_the_role_sets_for_itself_does_not_last(owner_url: str, database_url: str) -> None:
    """A role may change its own defaults, and they persist: connections bring their own, and `migrate` removes them."""
    name = urlsplit(database_url).path.lstrip("/")
    with psycopg.connect(database_url, autocommit=True) as connection:
        try:
            for statement in (
                "alter role interlock_app set search_path = 'elsewhere'",
                "alter role interlock_app set row_security = off",
                f'alter role interlock_app in database "{name}" set search_path = elsewhere',
            ):
                connection.execute(sql.SQL(statement))
            database = Database(database_url, pool_size=1)
            await database.open()
            assert await database.rows("list_quotas", org="acme") == []
            for opened in (await database.dedicated(), await database.listen("x", print)):
                assert await opened.fetchval("show search_path") == "public, pg_temp"
                assert await opened.fetchval("show row_security") == "on"
                await opened.close()
            await database.close()
        finally:
            migrate(owner_url, MASTER_KEY)
    with psycopg.connect(database_url) as connection:
        shown = [connection.execute(sql.SQL(f"show {one}")).fetchone() for one in ("search_path", "row_security")]
    assert shown == [('"$user", public',), ("on",)]
