"""What travels through the kernel: the run, one piece of its work, and the outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interlock.audit.log import Entry
from interlock.base.errors import ContractViolation
from interlock.base.labels import Labels
from interlock.base.refs import Ref
from interlock.budget.ledger import RunLedger
from interlock.identity.principal import Principal
from interlock.runtime.versions import Version
from interlock.store.artifacts import Artifacts
from interlock.telemetry import names
from interlock.telemetry.tracing import TraceIds
from interlock.workflows.bindings import Reference, dig, references, resolve
from interlock.workflows.events import Spent
from interlock.workflows.spec import ModelStep, ReviewStep, ToolStep
from interlock.workflows.state import RunState


@dataclass(slots=True)
class Run:
    """A run as its worker holds it.

    Attributes:
        fence: of the lease; every write carries it.
        spent: what the run's state says; the driver moves it and ends the reservations it replaces in one go, so that
            spending is never unknown in between.
        resumed: taken over from a worker that may have died in the middle of something.
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
    resumed: bool = False
    spent: Spent = field(default_factory=Spent)
    _values: dict[str, Any] = field(default_factory=dict)

    def remember(self, ref: Ref, value: Any) -> None:
        """Keeps a value at hand while this worker drives the run."""
        self._values[ref.digest] = value

    async def value(self, ref: Ref) -> Any:
        if ref.digest not in self._values:
            self._values[ref.digest] = await self.artifacts.open(self.org_id, ref)
        return self._values[ref.digest]

    async def bind(self, tree: Any, state: RunState, *, lenient: bool = False) -> tuple[Any, Labels]:
        """A binding tree with its references replaced, and the joined labels of what went in.

        Raises:
            ContractViolation: it reads a step that did not run (`lenient` gives null instead).
        """
        outputs = state.outputs
        needed = {reference.text: reference for reference in references(tree)}
        values: dict[str, Any] = {}
        labels = Labels()
        for text, reference in needed.items():
            values[text], part = await self._look_up(reference, outputs, state, lenient=lenient)
            labels = labels.join(part)
        return resolve(tree, lambda reference: values[reference.text]), labels

    async def _look_up(
        self, reference: Reference, outputs: dict[str, Ref], state: RunState, *, lenient: bool
    ) -> tuple[Any, Labels]:
        if reference.root == "run":
            return self.run_id, Labels()
        if reference.root == "input":
            return dig(await self.value(self.input), reference.path), self.input.labels
        name = str(reference.step)
        if name in outputs:
            return dig(await self.value(outputs[name]), reference.path), outputs[name].labels
        if name in state.steps and state.steps[name].facts:
            return dig(state.steps[name].facts, reference.path), Labels()
        if lenient:
            return None, Labels()
        raise ContractViolation(
            f'"{reference.text}": step "{name}" did not run in this run; guard this step with the same branch'
        )

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
class Work:
    """One attempt at one step, as the machine commanded it, with the state it was commanded in."""

    run: Run
    step: ModelStep | ToolStep
    attempt: int
    state: RunState

    @property
    def reviewed(self) -> bool:
        """Whether a person approved a review in this run before this step."""
        nodes = self.run.version.program.nodes
        return any(
            isinstance(nodes[name].step, ReviewStep) and one.facts.get("approved") is True
            for name, one in self.state.steps.items()
        )


@dataclass(slots=True)
class Outcome:
    """What came of it: the machine's event, and the rows that must be committed together with it."""

    event: Any
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)
    audit: list[Entry] = field(default_factory=list)
