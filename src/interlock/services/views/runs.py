"""Views of runs: rows, steps, wait reasons, effects, spans."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from interlock.base.json import JsonField
from interlock.machine.events import TERMINAL, RunStatus
from interlock.machine.state import StepStatus
from interlock.services.views.base import Cost, View

EffectStatus = Literal["intended", "executing", "succeeded", "failed", "unknown", "compensated"]


def is_over(status: str) -> bool:
    """True if a run with this status has ended."""
    return RunStatus(status) in TERMINAL


class RunSummary(Cost):
    """A run without its steps and values. `steps_done` counts steps that succeeded."""

    run_id: str
    workflow: str
    version: str
    status: RunStatus
    reason: str | None
    flags: list[str]
    idempotency_key: str
    trace_id: str
    input_tokens: int
    output_tokens: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    user_id: str
    steps_done: int


class UsageView(Cost):
    """Usage of a step's model calls; input tokens include those of the cache, output tokens those of the reasoning."""

    provider: str
    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    attempts: int


class StepView(View):
    """A step of a run. `fallback` says what took its place, `tool` what a model chose; `output` is a digest.

    Attributes:
        began_at, seconds: of the last attempt on record, by the database's clock.
        usage: of all its attempts; null if none of them asked a model.
    """

    id: str
    status: StepStatus
    attempt: int
    fallback: str | None
    tool: str | None
    facts: dict[str, JsonField]
    error: str | None
    output: str | None
    began_at: datetime | None = None
    seconds: float | None = None
    usage: UsageView | None = None


class FailureView(View):
    """A failed attempt of a step, for the author of its tool. Texts of the tool are redacted.

    Attributes:
        error_detail: the tool's own message; null if it gave none, or if a person in it was erased.
        traceback: calls within the tool's own code, outermost first.
        printed: the last 4 KiB of the tool's stdout and stderr.
    """

    step: str
    attempt: int
    at: datetime
    code: str
    error: str
    error_detail: str | None
    traceback: str | None
    printed: str | None


class Failures(View):
    """The last failure of each step that failed, latest first."""

    failures: list[FailureView]


class WaitReason(View):
    """Base of what a run waits for; `for_` is called `for` in JSON, which is no name in Python."""

    model_config = ConfigDict(alias_generator=lambda name: name.removesuffix("_"))


class PausedWait(WaitReason):
    """The whole run is paused; `resume` lets it go on."""

    for_: Literal["paused"] = "paused"


class ReviewWait(WaitReason):
    """A person's decision: `review` before an act, `confirm` about an act whose outcome is unknown.

    The step fails at `until` without it. Without `review_id` it has been made, and the run continues when a worker takes it up.
    """

    step: str
    for_: Literal["review", "confirm"]
    review_id: str | None = None
    until: datetime | None = None


class DeadLetterWait(WaitReason):
    """A decision about what failed for good. `step` is null when it is about the whole run."""

    step: str | None = None
    for_: Literal["dead_letter"] = "dead_letter"
    dead_letter_id: str | None = None


class SignalWait(WaitReason):
    """A signal of that name; `until` is when the step gives up."""

    step: str
    for_: Literal["signal"] = "signal"
    name: str
    until: datetime | None = None


class TimedWait(WaitReason):
    """A moment, `until`: of a timer, or of the next attempt."""

    step: str
    for_: Literal["timer", "retry"]
    until: datetime | None = None


class WorkerWait(WaitReason):
    """A worker: the run could go on, and no worker of its engine is on the database."""

    for_: Literal["worker"] = "worker"


class QuotaWait(WaitReason):
    """Room within a quota, described by `quota`. `step` is null when the whole run waits; `until` is the next attempt."""

    step: str | None = None
    for_: Literal["quota"] = "quota"
    quota: str
    until: datetime | None = None


Wait = Annotated[
    WorkerWait | QuotaWait | PausedWait | ReviewWait | DeadLetterWait | SignalWait | TimedWait,
    Field(discriminator="for_"),
]


class EffectView(View):
    """An entry of the effect ledger."""

    step: str
    tool: str
    idempotency_key: str
    status: EffectStatus
    attempt: int
    updated_at: datetime


class RunView(RunSummary):
    """A run with its steps and effects.

    Attributes:
        degraded: why the run will end as partial although it goes on.
        dead_letters: ids of its open dead letters.
        timers: key → due.
    """

    steps: list[StepView]
    paused: bool
    degraded: str | None
    waits_for: list[Wait]
    dead_letters: list[str]
    retries: int
    timers: dict[str, datetime]
    effects: list[EffectView]


class RunPage(View):
    """Runs, newest first. `next` is the `before` of the next page; null if this one is not full."""

    runs: list[RunSummary]
    next: str | None = None


class StartedRun(View):
    """`new` is false where the idempotency key belongs to an earlier run with the same input."""

    run_id: str
    new: bool


class RunRef(View):
    """The run that a request was about."""

    run_id: str


class SentSignal(View):
    """`new` is false where the run was sent a signal under this idempotency key before."""

    run_id: str
    signal_id: str
    new: bool


class RunResult(View):
    """A run's output."""

    output: JsonField


class RunValues(View):
    """`input` and the outputs of steps, by name; redacted."""

    values: dict[str, JsonField]


class SpanView(View):
    """A span of a run's trace; times in nanoseconds since the epoch."""

    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    ok: bool
    attributes: dict[str, JsonField]


class Trace(View):
    """A run's spans, in order of their start."""

    spans: list[SpanView]
