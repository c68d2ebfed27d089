"""The rows that belong to what a run did: journal, run row, reviews, effects, audit, outbox."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interlock.base.errors import FailureKind
from interlock.base.ids import new_id
from interlock.base.usage import cost_json
from interlock.execution.executors.models import cost_attributes
from interlock.execution.inputs.binding import bind_what_is_left
from interlock.execution.reviews import open_review
from interlock.execution.run import Run, StepOutcome, system_entry
from interlock.guard.gate import composed
from interlock.machine import events as ev
from interlock.machine.state import RunState, StepStatus
from interlock.store.commit import Commit
from interlock.store.database import Row
from interlock.store.entries import Entry
from interlock.store.people_rows import ClosedDeadLetter, ClosedReview, DeadLetterPurpose, NewDeadLetter
from interlock.store.rows import FinishedRun, JournalRow, OutboxRow, RunUpdate, UsedSignal
from interlock.telemetry import names
from interlock.telemetry.tracing import Tracing
from interlock.workflows.spec import ToolStep


def commit_of(
    run: Run,
    *,
    state: RunState | None = None,
    outcomes: list[StepOutcome] | None = None,
    first_seq: int = 0,
    used_signals: list[int] | None = None,
) -> Commit:
    """A commit under the run's lease: the outcomes' rows, their events in the journal, and the run's new row."""
    commit = run.commit()
    if used_signals:
        commit.used_signals = [UsedSignal(signal_id=signal) for signal in used_signals]
    for number, outcome in enumerate(outcomes or []):
        commit.artifacts += outcome.artifacts
        commit.audit += outcome.audit
        if outcome.effects:
            commit.effects += outcome.effects
        if outcome.results:
            commit.results += outcome.results
        commit.journal.append(
            JournalRow(
                run_id=run.run_id,
                seq=first_seq + number,
                org_id=run.org_id,
                event=ev.event_to_json(outcome.event),
            )
        )
    if state is not None:
        commit.runs.append(run_row(run, state))
    return commit


def run_row(run: Run, state: RunState) -> RunUpdate:
    return RunUpdate(
        run_id=run.run_id,
        status=state.status,
        reason=state.reason,
        output=None,
        input_tokens=state.usage.input_tokens,
        output_tokens=state.usage.output_tokens,
        nano_usd=state.usage.known_cost,
        unpriced=state.usage.unpriced,
        steps=state.done,
        finished=state.over,
        flags=None,
    )


async def records_of(commit: Commit, run: Run, state: RunState, commands: list[ev.Command], now: float) -> None:
    """Adds the rows of those commands that are nothing but rows: questions to people, and the end."""
    for command in commands:
        match command:
            case ev.OpenReview():
                await open_review(commit, run, state, command, now)
            case ev.CloseReview():
                commit.closed_reviews.append(ClosedReview(run_id=run.run_id, step=command.step))
            case ev.OpenDeadLetter():
                open_dead_letter(commit, run, state, command, now)
            case ev.CloseDeadLetter():
                commit.closed_dead_letters.append(ClosedDeadLetter(run_id=run.run_id, step=command.step))
            case ev.Finish():
                await finish(commit, run, state, command, now)


def open_dead_letter(commit: Commit, run: Run, state: RunState, command: ev.OpenDeadLetter, now: float) -> None:
    """A step for a person to look at: its row, the audit entry, the event for notification."""
    failure = state.steps[command.step].failure
    code, reason = (failure.code, failure.message) if failure is not None else ("unknown", "it failed")
    detail = _dead_letter(commit, run.org_id, run.run_id, command.step, command.purpose, code, reason)
    commit.audit.append(
        system_entry(run, "dead_letter.opened", "open_dead_letter", f"dead_letter:{detail['dead_letter']}", now, detail)
    )


def park_run(commit: Commit, row: Row, reason: str, now: float) -> None:
    """A run that Interlock itself fails to drive, for a person to look at; `row` is the run's."""
    detail = _dead_letter(commit, row["org_id"], row["run_id"], "", "parked_run", "run_parked", reason)
    dead_letter = f"dead_letter:{detail['dead_letter']}"
    entry = Entry(
        row["org_id"], "dead_letter.opened", "system", "open_dead_letter", dead_letter, now, run_id=row["run_id"]
    )
    commit.audit.append(replace(entry, trace_id=row["trace_id"], detail=detail))


def _dead_letter(
    commit: Commit, org_id: str, run_id: str, step: str, purpose: DeadLetterPurpose, code: str, reason: str
) -> dict[str, Any]:
    """The row and the notification of a dead letter; what goes into its audit entry."""
    dead_letter_id = new_id("ltr")
    commit.new_dead_letters.append(
        NewDeadLetter(
            dead_letter_id=dead_letter_id,
            org_id=org_id,
            run_id=run_id,
            step=step,
            purpose=purpose,
            code=code,
            reason=reason,
        )
    )
    detail = {"step": step, "purpose": purpose, "dead_letter": dead_letter_id, "error": code}
    if purpose != "run":  # its end is announced already
        payload = {"run_id": run_id, **detail, "reason": reason}
        commit.outbox.append(OutboxRow(org_id=org_id, topic="dead_letter.opened", payload=payload))
    return detail


async def finish(commit: Commit, run: Run, state: RunState, command: ev.Finish, now: float) -> None:
    """The end of a run: its output, the audit entry, the event, and the queue row gone."""
    output, labels = await bind_what_is_left(run, run.version.workflow.output, state, None)
    sealed = await run.artifacts.seal(run.org_id, composed(output), labels)
    commit.artifacts.append(sealed.row)
    flags = refused_mutations(run, state)
    commit.runs[0] = replace(commit.runs[0], output=sealed.ref.to_json(), flags=flags or None)
    commit.finished.append(FinishedRun(run_id=run.run_id))
    if command.status is ev.RunStatus.FAILED:
        # Its effects are compensated; what is left is the question whether to try the whole run again.
        _dead_letter(commit, run.org_id, run.run_id, "", "run", "run_failed", command.reason or "")
    detail = {
        "status": command.status.value,
        "reason": command.reason,
        "flags": [*flags],
        "output": sealed.ref.digest,
        "input_tokens": state.usage.input_tokens,
        "output_tokens": state.usage.output_tokens,
        **cost_json(state.usage.known_cost, state.usage.unpriced),
    }
    commit.audit.append(system_entry(run, "run.finished", "finish_run", f"run:{run.run_id}", now, detail))
    payload = {
        "run_id": run.run_id,
        "workflow": run.version.name,
        "status": command.status.value,
        "reason": command.reason,
        "flags": [*flags],
    }
    commit.outbox.append(OutboxRow(org_id=run.org_id, topic="run.finished", payload=payload))


def refused_mutations(run: Run, state: RunState) -> list[str]:
    """Flags `denied:TOOL` of mutating tools one of whose calls was refused for good, sorted."""
    program = run.version.program
    refused: set[str] = set()
    for name, step in state.steps.items():
        if step.status is not StepStatus.FAILED or step.failure is None or step.failure.kind is not FailureKind.DENIED:
            continue
        work = program.work(name, step.variant, step.tool)
        if isinstance(work, ToolStep) and program.mutates(work.tool):
            refused.add(work.tool)
    return [f"denied:{tool}" for tool in sorted(refused)]


def emit_run_span(tracing: Tracing, run: Run, state: RunState, *, start: float, end: float) -> None:
    """The span of a whole run that is over; times in seconds since the epoch."""
    ok = state.status is ev.RunStatus.SUCCEEDED
    attributes = finish_attributes(run, state)
    tracing.emit(f"{names.RUN} {run.version.name}", run.trace, start=start, end=end, ok=ok, attributes=attributes)


def finish_attributes(run: Run, state: RunState) -> dict[str, Any]:
    attributes = {
        **run.attributes(),
        names.SUCCESS: state.status is ev.RunStatus.SUCCEEDED,
        names.TOKENS_INPUT: state.usage.input_tokens,
        names.TOKENS_OUTPUT: state.usage.output_tokens,
        **cost_attributes(state.usage),
        "run.status": state.status.value,
    }
    if state.reason:
        attributes[names.ERROR_TYPE] = state.status.value
    return attributes
