"""Migrations: once each, whoever starts at the same moment or was killed in the middle."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from interlock.base.errors import Unavailable
from interlock.store import migrate as module
from interlock.store.migrate import APP_ROLE, app_url, is_privileged, migrate

from .conftest import MASTER_KEY

if TYPE_CHECKING:
    from conftest import Server

SPAWN = multiprocessing.get_context("spawn")


def migrate_in_process(url: str) -> list[str]:
    return migrate(url, MASTER_KEY)


def die_in_the_middle(url: str) -> None:
    """Migrates, and is killed after the first migration has run and before anything else happens."""
    apply = module._apply

    def cut_off(backend: Any, migrations: Any) -> list[str]:
        mark = backend.mark_one

        def mark_and_die(migration: Any) -> None:
            mark(migration)
            os.kill(os.getpid(), signal.SIGKILL)

        backend.mark_one = mark_and_die
        return apply(backend, migrations)

    module._apply = cut_off
    migrate(url, MASTER_KEY)


def all_migrations(server: Server) -> list[str]:
    url = server.create_database(template=None)
    try:
        return migrate(url, MASTER_KEY)
    finally:
        server.drop_database(url)


def test_a_second_time_nothing_is_left_to_do(empty_url: str) -> None:
    first = migrate(empty_url, MASTER_KEY)
    assert len(first) >= 2
    assert first == sorted(first)
    assert migrate(empty_url, MASTER_KEY) == []


def test_processes_that_start_together_apply_each_migration_once(server: Server, empty_url: str) -> None:
    another = server.create_database(template=None)  # of the same server: roles are shared, locks are not
    try:
        with ProcessPoolExecutor(4, mp_context=SPAWN) as pool:
            results = list(pool.map(migrate_in_process, [empty_url, another] * 3))
    finally:
        server.drop_database(another)
    expected = all_migrations(server)
    assert sorted(results[0::2]) == [[], [], expected]
    assert sorted(results[1::2]) == [[], [], expected]


def test_the_next_one_completes_what_a_killed_one_began(server: Server, empty_url: str) -> None:
    process = SPAWN.Process(target=die_in_the_middle, args=(empty_url,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert migrate(empty_url, MASTER_KEY) == all_migrations(server)
    assert migrate(empty_url, MASTER_KEY) == []


def test_a_lock_that_a_killed_process_left_behind_does_not_bind(empty_url: str) -> None:
    migrate(empty_url, MASTER_KEY)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("insert into yoyo_lock values (1, now(), 1)")
    assert migrate(empty_url, MASTER_KEY) == []


@pytest.mark.parametrize("change", ["delete from applied_migrations where id like '0001%'", "drop table applied_migrations",
                                    "update applied_migrations set digest = 'x' where id like '0002%'"])  # fmt: skip
def test_tables_of_a_version_that_was_never_released_are_refused(empty_url: str, change: str) -> None:
    migrate(empty_url, MASTER_KEY)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(change)
    with pytest.raises(Unavailable, match="was never released; use a new database"):
        migrate(empty_url, MASTER_KEY)


def test_the_application_gets_a_role_without_privileges(empty_url: str) -> None:
    migrate(empty_url, MASTER_KEY)
    assert is_privileged(empty_url)
    url = app_url(empty_url, MASTER_KEY)
    assert not is_privileged(url)
    with psycopg.connect(url) as connection:
        rights = connection.execute(
            "select rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, "
            "has_database_privilege(current_database(), 'create'), has_database_privilege(current_database(), 'temporary'), "
            "has_schema_privilege('public', 'create') from pg_roles where rolname = current_user"
        ).fetchone()
        assert rights == (APP_ROLE, *[False] * 8)
        members = connection.execute("select count(*) from pg_auth_members where member = %s::regrole", (APP_ROLE,))
        assert members.fetchone() == (0,)


def test_an_earlier_release_leaves_the_functions_of_a_later_one_alone(empty_url: str, tmp_path: Path) -> None:
    migrate(empty_url, MASTER_KEY)
    code = "create or replace function queue_depth() returns bigint language sql as 'select 42'"
    (tmp_path / "queue.sql").write_text(code)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        for release, depth in (([0, 0, 9], 0), ([10, 0, 0], 42)):
            module._replace_functions(connection, tmp_path, release)
            assert connection.execute("select queue_depth()").fetchone() == (depth,)


def test_privileges_lost_with_a_copy_come_back(server: Server) -> None:
    copy = server.create_database()
    try:
        with psycopg.connect(app_url(copy, MASTER_KEY), autocommit=True) as connection:
            connection.execute("create temporary table mine ()")  # a copied database has its default privileges again
            migrate(copy, MASTER_KEY)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("create temporary table queue ()")
    finally:
        server.drop_database(copy)


def test_an_unreachable_server_is_told_without_the_password(empty_url: str) -> None:
    parts = urlsplit(empty_url)
    nowhere = urlunsplit(parts._replace(query="host=/nowhere"))
    for call in (lambda: migrate(nowhere, MASTER_KEY), lambda: is_privileged(nowhere)):
        with pytest.raises(Unavailable) as error:
            call()
        assert parts.password is not None
        assert parts.password not in f"{error.value} {error.value.detail}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"host": "127.0.0.1:1"},
            "PostgreSQL at 127.0.0.1:1/{name} cannot be used (Connection refused); check that it runs there",
        ),
        ({"path": "/nope"}, '(database "nope" does not exist); create it, or correct database.url'),
        ({"scheme": "mysql"}, 'database.url begins with "mysql:"; write postgresql://'),
        ({"host": "127.0.0.1:70000"}, "database.url has no port between 1 and 65535"),
    ],
    ids=["port", "database", "scheme", "no port"],
)
def test_the_reason_is_told_with_the_address_and_the_correction(
    empty_url: str, change: dict[str, str], said: str
) -> None:
    parts = urlsplit(empty_url)
    assert parts.password is not None
    if "host" in change:
        wrong = parts._replace(netloc=f"{parts.username}:{parts.password}@{change['host']}", query="")
    else:
        wrong = parts._replace(**change)
    for call in (lambda: migrate(urlunsplit(wrong), MASTER_KEY), lambda: is_privileged(urlunsplit(wrong))):
        with pytest.raises(Unavailable) as error:
            call()
        assert said.format(name=parts.path[1:]) in error.value.message
        assert "\n" not in error.value.message
        assert parts.password not in f"{error.value} {error.value.detail}"
