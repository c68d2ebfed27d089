"""Workflow versions: immutable, named by the hash of all their parts. A run keeps its version."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from interlock.base.errors import Conflict, NotFound
from interlock.base.refs import canonical_json
from interlock.definitions.agent_schemas import answer_schema, checked_schema
from interlock.gateway.structured import compile_schema
from interlock.machine.program import Program, compile_program
from interlock.store.admin_rows import MovedHead, NewVersion
from interlock.store.database import Database, Row
from interlock.store.objects import Objects
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.tools.bundles import is_intact, unpack
from interlock.tools.registry import Tool
from interlock.workflows.approvals import covered_acts
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import Prompt, PromptSpec, compile_prompt
from interlock.workflows.schemas import validator_for
from interlock.workflows.spec import LoopStep, MapStep, ModelStep, SubworkflowStep, WaitStep, Workflow

_CACHED = 256
_NO_WORKFLOWS: Mapping[str, Workflow] = {}


@dataclass(frozen=True, slots=True)
class Definition:
    """A version as data, which is hashed, stored and deployed."""

    data: Mapping[str, Any]
    version: str

    @classmethod
    def build(
        cls,
        workflow: Workflow,
        *,
        prompts: Mapping[str, PromptSpec],
        tools: Mapping[str, tuple[ToolContract, str]],
        models: Mapping[str, str],
        workflows: Mapping[str, Workflow] = _NO_WORKFLOWS,
    ) -> Self:
        """Pins the workflow with exactly the subworkflows, prompts, models and tools that it uses."""
        program = compile_program(workflow, {name: contract for name, (contract, _) in tools.items()}, workflows)
        variants = [step for node in program.nodes.values() for step in (node.variants or (node.step,))]
        model_steps = [step for step in variants if isinstance(step, ModelStep)]
        children = {child.name: child.model_dump(mode="json") for child in program.subworkflows.values()}
        data = {
            "workflow": workflow.model_dump(mode="json"),
            "prompts": {step.prompt: prompts[step.prompt].model_dump(mode="json") for step in model_steps},
            "tools": {
                name: {"contract": contract.model_dump(mode="json"), "bundle": digest}
                for name, (contract, digest) in tools.items()
            },
            "models": {step.model: models[step.model] for step in model_steps},
            "subworkflows": children,
        }
        return cls.of(data)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        return cls(data, hashlib.sha256(canonical_json(data)).hexdigest()[:16])

    @property
    def name(self) -> str:
        return str(self.data["workflow"]["name"])

    @property
    def bundles(self) -> list[str]:
        return [tool["bundle"] for tool in self.data["tools"].values()]


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """Schema of a signal's payload."""

    schema: Mapping[str, Any]
    validator: Any


@dataclass(frozen=True, slots=True)
class Version:
    """A version ready to execute: all parts are compiled once.

    Attributes:
        answer_schemas: path of a model step, or of an agent's turn, → the schema its answers must fit; `answer_schema_texts` the
            same as JSON, with the fields in their order.
        output_validators: the same, compiled; `subworkflow_validators` by path of the subworkflow step.
        signals: name → schema of its payload.
        covered: path of a review step → path of the tool step whose call it approves.
        batches: True if a step uses a batch API.
    """

    name: str
    version: str
    workflow: Workflow
    program: Program
    prompts: Mapping[str, Prompt]
    tools: Mapping[str, Tool]
    models: Mapping[str, str]
    input_validator: Any
    answer_schemas: Mapping[str, Mapping[str, Any]]
    answer_schema_texts: Mapping[str, str]
    output_validators: Mapping[str, Any]
    subworkflow_validators: Mapping[str, Any]
    signals: Mapping[str, SignalSpec]
    tool_input_validators: Mapping[str, Any]
    tool_output_validators: Mapping[str, Any]
    covered: Mapping[str, str]
    batches: bool

    @classmethod
    def compile(cls, definition: Definition) -> Self:
        data = definition.data
        workflow = Workflow.model_validate(data["workflow"])
        tools = {
            name: Tool(ToolContract.model_validate(tool["contract"]), tool["bundle"])
            for name, tool in data["tools"].items()
        }
        children = {name: Workflow.model_validate(child) for name, child in data.get("subworkflows", {}).items()}
        program = compile_program(workflow, {name: tool.contract for name, tool in tools.items()}, children)
        asking = {path: node for path, node in program.nodes.items() if isinstance(node.step, ModelStep)}
        answers = {path: answer_schema(node, program.contracts) for path, node in asking.items()}
        return cls(
            name=definition.name,
            version=definition.version,
            workflow=workflow,
            program=program,
            prompts={
                name: compile_prompt(name, PromptSpec.model_validate(spec)) for name, spec in data["prompts"].items()
            },
            tools=tools,
            models=data["models"],
            input_validator=validator_for(workflow.input),
            answer_schemas=answers,
            answer_schema_texts={path: json.dumps(schema) for path, schema in answers.items()},
            output_validators={
                path: compile_schema(checked_schema(node, program.contracts)) for path, node in asking.items()
            },
            subworkflow_validators={path: validator_for(child.input) for path, child in program.subworkflows.items()},
            signals={
                str(step.signal): SignalSpec(step.payload, validator_for(step.payload)) for step in _waits(program)
            },
            tool_input_validators={name: validator_for(tool.contract.input) for name, tool in tools.items()},
            tool_output_validators={name: validator_for(tool.contract.output) for name, tool in tools.items()},
            covered=_covered(program),
            batches=any(isinstance(node.step, ModelStep) and node.step.batch for node in asking.values()),
        )


def _described(row: Row) -> dict[str, Any]:
    data = row["definition"]
    prompts = {name: hashlib.sha256(canonical_json(spec)).hexdigest() for name, spec in data["prompts"].items()}
    return {
        "version": row["version"],
        "head": row["head"],
        "deployed_at": row["created_at"].isoformat(),
        "deployed_by": row["created_by"],
        "running": row["running"],
        "prompts": prompts,
        "tools": {name: tool["bundle"] for name, tool in data["tools"].items()},
        "models": data["models"],
    }


def _covered(program: Program) -> dict[str, str]:
    """Path of every review step that approves a call → path of the tool step that makes it."""
    bodies = [("", program.workflow.steps)]
    for path, node in program.nodes.items():
        if isinstance(node.step, MapStep | LoopStep):
            bodies.append((f"{path}/", node.step.steps))
        elif isinstance(node.step, SubworkflowStep):
            bodies.append((f"{path}/", program.subworkflows[path].steps))
    return {
        space + review.id: space + act.id
        for space, steps in bodies
        for review, act in covered_acts(steps, program.mutates)
        if act is not None
    }


def _waits(program: Program) -> list[WaitStep]:
    return [node.step for node in program.nodes.values() if isinstance(node.step, WaitStep) and node.step.signal]


class Versions:
    """Deployed versions, and the code of their tools."""

    def __init__(self, database: Database, objects: Objects, cache: Path) -> None:
        self._database = database
        self._objects = objects
        self._cache = cache
        self._compiled: OrderedDict[tuple[str, str, str], Version] = OrderedDict()
        self._intact: dict[str, int] = {}  # inode of each bundle's directory, when it was verified

    async def propose(
        self, org_id: str, definition: Definition, bundles: Mapping[str, bytes], *, by: str
    ) -> tuple[NewVersion, MovedHead] | None:
        """The rows that make a definition the version that new runs get; None if it already is. Its code is stored at once."""
        row = await self._database.row("get_head", org_id, definition.name, org=org_id)
        if row is not None and row["version"] == definition.version:
            return None
        for digest in definition.bundles:
            await self._objects.put(f"bundles/{digest}.tar", bundles[digest])
        name, version = definition.name, definition.version
        new = NewVersion(org_id=org_id, name=name, version=version, definition=definition.data, created_by=by)
        return new, MovedHead(org_id=org_id, name=name, version=version)

    async def propose_earlier(self, org_id: str, name: str, version: str) -> tuple[str, MovedHead | None]:
        """An earlier deployed version, and the row that makes it the head again; None if it is.

        Args:
            version: its hash, or an unambiguous prefix of it.

        Raises:
            NotFound: there is no such version. Conflict: there are several.
        """
        found = await self._database.rows("find_versions", org_id, name, version, org=org_id) if version else []
        if not found:
            raise NotFound(f'workflow "{name}" has no version {version}; `interlock versions {name}` lists them')
        if len(found) > 1:
            raise Conflict(f'workflow "{name}" has several versions that begin with {version}; give more of it')
        whole = str(found[0]["version"])
        row = await self._database.row("get_head", org_id, name, org=org_id)
        if row is not None and row["version"] == whole:
            return whole, None
        return whole, MovedHead(org_id=org_id, name=name, version=whole)

    async def history(self, org_id: str, name: str, *, limit: int = 50) -> list[dict[str, Any]]:
        """A workflow's versions, newest first: when and by whom deployed, digests of their parts, runs in progress.

        Raises:
            NotFound: no such workflow.
        """
        rows = await self._database.rows("list_versions", org_id, name, limit, org=org_id)
        if not rows:
            raise NotFound(f'workflow "{name}" was never deployed here')
        return [_described(row) for row in rows]

    async def head(self, org_id: str, name: str) -> Version:
        """The head: the version for new runs.

        Raises:
            NotFound: the workflow is not deployed; names the deployed ones.
        """
        row = await self._database.row("get_head", org_id, name, org=org_id)
        if row is None:
            known = ", ".join(one["name"] for one in await self._database.rows("list_heads", org=org_id)) or "none"
            raise NotFound(f'workflow "{name}" is not deployed; deployed are: {known}')
        return await self.get(org_id, name, row["version"])

    async def get(self, org_id: str, name: str, version: str) -> Version:
        """A version by its hash.

        Raises:
            NotFound: it was never deployed here.
        """
        cached = self._compiled.get((org_id, name, version))
        if cached is not None:
            return cached
        row = await self._database.row("get_version", org_id, name, version, org=org_id)
        if row is None:
            raise NotFound(f'workflow "{name}" has no version {version}')
        return self._compile(org_id, Definition(row["definition"], version))

    async def locate(self, bundle: str) -> Path:
        """The unpacked directory of a tool bundle, fetched on first use, and verified on this process's first use.

        An altered directory is moved aside and unpacked anew; the log says so.
        """
        target = self._cache / bundle
        there = target.is_dir()
        if there and self._intact.get(bundle) == target.stat().st_ino:
            return target
        if not there or not await asyncio.to_thread(is_intact, target, bundle):
            if there:
                message = "a tool's unpacked files were altered; they are moved aside and unpacked anew"
                log(names.LOG_TOOL_ALTERED, message, level="error", bundle=bundle, directory=str(target))
            packed = await self._objects.get(f"bundles/{bundle}.tar")
            await asyncio.to_thread(unpack, bundle, packed, self._cache)
        self._intact[bundle] = target.stat().st_ino
        return target

    def _compile(self, org_id: str, definition: Definition) -> Version:
        key = (org_id, definition.name, definition.version)
        if key not in self._compiled:
            self._compiled[key] = Version.compile(definition)
            if len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
        return self._compiled[key]
