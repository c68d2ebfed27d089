"""What must hold of every move of the machine, whatever the program and whatever the event."""

from __future__ import annotations

from collections.abc import Iterable

from interlock.machine import events as ev
from interlock.machine.program import Program
from interlock.machine.state import RunState, StepStatus
from interlock.workflows.spec import CONTAINERS

DONE = {
    StepStatus.SUCCEEDED,
    StepStatus.COMPENSATING,
    StepStatus.COMPENSATION_RETRYING,
    StepStatus.COMPENSATED,
    StepStatus.COMPENSATION_FAILED,
    StepStatus.COMPENSATION_ABANDONED,
}
_WORKING = {StepStatus.RUNNING, StepStatus.COMPENSATING}
_SETTLED = {
    StepStatus.SUCCEEDED,
    StepStatus.FAILED,
    StepStatus.COMPENSATED,
    StepStatus.COMPENSATION_ABANDONED,
}
_BUSY = _WORKING | {StepStatus.COMPENSATION_RETRYING, StepStatus.CONFIRMING}


def moves_within_the_rules(program: Program, before: RunState, after: RunState, commands: list[ev.Command]) -> None:
    """Status, budget, and what may begin."""
    assert after.status in {before.status} | ev.RUN_MOVES[before.status], f"{before.status} → {after.status}"
    finishes = [command for command in commands if isinstance(command, ev.Finish)]
    assert [one.status for one in finishes] == (
        [after.status] if after.over and after.status is not before.status else []
    )
    assert not finishes or commands[-1] is finishes[0], "a command after Finish"
    assert after.retries <= program.workflow.budget.retries
    fresh = after.steps.keys() - before.steps.keys()
    starts = [one for one in commands if isinstance(one, ev.Perform | ev.OpenReview)]
    starts = [one for one in starts if isinstance(one, ev.Perform) or one.purpose != "confirm"]
    if before.ending is not None:
        assert after.ending == before.ending
        assert not fresh, f"{fresh} begins although the run is ending"
        assert not starts, f"{starts} although the run is ending"
    if before.paused and after.paused:
        assert not any(isinstance(one, ev.Perform) for one in starts), f"{starts} although the run is paused"
    for container in before.failing.keys() & after.failing.keys():
        begun = [name for name in fresh if container in _around(program, name)]
        assert not begun, f"{begun} in {container}, which has failed"


def counted(program: Program, state: RunState) -> None:
    """The counters are what a recount gives."""
    statuses = [step.status for step in state.steps.values()]
    assert state.working == sum(one in _WORKING for one in statuses)
    assert state.busy == sum(one in _BUSY for one in statuses)
    work = [name for name in state.steps if not isinstance(program.node(name).step, CONTAINERS)]
    assert state.done == sum(state.steps[name].status in DONE for name in work)
    assert set(state.failing) == {name for name, step in state.steps.items() if step.status is StepStatus.ENDING}
    for container, failing in state.failing.items():
        inside = [step.status for name, step in state.steps.items() if container in _around(program, name)]
        assert failing.unfinished == sum(one in _BUSY or one is StepStatus.ENDING for one in inside)
    assert set(state.live) == {name for name, step in state.steps.items() if step.status not in _SETTLED}


def _around(program: Program, name: str) -> Iterable[str]:
    parent = program.parent(name)
    while parent is not None:
        yield parent
        parent = program.parent(parent)
