"""doctor: check of this host, with corrections."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import typer
from rich.text import Text

from interlock.base.errors import InterlockError, Unavailable
from interlock.base.settings import Settings
from interlock.cli.connection import Api, client_of, find_server, settings_here
from interlock.cli.console import AsJson, out, print_json
from interlock.cli.location import project_directory
from interlock.definitions.project import read_project
from interlock.gateway.catalog import parse_pin, provider_of
from interlock.gateway.weights import verify as verify_weights
from interlock.gateway.weights import weights_path
from interlock.sandbox.check import probe_sandbox
from interlock.services.views.installation import Ready

_FREE_BYTES = 1024**3
_CONNECT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """Result of one check. `problem` is a sentence with the correction, None if there is none; `fatal` if Interlock cannot run."""

    what: str
    problem: str | None = None
    fatal: bool = True


def register(cli: typer.Typer) -> None:
    cli.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check this host and report what is missing."""
    settings = settings_here()
    findings = list(_look(settings)) if as_json else _look(settings)
    if as_json:
        print_json({"findings": [asdict(one) for one in findings]})
    fatal = False
    for finding in findings:
        fatal = fatal or (finding.fatal and finding.problem is not None)
        if as_json:
            continue
        if finding.problem is None:
            out.print(Text.assemble(("ok", "green"), f"    {finding.what}"))
        else:
            mark = ("no  ", "red") if finding.fatal else ("note", "yellow")
            out.print(Text.assemble(mark, f"  {finding.what}: {finding.problem}"), soft_wrap=True)
    if fatal:
        raise typer.Exit(Unavailable.exit_code)


def _look(settings: Settings) -> Iterator[DoctorFinding]:
    version = platform.python_version()
    yield DoctorFinding(
        f"Python {version}",
        None if sys.version_info >= (3, 11) else "3.11 or newer is needed; install it and run make again",
    )
    yield _platform()
    yield _disk(settings)
    problems = asyncio.run(probe_sandbox())
    yield DoctorFinding("sandbox (bubblewrap)", " ".join(problems) or None)
    yield from _models(settings)
    yield _port(settings)
    yield _project(settings)


def _platform() -> DoctorFinding:
    what = f"{platform.system()} {platform.machine()}"
    good = platform.system() == "Linux" and platform.machine() in {"x86_64", "aarch64"}
    return DoctorFinding(
        what,
        None if good else "the sandbox and the embedded database need Linux on x86-64 or aarch64; use a Linux machine",
    )


def _disk(settings: Settings) -> DoctorFinding:
    place = settings.data_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    what = f"{free // 2**20} MiB free at {place}"
    if not os.access(place, os.W_OK):
        return DoctorFinding(what, f"{place} cannot be written; change its owner or set INTERLOCK_DATA_DIR")
    return DoctorFinding(
        what, None if free > _FREE_BYTES else "1 GiB is needed; free some space or set INTERLOCK_DATA_DIR"
    )


def _models(settings: Settings) -> Iterator[DoctorFinding]:
    for alias, text in settings.models.items():
        what = f"model {alias} = {text}"
        try:
            pin = parse_pin(text)
            provider = provider_of(pin, settings.providers)
        except InterlockError as error:
            yield DoctorFinding(what, error.message)
            continue
        if provider is None:
            yield _weights(what)
        elif provider.key is not None and not os.environ.get(provider.key):
            yield DoctorFinding(what, f"{provider.key} is not set; export it before starting a worker")
        else:
            named = pin.provider in settings.providers  # no connection to a public provider without a call
            problem = _unreachable(provider.base_url) if named else None
            yield DoctorFinding(f"{what} at {provider.base_url}", problem, fatal=False)


def _unreachable(url: str) -> str | None:
    """Why the server of a model cannot be connected to; None if it can. No request is sent."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS):
            return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{parts.netloc} cannot be reached ({reason}); start that server, or correct base_url of its provider"


def _weights(what: str) -> DoctorFinding:
    path = weights_path()
    if not path.exists():
        return DoctorFinding(what, "its weights (93 MB) are fetched on first use", fatal=False)
    try:
        verify_weights(path)
    except InterlockError as error:
        return DoctorFinding(what, error.message)
    return DoctorFinding(what)


def _port(settings: Settings) -> DoctorFinding:
    server = settings.server
    what = f"port {server.port} on {server.host}"
    try:
        running = asyncio.run(find_server(settings))
    except Unavailable as error:
        return DoctorFinding(what, error.message)
    if running is not None:
        return asyncio.run(_server(*running))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            return DoctorFinding(
                what, f"{error.strerror}; set server.port or INTERLOCK_SERVER__PORT to another", fatal=False
            )
    return DoctorFinding(what)


async def _server(url: str, key: str) -> DoctorFinding:
    """A running server, and whether a worker is there for its runs."""
    what = f"server running at {url}"
    async with client_of(url, key) as client:
        try:
            ready = await Api(client, url=url).get(Ready, "/readyz")
        except InterlockError as error:
            return DoctorFinding(what, error.message)
    if ready.workers:
        return DoctorFinding(f"{what}, with {ready.workers} worker{'' if ready.workers == 1 else 's'}")
    waiting = f"{ready.queue_depth} runs wait; " if ready.queue_depth else ""
    return DoctorFinding(what, f"{waiting}no worker is on its database: start `interlock worker`", fatal=False)


def _project(settings: Settings) -> DoctorFinding:
    here = project_directory()
    if not (here / "workflows").is_dir():
        return DoctorFinding("project", "none in this directory; `interlock init my-agent` writes one", fatal=False)
    try:
        project = read_project(here, settings)
    except InterlockError as error:
        return DoctorFinding("project", error.message, fatal=False)
    return DoctorFinding(f"project with {', '.join(project.definitions)}")
