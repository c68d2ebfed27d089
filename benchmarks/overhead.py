"""Milliseconds that Interlock adds to a step, beside DBOS, LangGraph, Temporal, Prefect and a raw commit, in the same run.

python benchmarks/overhead.py                      # everything
python benchmarks/overhead.py --peers dbos,raw     # some
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from harness import (
    PEERS,
    BenchmarkFailed,
    Plan,
    Server,
    as_json,
    plan,
    private_server,
    run_program,
    summarise,
    where_time_goes,
)
from peers_env import PeersEnvFailed, ensure_peers_python
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

CONSOLE = Console()


def main() -> int:
    asked = _parse()
    # Turned into an exception, so that the server is stopped and its directory deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        work = plan(asked.peers, rounds=asked.rounds, runs=asked.runs, steps=asked.steps, concurrency=asked.concurrency)
        measure(work, asked.json)
    except (BenchmarkFailed, PeersEnvFailed) as failure:
        print(f"overhead: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def measure(work: Plan, target: Path | None) -> None:
    """Run the plan, print the tables, write the JSON to `target` or print it."""
    own = any(peer.own_environment for peer in work.peers)
    python = ensure_peers_python() if own else Path(sys.executable)
    with private_server() as server:
        CONSOLE.print("PostgreSQL: " + ", ".join(f"{name}={value}" for name, value in server.settings.items()))
        results = _run_all(server, work, python)
        rows = summarise(work, results)
        whole = as_json(work, server, rows, results)
    _print_rows(rows)
    _print_split(rows)
    if whole["disturbance"]:
        CONSOLE.print(f"Warning: {whole['disturbance']}.")
    text = json.dumps(whole, indent=2) + "\n"
    if target is None:
        print(text, end="")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    CONSOLE.print(f"Written: {target}")


def _run_all(server: Server, work: Plan, python: Path) -> list[dict[str, Any]]:
    programs = work.programs()
    results = []
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        task = progress.add_task("", total=len(programs))
        for number, concurrency, peer, mode in programs:
            progress.update(task, description=f"round {number}: {peer.name} {mode}, concurrency {concurrency}")
            load = round(os.getloadavg()[0], 2)
            result = run_program(server, work, peer, mode, concurrency, python)
            results.append(result | {"round": number, "load_average_before": load})
            progress.advance(task)
    return results


def _print_rows(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    shape = f"{first['steps']}-step runs, {first['runs']} a round, medians of {first['rounds']} rounds"
    speed = _table(f"Milliseconds a step\n{shape}", "p50", "of rounds", "p95", "steps/s")
    cost = _table("What a step costs\n(start-up included)", "client CPU ms", "commits", "log flushes", "WAL bytes")
    for row in rows:
        mode = "" if row["mode"] == "default" else f" {row['mode']}"
        spread = f"{row['ms_per_step_p50_min']:.2f} to {row['ms_per_step_p50_max']:.2f}"
        p50, p95 = f"{row['ms_per_step_p50']:.2f}", f"{row['ms_per_step_p95']:.2f}"
        name = f"{row['peer']} {row['version']}"
        speed.add_row(str(row["concurrency"]), name + mode, p50, spread, p95, f"{row['steps_per_second']:,.0f}")
        cpu = f"{row['client_cpu_ms_per_step']:.2f}" if "client_cpu_ms_per_step" in row else "?"
        counts = f"{row['transactions_per_step']:.1f}", f"{row['wal_flushes_per_step']:.2f}"
        cost.add_row(str(row["concurrency"]), row["peer"] + mode, cpu, *counts, f"{row['wal_bytes_per_step']:,.0f}")
    CONSOLE.print(speed, cost)


def _print_split(rows: list[dict[str, Any]]) -> None:
    split = where_time_goes(rows)
    if split:
        title = "Where a step's time goes, ms\n(one run at a time; an estimate, parts may overlap)"
        table = Table("peer", title=title, box=SIMPLE)
        for name in ("total", "client CPU", "log flushes", "server, round trips, waiting"):
            table.add_column(name, justify="right")
        for part in split:
            table.add_row(
                part["peer"], *(f"{part[name]:.2f}" for name in ("total", "client_cpu", "log_flushes", "rest"))
            )
        CONSOLE.print(table)
    for row in rows:
        if "breakdown" in row:
            parts = ", ".join(f"{name} {ms:.3f}" for name, ms in row["breakdown"].items())
            CONSOLE.print(f"{row['peer']} by its own account, {row['concurrency']} at once, ms: {parts}")


def _table(title: str, *numbers: str) -> Table:
    table = Table("at once", "peer", title=title, box=SIMPLE)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Overhead of a durable step: Interlock and its peers, side by side.")
    parser.add_argument("--rounds", type=_positive, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--runs", type=_positive, default=200, help="measured runs in each program (default 200)")
    parser.add_argument("--steps", type=_positive, default=10, help="steps in a run (default 10)")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 16, 64], help="list, default 1,16,64")
    parser.add_argument("--peers", type=_words, default=list(PEERS), help=f"list, default {','.join(PEERS)}")
    parser.add_argument("--json", type=Path, help="file for the JSON (printed when not given)")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
