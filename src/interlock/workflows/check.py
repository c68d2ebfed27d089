"""Consistency checks of a definition: names, slots, bindings, conditions, schemas.

pydantic checks the form of one file; this module checks one workflow against its prompts, tools and subworkflows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from interlock.workflows.bindings import parse
from interlock.workflows.check_approvals import ApprovalCheck, NeedsApproval
from interlock.workflows.contracts import ToolContract
from interlock.workflows.facts import call_counts
from interlock.workflows.prompts import Prompt
from interlock.workflows.schemas import validator_for
from interlock.workflows.spec import (
    MAX_STEPS,
    AgentStep,
    BranchStep,
    Fallback,
    JsonSchema,
    LoopStep,
    MapStep,
    ModelStep,
    ParallelStep,
    ReviewStep,
    Step,
    SubworkflowStep,
    ToolStep,
    WaitStep,
    Workflow,
)
from interlock.workflows.visibility import (
    Problem,
    ValuePath,
    Visible,
    listed,
    properties_of,
    schema_problems,
    seen_of,
)
from interlock.workflows.walk import reaches, siblings, signal_waits

__all__ = ["Problem", "check_workflow"]


def check_workflow(
    workflow: Workflow,
    *,
    prompts: Mapping[str, Prompt],
    tools: Mapping[str, ToolContract],
    models: Iterable[str],
    workflows: Mapping[str, Workflow] | None = None,
    roles: Iterable[str] | None = None,
    unbatched: Iterable[str] = (),
    needs_approval: NeedsApproval | None = None,
) -> list[Problem]:
    """All faults, in the order of the file; without faults the workflow can be deployed.

    Args:
        roles: the roles of principals.
        unbatched: those of `models` whose provider has no batch API.
        needs_approval: see `check_approvals`.
    """
    known = frozenset(roles) if roles is not None else None
    checker = _Checker(workflow, prompts, tools, frozenset(models), workflows or {}, known, frozenset(unbatched))
    # Coverage of reviews is not checked while the workflow has other faults.
    return list(checker.run()) or list(ApprovalCheck(workflow, tools, needs_approval).problems())


class _Checker:
    def __init__(
        self,
        workflow: Workflow,
        prompts: Mapping[str, Prompt],
        tools: Mapping[str, ToolContract],
        models: frozenset[str],
        workflows: Mapping[str, Workflow],
        roles: frozenset[str] | None = None,
        unbatched: frozenset[str] = frozenset(),
    ) -> None:
        self.roles = roles
        self.unbatched = unbatched
        self.workflow = workflow
        self.prompts = prompts
        self.tools = dict(tools)
        self.models = models
        self.workflows = workflows
        self.seen: set[str] = set()
        self.payloads: dict[str, JsonSchema] = {}  # signal → schema
        self.view = Visible(workflow.input)

    def run(self) -> Iterator[Problem]:
        workflow = self.workflow
        broken = list(schema_problems(workflow.input, ("input",)))
        if broken:
            yield from broken
            self.view = Visible({})  # nothing more can be checked without it
        faults = {name: self._without_faults(name) for name in self.tools}
        for index, name in enumerate(workflow.allow):
            path: ValuePath = ("allow", index)
            if name not in self.tools:
                yield Problem(path, f'tool "{name}" does not exist; {listed(self.tools, "tools")}')
            yield from (Problem(path, fault) for fault in faults.get(name, ()))
        if workflow.subject is not None:
            yield from self.view.bindings(workflow.subject, ("subject",))
        yield from self._steps(workflow.steps, ("steps",))
        if len(self.seen) > MAX_STEPS:
            yield Problem(
                ("steps",), f"{len(self.seen)} steps are more than the {MAX_STEPS} a workflow may have; split it"
            )
        yield from self.view.bindings(workflow.output, ("output",))

    def _without_faults(self, name: str) -> list[str]:
        """Problems of a tool's schemas; the rest of the check continues without faulty schemas."""
        contract, faults = self.tools[name], []
        for part, schema in (("input", contract.input), ("output", contract.output)):
            for problem in schema_problems(schema, ()):
                faults.append(f'tool "{name}": {part} {problem.message}')
                self.tools[name] = self.tools[name].model_copy(update={part: {}})
        return faults

    def _steps(self, steps: list[Step], path: ValuePath) -> Iterator[Problem]:
        for index, step in enumerate(steps):
            here = (*path, index)
            if step.id in self.seen:
                yield Problem((*here, "id"), f'step id "{step.id}" is used twice; ids are unique in a workflow')
            self.seen.add(step.id)
            yield from self._step(step, here)
            self.view = self.view.after(step.id, seen_of(step, self.tools, self.workflows))

    def _step(self, step: Step, path: ValuePath) -> Iterator[Problem]:
        match step:
            case ModelStep() | AgentStep():
                yield from self._asking(step, path)
            case ToolStep():
                yield from self._tool(step, step.tool, step.input, (*path, "tool"), (*path, "input"))
                yield from self._fallbacks(step, path)
            case ReviewStep():
                yield from self.view.bindings(step.show, (*path, "show"))
                if self.roles is not None and step.role not in self.roles:
                    message = f'step "{step.id}": no user can have role "{step.role}"; {listed(self.roles, "roles")}'
                    yield Problem((*path, "role"), message)
            case WaitStep():
                yield from self._wait(step, path)
            case ParallelStep():
                yield from self._beside([(part, (*path, "branches", name)) for name, part in step.branches.items()])
            case BranchStep():
                for index, case in enumerate(step.cases):
                    yield from self.view.condition(step.id, case.when, (*path, "cases", index, "when"))
                parts = [(case.steps, (*path, "cases", index, "steps")) for index, case in enumerate(step.cases)]
                yield from self._beside([*parts, (step.otherwise, (*path, "otherwise"))])
            case MapStep():
                yield from self._map(step, path)
            case LoopStep():
                yield from self._loop(step, path)
            case SubworkflowStep():
                yield from self._subworkflow(step, path)

    def _beside(self, parts: list[tuple[list[Step], ValuePath]]) -> Iterator[Problem]:
        """Checks branches: no branch may read the results of another; later steps may read all of them."""
        outer = self.view
        after = dict(outer.before)
        for steps, place in parts:
            self.view = outer
            yield from self._steps(steps, place)
            after |= self.view.before
        self.view = replace(outer, before=after)

    # -- models and tools --------------------------------------------------------------------------------------

    def _asking(self, step: ModelStep | AgentStep, path: ValuePath) -> Iterator[Problem]:
        yield from self._model(step.id, step.model, (*path, "model"))
        yield from schema_problems(step.output, (*path, "output"))
        if step.output.get("type") != "object":
            yield Problem((*path, "output"), f'step "{step.id}": the output schema must have type: object')
        if isinstance(step, ModelStep) and step.cache is not None and step.temperature > 0:
            message = (
                f'step "{step.id}": answers at a temperature above 0 differ by intent; remove cache or set it to 0'
            )
            yield Problem((*path, "cache"), message)
        if isinstance(step, ModelStep) and step.batch and step.model in self.unbatched:
            message = f'step "{step.id}": the provider of model "{step.model}" has no batch API; remove batch'
            yield Problem((*path, "batch"), message)
        yield from self._slots(step, path)
        if isinstance(step, AgentStep):
            for name in sorted(properties_of(step.output).keys() & call_counts(step.tools).keys()):
                message = f'step "{step.id}": {name} counts the agent\'s tool calls; give that field of the output another name'
                yield Problem((*path, "output"), message)
            for index, tool in enumerate(step.tools):
                yield from self._may_call(step.id, tool, (*path, "tools", index))
        yield from self._fallbacks(step, path)

    def _slots(self, step: ModelStep | AgentStep, path: ValuePath) -> Iterator[Problem]:
        prompt = self.prompts.get(step.prompt)
        if prompt is None:
            message = f'step "{step.id}": prompt "{step.prompt}" does not exist; {listed(self.prompts, "prompts")}'
            yield Problem((*path, "prompt"), message)
            return
        for slot in sorted(prompt.spec.slots.keys() - step.values.keys()):
            yield Problem(
                (*path, "values"), f'step "{step.id}": prompt "{step.prompt}" needs slot "{slot}"; bind it in values'
            )
        for slot in sorted(step.values.keys() - prompt.spec.slots.keys()):
            message = (
                f'step "{step.id}": prompt "{step.prompt}" has no slot "{slot}"; {listed(prompt.spec.slots, "slots")}'
            )
            yield Problem((*path, "values", slot), message)
        yield from self._fitting(
            step.values,
            prompt.spec.slots,
            (*path, "values"),
            f'step "{step.id}": slot "{{}}" of prompt "{step.prompt}"',
        )

    def _model(self, step_id: str, model: str, path: ValuePath) -> Iterator[Problem]:
        if model not in self.models:
            yield Problem(
                path, f'step "{step_id}": model "{model}" is not in the settings; {listed(self.models, "models")}'
            )

    def _may_call(self, step_id: str, tool: str, path: ValuePath) -> Iterator[Problem]:
        if tool not in self.tools:
            yield Problem(path, f'step "{step_id}": tool "{tool}" does not exist; {listed(self.tools, "tools")}')
        elif tool not in self.workflow.allow:
            message = f'step "{step_id}" uses tool "{tool}", which is not in allow; add it or remove the step'
            yield Problem(path, message)

    def _tool(
        self, step: ToolStep, tool: str, given: dict[str, Any], path: ValuePath, inputs: ValuePath
    ) -> Iterator[Problem]:
        yield from self._may_call(step.id, tool, path)
        contract = self.tools.get(tool)
        if contract is None:
            return
        properties = contract.input.get("properties", {})
        for name in sorted(set(contract.input.get("required", [])) - given.keys()):
            yield Problem(inputs, f'step "{step.id}": tool "{tool}" needs argument "{name}"; bind it in input')
        if contract.input.get("additionalProperties") is False:
            for name in sorted(given.keys() - properties.keys()):
                message = f'step "{step.id}": tool "{tool}" has no argument "{name}"; {listed(properties, "arguments")}'
                yield Problem((*inputs, name), message)
        yield from self._fitting(given, properties, inputs, f'step "{step.id}": argument "{{}}" of tool "{tool}"')

    def _fitting(
        self, given: Mapping[str, object], properties: object, path: ValuePath, what: str
    ) -> Iterator[Problem]:
        """Faults of references, then of values bound to what takes values of another type."""
        broken = list(self.view.bindings(given, path))
        yield from broken
        if broken or not isinstance(properties, Mapping):
            return
        for name in sorted(given.keys() & properties.keys()):
            yield from self.view.fitting(what.format(name), given[name], properties[name], (*path, name))

    def _fallbacks(self, step: ModelStep | AgentStep | ToolStep, path: ValuePath) -> Iterator[Problem]:
        for index, fallback in enumerate(step.fallback):
            here = (*path, "fallback", index)
            message = self._misplaced(step, fallback)
            if message is not None:
                yield Problem(here, f'step "{step.id}": {message}')
            elif fallback.model is not None:
                yield from self._model(step.id, fallback.model, (*here, "model"))
            elif fallback.tool is not None and isinstance(step, ToolStep):
                given = step.input if fallback.input is None else fallback.input
                yield from self._tool(step, fallback.tool, given, (*here, "tool"), (*here, "input"))
            elif fallback.value is not None:
                yield from self._fixed(step, fallback.value, (*here, "value"))

    def _misplaced(self, step: ModelStep | AgentStep | ToolStep, fallback: Fallback) -> str | None:
        if isinstance(step, AgentStep) and fallback.model is None:
            return "an agent falls back to other models only; use on_failure: continue for the rest"
        if fallback.tool is not None and not isinstance(step, ToolStep):
            return "only a tool step falls back to a tool; use model, last_good or value"
        if fallback.model is not None and isinstance(step, ToolStep):
            return "only a model step falls back to a model; use tool, last_good or value"
        contract = self.tools.get(step.tool) if isinstance(step, ToolStep) else None
        if fallback.last_good and contract is not None and contract.mutating:
            return (
                f'an earlier result of tool "{contract.name}" cannot replace its effect, because the tool is mutating'
            )
        return None

    def _fixed(self, step: ModelStep | AgentStep | ToolStep, value: Any, path: ValuePath) -> Iterator[Problem]:
        schema = seen_of(step, self.tools, self.workflows).value
        error = next(iter(validator_for(schema).iter_errors(value)), None)
        if error is not None:
            yield Problem(path, f'step "{step.id}": does not fit the step\'s output schema: {error.message}')

    # -- bodies and waits --------------------------------------------------------------------------------------

    def _map(self, step: MapStep, path: ValuePath) -> Iterator[Problem]:
        yield from self.view.bindings(step.items, (*path, "items"))
        item: JsonSchema = {}
        try:
            reference = parse(step.items)
        except ValueError:
            reference = None  # said already
        else:
            if reference is None:
                yield Problem(
                    (*path, "items"), f'step "{step.id}": items must be a reference to a list, such as $input.items'
                )
            else:
                schema = self.view.schema_at(reference)
                if schema.get("type", "array") != "array":
                    yield Problem((*path, "items"), f'step "{step.id}": "{step.items}" is not a list')
                item = schema.get("items", {})
        outer = self.view
        self.view = replace(outer, item=item if isinstance(item, dict) else {})
        yield from self._steps(step.steps, (*path, "steps"))
        yield from self.view.bindings(step.result, (*path, "result"))
        self.view = outer  # steps of one item are not visible outside it

    def _loop(self, step: LoopStep, path: ValuePath) -> Iterator[Problem]:
        outer = self.view
        self.view = replace(outer, last=frozenset(one.id for one in siblings(step.steps)))
        yield from self._steps(step.steps, (*path, "steps"))
        yield from self.view.condition(step.id, step.until, (*path, "until"))
        self.view = replace(outer, before=self.view.before)  # what follows reads the last round

    def _subworkflow(self, step: SubworkflowStep, path: ValuePath) -> Iterator[Problem]:
        child = self.workflows.get(step.workflow)
        fields = properties_of(child.input) if child is not None else {}
        what = f'step "{step.id}": field "{{}}" of workflow "{step.workflow}"'
        yield from self._fitting(step.input, fields, (*path, "input"), what)
        place = (*path, "workflow")
        if child is None:
            message = (
                f'step "{step.id}": workflow "{step.workflow}" does not exist; {listed(self.workflows, "workflows")}'
            )
            yield Problem(place, message)
            return
        if reaches(child, self.workflow.name, self.workflows):
            yield Problem(
                place, f'step "{step.id}": workflow "{step.workflow}" leads back here; a workflow cannot contain itself'
            )
            return
        for wait in signal_waits(child, self.workflows):
            if self.payloads.setdefault(str(wait.signal), wait.payload) != wait.payload:
                message = (
                    f'step "{step.id}": workflow "{child.name}" waits for signal "{wait.signal}" with another payload than '
                    "an earlier step; make them equal, or call one of the signals something else"
                )
                yield Problem(place, message)
        for tool in sorted(set(child.allow) - set(self.workflow.allow)):
            yield Problem(
                place, f'step "{step.id}": workflow "{child.name}" uses tool "{tool}", which is not in allow; add it'
            )
        for name in sorted(set(child.input.get("required", [])) - step.input.keys()):
            yield Problem(
                (*path, "input"), f'step "{step.id}": workflow "{child.name}" needs "{name}"; bind it in input'
            )
        if child.input.get("additionalProperties") is False:
            properties = child.input.get("properties", {})
            for name in sorted(step.input.keys() - properties.keys()):
                message = f'step "{step.id}": workflow "{child.name}" takes no "{name}"; {listed(properties, "fields")}'
                yield Problem((*path, "input", name), message)

    def _wait(self, step: WaitStep, path: ValuePath) -> Iterator[Problem]:
        yield from schema_problems(step.payload, (*path, "payload"))
        if "received" in properties_of(step.payload):
            message = f'step "{step.id}": received says whether the signal came; call that field of the payload something else'
            yield Problem((*path, "payload"), message)
        if step.signal is not None and self.payloads.setdefault(step.signal, step.payload) != step.payload:
            message = (
                f'step "{step.id}": another step waits for signal "{step.signal}" with another payload; make them equal'
            )
            yield Problem((*path, "payload"), message)
        if step.until is None:
            return
        place = (*path, "until")
        problems = list(self.view.bindings(step.until, place))
        if problems:
            yield from problems
            return
        reference = parse(step.until)
        if reference is None:
            try:
                aware = datetime.fromisoformat(step.until).tzinfo is not None
            except ValueError:
                aware = False
            if not aware:
                message = (
                    f'step "{step.id}": until is not a moment; write 2026-12-24T18:00:00+01:00, or refer to a number'
                )
                yield Problem(place, message)
        elif not self.view.is_number(reference):
            yield Problem(
                place, f'step "{step.id}": "{step.until}" is not a number field; until needs seconds since 1970'
            )
