"""Batched calls that a run waits for, and those that it waits for no more."""

from __future__ import annotations

from interlock.execution.run import Run, StepExecution
from interlock.machine.persistent import changed_keys
from interlock.machine.state import RunState, StepStatus
from interlock.store.commit import Commit
from interlock.store.rows import AbandonedCall
from interlock.workflows.spec import ModelStep

_WAITING = frozenset({StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.PAUSED})


def is_batched(execution: StepExecution) -> bool:
    """True if the step is a call through a batch API; a fallback never is."""
    return isinstance(execution.step, ModelStep) and execution.step.batch and execution.fallback is None


def abandon_calls(commit: Commit, run: Run, before: RunState, after: RunState) -> list[tuple[str, int]]:
    """Adds the calls whose answer the run no longer waits for to the commit, and ends their reservations.

    The reason is a deadline, a container that failed, a fallback, or the answer itself. Unsubmitted calls are deleted. Returns
    (step, attempt) of the calls.
    """
    if not run.version.batches:
        return []
    abandoned = []
    for name in sorted(changed_keys(before.steps, after.steps)):
        if (was := before.steps.get(name)) is None:
            continue
        node = run.version.program.node(name)
        if isinstance(node.step, ModelStep) and node.step.batch and _awaits(before, name) and not _awaits(after, name):
            commit.abandoned_calls.append(AbandonedCall(run_id=run.run_id, step=name))
            abandoned.append((name, was.attempt))
    commit.settled_reservations += run.settled(abandoned)
    return abandoned


def _awaits(state: RunState, name: str) -> bool:
    here = state.steps.get(name)
    return here is not None and here.variant == 0 and here.status in _WAITING
