"""TLS in front of a Temporal server that has none: real certificates, and a terminator that passes bytes on."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = dt.timedelta(days=1)
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority of a test's own; it signs for servers and for clients."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        unsigned = _certificate(self._name, self._name, self._key).add_extension(constraints, critical=True)
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(_pem(unsigned.sign(self._key, hashes.SHA256())))

    def server(self, *names: str) -> Pair:
        """For a server with these names; one that is an address is entered as one."""
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        return self._sign("server", ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def client(self) -> Pair:
        return self._sign("client", ExtendedKeyUsageOID.CLIENT_AUTH)

    def _sign(self, role: str, usage: x509.ObjectIdentifier, *extensions: x509.ExtensionType) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
        unsigned = _certificate(subject, self._name, key)
        for extension in (x509.ExtendedKeyUsage([usage]), *extensions):
            unsigned = unsigned.add_extension(extension, critical=False)
        pair = Pair(self._directory / f"{role}.pem", self._directory / f"{role}.key")
        pair.cert.write_bytes(_pem(unsigned.sign(self._key, hashes.SHA256())))
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        return pair


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Terminator:
    """Speaks TLS and HTTP/2 to the front, and hands the bytes to a server behind it.

    Attributes:
        address: host:port to the front.
        clients: subjects of the client certificates that were shown, None where there was none; one a connection.
    """

    def __init__(self, behind: str, server: Pair, *, clients_of: Path | None = None) -> None:
        self._host, _, port = behind.rpartition(":")
        self._port = int(port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(server.cert, server.key)
        self._context.set_alpn_protocols(["h2"])
        if clients_of is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(clients_of)
        self.clients: list[str | None] = []
        self._passing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._context)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        shown = writer.get_extra_info("peercert")
        self.clients.append(shown["subject"][0][0][1] if shown else None)
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._port)
        try:
            # Either side's end is the connection's.
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, inner_writer))
                both.create_task(_copy(inner_reader, writer))
        except* (OSError, asyncio.CancelledError):  # cancelled by ourselves only, and asyncio would complain about it
            pass
        finally:
            for one in (inner_writer, writer):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        target.write(chunk)
        await target.drain()
    raise ConnectionResetError
