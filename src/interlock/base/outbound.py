"""Addresses that this installation's own connections may reach: those of providers, the webhook and the collector.

Connections of tools are decided elsewhere, by the tool's own list (`sandbox/destinations.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from interlock.base.addresses import Address, Network, effective, is_public, literal, serves_credentials
from interlock.base.errors import InvalidSpec


class AddressRefused(OSError):
    """The address may not be reached; the text is one sentence with the setting that permits it."""


class Outbound:
    """Decides about addresses.

    Public addresses may be reached, and those that the operator's settings name: an address or `localhost` written in the
    setting's URL itself, and the names and networks of `private`. Link-local and metadata addresses are always refused: they
    serve the credentials of the host.

    Args:
        private: names, addresses and networks (`vllm.internal`, `10.1.0.0/16`) that may be reached although not public.

    Raises:
        InvalidSpec: an entry is empty or no network.
    """

    def __init__(self, private: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._networks: list[Network] = []
        for entry in private:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                if not entry or "/" in entry or "*" in entry:
                    raise InvalidSpec(
                        f'network.private: "{entry}" is neither a name nor a network; write vllm.internal or 10.1.0.0/16'
                    ) from None
                self._names.add(entry.lower().rstrip("."))

    def vet(self, host: str, address: str) -> None:
        """Raises:
        AddressRefused: `host`, as a setting names it, leads to an address that may not be reached.
        """
        ip = ipaddress.ip_address(address.partition("%")[0])
        if serves_credentials(ip):
            raise AddressRefused(f"{host} is a link-local or metadata address, which is never connected to")
        if not (is_public(ip) or self._is_named(host, ip)):
            raise AddressRefused(f'{host} leads to an address that is not public; add "{host}" to network.private')

    def vet_url(self, url: str) -> None:
        """Checks a URL whose host is an address: libraries connect to that without a resolver."""
        host = urlsplit(url).hostname or ""
        if literal(host) is not None:
            self.vet(host, host)

    def _is_named(self, host: str, ip: Address) -> bool:
        name = host.lower().rstrip(".")
        if name in self._names or literal(host) is not None:
            return True
        if name == "localhost" and ip.is_loopback:
            return True
        actual = effective(ip)
        return any(actual in network or ip in network for network in self._networks)
