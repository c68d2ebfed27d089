"""The simulator users run: the machine passes it, a broken machine does not, and a seed is a seed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from interlock.cli.main import cli
from interlock.engines.simulator.simulation import Simulated, simulate_program
from interlock.machine import events as ev
from interlock.machine import failures, flow, machine
from interlock.machine.names import is_numbered
from interlock.machine.persistent import MapEdit, PersistentMap
from interlock.machine.program import Program
from interlock.machine.state import RunState, StepState, StepStatus
from interlock.machine.transition import Transition
from interlock.workflows.spec import MapStep

ENOUGH = 3000


def test_the_machine_passes() -> None:
    for seed in range(ENOUGH):
        simulated = simulate_program(seed)
        assert simulated.problem is None, f"seed {seed}: {simulated.problem}"


def test_every_fault_strikes_and_every_kind_of_step_is_there() -> None:
    found: set[str] = set()
    kinds: set[str] = set()
    for seed in range(1000):
        simulated = simulate_program(seed)
        found |= simulated.faults.keys()
        kinds |= {node.step.kind for node in simulated.program.nodes.values()}
        kinds |= {simulated.state.status.value}
    assert len(found) == 19
    assert kinds >= {"model", "tool", "review", "wait", "parallel", "branch", "map", "loop", "subworkflow", "agent"}
    assert kinds >= {status.value for status in ev.TERMINAL}


def test_a_seed_is_the_same_run_whatever_the_order_of_hashes() -> None:
    code = (
        "import hashlib; from interlock.engines.simulator.simulation import simulate_program as s;"
        "runs = [s(n) for n in range(60)];"
        "print(hashlib.sha256(repr([(r.journal, r.faults, sorted(r.state.steps.items())) for r in runs]).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


# -- machines with a fault -------------------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def _timers_are_kept_at_the_end(patch: pytest.MonkeyPatch) -> None:
    finish = Transition.finish

    def forgetful(transition: Transition) -> Any:
        timers = dict(transition.timers)
        state, commands = finish(transition)
        return (replace(state, timers=timers) if state.over else state), commands

    patch.setattr(Transition, "finish", forgetful)


def _a_stale_attempt_is_accepted(patch: pytest.MonkeyPatch) -> None:
    def current(transition: Transition, name: str, status: StepStatus, attempt: int) -> StepState | None:
        step = transition.steps.get(name)
        return step if step is not None and step.status is status else None

    patch.setattr(Transition, "current", current)


def _everything_is_performed_twice(patch: pytest.MonkeyPatch) -> None:
    perform = Transition.perform

    def twice(transition: Transition, name: str, step: StepState) -> None:
        perform(transition, name, step)
        if not transition.paused:
            transition.commands.append(ev.Perform(name, step.attempt))

    patch.setattr(Transition, "perform", twice)


def _what_a_fallback_did_is_not_undone(patch: pytest.MonkeyPatch) -> None:
    succeed = Transition.succeed

    def forgetful(transition: Transition, name: str, step: StepState) -> None:
        succeed(transition, name, step)
        if step.variant:
            transition.completed.pop(name)

    patch.setattr(Transition, "succeed", forgetful)


def _an_undo_is_skipped(patch: pytest.MonkeyPatch) -> None:
    conclude = failures._conclude_run

    def lazy(transition: Transition, ending: Any) -> None:
        if len(list(transition.completed)) > 1:
            transition.completed.pop(next(iter(transition.completed)))
        conclude(transition, ending)

    patch.setattr(failures, "_conclude_run", lazy)


def _a_failed_container_is_not_undone(patch: pytest.MonkeyPatch) -> None:
    conclude = failures._conclude_container

    def lazy(transition: Transition, container: str) -> None:
        before, transition.completed = transition.completed, PersistentMap[bool]().edit()
        conclude(transition, container)
        transition.completed = before

    patch.setattr(failures, "_conclude_container", lazy)


def _a_doubt_is_not_awaited(patch: pytest.MonkeyPatch) -> None:
    confirm = failures.confirm

    def careless(transition: Transition, name: str, step: StepState) -> None:
        confirm(transition, name, step)
        transition.busy -= 1

    patch.setattr(failures, "confirm", careless)


def _retries_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(failures, "_may_retry", lambda transition, name, step, failure: failure.kind in failures.RETRYABLE)


def _a_pause_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def perform(transition: Transition, name: str, step: StepState) -> None:
        transition.put(name, replace(step, status=StepStatus.RUNNING))
        transition.commands.append(ev.Perform(name, step.attempt))

    patch.setattr(Transition, "perform", perform)


def _reviews_stay_open(patch: pytest.MonkeyPatch) -> None:
    let_go = failures._abandon

    def careless(transition: Transition, names: Any) -> None:
        let_go(transition, names)
        transition.commands = [one for one in transition.commands if not isinstance(one, ev.CloseReview)]

    patch.setattr(failures, "_abandon", careless)


def _a_round_fails_without_its_loop(patch: pytest.MonkeyPatch) -> None:
    def tolerant(transition: Transition, name: str) -> str | None:
        for container in transition.ancestors(name):
            spec = transition.program.node(container).step
            if isinstance(spec, MapStep) and is_numbered(container):
                if spec.on_item_failure == "continue":
                    return container
            elif spec.on_failure == "continue":
                return container
        return None

    patch.setattr(failures, "_tolerant", tolerant)


def _an_item_is_lost(patch: pytest.MonkeyPatch) -> None:
    item_done = flow.item_done

    def lossy(transition: Transition, frame: str, *, succeeded: bool) -> None:
        if succeeded:
            item_done(transition, frame, succeeded=succeeded)

    patch.setattr(failures, "item_done", lossy)


def _signals_are_heard_and_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(machine._HANDLERS, ev.SignalReceived, lambda transition, event: True)


class _InPlace(MapEdit[StepState]):
    def __setitem__(self, key: str, value: StepState) -> None:
        self._base._own()[key] = value
        self._base._places.setdefault(key, len(self._base._places))

    def done(self) -> PersistentMap[StepState]:
        return self._base


def _the_state_is_changed_in_place(patch: pytest.MonkeyPatch) -> None:
    init = Transition.__init__

    def shared(transition: Transition, program: Program, state: RunState, at: float) -> None:
        init(transition, program, state, at)
        transition.steps = _InPlace(state.steps)  # type: ignore[assignment, arg-type]

    patch.setattr(Transition, "__init__", shared)


def _a_refused_act_is_performed(patch: pytest.MonkeyPatch) -> None:
    decided = machine.act_decided

    def deaf(transition: Transition, event: ev.ReviewDecided, step: StepState) -> bool:
        return decided(transition, replace(event, approved=True), step)

    patch.setattr(machine, "act_decided", deaf)


def _a_signal_approves_what_waits(patch: pytest.MonkeyPatch) -> None:
    received = machine._HANDLERS[ev.SignalReceived]

    def eager(transition: Transition, event: Any) -> bool:
        taken = received(transition, event)
        for name, step in list(transition.steps.items()):
            if taken and step.status is StepStatus.APPROVING:
                transition.perform(name, replace(step, attempt=step.attempt + 1))
        return taken

    patch.setitem(machine._HANDLERS, ev.SignalReceived, eager)


def _time_steers(patch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    patch.setattr(failures, "backoff", lambda *args, **rest: float(next(ticks)))


@pytest.mark.parametrize(
    "fault",
    [
        _timers_are_kept_at_the_end,
        _a_stale_attempt_is_accepted,
        _everything_is_performed_twice,
        _what_a_fallback_did_is_not_undone,
        _an_undo_is_skipped,
        _a_failed_container_is_not_undone,
        _a_doubt_is_not_awaited,
        _retries_are_not_counted,
        _a_pause_is_forgotten,
        _reviews_stay_open,
        _a_round_fails_without_its_loop,
        _an_item_is_lost,
        _signals_are_heard_and_forgotten,
        _the_state_is_changed_in_place,
        _a_refused_act_is_performed,
        _a_signal_approves_what_waits,
        _time_steers,
    ],
)
def test_a_broken_machine_is_found_out(fault: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    assert _first_problem() is not None


def _first_problem() -> Simulated | None:
    return next((one for seed in range(ENOUGH) if (one := simulate_program(seed)).problem is not None), None)


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did() -> None:
    result = CliRunner().invoke(cli, ["simulate", "--programs", "200", "--seed", "5"])
    assert result.exit_code == 0
    assert result.output.startswith("200 programs, ")
    assert "programs/s. All invariants hold." in result.output
    assert "outcome lost in a crash" in result.output


def test_the_command_stops_when_its_time_is_up() -> None:
    result = CliRunner().invoke(cli, ["simulate", "--seconds", "0"])
    assert result.exit_code == 0
    assert result.output.startswith("1 programs, ")


def test_the_command_says_how_to_see_a_failure_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _what_a_fallback_did_is_not_undone(monkeypatch)
    found = _first_problem()
    assert found is not None
    result = CliRunner().invoke(cli, ["simulate"])
    assert result.exit_code == 1
    assert f"seed {found.seed}: {found.problem}" in result.output
    assert f"interlock simulate --seed {found.seed} --programs 1" in result.output
    again = CliRunner().invoke(cli, ["simulate", "--seed", str(found.seed), "--programs", "1"])
    assert again.exit_code == 1
    assert again.output == result.output
    assert '"type": "run_started"' in again.output
