"""Interlock's row: a governed step with everything on — policy, budget, labels, encryption, journal, audit, spans.

Mode `model`: ten model steps against a model that answers at once, in this process. Mode `tool`: ten calls of a Python
tool that does nothing, each in a fresh sandbox. A run is counted from the call that accepts it to its last commit.
"""

import asyncio
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers.measure import Load, measure_async, parse_load, report

from interlock.app import App
from interlock.base import loop
from interlock.base.settings import DatabaseSettings, SandboxSettings, Settings, WorkerSettings
from interlock.base.usage import Usage
from interlock.gateway.provider import ModelRequest, ModelResponse, Provider
from interlock.telemetry import logs, names

PROMPT = """
slots: {text: {type: string}}
messages:
  - {role: system, content: Answer in JSON.}
  - {role: user, content: "{{ text }}"}
"""
TOOL = """
name: nothing
description: Does nothing.
effect: pure
input: {type: object, properties: {text: {type: string}}, required: [text]}
output: {type: object, properties: {ok: {type: boolean}}, required: [ok]}
"""
OUTPUT = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


class InstantModel:
    """A provider that answers at once; what is left is Interlock."""

    name = "instant"

    async def complete(self, request: ModelRequest) -> ModelResponse:
        return ModelResponse('{"ok": true}', request.model, Usage(input_tokens=10, output_tokens=5))

    async def close(self) -> None: ...

    def resolve(self, pin: str) -> tuple[Provider, str]:
        return self, pin


def write_project(directory: Path, load: Load) -> None:
    """A workflow of `load.steps` equal steps."""
    for name in ("workflows", "prompts", "tools/nothing"):
        (directory / name).mkdir(parents=True)
    (directory / "prompts" / "nothing.yaml").write_text(PROMPT)
    (directory / "tools" / "nothing" / "tool.yaml").write_text(TOOL)
    (directory / "tools" / "nothing" / "main.py").write_text("def run(text):\n    return {'ok': True}\n")
    step: dict[str, Any]
    if load.mode == "model":
        step = {"kind": "model", "prompt": "nothing", "values": {"text": "$input.text"}, "output": OUTPUT}
    else:
        step = {"kind": "tool", "tool": "nothing", "input": {"text": "$input.text"}}
    workflow = {
        "name": "bench",
        "input": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        "subject": "$input.text",
        "allow": ["nothing"],
        "budget": {"tokens": 1_000_000},
        "steps": [{"id": f"step{number}", **step} for number in range(load.steps)],
    }
    (directory / "workflows" / "bench.yaml").write_text(json.dumps(workflow))


async def main(load: Load) -> None:
    logs.configure(level="error")
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as place:
        project = Path(place)
        write_project(project, load)
        settings = Settings(
            data_dir=project / "data",
            database=DatabaseSettings(url=load.url),
            worker=WorkerSettings(concurrency=max(load.concurrency, 1)),
            sandbox=SandboxSettings(warm=2),
        )
        async with App(project, settings, models=InstantModel()) as app:
            principal, _ = await app.admin.local_principal()
            await app.admin.deploy(principal, app.read_project())
            await app.start_worker()
            over = _watch(app)

            async def run(worker: int) -> None:
                run_id, _ = await app.submission.accept(principal, "bench", {"text": f"person {worker}"}, None)
                await over.setdefault(run_id, asyncio.Event()).wait()
                del over[run_id]

            sample = await measure_async(load, run)
            broken = [one for one in await app.runs.page(principal, limit=200) if one.status != "succeeded"]
            verdict = await app.audit.verify(principal.org_id)
            if broken or not verdict.ok:
                raise SystemExit(f"the measurement is void: {broken[:1] or verdict.problem}")
            report("interlock", version("interlock"), load, sample, breakdown=await _breakdown(app, principal, load))


def _watch(app: App) -> dict[str, asyncio.Event]:
    """Events by run id that are set when the run's last commit is durable: its root span is emitted just then."""
    over: dict[str, asyncio.Event] = {}
    emit = app.tracing.emit

    def watched(*args: Any, **kwargs: Any) -> None:
        emit(*args, **kwargs)
        over.setdefault(kwargs["attributes"][names.RUN_ID], asyncio.Event()).set()

    app.tracing.emit = watched  # type: ignore[method-assign]
    return over


async def _breakdown(app: App, principal: Any, load: Load) -> dict[str, float]:
    """Where a step's time goes: the kernel's part from the spans of the last runs, the rest is commit and hand-over."""
    await app.tracing.flush()
    runs = await app.runs.page(principal, limit=min(50, load.runs))
    inside, whole = 0.0, 0.0
    for one in runs:
        for span in await app.runs.trace(principal, one.run_id):
            milliseconds = (span.end_ns - span.start_ns) / 1e6
            if span.parent_id:
                inside += milliseconds
            else:
                whole += milliseconds
    steps = len(runs) * load.steps
    return {"kernel": inside / steps, "commit, claim, hand-over": (whole - inside) / steps}


if __name__ == "__main__":
    loop.run(main(parse_load(__doc__ or "", modes=("model", "tool"))))
