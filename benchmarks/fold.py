"""How long folding a journal takes, and whether an event costs the same in a long journal as in a short one.

    .venv/bin/python benchmarks/fold.py [--quick] [--profile]

The journals are those of maps, made by the simulator's driver: items that all succeed, and items whose last step fails while
the map goes on. Both ways to the state are measured: `fold` over the whole journal, as a worker that takes the run up does,
and `advance` event by event with every state kept for a while, as a driver and the work under way hold them.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from interlock.base import loop
from interlock.base.errors import FailureKind
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.engines.simulator.driver import simulate
from interlock.execution.loading import JOURNAL_PAGE, fold_in_slices
from interlock.machine import events as ev
from interlock.machine.machine import advance, fold
from interlock.machine.program import Program, compile_program
from interlock.machine.state import RunState
from interlock.workflows.spec import Workflow

CONCURRENCY = 100
_VALUE = Ref("0" * 64, 1, DEFINED)


def program_of(steps: int) -> Program:
    """A map over any number of items with `steps` model steps in a row."""
    inside = [
        {"id": f"s{number}", "kind": "model", "prompt": "p", "retry": {"max_attempts": 1}, "output": {"type": "object"}}
        for number in range(1, steps + 1)
    ]
    each = {
        "id": "each",
        "kind": "map",
        "items": "$input.items",
        "max_items": 10_000,
        "concurrency": CONCURRENCY,
        "on_item_failure": "continue",
        "steps": inside,
    }
    wait = {"id": "go", "kind": "wait", "signal": "go"}
    return compile_program(Workflow.model_validate({"name": "bulk", "input": {}, "steps": [each, wait]}), {})


def journal_of(program: Program, items: int, last: str | None) -> list[Any]:
    """The events of a run; the step named `last` fails in every item."""
    failure = ev.Failure(FailureKind.PERMANENT, "code", "it failed")

    def answer(command: ev.Command, now: float) -> Any:
        if not isinstance(command, ev.Perform):
            return None
        if command.step == "each":
            return ev.StepSucceeded("each", command.attempt, now, now, _VALUE, {"count": items})
        if last is not None and command.step.endswith(f"/{last}"):
            return ev.StepFailed(command.step, command.attempt, now, now, failure)
        return ev.StepSucceeded(command.step, command.attempt, now, now, _VALUE)

    return simulate(program, answer, seed=7).events


def live(program: Program, journal: Sequence[Any]) -> None:
    """As a driver does it: one event after the other, each state held by the work it commanded until that is over."""
    state, held = RunState(), deque[RunState](maxlen=CONCURRENCY)
    for event in journal:
        held.append(state)
        state, commands = advance(program, state, event)
        for command in commands:
            if isinstance(command, ev.Perform):
                assert held[0].steps is not None
                assert state.steps[command.step].attempt == command.attempt
        if isinstance(event, ev.StepSucceeded):
            assert held[0].steps.get(event.step) is None or held[0].steps[event.step].attempt == 1


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """Of the processor; the best of some, since others use the machine, too."""
    best = float("inf")
    for _ in range(repeat):
        gc.collect()
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


async def longest_stall(program: Program, texts: Sequence[str]) -> float:
    """Seconds of the processor for which nothing else on the event loop ran while a journal was decoded and folded."""
    worst, last = 0.0, time.process_time()

    async def others() -> None:
        nonlocal worst, last
        while True:
            now = time.process_time()
            worst, last = max(worst, now - last), now
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await asyncio.sleep(0)
    state = RunState()
    for start in range(0, len(texts), JOURNAL_PAGE):
        page = [json.loads(text) for text in texts[start : start + JOURNAL_PAGE]]
        state = await fold_in_slices(program, map(ev.event_from_json, page), state)
    task.cancel()
    return worst


def decoded(texts: Sequence[str]) -> list[Any]:
    return [ev.event_from_json(json.loads(text)) for text in texts]


CASES = (
    ("all succeed, 100 x 3", 100, 3, False),
    ("all succeed, 1,000 x 3", 1_000, 3, False),
    ("all succeed, 10,000 x 3", 10_000, 3, False),
    ("last fails, 100 x 2", 100, 2, True),
    ("last fails, 5,000 x 2", 5_000, 2, True),
    ("last fails, 1,000 x 3", 1_000, 3, True),
    ("last fails, 2,000 x 3", 2_000, 3, True),
    ("last fails, 4,000 x 3", 4_000, 3, True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="journals up to 3,000 events only")
    parser.add_argument("--profile", action="store_true", help="where the time of the longest fold goes")
    given = parser.parse_args()
    print(f"{'':26}{'events':>8}{'fold s':>9}{'µs/event':>10}{'live µs':>9}{'decode µs':>11}{'stall ms':>10}")
    costs: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for name, items, steps, fails in CASES:
        if given.quick and items > 1000:
            continue
        program = program_of(steps)
        journal = journal_of(program, items, f"s{steps}" if fails else None)
        repeat = 5 if len(journal) < 5000 else 2
        folding = seconds(lambda p=program, j=journal: fold(p, j), repeat)  # type: ignore[misc]
        living = seconds(lambda p=program, j=journal: live(p, j), repeat)  # type: ignore[misc]
        texts = [json.dumps(ev.event_to_json(event)) for event in journal]
        decoding = seconds(lambda t=texts: decoded(t), 1)  # type: ignore[misc]
        stall = 1e3 * loop.run(longest_stall(program, texts))  # as workers and servers run
        each = [1e6 * one / len(journal) for one in (folding, living, decoding)]
        costs[fails].append((each[0], each[1]))
        print(
            f"{name:26}{len(journal):8}{folding:9.3f}{each[0]:10.1f}{each[1]:9.1f}{each[2]:11.1f}{stall:10.1f}",
            flush=True,
        )
    for fails, what in ((False, "all succeed"), (True, "last fails")):
        folds, lives = zip(*costs[fails], strict=True)
        print(
            f"{what}: largest / smallest cost of an event: fold {folds[-1] / folds[0]:.2f}, live {lives[-1] / lives[0]:.2f}"
        )
    if given.profile:
        program = program_of(3)
        journal = journal_of(program, 1000 if given.quick else 10_000, None)
        with cProfile.Profile() as profile:
            fold(program, journal)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
