"""The run, one execution of a step, and its outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.budget.ledger import Amount, RunLedger
from interlock.definitions.versions import Version
from interlock.identity.principal import Principal
from interlock.machine.names import EffectName, path_of
from interlock.machine.program import Node
from interlock.machine.state import RunState, StepState
from interlock.policy.decision import NO_POLICIES, Policies, PolicyEngine
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit
from interlock.store.entries import Entry
from interlock.store.rows import ArtifactRow, EffectRow, KeptResult
from interlock.telemetry import names
from interlock.telemetry.spans import TraceIds
from interlock.workflows.spec import Fallback, Step


@dataclass(slots=True)
class Run:
    """A run as its worker holds it.

    Attributes:
        fence: of the lease; every write carries it.
        claim: the one command that the fence is for, on an engine that leases single commands; None for the whole run.
        usage: what the run's state says; the driver moves it and ends the reservations it replaces in one go, so that
            no call is missing from both in between.
        resumed: taken over from a worker that may have died in the middle of something.
        policies: in force now; `policy` is that of the run's organisation.
        set_aside: reserves tokens and nano-USD where all who work for the run see it; None if this worker is the only one.
    """

    run_id: str
    org_id: str
    principal: Principal
    version: Version
    trace: TraceIds
    input: Ref
    ledger: RunLedger
    artifacts: Artifacts
    fence: int
    claim: str | None = None
    resumed: bool = False
    usage: Usage = field(default_factory=Usage)
    policies: Policies = NO_POLICIES
    set_aside: Callable[[Amount], Awaitable[None]] | None = None
    _values: dict[str, Any] = field(default_factory=dict)

    @property
    def policy(self) -> PolicyEngine:
        """The policy engine that is in force at this moment; another activation changes it."""
        return self.policies.of(self.org_id)

    def commit(self) -> Commit:
        """An empty commit that is refused if the lease, or the claim, belongs to another worker."""
        if self.claim is None:
            return Commit(self.org_id, fence=(self.run_id, self.fence))
        return Commit(self.org_id, claim=(self.run_id, self.claim, self.fence))

    def forget(self) -> None:
        """Drops the values at hand: values erased while the run is not driven must not stay in memory."""
        self._values.clear()

    def remember(self, ref: Ref, value: Any) -> None:
        """Keeps a value at hand while this worker drives the run."""
        self._values[ref.digest] = value

    async def value(self, ref: Ref) -> Any:
        if ref.digest not in self._values:
            self._values[ref.digest] = await self.artifacts.open(self.org_id, ref)
        return self._values[ref.digest]

    def attributes(self) -> dict[str, Any]:
        """Attributes of every span of this run."""
        return {
            names.WORKFLOW_NAME: self.version.name,
            names.WORKFLOW_VERSION: self.version.version,
            names.ORG_ID: self.org_id,
            names.USER_ID: self.principal.user_id,
            names.RUN_ID: self.run_id,
        }


@dataclass(frozen=True, slots=True)
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
