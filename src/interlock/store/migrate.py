"""Brings a database to this version's schema, and makes the unprivileged role that the application runs as."""

from __future__ import annotations

import logging
from importlib import resources
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from interlock.base.errors import Unavailable
from interlock.store.embedded import role_password

APP_ROLE = "interlock_app"


def is_privileged(url: str) -> bool:
    """Whether this URL's role could get around row-level security: superuser, BYPASSRLS, or able to create in the schema."""
    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            row = connection.execute(
                "select rolsuper or rolbypassrls or has_schema_privilege('public', 'create') "
                "from pg_roles where rolname = current_user"
            ).fetchone()
    except psycopg.Error as error:
        raise Unavailable(_unreachable(url), detail=str(error)) from error
    return bool(row and row[0])


def migrate(owner_url: str, master_key: bytes) -> list[str]:
    """Applies what is missing, under a lock so that processes starting together do not trip over each other.

    Returns:
        The ids of the migrations that were applied now.

    Raises:
        Unavailable: the server cannot be reached or refused a statement.
    """
    import yoyo  # noqa: PLC0415  takes 100 ms to import, and only a starting process migrates

    logging.getLogger("yoyo").setLevel(logging.WARNING)
    with resources.as_file(resources.files("interlock.store").joinpath("sql", "migrations")) as directory:
        migrations = yoyo.read_migrations(str(directory))
        try:
            backend = yoyo.get_backend(_with_scheme(owner_url, "postgresql+psycopg"))
            with backend, backend.lock():
                missing = backend.to_apply(migrations)
                backend.apply_migrations(missing)
                applied = [migration.id for migration in missing]
            _let_app_in(owner_url, role_password(master_key, APP_ROLE))
        except psycopg.Error as error:
            raise Unavailable(f"{_unreachable(owner_url)}: {str(error).splitlines()[0]}", detail=str(error)) from error
    return applied


def app_url(owner_url: str, master_key: bytes) -> str:
    """The same database, as the application's role."""
    parts = urlsplit(owner_url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{APP_ROLE}:{role_password(master_key, APP_ROLE)}@{host}"))


def _let_app_in(owner_url: str, password: str) -> None:
    with psycopg.connect(owner_url, autocommit=True) as connection:
        statement = sql.SQL("alter role {} login password {}")
        connection.execute(statement.format(sql.Identifier(APP_ROLE), sql.Literal(password)))
        # Nothing may be created beside our tables by a role that is not the owner: it would be outside row security.
        connection.execute("revoke create on schema public from public")


def _with_scheme(url: str, scheme: str) -> str:
    return scheme + "://" + url.split("://", 1)[1]


def _unreachable(url: str) -> str:
    parts = urlsplit(url)
    return f"PostgreSQL at {parts.hostname or 'its socket'}{parts.path} cannot be used; check that it runs and the URL is right"
