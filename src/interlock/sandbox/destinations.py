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

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::(?P<port>[0-9]+))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_RESOLVE_TIMEOUT = 10.0  # seconds

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Refused even if a contract lists them: these addresses serve the host's own credentials or configuration.
_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata service of most clouds
        "fe80::/10",  # link-local
        "fd00:ec2::254/128",  # AWS metadata over IPv6
        "100.100.100.200/32",  # Alibaba Cloud metadata
        "168.63.129.16/32",  # Azure's host agent; numerically a public address
    )
)
# Not public, though the standard library of this Python takes some of their addresses for global.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "fec0::/10",  # site-local, RFC 3879
        "3fff::/20",  # documentation, RFC 9637
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "192.88.99.0/24",  # relays of 6to4, RFC 7526
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


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
        literal = _literal(destination.host)
        if literal is not None:
            _vet(literal, destination, explicit=True)
            return [str(literal)]
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_RESOLVE_TIMEOUT):
            found = await loop.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # One refused address refuses the name: a mixed answer is typical of a DNS rebinding attack.
        for address in addresses:
            ip = ipaddress.ip_address(address)
            _vet(ip, destination, explicit=destination.host == "localhost" and ip.is_loopback)
        return addresses


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _vet(address: Address, destination: Destination, *, explicit: bool) -> None:
    """Check an address; `explicit` permits all addresses except those of `_NEVER`."""
    effective = _unwrapped(address)
    if any(effective in network for network in _NEVER):
        raise DestinationRefused(f"{destination} is a link-local or metadata address, which no tool may reach")
    if explicit:
        return
    special = any(effective in network for network in _NOT_PUBLIC)
    if special or not effective.is_global or effective.is_multicast or effective.is_reserved:
        raise DestinationRefused(f"{destination} resolves to an address that is not public")


def _unwrapped(address: Address) -> Address:
    """The IPv4 address embedded in some IPv6 addresses."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
