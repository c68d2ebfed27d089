"""Traversal of a definition: steps inside steps, and workflows inside workflows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from interlock.workflows.spec import (
    BranchStep,
    LoopStep,
    MapStep,
    ParallelStep,
    Step,
    SubworkflowStep,
    WaitStep,
    Workflow,
)


def branches_of(step: Step) -> list[list[Step]]:
    """The sequences inside a step that share its siblings' names."""
    match step:
        case ParallelStep():
            return list(step.branches.values())
        case BranchStep():
            return [*(case.steps for case in step.cases), step.otherwise]
        case _:
            return []


def siblings(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps and those in their branches: all steps of one name space."""
    for step in steps:
        yield step
        for part in branches_of(step):
            yield from siblings(part)


def every(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps and all steps inside them, bodies of maps and loops included."""
    for step in siblings(steps):
        yield step
        if isinstance(step, MapStep | LoopStep):
            yield from every(step.steps)


def reaches(workflow: Workflow, target: str, known: Mapping[str, Workflow]) -> bool:
    """True if a workflow is, or contains at any depth, the one called `target`."""
    ahead, been = [workflow.name], set()
    while ahead:
        name = ahead.pop()
        if name == target:
            return True
        if name not in been and name in known:
            been.add(name)
            ahead += [step.workflow for step in every(known[name].steps) if isinstance(step, SubworkflowStep)]
    return False


def signal_waits(workflow: Workflow, known: Mapping[str, Workflow]) -> Iterator[WaitStep]:
    """The signal waits of a workflow and of its subworkflows."""
    for step in every(workflow.steps):
        if isinstance(step, WaitStep) and step.signal is not None:
            yield step
        elif isinstance(step, SubworkflowStep) and step.workflow in known:
            yield from signal_waits(known[step.workflow], known)
