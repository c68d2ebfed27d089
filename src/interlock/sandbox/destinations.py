"""Destinations of a tool: the allowlist, and the addresses that are always refused.

Two checks, both made before a byte leaves the host: this exact `host:port` must be in the allowlist, and its name must
resolve to a public address. The second is needed because the owner of a name controls its address: `cdn.example.com`
may point to a database in the local network, or to the cloud's metadata service, which returns credentials.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from interlock.base.addresses import Address, is_public, literal, serves_credentials

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::(?P<port>[0-9]+))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_RESOLVE_TIMEOUT = 10.0  # seconds


class DestinationRefused(Exception):
    """The destination is not allowed; the text is one sentence for the tool."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host as named by the tool, in lower case and without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_authority(text: str, default_port: int | None = None) -> Destination:
    """`host:port` or `[v6]:port`; the port may be missing only if there is a default.

    Raises:
        ValueError: anything else. User information, zone ids, signs, spaces and leading zeros are refused, because
            parsers interpret them differently, which can be used to bypass allowlists.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not host:port")
    port = default_port
    if match["port"] is not None:
        if not _PORT.fullmatch(match["port"]) or int(match["port"]) > 65535:
            raise ValueError(f"{text[:100]!r} has no port between 1 and 65535")
        port = int(match["port"])
    if port is None:
        raise ValueError(f"{text[:100]!r} names no port; write host:port")
    if match["v6"] is not None:
        return Destination(str(ipaddress.IPv6Address(match["v6"])), port)
    return Destination(match["name"].lower(), port)


class Allowlist:
    """The exact `host:port` pairs that one tool may reach, without wildcards.

    Raises:
        ValueError: an entry is not `host:port`.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._granted = frozenset(parse_authority(entry) for entry in entries)

    async def resolve(self, destination: Destination) -> list[str]:
        """The addresses to connect to, in order. The caller connects to these and never resolves the name again.

        Raises:
            DestinationRefused: the pair is not in the allowlist, or it resolves to an address that no tool may reach.
            OSError: the name does not resolve.
        """
        if destination not in self._granted:
            raise DestinationRefused(f"{destination} is not in this tool's egress list")
        written = literal(destination.host)
        if written is not None:
            _vet(written, destination, explicit=True)
            return [str(written)]
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_RESOLVE_TIMEOUT):
            found = await loop.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # One refused address refuses the name: a mixed answer is typical of a DNS rebinding attack.
        for address in addresses:
            ip = ipaddress.ip_address(address)
            _vet(ip, destination, explicit=destination.host == "localhost" and ip.is_loopback)
        return addresses


def _vet(address: Address, destination: Destination, *, explicit: bool) -> None:
    """Check an address; `explicit` permits all addresses except those that serve credentials."""
    if serves_credentials(address):
        raise DestinationRefused(f"{destination} is a link-local or metadata address, which no tool may reach")
    if not explicit and not is_public(address):
        raise DestinationRefused(f"{destination} resolves to an address that is not public")
