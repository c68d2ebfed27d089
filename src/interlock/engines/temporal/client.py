"""The connection to the Temporal server: sealed, over TLS if so set, and refused in one sentence when it does not come about."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from datetime import timedelta
from pathlib import Path

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, TLSConfig
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode

from interlock.base.errors import InvalidSpec, Unavailable
from interlock.base.settings import TemporalSettings
from interlock.engines.temporal.codec import sealing_converter
from interlock.telemetry import names
from interlock.telemetry.logs import log

_CONNECT_SECONDS = 30.0  # a machine in distress takes some; who is not there says so at once
# The library gives the reason in words only: these are rustls' names for what it refused. Words that it may change one day
# cost the better sentence, nothing else.
_WRONG_AUTHORITY = "UnknownIssuer"
_WRONG_NAME = "NotValidForName"
_NO_TLS_THERE = "InvalidContentType"
_CERTIFICATE = "InvalidCertificate"
_HUNG_UP = "call error after connection"


async def connect(settings: TemporalSettings, master_key: bytes, *, identity: str) -> Client:
    """A client whose payloads are sealed. What is set for TLS holds, or there is no connection.

    Raises:
        InvalidSpec: the address, or what is set for TLS, cannot be used; no connection was opened.
        Unavailable: no server answers at the address, either side refused the other, or the namespace is not there.
    """
    tls = _tls(settings)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            client = await Client.connect(
                settings.address,
                namespace=settings.namespace,
                identity=identity,
                tls=tls,
                data_converter=sealing_converter(master_key),
                runtime=_runtime(),
            )
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=settings.namespace), timeout=timedelta(seconds=_CONNECT_SECONDS)
        )
    except (RuntimeError, TimeoutError, RPCError) as error:
        if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
            raise Unavailable(
                f'the Temporal server at {settings.address} has no namespace "{settings.namespace}"; '
                "create it, or set temporal.namespace"
            ) from error
        raise Unavailable(_why(settings, str(error)), detail=str(error)) from error
    except ValueError as error:
        raise InvalidSpec(f'temporal.address "{settings.address}" is not host:port: {error}') from error
    return client


def _why(settings: TemporalSettings, reason: str) -> str:
    """One sentence for a connection that did not come about; `reason` is the library's."""
    server = f"the Temporal server at {settings.address}"
    if _WRONG_AUTHORITY in reason:
        known = f"temporal.tls_ca ({settings.tls_ca})" if settings.tls_ca else "no authority this system trusts"
        signed = f"{known} did not sign" if settings.tls_ca else f"{known} signed"
        return f"{server} shows a certificate that {signed}; set temporal.tls_ca to its authority's certificate"
    if _WRONG_NAME in reason:
        name = settings.tls_server_name or settings.address.rpartition(":")[0]
        return f'{server} shows a certificate that is not for "{name}"; set temporal.tls_server_name to a name it has'
    if _CERTIFICATE in reason:
        return f"{server} shows a certificate that is not valid; renew it there, or see whether this system's clock is right"
    if _NO_TLS_THERE in reason:
        return f"{server} does not speak TLS; set temporal.address to the port where it does, or temporal.tls = false"
    if _HUNG_UP not in reason:
        return f"no Temporal server answers at {settings.address}; start it, or set temporal.address"
    if not settings.tls:
        return f"{server} hung up; if it speaks TLS, set temporal.tls = true"
    if settings.tls_cert is None:
        return f"{server} hung up; if it wants a client certificate, set temporal.tls_cert and temporal.tls_key"
    return f"{server} hung up; it may not know the authority that signed temporal.tls_cert ({settings.tls_cert})"


def _tls(settings: TemporalSettings) -> TLSConfig | bool:
    """Reads and tries the files, so that what is wrong with them is said here and not by a stranger far away.

    Raises:
        InvalidSpec: names the setting.
    """
    given = [
        name for name in ("tls_ca", "tls_cert", "tls_key", "tls_server_name") if getattr(settings, name) is not None
    ]
    if not settings.tls:
        if given:
            raise InvalidSpec(f"temporal.{given[0]} is set and TLS is not; set temporal.tls = true, or remove it")
        return False
    ca = None if settings.tls_ca is None else _read("tls_ca", settings.tls_ca)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "tls_key" if settings.tls_key is None else "tls_cert"
        raise InvalidSpec(
            f"a client certificate needs both, temporal.tls_cert and temporal.tls_key; set {missing}, too"
        )
    cert = key = None
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.tls_ca is not None:
        try:
            trial.load_verify_locations(settings.tls_ca)
        except ssl.SSLError as error:
            raise InvalidSpec(
                f"temporal.tls_ca: {settings.tls_ca} holds no certificate in PEM; set it to one that does"
            ) from error
    if settings.tls_cert is not None and settings.tls_key is not None:
        cert, key = _read("tls_cert", settings.tls_cert), _read("tls_key", settings.tls_key)
        try:
            trial.load_cert_chain(settings.tls_cert, settings.tls_key, password="")  # else it would ask at the terminal
        except (ssl.SSLError, ValueError) as error:
            raise InvalidSpec(
                f"temporal.tls_cert and temporal.tls_key: {settings.tls_cert} and {settings.tls_key} are not a certificate and "
                "its key without a password, both in PEM; set them to a pair"
            ) from error
    return TLSConfig(server_root_ca_cert=ca, client_cert=cert, client_private_key=key, domain=settings.tls_server_name)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidSpec(f"temporal.{name}: {path} cannot be read: {error.strerror}") from error


class _IntoLog(logging.Handler):
    """Forwards log lines of the library's core to the worker's log. The core sees sealed payloads only."""

    def emit(self, record: logging.LogRecord) -> None:
        log(
            names.LOG_TEMPORAL_DOWN,
            record.getMessage(),
            level="error" if record.levelno >= logging.ERROR else "warning",
        )


@functools.cache
def _runtime() -> Runtime:
    # The library's core would print to the terminal; and it would tell the server about this host once a minute. What the
    # server refuses over and over, such as every task of a workflow, is a warning there, and said nowhere else.
    logger = logging.getLogger("temporalio.core")
    logger.propagate = False
    logger.addHandler(_IntoLog())
    forwarding = LogForwardingConfig(logger)
    filtering = TelemetryFilter(core_level="WARN", other_level="ERROR")
    telemetry = TelemetryConfig(logging=LoggingConfig(filtering, forwarding))
    return Runtime(telemetry=telemetry, worker_heartbeat_interval=None)
