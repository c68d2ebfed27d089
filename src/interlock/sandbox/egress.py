"""Egress proxy: the only network access of a sandbox, a forward proxy on a UNIX socket with the tool's allowlist.

A sandbox has no network. If its job has an egress list, this proxy's socket is bound into it, and the runner directs
the tool's HTTP clients to it. Two forms are served: `CONNECT host:port` (a blind tunnel, for TLS) and plain requests in
absolute form (`GET http://host/path`), each on a separate connection. Every decision is reported before it takes
effect; if it cannot be recorded, the connection is refused. `listener` bounds the connections that are open at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interlock.base.clock import since_boot
from interlock.sandbox.destinations import Allowlist, Destination, DestinationRefused, parse_authority
from interlock.sandbox.listener import BoundedListener, SharedBound

OnEvent = Callable[[str, str, int, bool], None]
"""Called with the tool's name, host, port and whether the connection was allowed."""

_HEAD_BYTES = 32 * 1024
_HEAD_TIMEOUT = 10.0  # seconds for the whole head, so that a slow sender cannot occupy a connection
_CONNECT_TIMEOUT = 10.0  # seconds
_IDLE_TIMEOUT = 60.0  # seconds without a byte in either direction
_LINGER = 2.0  # seconds for a client to read the answer
_CHUNK = 65536
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_TARGET = re.compile(r"http://(?P<authority>[^/?#]*)(?P<path>[/?][!-~]*)?", re.IGNORECASE)
# RFC 9110, section 7.6.1; Host is set from the target, because only the target was checked.
_NOT_FORWARDED = frozenset(
    "connection proxy-connection keep-alive proxy-authorization te trailer upgrade host".split()  # noqa: SIM905
)
_REASONS = {400: "Bad Request", 403: "Forbidden", 411: "Length Required", 431: "Request Header Fields Too Large"}
_REASONS |= {500: "Internal Server Error", 502: "Bad Gateway", 504: "Gateway Timeout"}

_log = logging.getLogger(__name__)


class _Answer(Exception):
    """Ends the request with this status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: str
    headers: list[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class EgressProxy:
    """One proxy for one sandbox.

    Args:
        tool: the name under which connections are reported.
        egress: the `host:port` pairs.
        on_event: see `OnEvent`; an exception from it refuses the connection.
        shared: bound on the connections of all sandboxes of this worker; one of its own if not given.

    Attributes:
        until: send deadline, in seconds of `base.clock.since_boot`; no byte is sent later. Checked before every byte,
            because this process may be stopped at any point and continue after another worker has taken over.

    Raises:
        ValueError: an entry is not `host:port`.
    """

    def __init__(
        self,
        tool: str,
        egress: tuple[str, ...],
        on_event: OnEvent | None = None,
        shared: SharedBound | None = None,
    ) -> None:
        self._tool = tool
        self._allowlist = Allowlist(egress)
        self._on_event = on_event
        self.until: float | None = None
        self._listener = BoundedListener(self._serve, shared or SharedBound())

    async def start(self, path: Path) -> None:
        """Listen at `path`, in a directory that only the sandbox's owner can enter."""
        self._listener.start(path)

    async def close(self) -> None:
        await self._listener.close()

    async def _serve(self, connection: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_HEAD_BYTES)
        except OSError:
            connection.close()
            return
        try:
            request = await _read_request(reader)
            if request.method == "CONNECT":
                await self._tunnel(request, reader, writer)
            else:
                await self._forward(request, reader, writer)
        except _Answer as answer:
            writer.write(_response(answer.status, str(answer)))
            await _linger(reader, writer)
        except (OSError, EOFError):
            pass  # a disconnect of either side ends only this connection
        finally:
            writer.close()

    async def _tunnel(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        destination = _destination(request.target, None)
        far_reader, far_writer = await self._connect(destination)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _Relay(self._in_time).both(reader, writer, far_reader, far_writer)
        finally:
            far_writer.close()

    async def _forward(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = _TARGET.fullmatch(request.target)
        if target is None:
            raise _Answer(400, "this proxy takes CONNECT, or a request for an absolute http:// address")
        destination = _destination(target["authority"], 80)
        length = _content_length(request)
        far_reader, far_writer = await self._connect(destination)
        try:
            if not self._in_time():
                raise _Answer(504, "the call's deadline has passed")
            far_writer.write(_forwarded_head(request, target["path"] or "/", destination))
            # Exactly the announced body is sent: later bytes would be a second, unchecked request.
            await _Relay(self._in_time).request(reader, writer, far_reader, far_writer, length)
        finally:
            far_writer.close()
        await _linger(reader, writer)

    async def _connect(self, destination: Destination) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            addresses = await self._allowlist.resolve(destination)
        except DestinationRefused as refusal:
            self._report(destination, allowed=False)
            raise _Answer(403, str(refusal)) from None
        except (OSError, UnicodeError):
            raise _Answer(502, f"{destination} does not resolve") from None
        self._report(destination, allowed=True)
        for address in addresses:
            with contextlib.suppress(OSError):  # TimeoutError is an OSError too
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    return await asyncio.open_connection(address, destination.port)
        raise _Answer(502, f"{destination} does not accept connections")

    def _in_time(self) -> bool:
        return self.until is None or since_boot() < self.until

    def _report(self, destination: Destination, *, allowed: bool) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(self._tool, destination.host, destination.port, allowed)
        except Exception as error:
            _log.exception("egress of tool %s to %s could not be recorded", self._tool, destination)
            raise _Answer(500, "the connection could not be recorded, so it was not made") from error


class _Relay:
    """Copies bytes until both sides have finished, or no byte arrives for `_IDLE_TIMEOUT`, or the send deadline has passed."""

    def __init__(self, in_time: Callable[[], bool]) -> None:
        self._in_time = in_time
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()

    async def both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(reader, far_writer))
            group.create_task(self._pump(far_reader, writer))

    async def request(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
        length: int,
    ) -> None:
        """Copies the body and the response at the same time; a server may answer before it has read the body."""
        body = self._loop.create_task(self._pump(reader, far_writer, length))
        try:
            await self._pump(far_reader, writer)
        finally:
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int | None = None
    ) -> None:
        """Copy to the end of the stream, or exactly `length` bytes; only a real end closes the other side."""
        try:
            while length is None or length > 0:
                data = await self._read(reader, _CHUNK if length is None else min(length, _CHUNK))
                if not data:
                    break
                length = None if length is None else length - len(data)
                if not self._in_time():
                    writer.transport.abort()  # an incomplete request: the remote side must not take it for a complete one
                    return
                writer.write(data)
                await writer.drain()
            if length is None:
                writer.write_eof()
        except OSError:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, most: int) -> bytes:
        while True:
            try:
                async with asyncio.timeout_at(self._moved + _IDLE_TIMEOUT):
                    data = await reader.read(most)
            except TimeoutError:
                if self._loop.time() < self._moved + _IDLE_TIMEOUT:
                    continue  # the other direction is active
                raise
            self._moved = self._loop.time()
            return data


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End our side, then discard later bytes: closing with unread bytes would reset the connection and lose the answer."""
    with contextlib.suppress(OSError):
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(_LINGER):
            while await reader.read(_CHUNK):
                pass


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    try:
        async with asyncio.timeout(_HEAD_TIMEOUT):
            raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Answer(431, f"the request's head is larger than {_HEAD_BYTES} bytes") from None
    try:
        lines = raw[:-4].decode("latin-1").split("\r\n")
        method, target, version = lines[0].split(" ")
    except ValueError:
        raise _Answer(400, "the request line is not METHOD target HTTP/1.1") from None
    if not _TOKEN.fullmatch(method) or version not in {"HTTP/1.1", "HTTP/1.0"}:
        raise _Answer(400, "the request line is not METHOD target HTTP/1.1")
    headers: list[tuple[str, str]] = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        # Folded lines, bare CR or LF and spaces before the colon are read differently by different servers.
        if not colon or not _TOKEN.fullmatch(name) or any(character in value for character in "\r\n\0"):
            raise _Answer(400, "a header line is not name: value")
        headers.append((name, value.strip(" \t")))
    return _Request(method, target, headers)


def _destination(authority: str, default_port: int | None) -> Destination:
    try:
        return parse_authority(authority, default_port)
    except ValueError as error:
        raise _Answer(400, str(error)) from None


def _content_length(request: _Request) -> int:
    if request.values("transfer-encoding"):
        raise _Answer(411, "this proxy does not forward chunked requests; send a Content-Length")
    lengths = set(request.values("content-length"))
    if not lengths:
        return 0
    length = lengths.pop()
    if lengths or not re.fullmatch(r"[0-9]{1,15}", length):
        raise _Answer(400, "the request has no single valid Content-Length")
    return int(length)


def _forwarded_head(request: _Request, path: str, destination: Destination) -> bytes:
    named = {word.strip().lower() for value in request.values("connection") for word in value.split(",")}
    dropped = _NOT_FORWARDED | (named - {"content-length"})
    host = str(destination).removesuffix(":80")
    lines = [f"{request.method} {path if path.startswith('/') else '/' + path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in request.headers if name.lower() not in dropped]
    return ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1")


def _response(status: int, sentence: str) -> bytes:
    body = f"{sentence}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
