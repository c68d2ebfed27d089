"""The rows of a commit: one class for each part of a batch, in the order in which `settle_v1` writes them.

A class has exactly the fields of the record that sql/functions/settle_v1*.sql reads, under the same names and with the same
types; tests/store/test_rows_match_sql.py compares them. So a missing or misspelt field is a type error instead of a NULL.

`org_id` is the organisation, `run_id` the run, `step` the step's instance in every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from interlock.base.json import Json
from interlock.base.refs import RefJson
from interlock.base.values import value
from interlock.machine.events import RunStatus

EffectStatus = Literal["intended", "executing", "succeeded", "failed", "unknown", "compensated"]
EngineName = Literal["postgres", "temporal"]


@value(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The audit log's new head: entry number `seq` with `hash`; refused unless the old one is entry number `expected`."""

    org_id: str
    expected: int
    seq: int
    hash: str


@value(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """A sealed audit entry: chained by hash, signed by the key `key_id` with those that are written together."""

    org_id: str
    seq: int
    event_id: str
    entry: Mapping[str, Json]
    prev_hash: str
    hash: str
    key_id: str
    signature: str
    proof: str


@value(frozen=True, slots=True, kw_only=True)
class Fence:
    """A lease that must still hold."""

    run_id: str
    fence: int


@value(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of one command that must still hold, with the command not done."""

    run_id: str
    command: str
    fence: int


@value(frozen=True, slots=True, kw_only=True)
class RevivedRun:
    """A dead run that goes on, on an engine that keeps its runs itself: it returns to the queue."""

    run_id: str


@value(frozen=True, slots=True, kw_only=True)
class NewClaim:
    """A claim of one command; refused if a later attempt has it, it is done, or the run is over."""

    run_id: str
    command: str
    org_id: str
    fence: int


@value(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    """A sealed value.

    Attributes:
        size: bytes of the value as canonical JSON.
        subjects: pseudonyms of those it is about.
        ciphertext: base64; None if the bytes are in the object store, under the name `object`.
    """

    org_id: str
    digest: str
    size: int
    subjects: list[str]
    ciphertext: str | None = None
    object: str | None = None


class RunVault(TypedDict):
    """Vault of a new run's redacted values, and the keyed digest of its raw input."""

    ref: RefJson
    raw_digest: str


@value(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to be driven.

    Attributes:
        principal: in whose name it runs, as JSON of a `Principal`.
        flags: findings about the input.
        priority: -100 to 100.
        machine: version of the machine that drives it; workers that do not know it leave it alone.
    """

    run_id: str
    org_id: str
    workflow: str
    version: str
    principal: Mapping[str, Json]
    idempotency_key: str
    input: RefJson
    vault: RunVault | None
    flags: list[str]
    trace_id: str
    span_id: str
    engine: EngineName
    priority: int
    machine: int


@value(frozen=True, slots=True, kw_only=True)
class NewVault:
    """Redacted values of a later input of the run: of a signal, or of edited arguments."""

    org_id: str
    run_id: str
    vault: RefJson


@value(frozen=True, slots=True, kw_only=True)
class JournalRow:
    """An event and its number in the run's journal; numbers begin at 1."""

    run_id: str
    seq: int
    org_id: str
    event: Mapping[str, Json]


@value(frozen=True, slots=True, kw_only=True)
class RunUpdate:
    """The run's row after the events of this commit.

    Attributes:
        reason, output: None leaves what is there.
        nano_usd: cost of the calls with a known price, in 1e-9 USD; `unpriced`: number of calls without one.
        steps: number of steps that are done.
        finished: no step is left.
        flags: added to those that are there; None for none.
    """

    run_id: str
    status: RunStatus
    reason: str | None
    output: RefJson | None
    input_tokens: int
    output_tokens: int
    nano_usd: int
    unpriced: int
    steps: int
    finished: bool
    flags: list[str] | None


@value(frozen=True, slots=True, kw_only=True)
class EffectRow:
    """An entry of the effect ledger. One that is there moves; its key and input change only when it is intended anew."""

    run_id: str
    step: str
    org_id: str
    tool: str
    idempotency_key: str
    status: EffectStatus
    attempt: int
    input: RefJson
    output: RefJson | None


@value(frozen=True, slots=True, kw_only=True)
class DoneClaim:
    """The event that answers a claimed command."""

    run_id: str
    command: str
    event: Mapping[str, Json]


@value(frozen=True, slots=True, kw_only=True)
class UsedReservation:
    """A reservation whose call has ended: from now on it counts for what the call used, under fencing token 0."""

    scope: str
    holder: str
    fence: int
    tokens: int
    nano_usd: int


@value(frozen=True, slots=True, kw_only=True)
class SettledReservation:
    """A reservation that ends, under this fencing token and under 0: its scope has the call's usage now."""

    scope: str
    holder: str
    fence: int


@value(frozen=True, slots=True, kw_only=True)
class KeptResult:
    """An answer that may serve again for the same call; `key` is the keyed digest of all that went into the call."""

    org_id: str
    key: str
    output: RefJson


@value(frozen=True, slots=True, kw_only=True)
class NewPolicySet:
    """A policy set, named by the digest of its text; one that is stored already stays as it is."""

    org_id: str
    version: str
    text: str
    created_by: str


@value(frozen=True, slots=True, kw_only=True)
class ActivatedPolicy:
    """The policy set of an organisation from now on; None is the built-in one."""

    org_id: str
    version: str | None
    activated_by: str


@value(frozen=True, slots=True, kw_only=True)
class SignalId:
    """The id under which a run is sent the signal `name`; refused if the run was sent one under it before."""

    run_id: str
    signal_id: str
    org_id: str
    name: str


@value(frozen=True, slots=True, kw_only=True)
class NewSignal:
    """An event from outside for a run, which wakes it."""

    org_id: str
    run_id: str
    event: Mapping[str, Json]


@value(frozen=True, slots=True, kw_only=True)
class CrashedRun:
    """A drive that ended in an error of Interlock's own; `parked` keeps the run out of the queue until a person decides."""

    run_id: str
    parked: bool


@value(frozen=True, slots=True, kw_only=True)
class RequeuedRun:
    """A parked run that is to be driven again."""

    run_id: str


@value(frozen=True, slots=True, kw_only=True)
class UsedSignal:
    """A signal whose event is on record, or stale."""

    signal_id: int


@value(frozen=True, slots=True, kw_only=True)
class ForwardedSignal:
    """A signal that the engine which keeps the run has received; the row stays until its event is on record."""

    signal_id: int


@value(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """An event for the receivers of notifications."""

    org_id: str
    topic: str
    payload: Mapping[str, Json]


@value(frozen=True, slots=True, kw_only=True)
class AbandonedCall:
    """A batched call whose answer the run does not wait for any more."""

    run_id: str
    step: str


@value(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run that is over: it leaves the queue."""

    run_id: str


@value(frozen=True, slots=True, kw_only=True)
class PlaceRow:
    """Marks whether a run counts among the concurrent runs, on an engine that keeps its runs itself."""

    run_id: str
    held: bool


@value(frozen=True, slots=True, kw_only=True)
class ReleasedRun:
    """A lease that ends without the run being over.

    Attributes:
        wake_at: Unix seconds at which the run is due; None until a signal comes.
        kept: its engine keeps the run, which holds a place there.
        failed: forwarding its signals failed, so that they must not make it due at once.
    """

    run_id: str
    wake_at: float | None
    kept: bool = False
    failed: bool = False


@value(frozen=True, slots=True, kw_only=True)
class BatchedAnswer:
    """The answer to a batched call, for query `answer_batched_calls`; None if a person it is about was erased."""

    call_id: str
    result: RefJson | None
