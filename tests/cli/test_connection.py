"""The command line's client: what it does when a connection ends before an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from interlock.base.errors import Unavailable
from interlock.cli.connection import Api, client_of, sends_in_the_clear
from interlock.services.views.runs import RunRef


@dataclass
class Closing:
    """A server that answers the first request of each connection, and closes it at the second one without an answer."""

    url: str = ""
    requests: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(2):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if "content-length" in head.lower():
                await reader.readexactly(int(head.lower().split("content-length: ")[1].split("\r\n")[0]))
            self.requests.append(head.split(" ", 1)[0])
            if number == 0:
                body = json.dumps({"run_id": "run_1"}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        writer.close()


@pytest.fixture
async def closing() -> AsyncIterator[Closing]:
    server = Closing()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield server
    listening.close()


async def test_a_read_is_repeated_when_the_server_closed_the_idle_connection(closing: Closing) -> None:
    async with client_of(closing.url, "") as client:
        api = Api(client, url=closing.url)
        assert (await api.get(RunRef, "/first")).run_id == "run_1"
        assert (await api.get(RunRef, "/second")).run_id == "run_1"
    assert closing.requests == ["GET", "GET", "GET"]


async def test_a_command_is_not_repeated_because_it_may_have_been_carried_out(closing: Closing) -> None:
    async with client_of(closing.url, "") as client:
        api = Api(client, url=closing.url)
        await api.get(RunRef, "/first")
        with pytest.raises(Unavailable, match="does not answer"):
            await api.post(RunRef, "/second", {})
    assert closing.requests == ["GET", "POST"]


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("http://interlock.example", True),
        ("http://192.0.2.1:7433", True),
        ("http://[2001:db8::1]:7433", True),
        ("https://interlock.example", False),
        ("http://localhost:7433", False),
        ("http://127.0.0.1:7433", False),
        ("http://[::1]:7433", False),
    ],
)
def test_a_key_that_would_leave_the_machine_unencrypted_is_noticed(url: str, clear: bool) -> None:
    assert sends_in_the_clear(url) is clear
