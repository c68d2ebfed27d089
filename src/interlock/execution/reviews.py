"""Questions to people: the reviews that a run opens, and what became of an effect that a person was asked about."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from interlock.base.errors import Erased, InvalidInput
from interlock.base.ids import new_id
from interlock.base.labels import UNTRUSTED, Labels
from interlock.base.refs import Ref
from interlock.execution.approvals import Act, act_of
from interlock.execution.effects import Effect, EffectSite
from interlock.execution.inputs.arguments import arguments_of
from interlock.execution.inputs.binding import bind_what_is_left
from interlock.execution.run import Run, StepExecution, system_entry
from interlock.guard.gate import composed
from interlock.machine import events as ev
from interlock.machine.names import EffectName, beside, path_of
from interlock.machine.state import RunState, StepState, StepStatus
from interlock.store.artifacts import Sealed
from interlock.store.commit import Commit
from interlock.store.people_rows import NewReview
from interlock.store.rows import EffectRow, OutboxRow
from interlock.workflows.approvals import unshown
from interlock.workflows.spec import ReviewStep, ToolStep


async def open_review(commit: Commit, run: Run, state: RunState, command: ev.OpenReview, now: float) -> None:
    """A question to a person: its row, the audit entry, the event for notification."""
    name, program = command.step, run.version.program
    here = state.steps[name]
    step = program.work(name, here.variant, here.tool)
    if command.purpose == "approve_act":
        _ask_for_act(commit, run, name, here, now)
        return
    act = None
    if command.purpose == "confirm":
        assert isinstance(step, ToolStep)
        title = f'Did "{step.tool}" do its work? It was cut off in the middle; look it up where it acts.'
        shown, labels = await _arguments_left(StepExecution(run, name, step, here.attempt, state))
        role = "reviewer"
    else:
        assert isinstance(step, ReviewStep)
        title, role = step.title, step.role
        shown, labels = await bind_what_is_left(run, step.show, state, name)
        covered = await covered_act(run, state, name)
        if covered is not None:
            act, arguments = covered
            commit.artifacts.append(arguments.row)
    sealed = await run.artifacts.seal(run.org_id, composed(shown), labels)
    if isinstance(step, ToolStep):
        commit.effects.append(_entered(run, name, step, here, sealed.ref).unknown())
    commit.artifacts.append(sealed.row)
    _review(commit, run, command, title, role, sealed.ref, act, now)


def _ask_for_act(commit: Commit, run: Run, name: str, here: StepState, now: float) -> None:
    """The question whether one call of a mutating tool may be made; what it is made with came with the event that asks."""
    step, request = run.version.program.work(name, here.variant, here.tool), here.request
    assert isinstance(step, ToolStep)
    assert request is not None
    act = act_of(run, _site(run, name, step, here), request.input, request.policy)
    if act.digest != request.digest:
        return  # the same commit has closed it again, and gone on to a fallback
    title = f'May tool "{step.tool}" be called with these arguments?'
    _review(commit, run, ev.OpenReview(name, "approve_act"), title, request.role, request.input, act, now)


def _review(
    commit: Commit, run: Run, command: ev.OpenReview, title: str, role: str, show: Ref, act: Act | None, now: float
) -> None:
    review_id = new_id("rev")
    commit.new_reviews.append(
        NewReview(
            review_id=review_id,
            org_id=run.org_id,
            run_id=run.run_id,
            step=command.step,
            purpose=command.purpose,
            title=title,
            role=role,
            show=show.to_json(),
            act=act.to_json() if act is not None else None,
        )
    )
    detail = {"step": command.step, "purpose": command.purpose, "review": review_id}
    if act is not None:
        detail |= {"act": act.digest, "tool": act.tool}
    policy = act.policy if act is not None else None
    resource = f"review:{review_id}"
    commit.audit.append(system_entry(run, "review.opened", "open_review", resource, now, detail, policy=policy))
    payload = {"run_id": run.run_id, **detail, "title": title}
    commit.outbox.append(OutboxRow(org_id=run.org_id, topic="review.opened", payload=payload))


async def covered_act(run: Run, state: RunState, review: str) -> tuple[Act, Sealed] | None:
    """The act that a review step covers, and its arguments; None if it covers none, or cannot show what it is made with.

    Args:
        review: the instance of the review step.
    """
    program = run.version.program
    spec, covered = program.node(review).step, run.version.covered.get(path_of(review))
    if covered is None or not isinstance(spec, ReviewStep):
        return None
    act = program.nodes[covered].step
    assert isinstance(act, ToolStep)
    if unshown(spec, act):
        return None  # the check refuses this, and here it counts for nothing
    name = beside(review, act.id)
    entered: Mapping[str, StepState] = {name: StepState(StepStatus.RUNNING)}
    ahead = replace(state, steps=ChainMap(entered, state.steps))  # type: ignore[arg-type]  # it is only read
    execution = StepExecution(run, name, act, 1, ahead)
    site = EffectSite(run.run_id, execution.effect_name, run.org_id, run.version.tools[act.tool], 1)
    try:
        bound = await arguments_of(execution)
        sealed = await run.artifacts.seal(run.org_id, composed(bound.value), bound.labels)
    except (InvalidInput, Erased):
        return None  # made of what is not there yet, or of nothing that anybody may read
    return act_of(run, site, sealed.ref, run.policy.version), sealed


async def _arguments_left(execution: StepExecution) -> tuple[Any, Labels]:
    """Arguments of the call in question, in the same way."""
    try:
        given = await arguments_of(execution, lenient=True)
        return given.value, given.labels
    except Erased:
        return {}, UNTRUSTED


def confirmed_effects(run: Run, before: RunState, event: Any) -> list[EffectRow]:
    """Ledger rows for a person's answer to "did it happen?"."""
    if not isinstance(event, ev.ReviewDecided):
        return []
    state = before.steps.get(event.step)
    if state is None or state.status is not StepStatus.CONFIRMING:
        return []
    step = run.version.program.work(event.step, state.variant, state.tool)
    assert isinstance(step, ToolStep)
    effect = _entered(run, event.step, step, state, event.output)
    return [effect.succeeded(event.output) if event.approved else effect.failed()]


def _site(run: Run, name: str, step: ToolStep, state: StepState) -> EffectSite:
    effect = str(EffectName(name, state.variant))
    return EffectSite(run.run_id, effect, run.org_id, run.version.tools[step.tool], state.attempt)


def _entered(run: Run, name: str, step: ToolStep, state: StepState, ref: Ref) -> Effect:
    return _site(run, name, step, state).entered(ref)
