"""Batched calls that a run waits for: what stays reserved for them meanwhile, and which of them it waits for no more."""

from __future__ import annotations

from interlock.budget.ledger import Amount
from interlock.execution.steps import Run, StepExecution
from interlock.machine.names import CommandKey, CommandKind, TimerKey
from interlock.machine.persistent import changed_keys
from interlock.machine.state import RunState, StepStatus
from interlock.store.commit import Commit
from interlock.store.database import Row
from interlock.store.rows import AbandonedCall, SettledClaim
from interlock.workflows.spec import ModelStep

_WAITING = frozenset({StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.PAUSED})


def is_batched(execution: StepExecution) -> bool:
    """True if the step is a call through a batch API; a fallback never is."""
    return isinstance(execution.step, ModelStep) and execution.step.batch and execution.fallback is None


def hold_reserved(run: Run, state: RunState, row: Row) -> None:
    """Sets aside again what the run's calls in a batch had reserved in any process.

    Args:
        row: the run's, with its `batched` calls; `state` is its journal folded.
    """
    for call in row["batched"]:
        if _awaits_attempt(state, call["step"], call["attempt"]):
            run.ledger.hold(call["step"], Amount(call["tokens"], call["nano_usd"]))


def release_reserved(run: Run, state: RunState) -> None:
    """Gives back what is still held for calls that the run, as it stands now, does not wait for."""
    for name in run.ledger.held:
        if not _awaits(state, name):
            run.ledger.release(name)


def abandon_calls(commit: Commit, run: Run, before: RunState, after: RunState) -> list[SettledClaim]:
    """Adds the calls whose answer the run no longer waits for to the commit; unsubmitted ones are deleted.

    A deadline, a container that failed, a fallback, or the answer itself. Returns their claims, for an engine that has some.
    """
    if not run.version.batches:
        return []
    claims = []
    for name in sorted(changed_keys(before.steps, after.steps)):
        if (was := before.steps.get(name)) is None:
            continue
        node = run.version.program.node(name)
        if isinstance(node.step, ModelStep) and node.step.batch and _awaits(before, name) and not _awaits(after, name):
            commit.abandoned_calls.append(AbandonedCall(run_id=run.run_id, step=name))
            command = str(CommandKey(CommandKind.PERFORM, name, was.attempt))
            claims.append(SettledClaim(run_id=run.run_id, command=command))
    return claims


def _awaits_attempt(state: RunState, name: str, attempt: int) -> bool:
    """True if the outcome of this attempt is still to come, not while the step waits for the next attempt."""
    ended = str(TimerKey.retry(name, attempt)) in state.timers
    return not ended and _awaits(state, name) and state.steps[name].attempt == attempt


def _awaits(state: RunState, name: str) -> bool:
    here = state.steps.get(name)
    return here is not None and here.variant == 0 and here.status in _WAITING
