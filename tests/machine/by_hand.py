"""A run told by hand, for examples that read like a story."""

from __future__ import annotations

from typing import Any

from interlock.base.errors import FailureKind
from interlock.base.money import NanoUsd
from interlock.base.usage import Usage
from interlock.machine import events as ev
from interlock.machine.machine import advance
from interlock.machine.program import compile_program
from interlock.machine.state import RunState, StepStatus
from interlock.machine.version import MACHINE_VERSION
from interlock.workflows.source import parse_yaml
from interlock.workflows.spec import Workflow

from .programs import CONTRACTS
from .world import ref

SEED = 11


class Run:
    """A run told by hand: each method delivers one event and gives the commands that follow."""

    def __init__(
        self,
        steps: str,
        *,
        facts: dict[str, Any] | None = None,
        child: str | None = None,
        machine: int = MACHINE_VERSION,
        **fields: Any,
    ) -> None:
        self.program = compile_program(
            _workflow("w", steps, **fields), CONTRACTS, {} if child is None else {"child": _workflow("child", child)}
        )
        self.state = RunState()
        self.now = 1000.0
        self.started = self.tell(ev.RunStarted(self.now, SEED, facts or {}, machine))

    def tell(self, event: Any) -> list[ev.Command]:
        self.state, commands = advance(self.program, self.state, event)
        return commands

    def done(self, step: str, attempt: int = 1, calls: tuple[str, ...] = (), **facts: Any) -> list[ev.Command]:
        usage = Usage("p", "m", 10, 5, attempts=1, known_cost=NanoUsd(500_000_001))
        output = ref(f"{step}/{attempt}")
        return self.tell(ev.StepSucceeded(step, attempt, self.now, self.now, output, facts, usage, tuple(calls)))

    def asks(self, turn: str, *calls: str) -> list[ev.Command]:
        """An agent's model asks for tools to be called."""
        return self.done(turn, calls=calls)

    def deferred(self, step: str, attempt: int = 1, delay: float = 5.0) -> list[ev.Command]:
        return self.tell(ev.StepDeferred(step, attempt, self.now, self.now, delay))

    def failed(
        self,
        step: str,
        attempt: int = 1,
        kind: str = "permanent",
        *,
        retry_after: float | None = None,
        doubt: bool = False,
    ) -> list[ev.Command]:
        failure = ev.Failure(FailureKind(kind), "code", "it broke", retry_after, doubt)
        return self.tell(ev.StepFailed(step, attempt, self.now, self.now, failure, Usage("p", "", 10, 0, attempts=1)))

    def decided(self, step: str, approved: bool, **facts: Any) -> list[ev.Command]:
        self.now += 60
        request = self.state.steps[step].request
        digest = request.digest if request is not None else ""
        return self.tell(ev.ReviewDecided(step, self.now, approved, ref(f"{step}?"), facts, digest))

    def unapproved(self, step: str, attempt: int = 1, act: str = "act") -> list[ev.Command]:
        """The kernel finds that a person has to approve the call first."""
        return self.tell(ev.ApprovalNeeded(step, attempt, self.now, self.now, act, ref(act), "policy"))

    def fired(self, timer: str) -> list[ev.Command]:
        self.now = self.state.timers[timer]
        return self.tell(ev.TimerFired(timer, self.now))

    def undone(self, step: str, attempt: int = 1) -> list[ev.Command]:
        return self.tell(ev.CompensationSucceeded(step, attempt, self.now, self.now))

    def not_undone(self, step: str, attempt: int = 1, kind: str = "permanent") -> list[ev.Command]:
        failure = ev.Failure(FailureKind(kind), "code", "it stuck")
        return self.tell(ev.CompensationFailed(step, attempt, self.now, self.now, failure))

    def cancel(self) -> list[ev.Command]:
        return self.tell(ev.CancelRequested(self.now, "changed my mind"))

    def signal(self, name: str, signal_id: str = "id", **facts: Any) -> list[ev.Command]:
        return self.tell(ev.SignalReceived(name, signal_id, self.now, ref(f"{name}/{signal_id}"), facts))

    def pause(self) -> list[ev.Command]:
        return self.tell(ev.PauseRequested(self.now))

    def resume(self) -> list[ev.Command]:
        return self.tell(ev.ResumeRequested(self.now))

    def requeued(self, step: str, value: str | None = None) -> list[ev.Command]:
        return self.tell(ev.DeadLetterRequeued(step, self.now, None if value is None else ref(value)))

    def discarded(self, step: str) -> list[ev.Command]:
        return self.tell(ev.DeadLetterDiscarded(step, self.now))

    def status(self, step: str) -> StepStatus:
        return self.state.steps[step].status


def _workflow(name: str, steps: str, **fields: Any) -> Workflow:
    data = parse_yaml(steps, f"{name}.yaml").data
    return Workflow.model_validate({"name": name, "input": {}, "steps": data, **fields})
