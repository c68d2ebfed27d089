"""Row-level security: what the application's role can see and do, whatever the application's code says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

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
