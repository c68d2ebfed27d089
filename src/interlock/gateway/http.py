"""HTTP access to providers: a shared session, one deadline, a bounded body, distinct failures.

One `Endpoint` belongs to one provider object and one event loop. It never retries (the machine does), never follows a
redirect, and never reads proxy settings from the environment, because the egress proxy is configured explicitly.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from interlock.base.errors import FailureKind, InvalidInput, ProviderError
from interlock.base.json import JsonObject
from interlock.base.outbound import AddressRefused, Outbound
from interlock.base.vetted_http import vetted_session
from interlock.gateway.failures import not_the_protocol, scrub, status_error

MAX_BODY = 20 * 1024 * 1024
"""Maximum bytes of an answer after decompression."""

_MAX_ERROR_BODY = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete 2xx answer: the parsed JSON object and its headers."""

    body: JsonObject
    headers: Mapping[str, str]


class Endpoint:
    """A provider's base address with its fixed headers, over one keep-alive session.

    Args:
        name: the provider's name, for messages.
        base_url: http(s) address without query; a trailing slash does not matter.
        headers: sent with every request (authentication, version).
        secret: the key; it is removed from every text that becomes part of a message.
        outbound: decides about the addresses that `base_url` leads to.
        max_body: maximum bytes of an answer.

    Raises:
        InvalidInput: `base_url` is not a usable address, or the key cannot be a header.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        headers: Mapping[str, str],
        secret: str | None,
        outbound: Outbound | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise InvalidInput(f'provider "{name}": base_url must be like https://host/v1, without query or fragment')
        if parts.username or parts.password:
            raise InvalidInput(f'provider "{name}": base_url must not carry a password; give it as the key')
        if secret is not None and (not secret.isascii() or not secret.isprintable() or not secret.strip()):
            raise InvalidInput(f'provider "{name}": the key is empty or has characters no HTTP header can carry')
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.host = parts.hostname
        self.address = parts.netloc
        self._headers = dict(headers)
        self._secret = secret
        self._outbound = outbound or Outbound()
        self._max_body = max_body
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def post(self, path: str, body: JsonObject, *, timeout: float) -> Reply:  # noqa: ASYNC109
        """Send one JSON request and read the whole answer within `timeout` seconds.

        Raises:
            ProviderError: any failure of the provider, with the kinds documented at `Provider`; the same for the methods below.
        """
        return self._reply(await self._call("POST", path, timeout=timeout, limit=self._max_body, body=body))

    async def upload(
        self,
        path: str,
        fields: Mapping[str, str],
        content: bytes,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> Reply:
        """Send form fields and one file of JSON lines."""
        form = aiohttp.FormData(fields)
        form.add_field("file", content, filename="calls.jsonl", content_type="application/jsonl")
        return self._reply(await self._call("POST", path, timeout=timeout, limit=self._max_body, form=form))

    async def get(self, path: str, *, timeout: float) -> Reply:  # noqa: ASYNC109
        """Read a JSON object."""
        return self._reply(await self._call("GET", path, timeout=timeout, limit=self._max_body))

    async def download(self, path: str, *, timeout: float, limit: int) -> bytes:  # noqa: ASYNC109
        """Read a body as it is, at most `limit` bytes."""
        raw, _ = await self._call("GET", path, timeout=timeout, limit=limit)
        return raw

    async def _call(
        self,
        method: str,
        path: str,
        *,
        timeout: float,  # noqa: ASYNC109
        limit: int,
        body: JsonObject | None = None,
        form: aiohttp.FormData | None = None,
    ) -> tuple[bytes, aiohttp.ClientResponse]:
        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(method, path, limit, body, form)
        except TimeoutError:
            raise self._transient(f"did not answer within {timeout:g} s") from None
        except AddressRefused as error:
            raise self._refused(error) from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise ProviderError(
                f'provider "{self.name}" has a TLS certificate that is not trusted; check its address and the trust store',
                kind=FailureKind.PERMANENT,
                detail=self.clean(str(error)),
            ) from None
        except aiohttp.ClientPayloadError as error:
            raise self._transient("closed the connection during its answer", error) from None
        except aiohttp.ClientResponseError as error:
            # `from None` here and below: these exceptions contain the request with its headers and key.
            raise not_the_protocol(self.name, f"unreadable HTTP, {type(error).__name__}") from None
        except aiohttp.ServerDisconnectedError as error:
            raise self._transient("closed the connection without an answer", error) from None
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, AddressRefused):  # from the resolver, inside a connection error
                raise self._refused(error.__cause__) from None
            raise self._transient(f"at {self.address} cannot be reached ({_reason(error)})", error) from None

    async def close(self) -> None:
        """Close the session; may be called twice. A later call fails."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def clean(self, text: str) -> str:
        """The text in a form for messages: no key, one line, bounded."""
        return scrub(text, self._secret)

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ProviderError(f'provider "{self.name}" is closed', kind=FailureKind.PERMANENT)
        if self._session is None:
            self._session = vetted_session(self._outbound, self.base_url, self._headers)
        return self._session

    async def _exchange(
        self, method: str, path: str, limit: int, body: JsonObject | None, form: aiohttp.FormData | None
    ) -> tuple[bytes, aiohttp.ClientResponse]:
        session = self._open()
        async with session.request(
            method, self.base_url + path, allow_redirects=False, json=body, data=form
        ) as response:
            if not 200 <= response.status < 300:
                raw = await self._read(response, _MAX_ERROR_BODY, cut=True)
                raise status_error(self.name, response.status, response.headers, _lenient_json(raw), self._secret)
            return await self._read(response, limit, cut=False), response

    def _reply(self, answered: tuple[bytes, aiohttp.ClientResponse]) -> Reply:
        raw, response = answered
        return Reply(self._parse(raw, response), response.headers)

    async def _read(self, response: aiohttp.ClientResponse, limit: int, *, cut: bool) -> bytes:
        """The body, at most `limit` bytes: a longer one is cut (errors, where the status is sufficient) or refused."""
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            chunks.append(chunk)
            if size > limit:
                # The rest is not read, so this connection cannot be reused.
                response.close()
                if cut:
                    return b"".join(chunks)[:limit]
                raise not_the_protocol(self.name, f"more than {limit} bytes")
        return b"".join(chunks)

    def _parse(self, raw: bytes, response: aiohttp.ClientResponse) -> JsonObject:
        try:
            # Only decoded: the bounds are checked for the answer inside it, where a correction is possible.
            parsed = json.loads(raw)
        except (ValueError, RecursionError):
            # Without a length or chunks, a body ends with the connection: a cut body cannot be distinguished from a
            # complete one, so incomplete JSON is treated as a cut.
            if "content-length" not in response.headers and "transfer-encoding" not in response.headers:
                raise self._transient("closed the connection during its answer") from None
            raise not_the_protocol(self.name, f"no JSON, {response.content_type}") from None
        if not isinstance(parsed, dict):
            raise not_the_protocol(self.name, "no JSON object")
        return parsed

    def _refused(self, error: AddressRefused) -> ProviderError:
        return ProviderError(f'provider "{self.name}" is not called: {error}', kind=FailureKind.PERMANENT)

    def _transient(self, what: str, cause: BaseException | None = None) -> ProviderError:
        detail = None if cause is None else self.clean(f"{type(cause).__name__}: {cause}")
        return ProviderError(f'provider "{self.name}" {what}', kind=FailureKind.TRANSIENT, detail=detail)


def _reason(error: BaseException) -> str:
    """Why a connection failed, in the system's words; the class of the error if it has none."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    number = cause.errno if isinstance(cause, OSError) else None
    # A number that is negative is of the resolver.
    return os.strerror(number) if number is not None and number > 0 else type(cause).__name__


def _lenient_json(raw: bytes) -> object:
    """An error body, parsed if it is JSON; otherwise the status is sufficient."""
    try:
        return json.loads(raw)  # nothing of it is used but words, which are scrubbed
    except (ValueError, RecursionError):
        return None
