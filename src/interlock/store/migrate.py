"""Brings a database to this version's schema, and makes the unprivileged role that the application runs as."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from interlock.base.errors import Unavailable
from interlock.base.json import sentence
from interlock.store.embedded import role_password

if TYPE_CHECKING:
    import yoyo

APP_ROLE = "interlock_app"

_LOCK = 0x1CE10C  # any number that nothing else locks
_LOCK_TIMEOUT = "120s"
_ROLE_ATTEMPTS = 10


_APPLIED = "create table if not exists applied_migrations (id text primary key, digest text not null)"


def is_privileged(url: str) -> bool:
    """True if this URL's role could get around row-level security: superuser, BYPASSRLS, or able to create in the schema."""
    try:
        with psycopg.connect(url, connect_timeout=60) as connection:
            row = connection.execute(
                "select rolsuper or rolbypassrls or has_schema_privilege('public', 'create') "
                "from pg_roles where rolname = current_user"
            ).fetchone()
    except psycopg.Error as error:
        raise _unusable(url, error) from None
    return bool(row and row[0])


def migrate(owner_url: str, master_key: bytes) -> list[str]:
    """Applies what is missing, under a lock so that processes starting together do not trip over each other.

    Returns:
        The ids of the migrations that were applied now.

    Raises:
        Unavailable: the server cannot be reached or refused a statement, or its tables are of a development version.
    """
    import yoyo  # noqa: PLC0415  takes 100 ms to import, and only a starting process migrates

    logging.getLogger("yoyo").setLevel(logging.WARNING)
    with resources.as_file(resources.files("interlock.store").joinpath("sql")) as directory:
        migrations = yoyo.read_migrations(str(directory / "migrations"))
        try:
            with psycopg.connect(owner_url, autocommit=True) as guard:
                # A lock that goes with its connection: the library's own is a row, which a killed process leaves behind.
                guard.execute("select set_config('lock_timeout', %s, false)", (_LOCK_TIMEOUT,))
                guard.execute("select pg_advisory_lock(%s)", (_LOCK,))
                applied = _apply(yoyo.get_backend(_with_scheme(owner_url, "postgresql+psycopg")), migrations)
                _require_same(guard, migrations, owner_url)
                _replace_functions(guard, directory / "functions", _release())
                _let_app_in(guard, owner_url, master_key)
        except psycopg.Error as error:
            raise _unusable(owner_url, error) from None
    return applied


def _apply(backend: yoyo.backends.DatabaseBackend, migrations: yoyo.migrations.MigrationList) -> list[str]:
    """All that is missing in one transaction; the library would mark a migration in another one than it runs in."""
    with backend:
        backend.break_lock()
        missing = backend.to_apply(migrations)
        with backend.transaction():
            for migration in missing:
                migration.process_steps(backend, "apply")
                backend.mark_one(migration)
                backend.execute(_APPLIED)
                backend.execute(
                    "insert into applied_migrations values (%s, %s)", (migration.id, _digest(migration.path))
                )
        return [migration.id for migration in missing]


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _require_same(connection: psycopg.Connection, migrations: yoyo.migrations.MigrationList, url: str) -> None:
    """Refuses tables that were made by other files of the same names: before its release, a migration is still edited."""
    exists = connection.execute("select to_regclass('applied_migrations')").fetchone()
    rows = connection.execute("select id, digest from applied_migrations").fetchall() if exists and exists[0] else []
    if dict(rows) | {one.id: _digest(one.path) for one in migrations} != dict(rows):
        raise Unavailable(
            f"PostgreSQL at {_place(url)} has tables of a version of Interlock that was never released; use a new database, "
            "or move the data directory away"
        )


def _release() -> list[int]:
    """The numbers of this release's version."""
    return [int(number) for number in re.findall(r"\d+", version("interlock"))[:3]]


def _replace_functions(connection: psycopg.Connection, directory: Path, release: list[int]) -> None:
    """Functions hold no data, so they are not migrated step by step: their files say what they are now, and replace what was.

    A process of an earlier release that starts beside a later one leaves the later one's functions alone: they take what it sends.
    """
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.sql")))
    digest = hashlib.sha256(text.encode()).hexdigest()
    with connection.transaction():
        connection.execute(
            "create table if not exists applied_functions (release integer[] not null, digest text not null)"
        )
        current = "select 1 from applied_functions where digest = %s or release > %s::integer[]"
        if connection.execute(current, (digest, release)).fetchone():
            return
        connection.execute(text.encode())
        connection.execute("revoke execute on all functions in schema public from public")
        connection.execute("grant execute on all functions in schema public to interlock_app")
        connection.execute("delete from applied_functions")
        connection.execute("insert into applied_functions values (%s, %s)", (release, digest))


def app_url(owner_url: str, master_key: bytes) -> str:
    """The same database, as the application's role."""
    parts = urlsplit(owner_url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{APP_ROLE}:{role_password(master_key, APP_ROLE)}@{host}"))


def _let_app_in(connection: psycopg.Connection, owner_url: str, master_key: bytes) -> None:
    # Nothing may be created beside our tables by a role that is not the owner: it would be outside row security. And no
    # temporary tables: they would be found before ours. Not in a migration: copies and restored backups lose these.
    connection.execute("revoke create on schema public from public")
    database = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("revoke create, temporary on database {} from public").format(database))
    _revoke_large_objects(connection)
    _reset_role(connection)
    statement = sql.SQL("alter role {} login password {}").format(
        sql.Identifier(APP_ROLE), sql.Literal(role_password(master_key, APP_ROLE))
    )
    for attempt in range(_ROLE_ATTEMPTS):
        if _opens(app_url(owner_url, master_key)):
            return
        try:
            connection.execute(statement)
        except psycopg.errors.InternalError_:
            # Roles belong to the server, our lock to one database: another database's migration was quicker.
            if attempt == _ROLE_ATTEMPTS - 1:
                raise
            time.sleep(0.1)


_LARGE_OBJECTS = """
select p.oid::regprocedure::text from pg_proc p
    where p.pronamespace = 'pg_catalog'::regnamespace and p.proname ~ '^(lo_|loread$|lowrite$)'
        and has_function_privilege('interlock_app', p.oid, 'execute')
"""


def _revoke_large_objects(connection: psycopg.Connection) -> None:
    """Takes the functions of large objects away, which are storage outside row-level security and all limits.

    They belong to the superuser; another owner of the schema can only leave them.
    """
    for (function,) in connection.execute(_LARGE_OBJECTS).fetchall():
        connection.execute(sql.SQL("revoke execute on function {} from public").format(sql.SQL(function)))


def _reset_role(connection: psycopg.Connection) -> None:
    """Removes settings that the application's role gave itself: PostgreSQL lets a role do that, and they persist."""
    stored = (
        "select d.datname from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase "
        "where s.setrole = %s::regrole"
    )
    for (database,) in connection.execute(stored, (APP_ROLE,)).fetchall():
        where = sql.SQL("") if database is None else sql.SQL(" in database {}").format(sql.Identifier(database))
        connection.execute(sql.SQL("alter role {}{} reset all").format(sql.Identifier(APP_ROLE), where))


def _opens(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=60):
            return True
    except psycopg.OperationalError:
        return False


def _with_scheme(url: str, scheme: str) -> str:
    return scheme + "://" + url.split("://", 1)[1]


_MENDS = (
    ("refused", "check that it runs there"),
    ("password authentication", "correct the user or the password in database.url"),
    ("does not exist", "create it, or correct database.url"),
    ("resolve host", "correct the host in database.url"),
)


def _unusable(url: str, error: psycopg.Error) -> Unavailable:
    """The error of a server that cannot be used: its address, its reason and the correction, without the password."""
    password = urlsplit(url).password
    said = str(error)
    if password:  # the library repeats a text that it cannot read
        said = said.replace(password, "…")
    return Unavailable(_sentence(url, said), detail=said)


def _place(url: str) -> str:
    """Address and database of a server; raises ValueError for a port that is none."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}{parts.path}" if parts.hostname else f"its socket{parts.path}"


def _sentence(url: str, said: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"postgresql", "postgres"}:
        fault = f'begins with "{sentence(parts.scheme, 20)}:"' if parts.scheme else "is no URL"
        return f"database.url {fault}; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        where = _place(url)
    except ValueError:
        return "database.url has no port between 1 and 65535; correct it"
    # The library puts the attempted address before the reason, and a hint into the next line.
    lines = said.strip().splitlines() or [""]
    line = next((one for one in lines if "failed: " in one), lines[0])
    reason = re.split(r"failed: |FATAL: +|ERROR: +", line)[-1]
    mend = next((mend for word, mend in _MENDS if word in reason), "check that it runs and that database.url is right")
    return f"PostgreSQL at {where} cannot be used ({sentence(reason, 200)}); {mend}"
