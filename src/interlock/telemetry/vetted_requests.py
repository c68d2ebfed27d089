"""Vetted connections of the blocking HTTP client that the OTLP exporter takes: `requests`, which is installed with it."""

from __future__ import annotations

import socket

import urllib3
from requests import Response, Session
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from interlock.base.outbound import Outbound


class VettedRequests(Session):
    """A session that checks each connection's peer before a byte is sent. It follows no redirect and uses no proxy."""

    def __init__(self, outbound: Outbound) -> None:
        super().__init__()
        self.trust_env = False
        self.adapters.clear()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _adapter(outbound))

    def get_redirect_target(self, resp: Response) -> str | None:  # noqa: ARG002  the library's signature
        return None


def _adapter(outbound: Outbound) -> HTTPAdapter:
    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _vetted(outbound, self.host, super()._new_conn())

    class Encrypted(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _vetted(outbound, self.host, super()._new_conn())

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Encrypted

    adapter = HTTPAdapter()
    adapter.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}
    return adapter


def _vetted(outbound: Outbound, host: str, connected: socket.socket) -> socket.socket:
    try:
        outbound.vet(host.strip("[]"), connected.getpeername()[0])
    except BaseException:
        connected.close()
        raise
    return connected
