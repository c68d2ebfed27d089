"""Limit on wrong API keys: how often one source may make this process look up a key that does not exist."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from typing import TypeVar

from interlock.base.errors import TooManyRequests

K = TypeVar("K")
V = TypeVar("V")

_BURST = 30.0  # wrong keys at once
_PER_SECOND = 1.0  # further ones
_SOURCES = 4096
_REMEMBERED = 4096


class WrongKeys:
    """Wrong keys of the last time, in bounded memory.

    A key that was wrong stays wrong, because ids and secrets are random and never issued twice. So its repetition costs no
    query. A key that was right in this process is exempt from the limit: clients behind the address of an attacker, or of a
    reverse proxy, continue to work.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def is_known(self, key_id: str, digest: bytes) -> bool:
        """True if this key was found to be wrong before."""
        return (key_id, digest) in self._wrong

    def admit(self, source: str, key_id: str, digest: bytes) -> None:
        """Raises:
        TooManyRequests: this source sent so many wrong keys that a further unknown one is not looked up.
        """
        left, _ = self._left(source)
        if left < 1 and (key_id, digest) not in self._right:
            raise TooManyRequests(
                "too many wrong API keys from this address; wait, then send a valid one", retry_after=1.0
            )

    def note_wrong(self, source: str, key_id: str, digest: bytes) -> None:
        """Counts a wrong key against its source."""
        left, now = self._left(source)
        _keep(self._sources, source, (max(0.0, left - 1), now), _SOURCES)
        self._right.pop((key_id, digest), None)  # revoked
        _keep(self._wrong, (key_id, digest), None, _REMEMBERED)

    def note_right(self, key_id: str, digest: bytes) -> None:
        """Exempts a key from the limit."""
        _keep(self._right, (key_id, digest), None, _REMEMBERED)

    def _left(self, source: str) -> tuple[float, float]:
        now = time.monotonic()
        left, at = self._sources.get(source, (_BURST, now))
        return min(_BURST, left + (now - at) * _PER_SECOND), now


def source_of(address: str) -> str:
    """The source that an address is counted under: an IPv4 address, the /64 network of an IPv6 address, or the text itself."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))


def _keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
