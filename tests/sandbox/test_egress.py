"""The way out: exactly what was granted, through a real proxy, from a real sandbox. All traffic stays on loopback."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from interlock.base.clock import since_boot
from interlock.sandbox import egress as egress_module
from interlock.sandbox import listener as listener_module
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.destinations import Allowlist, Destination, DestinationRefused
from interlock.sandbox.egress import EgressProxy
from interlock.sandbox.listener import SharedBound
from interlock.sandbox.pipes import readable

from .conftest import MakeJob

FETCH = """
import urllib.error, urllib.request
def run(url, data=None):
    try:
        request = urllib.request.Request(url, data.encode() if data else None, {"X-End": "2"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return [response.status, response.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
"""


class _Far:
    """A server on the host's loopback that remembers what reached it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], str]] = []
        far = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                far.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(f"hello {self.path} {body}".encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]


@pytest.fixture
def far() -> Iterator[_Far]:
    far = _Far()
    thread = threading.Thread(target=far.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield far
    far.server.shutdown()
    thread.join()
    far.server.server_close()


Events = list[tuple[str, str, int, bool]]


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
async def sandbox(events: Events) -> AsyncIterator[BubblewrapSandbox]:
    sandbox = BubblewrapSandbox(warm=0, on_egress=lambda *event: events.append(event))
    yield sandbox
    await sandbox.close()


async def test_a_granted_server_is_reached(
    sandbox: BubblewrapSandbox, make_job: MakeJob, far: _Far, events: Events
) -> None:
    granted = f"127.0.0.1:{far.port}"
    job = make_job(FETCH, {"url": f"http://{granted}/a?b=c", "data": "body"}, egress=(granted,))
    result = await sandbox.run(job)
    assert result.output == [200, "hello /a?b=c body"], result
    method, path, headers, body = far.requests[0]
    assert (method, path, body) == ("POST", "/a?b=c", "body")
    assert headers["host"] == granted
    assert headers["x-end"] == "2"
    assert headers["connection"] == "close"
    assert events == [("probe", "127.0.0.1", far.port, True)]


async def test_what_was_not_granted_is_refused(
    sandbox: BubblewrapSandbox, make_job: MakeJob, far: _Far, events: Events
) -> None:
    other = f"localhost:{far.port}"
    job = make_job(FETCH, {"url": f"http://{other}/"}, egress=("127.0.0.1:9",))
    result = await sandbox.run(job)
    assert result.output == [403, f"{other} is not in this tool's egress list\n"]
    assert far.requests == []
    assert events == [("probe", "localhost", far.port, False)]


async def test_localhost_by_name_and_through_a_warm_sandbox(make_job: MakeJob, far: _Far) -> None:
    sandbox = BubblewrapSandbox(warm=1)
    job = make_job(FETCH, {"url": f"http://LOCALHOST:{far.port}/"}, egress=(f"localhost:{far.port}",))
    for _ in range(2):
        assert (await sandbox.run(job)).output == [200, "hello / "]
        await sandbox.pool.settled()
    await sandbox.close()


async def test_connect_carries_any_bytes(sandbox: BubblewrapSandbox, make_job: MakeJob, far: _Far) -> None:
    source = """
    import http.client, os, urllib.parse
    def run(host, port):
        proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
        client = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=60)
        client.set_tunnel(host, port)
        try:
            client.request("GET", "/through")
        except OSError as error:
            return str(error)
        return client.getresponse().read().decode()
    """
    egress = (f"127.0.0.1:{far.port}", "169.254.169.254:80", "[fe80::1]:80")
    arguments = [("127.0.0.1", far.port), ("127.0.0.1", far.port - 1), ("169.254.169.254", 80)]
    outputs = [
        (await sandbox.run(make_job(source, {"host": host, "port": port}, egress=egress))).output
        for host, port in arguments
    ]
    assert outputs[0] == "hello /through "
    assert outputs[1:] == ["Tunnel connection failed: 403 Forbidden"] * 2


async def test_the_socket_is_removed(sandbox: BubblewrapSandbox, make_job: MakeJob, tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("interlock-*"))
    job = make_job("import os\ndef run(): return os.path.exists('/interlock/egress.sock')", egress=("127.0.0.1:9",))
    assert (await sandbox.run(job)).output is True
    assert set(Path(tempfile.gettempdir()).glob("interlock-*")) <= before


# From here on the proxy alone, with requests no HTTP client would make.


@contextmanager
def no_packets() -> Iterator[None]:
    """Fails if anything is connected to; the refused addresses must not see one packet."""

    async def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"connected to {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egress_module.asyncio, "open_connection", never)
        yield


async def ask(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    async with asyncio.timeout(120):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
async def proxy(tmp_path: Path, far: _Far, events: Events) -> AsyncIterator[Path]:
    granted = (f"127.0.0.1:{far.port}", "169.254.169.254:80", "[::ffff:169.254.169.254]:80", "[fe80::1]:80")
    server = EgressProxy("probe", (*granted, "168.63.129.16:80", "[fd00:ec2::254]:80"), lambda *e: events.append(e))
    await server.start(tmp_path / "s")
    yield tmp_path / "s"
    await server.close()


@pytest.mark.parametrize(
    "authority",
    [
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "[::ffff:a9fe:a9fe]:80",
        "[fe80::1]:80",
        "168.63.129.16:80",
        "[FD00:EC2::254]:80",
    ],
)
async def test_metadata_services_are_refused_even_if_listed(proxy: Path, authority: str, events: Events) -> None:
    with no_packets():
        for request in (f"CONNECT {authority} HTTP/1.1\r\n\r\n", f"GET http://{authority}/ HTTP/1.1\r\n\r\n"):
            answer = await ask(proxy, request.encode())
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"metadata address, which no tool may reach" in answer
    assert [event[3] for event in events] == [False, False]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("CONNECT 127.0.0.1:{port}.evil.example:80 HTTP/1.1", 400),
        ("CONNECT user@127.0.0.1:{port} HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:0{port} HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:+{port} HTTP/1.1", 400),
        ("CONNECT 127.0.0.1 HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:99999 HTTP/1.1", 400),
        ("CONNECT [127.0.0.1]:{port} HTTP/1.1", 400),
        ("CONNECT [fe80::1%25lo]:80 HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:{port}", 400),
        ("CONNECT  127.0.0.1:{port} HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:{port} HTTP/2.0", 400),
        ("CONNECT 127.0.0.1.:{port} HTTP/1.1", 403),
        ("CONNECT 127.1:{port} HTTP/1.1", 403),
        ("CONNECT 2130706433:{port} HTTP/1.1", 403),
        ("CONNECT 0x7f.0.0.1:{port} HTTP/1.1", 403),
        ("CONNECT [::1]:{port} HTTP/1.1", 403),
        ("CONNECT [::ffff:127.0.0.1]:{port} HTTP/1.1", 403),
        ("CONNECT x127.0.0.1:{port} HTTP/1.1", 403),
        ("GET http://user:pw@127.0.0.1:{port}/ HTTP/1.1", 400),
        ("GET http://127.0.0.1:{port}\\@evil.example/ HTTP/1.1", 400),
        ("GET https://127.0.0.1:{port}/ HTTP/1.1", 400),
        ("GET ftp://127.0.0.1:{port}/ HTTP/1.1", 400),
        ("GET /path HTTP/1.1\r\nHost: 127.0.0.1:{port}", 400),
        ("GET http:///path HTTP/1.1\r\nHost: 127.0.0.1:{port}", 400),
        ("GET http://127.0.0.1/ HTTP/1.1", 403),
        ("G\tET http://127.0.0.1:{port}/ HTTP/1.1", 400),
        ("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nA: b\r\n folded: c", 400),
        ("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nA : b", 400),
        ("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nA: b\nX: c", 400),
        ("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nA", 400),
        ("POST http://127.0.0.1:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        ("POST http://127.0.0.1:{port}/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        ("POST http://127.0.0.1:{port}/ HTTP/1.1\r\nContent-Length: -1", 400),
        ("POST http://127.0.0.1:{port}/ HTTP/1.1\r\nContent-Length: 1_0", 400),
        ("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nA: " + "b" * 70000, 431),
    ],
)
async def test_odd_requests_are_refused(proxy: Path, far: _Far, head: str, status: int) -> None:
    with no_packets():
        answer = await ask(proxy, head.replace("{port}", str(far.port)).encode() + b"\r\n\r\n")
    assert answer.split(b" ")[1] == str(status).encode(), answer
    sentence = answer.split(b"\r\n\r\n", 1)[1]
    assert sentence.count(b"\n") == 1
    assert far.requests == []


async def test_a_second_request_behind_the_first_goes_nowhere(proxy: Path, far: _Far) -> None:
    hop = "Connection: x-hop, Host\r\nX-Hop: 1\r\nProxy-Authorization: secret\r\nX-End: 2\r\n"
    first = f"GET http://127.0.0.1:{far.port}/one HTTP/1.1\r\nHost: evil.example\r\n{hop}\r\n"
    second = "GET /two HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    answer = await ask(proxy, (first + second).encode())
    assert answer.endswith(b"hello /one ")
    ((_, path, headers, _),) = far.requests
    assert path == "/one"
    assert headers == {"host": f"127.0.0.1:{far.port}", "x-end": "2", "connection": "close"}


async def test_nothing_is_sent_behind_the_announced_body(tmp_path: Path) -> None:
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"body" not in received:
            received.extend(await reader.read(65536))
        with suppress(TimeoutError):
            received.extend(await asyncio.wait_for(reader.read(65536), 0.3))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        proxy = EgressProxy("probe", (f"127.0.0.1:{port}",))
        await proxy.start(tmp_path / "s")
        head = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nContent-Length: 4\r\n\r\n"
        answer = await ask(tmp_path / "s", f"{head}bodyGET /two HTTP/1.1\r\n\r\n".encode())
        await proxy.close()
    assert answer == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert received.endswith(b"\r\n\r\nbody")


async def test_a_refusal_arrives_though_the_body_was_not_read(
    sandbox: BubblewrapSandbox, make_job: MakeJob, far: _Far
) -> None:
    job = make_job(FETCH, {"url": f"http://127.0.0.1:{far.port}/", "data": "x" * 3_000_000}, egress=("127.0.0.1:9",))
    result = await sandbox.run(job)
    assert result.output == [403, f"127.0.0.1:{far.port} is not in this tool's egress list\n"], result


async def test_a_name_with_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver is the far end of a wire here: it answers what an attacker's name server would."""
    loop = asyncio.get_running_loop()
    asked: list[str] = []

    def answering(*addresses: str) -> Any:
        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)
            return [(None, None, None, "", (address, port)) for address in addresses]

        return getaddrinfo

    allowlist = Allowlist(["api.example.com:443", "localhost:80"])
    api, localhost = Destination("api.example.com", 443), Destination("localhost", 80)
    bad = [
        "10.0.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "192.168.1.1",
        "172.16.0.1",
        "100.64.0.1",
        "224.0.0.1",
    ]
    bad += ["::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"]
    bad += ["100.100.100.200", "168.63.129.16", "fd00:ec2::254", "255.255.255.255", "240.0.0.1"]
    bad += ["fec0::1", "feff::1", "3fff::1", "192.0.0.8", "192.0.0.170", "192.88.99.1", "::ffff:192.0.0.8"]
    for address in bad:
        for answer in ([address], ["93.184.215.14", address]):
            monkeypatch.setattr(loop, "getaddrinfo", answering(*answer))
            with pytest.raises(DestinationRefused):
                await allowlist.resolve(api)
    monkeypatch.setattr(loop, "getaddrinfo", answering("10.0.0.1"))
    with pytest.raises(DestinationRefused):
        await allowlist.resolve(localhost)
    asked.clear()
    good = ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e")
    monkeypatch.setattr(loop, "getaddrinfo", answering(*good))
    assert await allowlist.resolve(api) == list(good)
    assert asked == ["api.example.com"]  # once: what was checked is what is connected to


async def test_what_cannot_be_recorded_does_not_happen(tmp_path: Path, far: _Far) -> None:
    def broken(*event: Any) -> None:
        raise RuntimeError("the log is full")

    server = EgressProxy("probe", (f"127.0.0.1:{far.port}",), broken)
    await server.start(tmp_path / "s")
    with no_packets():
        answer = await ask(tmp_path / "s", f"CONNECT 127.0.0.1:{far.port} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 500 ")
    await server.close()


async def test_idle_and_trickling_connections_are_ended(
    proxy: Path, far: _Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_module, "_IDLE_TIMEOUT", 0.3)
    with monkeypatch.context() as patch:
        patch.setattr(egress_module, "_HEAD_TIMEOUT", 0.3)
        assert await ask(proxy, b"GET http://") == b""
    established = b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert await ask(proxy, f"CONNECT 127.0.0.1:{far.port} HTTP/1.1\r\n\r\n".encode()) == established


async def test_connections_beyond_the_bound_wait_outside_this_process(
    proxy: Path, far: _Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "CONNECTIONS", 2)
    request = f"GET http://127.0.0.1:{far.port}/ HTTP/1.1\r\n\r\n".encode()
    accepted = _count_accepted(monkeypatch)
    held = [await asyncio.open_unix_connection(proxy) for _ in range(2)]
    waiting = [asyncio.create_task(ask(proxy, request)) for _ in range(3)]
    await _until(lambda: len(accepted) == 2)
    for _ in range(20):  # turns of the loop in which a listener that still listens would accept
        await asyncio.sleep(0.002)
    assert len(accepted) == 2
    assert not any(task.done() for task in waiting)
    for _, writer in held:
        writer.close()
    answers = await asyncio.gather(*waiting)
    assert [answer[:15] for answer in answers] == [b"HTTP/1.0 200 OK"] * 3


async def test_one_bound_for_all_sandboxes_in_which_each_has_one_connection(
    tmp_path: Path, far: _Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = _count_accepted(monkeypatch)
    shared = SharedBound(3)
    proxies = [EgressProxy(name, (f"127.0.0.1:{far.port}",), None, shared) for name in ("hog", "second", "third")]
    for number, server in enumerate(proxies):
        await server.start(tmp_path / str(number))
    held = [await asyncio.open_unix_connection(tmp_path / "0") for _ in range(20)]
    await _until(lambda: len(accepted) >= 4)
    assert len(accepted) == 4  # its own and three of all
    request = f"GET http://127.0.0.1:{far.port}/ HTTP/1.1\r\n\r\n".encode()
    for path in ("1", "2"):
        for _ in range(3):  # one after the other
            assert (await ask(tmp_path / path, request)).startswith(b"HTTP/1.0 200 OK")
    # Two at once: the second waits for room, in turn with the hog, whose next connection waits for longer.
    kept_reader, kept = await asyncio.open_unix_connection(tmp_path / "1")
    second = asyncio.create_task(ask(tmp_path / "1", request))
    await _until(lambda: len(accepted) == 4 + 6 + 1)
    await asyncio.sleep(0.05)
    assert not second.done()
    held[0][1].close()
    await _until(lambda: len(accepted) == 4 + 6 + 2)
    assert not second.done()
    held[1][1].close()
    assert (await second).startswith(b"HTTP/1.0 200 OK")
    for _, writer in [*held, (kept_reader, kept)]:
        writer.close()
    for server in proxies:
        await server.close()


HOLDER = """
import os, socket, sys, time
path, children, each, ready = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for _ in range(children):
    if os.fork() == 0:
        sockets = []
        for _ in range(each):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            try:
                one.connect(path)
            except OSError:
                pass
            sockets.append(one)
        os.write(ready, b"x")
        time.sleep(600)
time.sleep(600)
"""


async def test_children_that_connect_without_end_take_no_descriptors(
    tmp_path: Path, far: _Far, sandbox: BubblewrapSandbox, make_job: MakeJob
) -> None:
    """Twenty processes with a hundred connections each, and another tool that needs one."""
    proxy = EgressProxy("hog", ("127.0.0.1:9",))
    await proxy.start(tmp_path / "s")
    before = _descriptors()
    ready, write = os.pipe()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "s"), "20", "100", str(write)]
    hog = subprocess.Popen(command, pass_fds=[write], start_new_session=True)
    os.close(write)
    try:
        os.set_blocking(ready, False)
        signs = 0
        async with asyncio.timeout(120):
            while signs < 20:
                await readable(asyncio.get_running_loop(), ready)
                signs += len(os.read(ready, 100))
        granted = f"127.0.0.1:{far.port}"
        job = make_job(FETCH, {"url": f"http://{granted}/"}, egress=(granted,))
        assert (await sandbox.run(job)).output == [200, "hello / "]
        opened = _descriptors() - before
        assert listener_module.CONNECTIONS // 2 < opened < listener_module.CONNECTIONS + 40
    finally:
        os.killpg(hog.pid, signal.SIGKILL)
        hog.wait()
        os.close(ready)
        await proxy.close()


async def test_a_connection_that_cannot_be_accepted_waits(
    proxy: Path, far: _Far, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with too many open files: it is tried again, not at every turn of the loop, and served in the end."""
    tries: list[None] = []
    accept = socket.socket.accept

    def failing(one: socket.socket) -> Any:
        if one.family == socket.AF_UNIX:
            tries.append(None)
        if one.family == socket.AF_UNIX and len(tries) <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(one)

    monkeypatch.setattr(listener_module.socket.socket, "accept", failing)
    answer = await ask(proxy, f"GET http://127.0.0.1:{far.port}/ HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 200 OK")
    assert [record.message for record in caplog.records].count(
        "a connection of a tool waits, because it cannot be accepted: [Errno 24] Too many open files"
    ) == 2


def _count_accepted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with every connection that a proxy accepts."""
    accepted: list[None] = []
    accept = socket.socket.accept

    def counting(one: socket.socket) -> Any:
        pair = accept(one)
        if one.family == socket.AF_UNIX:
            accepted.append(None)
        return pair

    monkeypatch.setattr(listener_module.socket.socket, "accept", counting)
    return accepted


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_closed_port_is_a_bad_gateway(tmp_path: Path) -> None:
    server = EgressProxy("probe", ("127.0.0.1:1",))
    await server.start(tmp_path / "s")
    answer = await ask(tmp_path / "s", b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n127.0.0.1:1 does not accept connections\n")
    await server.close()


@pytest.mark.parametrize("entry", ["example.com", "*.example.com:443", "http://example.com:443", "a b:1", ":80", "h:0"])
def test_the_list_takes_pairs_only(entry: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|no port"):
        Allowlist([entry])


# -- the deadline of a call ----------------------------------------------------------------------------------------


async def test_nothing_goes_out_after_the_deadline(tmp_path: Path, far: _Far) -> None:
    """As when this process is woken up late, with the tool's request waiting at the proxy."""
    late = EgressProxy("probe", (f"127.0.0.1:{far.port}",))
    late.until = since_boot() - 0.001
    await late.start(tmp_path / "s")
    head = f"POST http://127.0.0.1:{far.port}/ HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
    answer = await ask(tmp_path / "s", head.encode())
    await late.close()
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert far.requests == []


async def test_a_tunnel_is_cut_at_the_deadline(tmp_path: Path) -> None:
    received = bytearray()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                received.extend(data)
                writer.write(data)
        ended.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        proxy = EgressProxy("probe", (f"127.0.0.1:{port}",))
        await proxy.start(tmp_path / "s")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nearly".encode())
        await reader.readuntil(b"early")
        proxy.until = since_boot()
        writer.write(b"late")
        async with asyncio.timeout(120):
            await ended.wait()
        writer.close()
        await proxy.close()
    assert received == b"early"


async def test_a_job_that_comes_too_late_is_not_begun(sandbox: BubblewrapSandbox, make_job: MakeJob, far: _Far) -> None:
    granted = f"127.0.0.1:{far.port}"
    job = make_job(FETCH, {"url": f"http://{granted}/"}, egress=(granted,))
    result = await sandbox.run(replace(job, until=since_boot() - 1))
    assert result.ending == "timeout"
    assert far.requests == []
