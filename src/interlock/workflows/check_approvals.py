"""Checks that every review of a mutating tool's call shows its arguments, and lists the calls without a review.

A review that covers a call and hides its arguments is a fault: the person would approve what they cannot see, and the run would
not count it. A call that no review covers is none: it asks for its own approval when the run comes to it, which is only noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from interlock.workflows.approvals import covered_acts, unshown
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import (
    AgentStep,
    BranchStep,
    LoopStep,
    MapStep,
    ParallelStep,
    ReviewStep,
    Step,
    ToolStep,
    Workflow,
)
from interlock.workflows.visibility import Problem, ValuePath, listed

NeedsApproval = Callable[[str, str], bool]
"""(path of a step, tool) → whether the policy lets that tool be called there with an approval only."""


@dataclass(frozen=True, slots=True)
class ApprovalCheck:
    """Coverage of a workflow's reviews.

    Attributes:
        needs: what the policy says; without one, only reviews that name their act are looked at.
    """

    workflow: Workflow
    contracts: Mapping[str, ToolContract]
    needs: NeedsApproval | None = None

    def problems(self) -> Iterator[Problem]:
        """Reviews that name no act, or do not show the act they cover."""
        for space, body in self._bodies():
            places = dict(_places(body.steps, body.path))
            for review, act in covered_acts(body.steps, self._mutates):
                path = places[review.id]
                if act is None and isinstance(review.approves, str):
                    yield Problem((*path, "approves"), self._names_no_act(review, body))
                elif act is not None and (review.approves is not None or self._needs(space + act.id, act.tool)):
                    yield from self._shown(review, act, path)

    def notes(self) -> Iterator[Problem]:
        """Calls that ask for their own approval, since no review covers them."""
        for space, body in self._bodies():
            places = dict(_places(body.steps, body.path))
            covered = {act.id for _, act in covered_acts(body.steps, self._mutates) if act is not None}
            for step, path in _steps(body.steps, body.path):
                for tool, place in _tools(step, space, covered):
                    if self._mutates(tool) and self._needs(place, tool):
                        message = (
                            f'step "{step.id}": a person has to approve the call of tool "{tool}", and no review covers it; '
                            "the run asks for that approval when it comes to the call"
                        )
                        yield Problem(places.get(step.id, path), message)

    def _shown(self, review: ReviewStep, act: ToolStep, path: ValuePath) -> Iterator[Problem]:
        hidden = unshown(review, act)
        if not hidden:
            return
        message = (
            f'step "{review.id}": this review approves the call of tool "{act.tool}" in step "{act.id}", and does not show its '
            f"arguments {', '.join(hidden)}; add them to show (a review stands behind the steps that they come from), name "
            "the step it is about in approves, or set approves: false and let the call ask for its own approval"
        )
        yield Problem((*path, "show"), message)

    def _names_no_act(self, review: ReviewStep, body: _Body) -> str:
        acts = [
            step.id for step, _ in _steps(body.steps, ()) if isinstance(step, ToolStep) and self._mutates(step.tool)
        ]
        return (
            f'step "{review.id}": "{review.approves}" is no later step beside this one that calls a mutating tool; '
            f"{listed(acts, 'such steps')}"
        )

    def _mutates(self, tool: str) -> bool:
        return tool in self.contracts and self.contracts[tool].mutating

    def _needs(self, place: str, tool: str) -> bool:
        return self.needs is not None and self.needs(place, tool)

    def _bodies(self) -> Iterator[tuple[str, _Body]]:
        """(what paths of its steps begin with, body): the workflow's own, and those of maps and loops."""
        ahead: list[tuple[str, _Body]] = [("", _Body(self.workflow.steps, ("steps",)))]
        while ahead:
            space, body = ahead.pop(0)
            yield space, body
            for step, path in _steps(body.steps, body.path):
                if isinstance(step, MapStep | LoopStep):
                    ahead.append((f"{space}{step.id}/", _Body(step.steps, (*path, "steps"))))


@dataclass(frozen=True, slots=True)
class _Body:
    steps: list[Step]
    path: ValuePath


def _steps(steps: list[Step], path: ValuePath) -> Iterator[tuple[Step, ValuePath]]:
    """Steps of one body, those in branches and cases included, with their places in the file."""
    for index, step in enumerate(steps):
        here = (*path, index)
        yield step, here
        match step:
            case ParallelStep():
                for name, part in step.branches.items():
                    yield from _steps(part, (*here, "branches", name))
            case BranchStep():
                for number, case in enumerate(step.cases):
                    yield from _steps(case.steps, (*here, "cases", number, "steps"))
                yield from _steps(step.otherwise, (*here, "otherwise"))


def _places(steps: list[Step], path: ValuePath) -> Iterator[tuple[str, ValuePath]]:
    return ((step.id, place) for step, place in _steps(steps, path))


def _tools(step: Step, space: str, covered: set[str]) -> Iterator[tuple[str, str]]:
    """(tool, path) of the calls that a step may make and no review covers: its own, its fallbacks', its agent's."""
    if isinstance(step, AgentStep):
        yield from ((tool, f"{space}{step.id}/call") for tool in step.tools)
    if isinstance(step, ToolStep):
        if step.id not in covered:
            yield step.tool, space + step.id
        yield from ((one.tool, space + step.id) for one in step.fallback if one.tool is not None)
