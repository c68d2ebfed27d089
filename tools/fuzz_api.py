# ruff: noqa: T201  (a program for the terminal, which runs another one)
"""Fuzzes the HTTP API with requests made from its own OpenAPI document.

    fuzz_api.py [--seconds 180] [--seed N]

A real server with a worker and a database of its own is started on loopback, in a temporary directory. Schemathesis sends it
valid and invalid requests, one by one and in sequences, and every answer is held against the document: statuses that an operation
does not document, bodies that do not fit their model, invalid requests that are accepted, operations that work without a key,
5xx. Exit code 1 if anything was found.

Not fuzzed: event streams, which do not end (tests/api/test_events.py), and whether every request that fits the document is
accepted: some rules, such as "scope org has no name", are the service's own, and 422 with a sentence is their documented answer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from interlock.api.server import Server
from interlock.app import App
from interlock.base.settings import Settings
from interlock.services.administration import LOCAL_ORG
from interlock.telemetry import logs

WORKFLOWS = {
    "ask": """\
name: ask
input: {}
steps:
  - {id: approve, kind: review, title: Go on?, show: {value: $input}}
output: {value: $input}
""",
    "listen": """\
name: listen
input: {}
steps:
  - {id: heard, kind: wait, signal: go, payload: {type: object, properties: {loud: {type: boolean}}}}
output: {value: $input}
""",
}
STREAMS = "^/v1/runs/[^/]+/events$"


async def fuzz(directory: Path, seconds: int, seed: int | None) -> int:
    """Serves a fresh installation and fuzzes it; Schemathesis's exit code."""
    for name, text in WORKFLOWS.items():
        place = directory / "workflows" / f"{name}.yaml"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    settings = Settings(data_dir=directory / "data", sandbox={"warm": 0})  # type: ignore[arg-type]
    async with App(directory, settings) as app:
        principal, _ = await app.admin.local_principal()
        await app.admin.deploy(principal, app.read_project())
        await app.start_worker()
        server = Server(app.services, host="127.0.0.1", port=0, payload_bytes=settings.limits.payload_bytes)
        await server.start()
        try:
            for name in WORKFLOWS:
                for number in range(3):
                    await app.submission.accept(principal, name, {"text": f"{name} {number}"}, None)
            key = await app.authenticator.issue(LOCAL_ORG, "fuzzer", frozenset({"admin"}))
            command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
            command += ["--header", f"Authorization: Bearer {key}", "--exclude-path-regex", STREAMS]
            command += ["--exclude-checks", "positive_data_acceptance", "--max-time", str(seconds)]
            command += ["--warnings", "off", "--continue-on-failure", "--request-timeout", "30"]
            command += ["--seed", str(seed)] if seed is not None else []
            process = await asyncio.create_subprocess_exec(*command, cwd=directory)
            try:
                return await process.wait()
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()
        finally:
            await server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the HTTP API against its OpenAPI document.")
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="il-fuzz-") as name:
        logs.configure(level="warning", file=Path(name) / "log.jsonl")
        code = asyncio.run(fuzz(Path(name), options.seconds, options.seed))
    print("fuzz-api: nothing found" if code == 0 else "fuzz-api: the API and its document differ as shown above")
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
