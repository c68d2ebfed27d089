"""Classes of IP addresses: those that serve a host's own credentials, and those that are not public."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# These addresses serve the host's own credentials or configuration.
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


def literal(host: str) -> Address | None:
    """The address that a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def effective(address: Address) -> Address:
    """The IPv4 address embedded in some IPv6 addresses, otherwise the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def serves_credentials(address: Address) -> bool:
    """True for link-local and metadata addresses, which no connection may reach."""
    return any(effective(address) in network for network in _NEVER)


def is_public(address: Address) -> bool:
    """True for an address of the internet, and for none inside a network, on this host, or of a special kind."""
    actual = effective(address)
    if any(actual in network for network in _NOT_PUBLIC):
        return False
    return actual.is_global and not actual.is_multicast and not actual.is_reserved
