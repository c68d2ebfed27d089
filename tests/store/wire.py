"""A wire to PostgreSQL that breaks at the moment a test chooses: before a statement arrives, or before its answer does."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

Fault = Literal["request", "answer", "late"]
_SOCKET = ".s.PGSQL.5432"


class Wire:
    """Forwards a Unix socket. Armed with a text, it breaks once, on the connection that carries the text.

    request: the statement never reaches the server.
    answer: the statement is carried out to its end, and the client never hears of it.
    late: the client's side breaks, and the statement reaches the server only with `release`.

    Attributes:
        cuts: how often it broke.
        on_cut: awaited before the client can notice.
    """

    def __init__(self, url: str) -> None:
        self._target = Path(parse_qs(urlsplit(url).query)["host"][0]) / _SOCKET
        self._directory = tempfile.TemporaryDirectory(prefix="il-")
        self.url = urlunsplit(urlsplit(url)._replace(query=f"host={quote(self._directory.name)}"))
        self.cuts = 0
        self.on_cut: Callable[[], Awaitable[None]] | None = None
        self._armed: tuple[bytes, Fault] | None = None
        self._held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def break_at(self, text: str, fault: Fault) -> None:
        """Breaks when the client next sends this text."""
        self._armed = (text.encode(), fault)

    async def release(self) -> None:
        """Lets what was held back arrive, and waits until the server has dealt with it."""
        for reader, writer, data in self._held:
            writer.write(data)
            await writer.drain()
            await _until_idle(reader)
            writer.close()
        self._held.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._connected, Path(self._directory.name) / _SOCKET)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._directory.cleanup()

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(self._target)
        back = asyncio.create_task(_pump(server, to_client))
        task = asyncio.current_task()
        assert task is not None
        self._tasks |= {task, back}
        seen, keep = b"", True
        with contextlib.suppress(ConnectionError):
            while data := await client.read(65536):
                fault = self._fault(seen + data)
                seen = (seen + data)[-4096:]  # the text may come in two pieces
                if fault is None:
                    to_server.write(data)
                    await to_server.drain()
                    continue
                self.cuts += 1
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)
                if fault == "answer":
                    to_server.write(data)
                    await _until_idle(server)
                elif fault == "late":
                    self._held.append((server, to_server, data))
                    keep = False
                if self.on_cut is not None:
                    await self.on_cut()
                break
        to_client.close()
        if keep:
            to_server.close()

    def _fault(self, data: bytes) -> Fault | None:
        if self._armed is None or self._armed[0] not in data:
            return None
        fault, self._armed = self._armed[1], None
        return fault


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _until_idle(reader: asyncio.StreamReader) -> None:
    """Reads messages until ReadyForQuery says that no transaction is open."""
    while True:
        kind, length = struct.unpack("!cI", await reader.readexactly(5))
        body = await reader.readexactly(length - 4)
        if (kind, body) == (b"Z", b"I"):
            return
