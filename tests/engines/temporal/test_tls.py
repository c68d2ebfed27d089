"""TLS to the Temporal server: runs go over it, and whatever is wrong with it ends in one sentence and never in plain text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import Bank, Observer
from engines.temporal.conftest import MASTER_KEY, Start, TemporalServer, said
from engines.temporal.tls import Authority, Pair, Terminator
from interlock.base.errors import InvalidSpec, Unavailable
from interlock.base.settings import TemporalSettings, load_settings
from interlock.engines.temporal.client import connect

Front = Callable[..., Any]


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours", "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "theirs", "theirs")


@pytest.fixture
async def front(request: pytest.FixtureRequest, ours: Authority) -> AsyncIterator[Front]:
    """Puts TLS in front of a server; `mutual` wants a client certificate of ours."""
    fronts: list[Terminator] = []

    async def make(*names: str, mutual: bool = False, behind: str = "temporal_server") -> Terminator:
        pair = ours.server(*(names or ("127.0.0.1",)))
        server = request.getfixturevalue(behind)
        fronts.append(Terminator(server.address, pair, clients_of=ours.ca if mutual else None))
        return await fronts[-1].__aenter__()

    yield make
    for one in fronts:
        await one.__aexit__()


def mutual_of(pair: Pair) -> dict[str, Path]:
    return {"tls_cert": pair.cert, "tls_key": pair.key}


async def refused(**settings: Any) -> str:
    with pytest.raises(Unavailable) as caught:
        await connect(TemporalSettings(tls=True, **settings), MASTER_KEY, identity="test")
    return caught.value.message


@pytest.mark.parametrize("behind", ["temporal_server", "real_server"])
async def test_runs_over_tls(
    desk: Desk,
    open_app: OpenApp,
    seen: Observer,
    bank: Bank,
    temporal: dict[str, Any],
    front: Front,
    ours: Authority,
    behind: str,
) -> None:
    terminator = await front(behind=behind)
    await open_app(
        start_worker=True, temporal={**temporal, "address": terminator.address, "tls": True, "tls_ca": ours.ca}
    )
    run = await desk.start("think_pay", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1}
    assert set(terminator.clients) == {None}, (
        "all that the worker said went through here, without a certificate of its own"
    )


async def test_runs_over_mutual_tls_from_the_command_line(
    desk: Desk, start: Start, seen: Observer, bank: Bank, front: Front, ours: Authority, project: Path
) -> None:
    """The server's certificate is for a name that is not the address; the files are named relative to the project."""
    terminator = await front("temporal.test", mutual=True)
    pair = ours.client()
    for file in (ours.ca, pair.cert, pair.key):
        (project / file.name).write_bytes(file.read_bytes())
    arguments = ("--engine", "temporal", "--address", terminator.address, "--unversioned")
    tls = {"tls": True, "tls_ca": "ca.pem", "tls_cert": "client.pem", "tls_key": "client.key"}
    worker = start(*arguments, **tls, tls_server_name="temporal.test")
    run = await desk.start("pay_keyed", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1}
    assert set(terminator.clients) == {"client"}
    worker.terminate()
    await asyncio.to_thread(said, worker)
    assert worker.returncode == 0


async def test_an_unknown_authority_is_refused(front: Front, theirs: Authority) -> None:
    terminator = await front()
    server = f"the Temporal server at {terminator.address} shows a certificate that"
    mend = "set temporal.tls_ca to its authority's certificate"
    assert await refused(address=terminator.address) == f"{server} no authority this system trusts signed; {mend}"
    expected = f"{server} temporal.tls_ca ({theirs.ca}) did not sign; {mend}"
    assert await refused(address=terminator.address, tls_ca=theirs.ca) == expected
    assert terminator.clients == [], "nothing was said before the certificate was refused"


async def test_a_wrong_name_is_refused(front: Front, ours: Authority) -> None:
    terminator = await front("elsewhere.test")
    mend = "set temporal.tls_server_name to a name it has"
    assert await refused(address=terminator.address, tls_ca=ours.ca) == (
        f'the Temporal server at {terminator.address} shows a certificate that is not for "127.0.0.1"; {mend}'
    )
    message = await refused(address=terminator.address, tls_ca=ours.ca, tls_server_name="temporal.test")
    assert 'is not for "temporal.test"' in message


async def test_a_server_that_wants_a_certificate_refuses_us(front: Front, ours: Authority, theirs: Authority) -> None:
    terminator = await front(mutual=True)
    known = {"address": terminator.address, "tls_ca": ours.ca}
    assert await refused(**known) == (
        f"the Temporal server at {terminator.address} hung up; "
        "if it wants a client certificate, set temporal.tls_cert and temporal.tls_key"
    )
    stranger = theirs.client()
    assert f"may not know the authority that signed temporal.tls_cert ({stranger.cert})" in await refused(
        **known, **mutual_of(stranger)
    )
    assert terminator.clients == []


async def test_without_tls_a_tls_server_is_not_talked_to(front: Front) -> None:
    terminator = await front()
    with pytest.raises(Unavailable, match=r"if it speaks TLS, set temporal\.tls = true"):
        await connect(TemporalSettings(address=terminator.address), MASTER_KEY, identity="test")
    assert terminator.clients == []


async def test_there_is_no_way_back_to_plain_text(temporal_server: TemporalServer, ours: Authority) -> None:
    """A server without TLS is refused; and one that answers nothing hears nothing but TLS."""
    message = await refused(address=temporal_server.address, tls_ca=ours.ca)
    assert message.startswith(f"the Temporal server at {temporal_server.address} does not speak TLS")

    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(2))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as deaf:
        await refused(address=f"127.0.0.1:{deaf.sockets[0].getsockname()[1]}", tls_ca=ours.ca)
    assert heard, "nobody called"
    assert set(heard) == {b"\x16\x03"}, "a handshake record, RFC 8446, 5.1; plain HTTP/2 begins with PRI"


async def test_a_worker_that_is_refused_says_so_and_ends(
    desk: Desk, start: Start, front: Front, theirs: Authority, tmp_path: Path
) -> None:
    terminator = await front()
    arguments = ("--engine", "temporal", "--address", terminator.address, "--unversioned")
    for tls, sentence, status in (
        ({"tls_ca": theirs.ca}, f"temporal.tls_ca ({theirs.ca}) did not sign", 8),
        ({"tls_ca": tmp_path / "none.pem"}, f"temporal.tls_ca: {tmp_path / 'none.pem'} cannot be read", 2),
    ):
        worker = start(*arguments, tls=True, **tls)
        words = await asyncio.to_thread(said, worker)
        assert "".join(sentence.split()) in "".join(words.split()), words
        assert "Traceback" not in words
        assert worker.returncode == status


async def test_settings_that_cannot_hold_are_refused_before_anybody_is_called(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    pair, stranger = ours.client(), theirs.client()
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tls_ca": ours.ca, "tls": False}, r"tls_ca is set and TLS is not; set temporal\.tls = true"),
        ({"tls_server_name": "a", "tls": False}, r"tls_server_name is set and TLS is not"),
        ({"tls_cert": pair.cert}, "needs both, .* set tls_key, too"),
        ({"tls_key": pair.key}, "needs both, .* set tls_cert, too"),
        ({"tls_ca": junk}, "junk.pem holds no certificate in PEM"),
        ({"tls_ca": tmp_path}, "cannot be read"),
        ({"tls_cert": pair.cert, "tls_key": stranger.key}, "are not a certificate and its key"),
        ({"tls_cert": junk, "tls_key": pair.key}, "are not a certificate and its key"),
    ]
    called: list[object] = []
    async with await asyncio.start_server(lambda *pair: called.append(pair), "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for given, sentence in cases:
            with pytest.raises(InvalidSpec, match=sentence):
                await connect(TemporalSettings(**{"address": address, "tls": True, **given}), MASTER_KEY, identity="t")
    assert called == []


def test_files_are_named_relative_to_the_project(tmp_path: Path) -> None:
    (tmp_path / "interlock.toml").write_text('[temporal]\ntls = true\ntls_ca = "ca.pem"\ntls_key = "/etc/key.pem"\n')
    settings = load_settings(tmp_path).temporal
    assert (settings.tls_ca, settings.tls_key, settings.tls_cert) == (tmp_path / "ca.pem", Path("/etc/key.pem"), None)
