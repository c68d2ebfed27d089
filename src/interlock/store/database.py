"""The connection pool. Every query says for which organisation it is; a query that forgets to sees no rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

import asyncpg
from pydantic_core import from_json, to_json

from interlock.base.errors import InvalidInput, Unavailable
from interlock.store.queries import QUERIES

T = TypeVar("T")


class Row(Protocol):
    """A row of a result, by the names of its columns; only the query knows their types. `dict(row)` copies it."""

    def __getitem__(self, column: str | int, /) -> Any: ...
    def keys(self) -> Iterable[str]: ...


class Connection(Protocol):
    """The part of asyncpg's connection that is used; the library itself is untyped."""

    async def fetch(self, query: str, *args: object) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: object) -> Row | None: ...
    async def fetchval(self, query: str, *args: object) -> Any: ...
    async def execute(self, query: str, *args: object) -> str: ...
    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> AbstractAsyncContextManager[object]: ...
    def is_closed(self) -> bool: ...
    def terminate(self) -> None: ...
    async def close(self, *, timeout: float | None = None) -> None: ...  # noqa: ASYNC109


class _Pool(Protocol):
    def acquire(self) -> AbstractAsyncContextManager[_ScopedConnection]: ...
    async def close(self) -> None: ...
    def terminate(self) -> None: ...


# What a server that restarts, refuses, vanishes or had to break a tie makes asyncpg raise; all of it may pass.
DOWN = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that was cut off in the middle and has not noticed
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    ConnectionError,
    OSError,
    TimeoutError,
)

# Of each connection. A role may change its own defaults, and such a change persists.
_SERVER_SETTINGS = {"search_path": "public, pg_temp", "row_security": "on"}

_ATTEMPTS = 10  # with the waits below about 12 s: longer than a restart of PostgreSQL takes
_WAITS = (0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.5)  # short, because a run waits for the whole of the last one


class Database:
    """A pool of connections as the unprivileged role."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.url = url
        self._pool_size = pool_size
        self._pool: _Pool | None = None
        self._patient = True

    def give_up(self) -> None:
        """From now on no operation waits for a server that is away: the process ends, and what is not committed is repeated."""
        self._patient = False

    async def open(self) -> None:
        """Connects.

        Raises:
            Unavailable: the server does not answer.
        """

        async def connect() -> _Pool:
            pool: _Pool = await asyncpg.create_pool(
                self.url,
                min_size=1,
                max_size=self._pool_size,
                init=_prepare,
                reset=_keep_scope,
                connection_class=_ScopedConnection,
                server_settings=_SERVER_SETTINGS,
                command_timeout=60,
            )
            return pool

        self._pool = await self.retrying(connect)

    async def close(self) -> None:
        if self._pool is not None:
            try:
                async with asyncio.timeout(5):
                    await self._pool.close()
            except TimeoutError:
                self._pool.terminate()
            self._pool = None

    async def retrying(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Runs an idempotent operation; while the server is away, waits and runs it again.

        Raises:
            Unavailable: it stayed away for about 12 s, or its disk is full. Nothing that was committed is lost.
            InvalidInput: a value from outside that no column takes: a number too large, a NUL character.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return await operation()
            except asyncpg.DiskFullError as error:
                raise Unavailable(
                    "the disk of the database is full; make room, what was committed is safe", detail=repr(error)
                ) from error
            except (asyncpg.DataError, *DOWN) as error:
                if isinstance(error, asyncpg.DataError | ValueError):  # the client's own check is an InterfaceError too
                    raise InvalidInput(
                        "a number is out of range or a text holds a NUL character; correct the request",
                        detail=type(error).__name__,
                    ) from None  # the server's own text repeats the value
                if attempt == _ATTEMPTS - 1 or not self._patient:
                    raise Unavailable(
                        "the database does not answer; what was committed is safe, try again when it is back",
                        detail=repr(error),
                    ) from error
                await asyncio.sleep(_WAITS[attempt])
        raise AssertionError

    @asynccontextmanager
    async def connection(self, *orgs: str) -> AsyncIterator[Connection]:
        """A connection that sees the rows of `orgs` only. A connection without organisations cannot be had."""
        async with self._acquire() as connection:
            await connection.scope(",".join(orgs))
            yield connection

    def _acquire(self) -> AbstractAsyncContextManager[_ScopedConnection]:
        assert self._pool is not None, "`open` comes first, `close` last"
        return self._pool.acquire()

    async def rows(self, query: str, *args: object, org: str = "") -> list[Row]:
        """All rows of a named query."""

        async def fetch() -> list[Row]:
            async with self._acquire() as connection:
                await connection.scope(org)
                found: list[Row] = await connection.fetch(QUERIES[query].sql, *args)
                return found

        return await self.retrying(fetch)

    async def row(self, query: str, *args: object, org: str = "") -> Row | None:
        """The first row of a named query, or None."""
        found = await self.rows(query, *args, org=org)
        return found[0] if found else None

    async def execute(self, query: str, *args: object, org: str = "") -> int:
        """Runs a named statement that may safely run twice; returns the number of rows it touched."""

        async def run() -> int:
            async with self._acquire() as connection:
                await connection.scope(org)
                status = await connection.execute(QUERIES[query].sql, *args)
                return int(status.rsplit(" ", 1)[-1]) if status[-1].isdigit() else 0

        return await self.retrying(run)

    async def in_snapshot(self, read: Callable[[Snapshot], Awaitable[T]], *, org: str) -> T:
        """Runs several queries that all see the database as it was at the first of them.

        `read` is run again if the server goes away meanwhile. It must ask nothing but its snapshot: a process whose readers each
        hold a connection and wait for a second one can run out of connections.
        """

        async def at_once() -> T:
            async with (
                self.connection(org) as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                return await read(Snapshot(connection))

        return await self.retrying(at_once)

    async def dedicated(self) -> Connection:
        """A connection outside the pool; the caller closes it."""
        connection: Connection = await asyncpg.connect(self.url, command_timeout=60, server_settings=_SERVER_SETTINGS)
        await _prepare(connection)
        return connection

    async def listen(self, channel: str, callback: Callable[[str], None]) -> Connection:
        """A connection of its own that calls `callback(payload)` for every notification; close it when done."""
        dedicated = await asyncpg.connect(self.url, server_settings=_SERVER_SETTINGS)
        await dedicated.add_listener(channel, lambda _connection, _pid, _channel, payload: callback(payload))
        connection: Connection = dedicated
        return connection


class Snapshot:
    """The database at one moment, for one organisation; lasts as long as the `read` that it was given to."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def rows(self, query: str, *args: object) -> list[Row]:
        """All rows of a named query."""
        return await self._connection.fetch(QUERIES[query].sql, *args)

    async def row(self, query: str, *args: object) -> Row | None:
        """The first row of a named query, or None."""
        found = await self.rows(query, *args)
        return found[0] if found else None


class _ScopedConnection(asyncpg.Connection):  # type: ignore[misc]
    """Remembers for which organisations it is set up, so that the next query for the same ones costs no extra trip."""

    __slots__ = ("_scope",)

    async def scope(self, orgs: str) -> None:
        if getattr(self, "_scope", None) != orgs:
            self._scope = None
            await self.fetchval("select set_config('interlock.orgs', $1, false)", orgs)
            self._scope = orgs


async def _keep_scope(connection: asyncpg.Connection) -> None:
    """Instead of the pool's RESET ALL, which would cost a round trip a query and forget the scope."""
    if connection.is_in_transaction():
        await connection.execute("rollback")


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=_encode, decoder=from_json, schema="pg_catalog")


def _encode(value: object) -> str:
    return value if isinstance(value, str) else to_json(value).decode()
