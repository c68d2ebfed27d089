"""A run as its worker holds it, one execution of a step, and the outcome of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from interlock.base.json import Json
from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.base.values import value
from interlock.budget.reservations import Amount, Lease, RunBudget
from interlock.definitions.versions import Version
from interlock.execution.call import Attributes, Call
from interlock.execution.effects import EffectSite
from interlock.identity.principal import Principal
from interlock.machine.events import StepFailed, StepSucceeded
from interlock.machine.names import CommandKey, CommandKind, EffectName, path_of
from interlock.machine.program import Node
from interlock.machine.state import RunState, StepState
from interlock.policy.decision import NO_POLICIES, Policies, PolicyEngine
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit
from interlock.store.entries import Entry, EventType
from interlock.store.rows import ArtifactRow, EffectRow, KeptResult, SettledReservation, UsedReservation
from interlock.telemetry import names
from interlock.telemetry.spans import TraceIds
from interlock.workflows.spec import Fallback, Step, ToolStep


@dataclass(slots=True)
class Run:
    """A run as its worker holds it; a `Caller` of its steps' calls.

    Attributes:
        fence: of the lease; every write carries it.
        claim: the one command that the fence is for, on an engine that leases single commands; None for the whole run.
        budget: moves with the run's state, so that no call is missing from both in between.
        resumed: taken over from a worker that may have died in the middle of something.
        policies: in force now; `policy` is that of the run's organisation.
    """

    run_id: str
    org_id: str
    principal: Principal
    version: Version
    trace: TraceIds
    input: Ref
    budget: RunBudget
    artifacts: Artifacts
    fence: int
    claim: str | None = None
    resumed: bool = False
    policies: Policies = NO_POLICIES
    _values: dict[str, Any] = field(default_factory=dict)

    @property
    def workflow(self) -> str:
        return self.version.name

    @property
    def version_id(self) -> str:
        return self.version.version

    @property
    def policy(self) -> PolicyEngine:
        """The policy engine that is in force at this moment; an activation changes it."""
        return self.policies.of(self.org_id)

    # -- lease and budget --------------------------------------------------------------------------------------

    def commit(self) -> Commit:
        """An empty commit that is refused if the lease, or the claim, belongs to another worker."""
        if self.claim is None:
            return Commit(self.org_id, fence=(self.run_id, self.fence))
        return Commit(self.org_id, claim=(self.run_id, self.claim, self.fence))

    @property
    def lease(self) -> Lease:
        return Lease(self.org_id, self.run_id, self.claim, self.fence)

    async def reserve(self, call: Call) -> None:
        """Sets the most that a call may use aside; raises BudgetExceeded or LeaseLost."""
        await self.budget.reserve(self.lease, _holder(call.name, call.attempt), call.worst, lasting=call.lasting)

    def finish(self, call: Call, used: Amount) -> None:
        """Replaces the reservation of a call by what it used."""
        self.budget.finish(self.lease, _holder(call.name, call.attempt), used, lasting=call.lasting)

    def lose(self, step: str, attempt: int) -> None:
        """Has a call counted that may have been made under an earlier claim and is not on record."""
        self.budget.lose(self.fence - 1, _holder(step, attempt))

    def settled(self, calls: Iterable[tuple[str, int]]) -> list[SettledReservation]:
        """Rows that end the reservations of calls, as (step, attempt), in the commit that puts their usage into the run's row."""
        return self.budget.settled_rows((_holder(*call) for call in calls), self.fence)

    def settle(
        self, usage: Usage, ended: Iterable[tuple[str, int]] = (), abandoned: Iterable[tuple[str, int]] = ()
    ) -> None:
        """Moves the budget on to the usage of a later state.

        The commit that records the state may still be under way.

        Args:
            ended: (step, attempt) of calls whose usage it contains.
            abandoned: the same of calls in the background that the run no longer waits for.
        """
        given_up = [_holder(*call) for call in abandoned]
        self.budget.abandon(given_up)
        self.budget.settle(Amount.of(usage), [*(_holder(*call) for call in ended), *given_up])

    def used(self, event: StepSucceeded | StepFailed) -> list[UsedReservation]:
        """Row that replaces a reservation by what its call used, until another process records that."""
        amount = Amount.of(event.usage or Usage())
        return self.budget.used_rows(self.lease, _holder(event.step, event.attempt), amount)

    # -- values ------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Drops the values at hand: values erased while the run is not driven must not stay in memory."""
        self._values.clear()

    def remember(self, ref: Ref, value: Json) -> None:
        """Keeps a value at hand while this worker drives the run."""
        self._values[ref.digest] = value

    async def value(self, ref: Ref) -> Any:
        if ref.digest not in self._values:
            self._values[ref.digest] = await self.artifacts.open(self.org_id, ref)
        return self._values[ref.digest]

    def attributes(self) -> Attributes:
        """Attributes of every span of this run."""
        return {
            names.WORKFLOW_NAME: self.version.name,
            names.WORKFLOW_VERSION: self.version.version,
            names.ORG_ID: self.org_id,
            names.USER_ID: self.principal.user_id,
            names.RUN_ID: self.run_id,
        }


def calls_ended(events: Iterable[object]) -> list[tuple[str, int]]:
    """(step, attempt) of the calls that ended with these events; one that was deferred goes on."""
    ended = (event for event in events if isinstance(event, StepSucceeded | StepFailed))
    return [(event.step, event.attempt) for event in ended]


def _holder(step: str, attempt: int) -> str:
    """Holder of the reservation of a step's call: the command that it comes from."""
    return str(CommandKey(CommandKind.PERFORM, step, attempt))


@value(frozen=True, slots=True)
class StepExecution:
    """One attempt at one step, as the machine commanded it, with the state it was commanded in.

    Attributes:
        name: the instance; what journal, ledger and record call it.
        step: what is performed: the step, its fallback, or the call that an agent's model asked for.
        fallback: the declaration behind it, if it is one.
    """

    run: Run
    name: str
    step: Step
    attempt: int
    state: RunState
    fallback: Fallback | None = None

    @property
    def node(self) -> Node:
        return self.run.version.program.node(self.name)

    @property
    def path(self) -> str:
        """The step's path in the workflow: the name without the numbers."""
        return path_of(self.name)

    @property
    def here(self) -> StepState:
        """The step's own state."""
        return self.state.steps[self.name]

    @property
    def effect_name(self) -> str:
        """Name in the effect ledger: another variant is another effect."""
        return str(EffectName(self.name, self.here.variant))

    @property
    def is_found(self) -> bool:
        """True if the step is a fallback without a call: a fixed answer, or the newest good one."""
        return self.fallback is not None and (self.fallback.last_good or self.fallback.value is not None)

    @property
    def effect(self) -> EffectSite | None:
        """The entry of the effect ledger; None if the step can change nothing outside."""
        tool = self.run.version.tools.get(self.step.tool) if isinstance(self.step, ToolStep) else None
        if tool is None or not tool.contract.mutating or self.is_found:
            return None
        return EffectSite(self.run.run_id, self.effect_name, self.run.org_id, tool, self.attempt)


@dataclass(slots=True)
class StepOutcome:
    """Outcome of a step: the machine's event, and the rows that must be committed together with it.

    Attributes:
        signal: the row of `signals` that the event came with; it goes when the event is on record, or stale.
    """

    event: Any
    signal: int | None = None
    artifacts: list[ArtifactRow] = field(default_factory=list)
    effects: list[EffectRow] = field(default_factory=list)
    audit: list[Entry] = field(default_factory=list)
    results: list[KeptResult] = field(default_factory=list)


def system_entry(
    run: Run,
    event_type: EventType,
    action: str,
    resource: str,
    now: float,
    detail: dict[str, Any],
    *,
    policy: str | None = None,
) -> Entry:
    """The audit entry of something that Interlock itself did for a run.

    Args:
        policy: version of the policy set that decided; None if none was asked.
    """
    return Entry(
        org_id=run.org_id,
        event_type=event_type,
        actor="system",
        action=action,
        resource=resource,
        at=now,
        run_id=run.run_id,
        trace_id=run.trace.trace_id,
        policy_version=policy,
        detail=detail,
    )
