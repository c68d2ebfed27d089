"""Terminal output of a run's steps and waits: every step of a small run, counts and exceptions of a large one."""

from __future__ import annotations

import json
from collections import Counter

from rich.text import Text

from interlock.base.json import Json, JsonObject
from interlock.cli.console import moment, out, status, usd, visible
from interlock.machine.names import is_numbered, path_of
from interlock.services.views.runs import (
    DeadLetterWait,
    FailureView,
    PausedWait,
    QuotaWait,
    ReviewWait,
    RunView,
    SignalWait,
    StepView,
    TimedWait,
    Wait,
    WorkerWait,
)

MAX_LINES = 40
MAX_FAILURES = 3
_DONE = {"succeeded", "open", "compensated"}


def print_steps(steps: list[StepView], values: JsonObject) -> None:
    """Prints all steps with their values; for more than `MAX_LINES` only counts, and the steps that are not simply completed."""
    if len(steps) <= MAX_LINES:
        for step in steps:
            out.print(Text.assemble("\n", _line(step)))
            if step.error:
                out.print(f"  {step.error}", style="red")
            if step.id in values:
                print_value("", values[step.id])
        return
    out.print()
    groups = _groups(steps)
    for name, members in list(groups.items())[: MAX_LINES // 2]:
        if len(members) == 1:
            out.print(_line(members[0]))
            continue
        counts = Counter(str(step.status) for step in members)
        said = ", ".join(f"{number} {one}" for one, number in counts.most_common())
        out.print(Text.assemble((visible(name), "bold"), f"  {len(members)}: {said}"))
    if len(groups) > MAX_LINES // 2:
        out.print(f"… and {len(groups) - MAX_LINES // 2} more steps")
    odd = [step for step in steps if step.status not in _DONE]
    room = MAX_LINES // 2 - 2
    for step in odd[:room]:
        error = f"  {visible(step.error)}" if step.error else ""
        out.print(Text.assemble("  ", _line(step), (error, "red")), no_wrap=True, overflow="ellipsis")
    if len(odd) > room:
        out.print(f"  … and {len(odd) - room} more like these; --json shows all")


def print_failures(failures: list[FailureView]) -> None:
    """Prints traceback and last output of the tools that failed latest, for their authors."""
    detailed = [one for one in failures if one.traceback or one.printed]
    for one in detailed[:MAX_FAILURES]:
        out.print(Text.assemble("\n", (one.step, "bold"), f"  attempt {one.attempt}, in the tool's code"))
        _print_block(one.traceback or one.error_detail or one.error)
        if one.printed:
            out.print("  its last output:")
            _print_block(one.printed)
    if len(detailed) > MAX_FAILURES:
        out.print(f"\n… and {len(detailed) - MAX_FAILURES} more failures; --json shows them")


def _print_block(text: str) -> None:
    for line in text.splitlines():
        out.print(f"    {visible(line)}", soft_wrap=True, style="dim")


def _groups(steps: list[StepView]) -> dict[str, list[StepView]]:
    """Instances by step: `each#1/charge` and `each#2/charge` are `each/charge`; the items `each#1`, `each#2` are `each#`."""
    groups: dict[str, list[StepView]] = {}
    for step in steps:
        name = step.id
        item = is_numbered(name)
        groups.setdefault(path_of(name) + ("#" if item else ""), []).append(step)
    return groups


def _line(step: StepView) -> Text:
    retried = f" (attempt {step.attempt})" if step.attempt > 1 else ""
    instead = f" by {step.fallback}" if step.fallback else ""
    tool = f" {step.tool}" if step.tool else ""
    name = (visible(step.id) + tool, "bold")
    return Text.assemble(name, "  ", status(step.status), visible(instead), retried, (_used(step), "dim"))


def _used(step: StepView) -> str:
    """Duration of the last attempt, and usage and cost of its model calls."""
    took = f"  {step.seconds:.3g} s" if step.seconds is not None else ""
    if (usage := step.usage) is None:
        return took
    tokens = usage.input_tokens + usage.output_tokens
    return f"{took}  {visible(usage.model or usage.provider)}, {tokens} tokens, USD {usd(usage)}"


def print_waits(run: RunView) -> None:
    """Prints what the run waits for with the command that answers it, and why its result is only partial."""
    if run.degraded:
        out.print(f"  continues without: {run.degraded}", style="yellow")
    for one in run.waits_for[:5]:
        out.print(f"  waits for {wait_text(run.run_id, one)}", style="yellow", soft_wrap=True)
    if len(run.waits_for) > 5:
        out.print(f"  … and {len(run.waits_for) - 5} more", style="yellow")
    if run.status in {"failed", "dead"}:
        for dead_letter in run.dead_letters[:5]:
            out.print(
                f"  in the dead-letter queue: interlock dead-letters show {dead_letter}", style="yellow", soft_wrap=True
            )


def wait_text(run_id: str, wait: Wait) -> str:
    """One wait as a phrase that ends in the command that answers it, if there is one."""
    if isinstance(wait, PausedWait):
        return f"an operator to resume it: interlock resume {run_id}"
    if isinstance(wait, WorkerWait):
        return "a worker; none is on this database: interlock worker"
    if isinstance(wait, QuotaWait):
        later = f", next attempt {moment(wait.until)}" if wait.until else ""
        where = f" (step {wait.step})" if wait.step is not None else ""
        return f"room in the quota of {wait.quota}{where}{later}: interlock quota list"
    step = f" (step {wait.step})" if wait.step is not None else ""
    match wait:
        case ReviewWait():
            if wait.review_id is None:
                return f"a worker to act on the decision{step}"
            what = "a decision" if wait.for_ == "review" else "a decision whether it happened"
            most = f" until {moment(wait.until)}" if wait.until else ""
            return f"{what}{step}{most}: interlock review show {wait.review_id}"
        case DeadLetterWait():
            if wait.dead_letter_id is None:
                return f"a worker to act on the decision{step}"
            return f"a decision about what failed{step}: interlock dead-letters show {wait.dead_letter_id}"
    until = moment(wait.until)
    if isinstance(wait, SignalWait):
        most = f", until {until}" if until else ""
        return f'signal "{wait.name}"{step}{most}: interlock signal {run_id} {wait.name}'
    if wait.for_ == "retry":
        return f"the next attempt{step} at {until}" if until else f"the next attempt{step}"
    return f"its time{step}: {until}" if until else f"its time{step}"


def needs_a_person(waits: list[Wait]) -> bool:
    """True if only a person or a signal can continue the run."""
    return any(not isinstance(one, TimedWait | WorkerWait | QuotaWait) for one in waits)


def print_value(name: str, value: Json) -> None:
    """A value on one line."""
    text = json.dumps(value, ensure_ascii=False, indent=None)
    out.print(f"  {name + ': ' if name else ''}{text}", soft_wrap=True, style="dim")
