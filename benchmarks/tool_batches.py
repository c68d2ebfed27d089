"""What handing over a map's tool calls in batches saves against one sandbox a call.

python benchmarks/tool_batches.py                      # 200 items, batches of 50
python benchmarks/tool_batches.py --items 500 --max 100

The same run twice in turn, round after round: a map over a mutating tool whose contract has `batch`, and over the same
code without. A real application on a durable database, real sandboxes; every call has its own ledger rows, journal
and audit entries in both. The tool does nothing, so that what is left is the price of calling it.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import BenchmarkFailed, private_server
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from interlock.app import App
from interlock.base.settings import DatabaseSettings, SandboxSettings, Settings, WorkerSettings
from interlock.identity.principal import Principal
from interlock.telemetry import logs

PATIENCE = 600.0  # seconds without an end after which the measurement is void
TOOL: dict[str, Any] = {
    "description": "Does nothing, and would not do it twice.",
    "effect": "mutating",
    "honours_idempotency": True,
    "input": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    "output": {"type": "object", "properties": {"shared": {"type": "integer"}}, "required": ["shared"]},
}
CODE = """
def run(number):
    return {"shared": 1}


def run_batch(calls):
    return [{"output": {"shared": len(calls)}} for _ in calls]
"""
WAYS = ("single", "batch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--max", type=int, default=50, help="calls in a batch, and under way at once in both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    logs.configure(level="error")
    try:
        with private_server() as server:
            url = server.create_database("tool_batches")
            rows = asyncio.run(measure(url, asked.items, asked.max, asked.rounds))
    except BenchmarkFailed as failure:
        print(f"tool_batches: {failure}", file=sys.stderr)
        return 1
    table = Table("calls", "items", "seconds, median", "ms an item", "calls a sandbox", "times faster", box=SIMPLE)
    for row in rows:
        numbers = [f"{row[name]:.2f}" for name in ("seconds", "ms_per_item", "shared", "faster")]
        table.add_row(row["way"], str(row["items"]), *numbers)
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


async def measure(url: str, items: int, most: int, rounds: int) -> list[dict[str, Any]]:
    """One row a way; `faster` is the median of the rounds' own ratios."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    shared: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as place:
        project = Path(place)
        write_project(project, items, most)
        settings = Settings(
            data_dir=project / "data",
            database=DatabaseSettings(url=url),
            worker=WorkerSettings(concurrency=4),
            sandbox=SandboxSettings(warm=2),
        )
        async with App(project, settings) as app:
            principal, _ = await app.admin.local_principal()
            await app.admin.deploy(principal, app.read_project())
            await app.start_worker()
            for number in range(rounds + 1):
                for way in WAYS:
                    seconds, shared[way] = await one_run(app, principal, way, items)
                    if number:  # the first round warms up
                        times[way].append(seconds)
    ratios = [single / batch for single, batch in zip(times["single"], times["batch"], strict=True)]
    return [
        {
            "way": way,
            "items": items,
            "seconds": statistics.median(times[way]),
            "ms_per_item": statistics.median(times[way]) * 1000 / items,
            "shared": shared[way],
            "faster": statistics.median(ratios) if way == "batch" else 1.0,
        }
        for way in WAYS
    ]


def write_project(directory: Path, items: int, most: int) -> None:
    (directory / "workflows").mkdir(parents=True)
    (directory / "policies").mkdir()
    (directory / "policies" / "main.cedar").write_text("permit(principal, action, resource);\n")
    for way in WAYS:
        tool = directory / "tools" / way
        tool.mkdir(parents=True)
        batch = {"batch": {"max": most}} if way == "batch" else {}
        (tool / "tool.yaml").write_text(json.dumps({"name": way, **TOOL, **batch}))
        (tool / "main.py").write_text(CODE)
        each = {
            "id": "each",
            "kind": "map",
            "items": "$input.numbers",
            "max_items": items,
            "concurrency": min(most, 1000),
            "steps": [{"id": "call", "kind": "tool", "tool": way, "input": {"number": "$item"}}],
        }
        numbers = {"type": "array", "items": {"type": "integer"}}
        workflow = {
            "name": way,
            "input": {"type": "object", "properties": {"numbers": numbers}, "required": ["numbers"]},
            "allow": [way],
            "steps": [each],
            "output": {"each": "$steps.each"},
        }
        (directory / "workflows" / f"{way}.yaml").write_text(json.dumps(workflow))


async def one_run(app: App, principal: Principal, way: str, items: int) -> tuple[float, float]:
    """Seconds from accepting the run to its end, and how many calls a sandbox served on average.

    Raises:
        BenchmarkFailed: the run did not succeed, or not in time.
    """
    began = time.monotonic()
    run_id, _ = await app.submission.accept(principal, way, {"numbers": list(range(items))}, None)
    while (status := (await app.runs.get(principal, run_id)).status) != "succeeded":
        if status in {"failed", "dead", "partial", "cancelled"} or time.monotonic() - began > PATIENCE:
            raise BenchmarkFailed(f"the run of {way} is {status} after {time.monotonic() - began:.0f} s")
        await asyncio.sleep(0.01)
    seconds = time.monotonic() - began
    answers = (await app.runs.result(principal, run_id))["each"]
    sandboxes = sum(1 / one["shared"] for one in answers)
    return seconds, len(answers) / sandboxes


if __name__ == "__main__":
    sys.exit(main())
