"""Where values come from: a binding tree, seen from one place in a run, becomes a value with the labels of all that went in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interlock.base.errors import ContractViolation, Erased
from interlock.base.labels import DEFINED, UNTRUSTED, Labels
from interlock.base.refs import Ref
from interlock.execution.run import Run
from interlock.machine.names import InstanceName, enclosing, frame_of, id_of, path_of, unnumbered, within
from interlock.machine.state import COMPENSATION, RunState, StepState, StepStatus, is_settled
from interlock.workflows.bindings import Reference, dig, references, resolve
from interlock.workflows.spec import LoopStep, MapStep, SubworkflowStep, ToolStep, WaitStep


class StaleValue(ContractViolation):
    """A value is older than the contract of the tool it came from allows."""

    code = "stale"


@dataclass(slots=True)
class Bound:
    """A binding tree with its references replaced.

    Attributes:
        labels: of everything that went in, joined.
        stale: steps whose values are older than their tools allow, where the contract says to flag that.
    """

    value: Any
    labels: Labels
    stale: list[str] = field(default_factory=list)


async def bind(
    run: Run, tree: Any, state: RunState, near: str | None, *, lenient: bool = False, now: float | None = None
) -> Bound:
    """Replaces every reference in `tree`.

    Args:
        near: the instance it is read for; None for what belongs to the run as a whole, such as its output.
        lenient: give null for steps that did not run, instead of refusing.
        now: seconds since the epoch; refuse or flag what is older than its contract allows. None does not look.

    Raises:
        ContractViolation: it reads a step that did not run.
        Stale: it reads something too old.
        Erased: it reads something about a person whose key was destroyed.
    """
    reader = _Reader(run, state, lenient, now)
    value = await reader.tree(tree, near)
    return Bound(value, reader.labels, reader.stale)


async def bind_what_is_left(run: Run, tree: Any, state: RunState, near: str | None) -> tuple[Any, Labels]:
    """Value of a binding tree; empty if a subject was erased meanwhile, because the run must go on to its end."""
    try:
        bound = await bind(run, tree, state, near, lenient=True)
    except Erased:
        return {}, UNTRUSTED
    return bound.value, bound.labels


class _Reader:
    def __init__(self, run: Run, state: RunState, lenient: bool, now: float | None) -> None:
        self._run = run
        self._program = run.version.program
        self._state = state
        self._lenient = lenient
        self._now = now
        self.labels = DEFINED  # of the tree itself; every value that it refers to is joined
        self.stale: list[str] = []

    async def tree(self, tree: Any, near: str | None) -> Any:
        needed = {reference.text: reference for reference in references(tree)}
        values = {text: await self._look_up(reference, near) for text, reference in needed.items()}
        return resolve(tree, lambda reference: values[reference.text])

    async def _look_up(self, reference: Reference, near: str | None) -> Any:
        match reference.root:
            case "run":
                return self._run.run_id
            case "input":
                return await self._input(reference, near)
            case "item":
                container, number = self._frame(near, MapStep)
                items = self._state.steps[container].entry
                return dig(await self._value(items), (str(number - 1), *reference.path))
            case "index":
                return self._frame(near, MapStep | LoopStep)[1] - 1
            case "last":
                container, number = self._frame(near, LoopStep)
                if number == 1:
                    return None
                first = self._program.scopes[path_of(container)][0].steps[0]
                before = within(frame_of(container, number - 1), first)
                return await self._step(reference, before, absent_is_null=True)
            case _:
                return await self._step(reference, near, absent_is_null=False)

    async def _input(self, reference: Reference, near: str | None) -> Any:
        home = self._program.node(near).home if near is not None else ""
        if not home:
            return dig(await self._value(self._run.input), reference.path)
        assert near is not None
        caller = self._program.instance(near, enclosing(home), self._state.steps.get)
        return dig(await self._value(self._state.steps[caller].entry), reference.path)

    def _frame(self, near: str | None, kind: Any) -> tuple[str, int]:
        """The container around a place, and the number of the item or round that the place is in, from 1."""
        at = near
        while at is not None:
            number = InstanceName.parse(at).number
            if number is not None and isinstance(self._program.node(at).step, kind):
                return unnumbered(at), number
            at = self._program.parent(at)
        raise ContractViolation("$item, $index and $last mean nothing outside a map or a loop")

    async def _step(self, reference: Reference, near: str | None, *, absent_is_null: bool) -> Any:
        home = self._program.node(near).home if near is not None else ""
        step = str(reference.step)
        path = self._program.ids.get((home, step), step)
        name = self._program.instance(near or "", path, self._state.steps.get)
        return await self._of(name, path, reference, near, absent_is_null=absent_is_null)

    async def _of(self, name: str, path: str, reference: Reference, near: str | None, *, absent_is_null: bool) -> Any:
        state = self._state.steps.get(name)
        spec = self._program.nodes[path].step
        if state is not None and not self._is_settled(state, spec, near):
            if self._lenient or absent_is_null or spec.on_failure == "continue" or state.status in COMPENSATION:
                return None
            state = None
        if isinstance(spec, WaitStep) and state is not None and reference.path == ("received",):
            return state.facts.get("received")
        if state is not None and state.status is StepStatus.SUCCEEDED:
            if isinstance(spec, SubworkflowStep):
                return await self._child(name, path, reference)
            if isinstance(spec, MapStep) and not (reference.path and reference.path[0] in state.facts):
                return dig(await self._items(name, spec, state), reference.path)
        if state is not None and state.output is not None:
            self._look_at_age(name, state, state.output)
            return dig(await self._value(state.output), reference.path)
        if state is not None and state.facts:
            return dig(state.facts, reference.path)
        let_go = state is not None and state.status is StepStatus.FAILED and spec.on_failure == "continue"
        if self._lenient or absent_is_null or let_go or (state is not None and state.status is StepStatus.SUCCEEDED):
            return None
        raise ContractViolation(
            f'"{reference.text}": step "{id_of(path)}" did not run in this run; guard this step with the same branch'
        )

    def _is_settled(self, state: StepState, spec: Any, near: str | None) -> bool:
        reader = self._state.steps.get(near) if near is not None else None
        if reader is not None and reader.status in COMPENSATION and state.status in COMPENSATION:
            return True  # compensation gets the original arguments, independent of later changes
        return is_settled(state, opens_body=isinstance(spec, MapStep | SubworkflowStep))

    async def _child(self, name: str, path: str, reference: Reference) -> Any:
        """A field of what a subworkflow gave: its output's binding, read inside it."""
        output = self._program.subworkflows[path].output
        inside = within(name, self._program.scopes[path][0].steps[0])
        lenient, self._lenient = self._lenient, True  # as for a run's own output
        try:
            if not reference.path:
                return await self.tree(output, inside)
            return dig(await self.tree(output.get(reference.path[0]), inside), reference.path[1:])
        finally:
            self._lenient = lenient

    async def _items(self, name: str, spec: MapStep, state: StepState) -> list[Any]:
        """The results of a map, in the order of its items; null for one that failed."""
        tree = spec.result if spec.result is not None else f"$steps.{spec.steps[-1].id}"
        results: list[Any] = []
        for number in range(1, state.iteration + 1):
            frame = frame_of(name, number)
            if self._state.steps[frame].status is StepStatus.SUCCEEDED:
                results.append(await self.tree(tree, within(frame, spec.steps[-1].id)))
            else:
                results.append(None)
        return results

    async def _value(self, ref: Ref | None) -> Any:
        if ref is None:
            raise ContractViolation("what is referred to is not there yet")
        self.labels = self.labels.join(ref.labels)
        return await self._run.value(ref)

    def _look_at_age(self, name: str, state: StepState, ref: Ref) -> None:
        step = self._program.work(name, state.variant, state.tool)
        if self._now is None or ref.labels.as_of is None or not isinstance(step, ToolStep):
            return
        contract = self._program.contracts.get(step.tool)
        if contract is None or contract.max_age is None or self._now - ref.labels.as_of <= contract.max_age:
            return
        if contract.on_stale == "flag":
            self.stale.append(name)
            return
        age = self._now - ref.labels.as_of
        raise StaleValue(
            f'what step "{name}" got from tool "{step.tool}" is {age:.0f} s old, and the tool says that it is good for '
            f"{contract.max_age:g} s; look it up again nearer to where it is needed, or set on_stale: flag"
        )
