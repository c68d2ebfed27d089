"""HTTP sessions of this installation's own connections: to addresses that `Outbound` permits, and to no others."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from interlock.base.outbound import Outbound


class VettedResolver(AbstractResolver):
    """aiohttp's resolver, which gives only addresses that may be reached. One refused address refuses the name."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            self._outbound.vet(host, one["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


def vetted_session(outbound: Outbound, url: str, headers: Mapping[str, str] | None = None) -> aiohttp.ClientSession:
    """A session for requests to one base URL. It follows no redirect by itself, keeps no cookies and uses no proxy.

    The number of connections is not limited: a limit would queue calls silently, against their deadline.

    Raises:
        AddressRefused: the URL's host is an address that may not be reached.
    """
    outbound.vet_url(url)
    return aiohttp.ClientSession(
        headers={"User-Agent": "interlock", **(headers or {})},
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, resolver=VettedResolver(outbound)),
        timeout=aiohttp.ClientTimeout(total=None),  # callers have deadlines of their own
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
