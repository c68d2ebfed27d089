"""init, check, schema, eval."""

from __future__ import annotations

import asyncio
import re
import shlex
from dataclasses import asdict
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import BaseModel

from interlock.base.errors import Conflict, InvalidInput, StepError
from interlock.base.json import Json, JsonObject
from interlock.base.settings import LimitSettings
from interlock.cli.connection import Api, connect, settings_here
from interlock.cli.console import AsJson, out, print_json, status
from interlock.cli.isolated import in_child
from interlock.cli.listing import ListRow, print_rows
from interlock.cli.location import project_directory
from interlock.cli.waiting import needs_a_person
from interlock.definitions.project import read_project
from interlock.evals.suite import EvalReport, EvaluatedRun, StepFacts, has_suites, read_suites, run_case
from interlock.services.views.runs import RunResult, RunView, StartedRun, is_over
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import PromptSpec
from interlock.workflows.spec import Workflow


def register(cli: typer.Typer) -> None:
    cli.command("init")(init)
    cli.command("check")(check)
    cli.command("schema")(schema)
    cli.command("eval")(evaluate)


def init(directory: Path, as_json: AsJson = False) -> None:
    """Create a small working project: workflow, prompt, tool, policy, eval case."""
    name = directory.resolve().name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,62}", name):
        raise InvalidInput(
            f'"{name}" cannot be a project name; use letters, digits, dots and hyphens, and begin with a letter'
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise Conflict(f"{directory} exists and is not an empty directory; choose another")
    template = resources.files("interlock.cli").joinpath("template")
    try:
        _copy(template, directory, name)
    except OSError as error:
        raise InvalidInput(f"{directory}: cannot be created: {error.strerror}") from error
    if as_json:
        print_json({"directory": str(directory.resolve())})
        return
    out.print(f"created {directory}; next:\n  cd {shlex.quote(str(directory))}", soft_wrap=True)
    out.print("""  interlock run answer --input '{"question": "How do I get my money back?"}'""")
    out.print("  interlock dev")


def check(as_json: AsJson = False) -> None:
    """Check the project in this directory: every file, and the references between them."""
    directory, settings = project_directory(), settings_here()

    def read() -> JsonObject:
        project = read_project(directory, settings)
        if has_suites(directory / "evals"):
            definitions = project.definitions.items()
            read_suites(
                directory / "evals", {name: Workflow.model_validate(one.data["workflow"]) for name, one in definitions}
            )
        found = {one.name: one.version for one in project.definitions.values()}
        return {"workflows": found, "notes": list(project.notes)}

    report = in_child(read)  # a native parser that crashes must not end this command without a word
    if as_json:
        print_json(report)
        return
    workflows, notes = report["workflows"], report["notes"]
    assert isinstance(workflows, dict) and isinstance(notes, list)  # noqa: PT018
    for name, version in workflows.items():
        out.print(f"{name}@{version}  ok")
    for note in notes:
        out.print(f"note: {note}", style="dim", soft_wrap=True)


def schema(
    kind: Annotated[Literal["workflow", "tool", "prompt", "openapi"], typer.Argument()] = "workflow",
    as_json: AsJson = False,  # noqa: ARG001  JSON is its only form
) -> None:
    """Print the JSON Schema of a definition file, or the API's OpenAPI document; for editors and other tools."""
    if kind == "openapi":
        from interlock.api.server import create_api

        print_json(create_api(None, payload_bytes=LimitSettings().payload_bytes).openapi())
        return
    models: dict[str, type[BaseModel]] = {"workflow": Workflow, "tool": ToolContract, "prompt": PromptSpec}
    document = models[kind].model_json_schema()
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **document})


def evaluate(as_json: AsJson = False) -> None:
    """Run the cases in evals/ and compare the results; exit code 7 if any fails."""
    suites = read_suites(project_directory() / "evals")

    async def main() -> list[EvalReport]:
        async with connect(worker=True) as api:

            async def run(workflow: str, value: Json) -> EvaluatedRun:
                return await _run(api, workflow, value)

            return [await run_case(run, suite, case) for suite in suites for case in suite.cases]

    reports = asyncio.run(main())
    passed = sum(report.passed for report in reports)
    if as_json:
        print_json({"passed": passed, "cases": [asdict(report) for report in reports]})
    else:
        print_rows(("case", "workflow", "status"), [_row(one) for one in reports], note="why")
        out.print(f"{passed} of {len(reports)} cases passed")
    if passed < len(reports):
        raise typer.Exit(StepError.exit_code)


def _row(report: EvalReport) -> ListRow:
    state = status("succeeded" if report.passed else "failed")
    return ListRow((report.case, report.workflow, state), "; ".join(report.problems))


async def _run(api: Api, workflow: str, value: Json) -> EvaluatedRun:
    started = await api.post(StartedRun, "/v1/runs", {"workflow": workflow, "input": value})
    while True:
        run = await api.get(RunView, f"/v1/runs/{started.run_id}")
        if is_over(run.status):
            result = await api.get(RunResult, f"/v1/runs/{started.run_id}/result")
            return _finished(run, result.output)
        if run.status == "waiting" and needs_a_person(run.waits_for):
            return _finished(run, None)
        await asyncio.sleep(0.1)


def _finished(run: RunView, output: Json) -> EvaluatedRun:
    steps: list[StepFacts] = [{"id": step.id, "facts": step.facts} for step in run.steps]
    return {"status": run.status, "output": output, "steps": steps}


def _copy(source: Traversable, target: Path, name: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        if item.is_dir():
            if item.name != "__pycache__":
                _copy(item, target / item.name, name)
        else:
            text = item.read_text(encoding="utf-8").replace("{{project}}", name)
            (target / item.name).write_text(text, encoding="utf-8")
