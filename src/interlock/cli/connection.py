"""Connection of a command to the API: a running server, or the same application opened inside this process."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import BinaryIO, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpx

from interlock.base import errors
from interlock.base.errors import InterlockError, InvalidInput, Unavailable
from interlock.base.files import write_private
from interlock.base.settings import Settings, load_settings, unknown_variables
from interlock.cli.console import errors as errors_console
from interlock.cli.location import project_directory
from interlock.services.views.base import View
from interlock.services.views.errors import ErrorBody

SELF_APPROVAL = (
    "on this machine you may approve what you asked for yourself (review.self_approval); a server refuses that"
)

V = TypeVar("V", bound=View)

_ANSWER_SECONDS = 30.0  # for a server whose process is alive; an overloaded host needs some time

IN_THE_CLEAR = "INTERLOCK_URL: the API key goes over the network unencrypted; use https"

_IDLE_SECONDS = 2.0  # less than servers and proxies keep an idle connection: a request must not meet its end

_CODES: dict[str, type[InterlockError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, InterlockError) and not issubclass(kind, errors.StepError)
}


class Api:
    """Client of the API: methods return the operation's view or raise the error named by the server."""

    def __init__(self, client: httpx.AsyncClient, *, url: str | None) -> None:
        self.client = client
        self.url = url
        """Address of the server; None for this process."""

    async def get(self, view: type[V], path: str, **params: str | int | bool | None) -> V:
        given = {key: _text(value) for key, value in params.items() if value is not None}
        query = "?" + urlencode(given, errors="surrogateescape") if given else ""
        return _parsed(view, await self._send("GET", path + query))

    async def post(self, view: type[V], path: str, body: object, *, headers: Mapping[str, str] | None = None) -> V:
        # Sent unchanged; the server validates it.
        sent = {"Content-Type": "application/json", **(headers or {})}
        return _parsed(view, await self._send("POST", path, content=json.dumps(body), headers=sent))

    async def put(self, path: str, body: object) -> None:
        await self._send("PUT", path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    async def delete(self, path: str) -> None:
        await self._send("DELETE", path)

    async def _send(
        self, method: str, path: str, *, content: str | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        try:
            try:
                response = await self.client.request(method, path, content=content, headers=headers)
            except (httpx.RemoteProtocolError, httpx.ReadError):
                if method != "GET":
                    raise  # it may have been carried out
                # The server closed the idle connection just then, for instance because this machine slept.
                response = await self.client.request(method, path)
        except httpx.HTTPError as error:
            raise self._gone(error) from error
        if not response.is_success:
            raise _error_of(response)
        return response

    async def lines(self, path: str) -> AsyncIterator[str]:
        """The lines of a long answer; raises if it is interrupted."""
        try:
            async with self.client.stream("GET", path) as response:
                if not response.is_success:
                    await response.aread()
                    raise _error_of(response)
                async for line in response.aiter_lines():
                    yield line
        except httpx.HTTPError as error:
            raise self._gone(error) from error

    def _gone(self, error: httpx.HTTPError) -> Unavailable:
        return Unavailable(
            f"the server at {self.url} does not answer ({type(error).__name__}); is `interlock dev` running?"
        )


def segment(text: str) -> str:
    """A name from the command line, escaped as one path segment."""
    return quote(text, safe="", errors="surrogateescape") or "%20"


def _text(value: str | int | bool) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _parsed(view: type[V], response: httpx.Response) -> V:
    try:
        return view.model_validate(response.json())
    except ValueError as error:
        raise _foreign(response) from error


def _foreign(response: httpx.Response) -> Unavailable:
    return Unavailable(
        f"the server answered {response.status_code} with a response that is not Interlock's; check INTERLOCK_URL"
    )


def _error_of(response: httpx.Response) -> InterlockError:
    try:
        error = ErrorBody.model_validate(response.json()).error
    except ValueError:
        return _foreign(response)
    return _CODES.get(error.code, InterlockError)(error.message)


def settings_here() -> Settings:
    """Settings of the project. Environment variables that look like settings and are none are named on standard error."""
    _warn_of_unknown_variables()
    return load_settings(project_directory())


@functools.cache
def _warn_of_unknown_variables() -> None:
    for warning in unknown_variables(os.environ):
        errors_console.print(warning, style="yellow", soft_wrap=True)


def sends_in_the_clear(url: str) -> bool:
    """True if requests to this URL leave this machine without encryption."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname in {None, "localhost"}:
        return False
    try:
        return not ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        return True


@asynccontextmanager
async def connect(*, worker: bool = False) -> AsyncIterator[Api]:
    """The API: at INTERLOCK_URL, else at the server running in this directory, else opened in this process.

    Args:
        worker: if opened in this process, deploy the project first and also drive runs.
    """
    remote = os.environ.get("INTERLOCK_URL")
    if remote:
        key = os.environ.get("INTERLOCK_API_KEY", "")
        if key and sends_in_the_clear(remote):
            errors_console.print(IN_THE_CLEAR, style="yellow", soft_wrap=True)
        async with client_of(remote, key) as client:
            yield Api(client, url=remote)
        return
    settings = settings_here()
    running = await find_server(settings)
    if running is not None:
        url, key = running
        async with client_of(url, key) as client:
            yield Api(client, url=url)
        return
    if settings.database.url is None and not worker and not (settings.data_dir / "pg").exists():
        raise errors.NotFound("nothing has run in this directory yet; start with `interlock dev` or `interlock run`")
    from interlock.cli.installation import opened_api

    async with opened_api(settings, worker=worker) as client:
        yield Api(client, url=None)


@contextlib.contextmanager
def announced(settings: Settings, url: str) -> Iterator[None]:
    """Publishes this process's address in the data directory while it serves."""
    state = settings.data_dir / "server.json"
    write_private(state, json.dumps({"url": url}))
    with state.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            state.unlink(missing_ok=True)


async def find_server(settings: Settings) -> tuple[str, str] | None:
    """(url, key) of the server that `interlock dev` or `interlock serve` runs over this data directory, if it answers.

    Raises:
        Unavailable: its process lives and accepts connections, and does not answer: a second one beside it would be wrong.
    """
    try:
        with (settings.data_dir / "server.json").open("rb") as file:
            url = str(json.load(file)["url"])
            if _is_free(file):
                return None  # left by a dead server: another process at this address must not receive the key
        key = str(json.loads((settings.data_dir / "client.json").read_text())["api_key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        async with client_of(url, key) as client:
            if (await client.get("/healthz", timeout=_ANSWER_SECONDS)).status_code == 200:
                return url, key
    except httpx.TimeoutException as error:
        raise Unavailable(
            f"the server of this project at {url} did not answer within {_ANSWER_SECONDS:g} s; try again, or stop it"
        ) from error
    except (
        httpx.HTTPError,
        InvalidInput,
    ):  # no server, or not an address: it is still starting, or the file was left by a dead server
        pass
    return None


def _is_free(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def client_of(url: str, key: str) -> httpx.AsyncClient:
    """A client of the server at that address; raises InvalidInput for an address or key that cannot be one."""
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput("INTERLOCK_API_KEY is not an API key; a key begins with il_ and has ASCII characters only")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"INTERLOCK_URL: {url} is not a URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InvalidInput(f"INTERLOCK_URL: {url} is not the URL of a server; write http://HOST:PORT")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(keepalive_expiry=_IDLE_SECONDS)
    return httpx.AsyncClient(base_url=parsed, headers=headers, timeout=60, trust_env=False, limits=limits)
