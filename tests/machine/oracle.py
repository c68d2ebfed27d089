"""A second opinion on what a run does: the workflow interpreted the naive way, one green thread a branch.

It shares no code with the machine and has no events, attempts tables or flattened scopes: a step is a generator that yields
what it waits for, and a sequence is a loop over its steps. What it cannot know (what the world answers, and in
which order) it is told. Here is what moves the threads; `oracle_steps.py` is the language, `oracle_work.py` one step's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .oracle_steps import Language
from .oracle_threads import DROPPED, IDLE, TIMER, Answer, Fork, Frame, Home, Over, Place, Region, Thread, Wait

__all__ = ["Answer", "Oracle", "Wait"]


class Oracle(Language):
    """Interprets `workflow` (plain data).

    Args:
        subworkflows: by name, likewise.
        truth: evaluates a condition's text, given how to see facts; raises LookupError if it cannot be evaluated.
        undoable: tools with a compensation; `mutating`: those that change something.
        facts: of the input.

    `waiting` is everything the run waits for now, by what it is: "perform", "undo" (work); "retry", "defer", "undo_retry",
    "wait", "limit", "review_limit", "agent_limit", "deadline" (timers); "approve", "approve_act", "confirm" (reviews); "letter",
    "compensation_dead_letter"; "signal"; "paused". `answer` lets one of them come true; `status` is the outcome.
    """

    def __init__(
        self,
        workflow: dict[str, Any],
        subworkflows: dict[str, dict[str, Any]],
        *,
        truth: Callable[[str, Callable[[str], dict[str, Any]]], bool],
        undoable: set[str],
        mutating: set[str],
        facts: dict[str, Any],
    ) -> None:
        super().__init__()
        self.workflow, self.subworkflows, self.truth = workflow, subworkflows, truth
        self.undoable, self.mutating = undoable, mutating
        self.retries_left = workflow.get("budget", {}).get("retries", 10)
        self.root = Region("", None)
        frame = Frame(Home(facts, workflow["steps"]))
        self.main = self._main(workflow["steps"], Place("", frame, self.root))
        if workflow.get("deadline"):
            self._spawn(self._deadline(), self.root)
        self._spawn(self.main, self.root)
        self._settle()

    # -- what the world does -----------------------------------------------------------------------------------

    def answer(self, wait: Wait, answer: Answer) -> None:
        thread = self.waiting[wait]
        if wait[0] in {"limit", "wait", "review_limit", "agent_limit"}:
            answer = TIMER
        self._resume(thread, answer)
        self._settle()

    def cancel(self) -> None:
        self._end("cancelled")
        self._settle()

    def signal(self, name: str, answer: Answer) -> None:
        """Goes to whoever began to wait for it first; else it is kept."""
        if self.ending is not None:
            return
        for wait, thread in self.waiting.items():
            if wait[0] == "signal" and self.signal_names[wait[1]] == name:
                self._resume(thread, answer)
                self._settle()
                return
        self.kept.setdefault(name, []).append(answer)

    def pause(self) -> None:
        self.paused = True

    def unpause(self) -> None:
        self.paused = False
        for wait in [wait for wait in self.waiting if wait[0] == "paused"]:
            self._resume(self.waiting[wait], Answer())
        self._settle()

    # -- threads -----------------------------------------------------------------------------------------------

    def _resume(self, thread: Thread, answer: Answer | None) -> None:
        self.waiting = {wait: one for wait, one in self.waiting.items() if one is not thread}
        try:
            wanted = thread.send(answer)  # type: ignore[arg-type]  # None starts it
        except (Over, StopIteration):
            self._ended(thread)
            return
        if isinstance(wanted, Fork):
            wanted.parent = thread
            self._start_some(wanted)
        elif wanted != ():  # a region's thread waits for `_settle`
            for wait in wanted if isinstance(wanted, list) else [wanted]:
                assert wait not in self.waiting
                if wait[0] == "perform":
                    self.performed.append((wait[1], wait[2]))
                self.waiting[wait] = thread

    def _start_some(self, fork: Fork) -> None:
        assert fork.parent is not None
        fork.running += 1  # so that it is not over before all are started
        while fork.running <= fork.width and not self._blocked(self.regions[fork.parent]):
            child, region = next(fork.children, (None, None))
            if child is None or region is None:
                break
            fork.running += 1
            self.forks[child] = fork
            self._spawn(child, region)
        fork.running -= 1
        if not fork.running:
            self._resume(fork.parent, Answer())

    def _spawn(self, thread: Thread, region: Region | None) -> None:
        self.regions[thread] = region or self.root
        self._resume(thread, None)

    def _ended(self, thread: Thread) -> None:
        fork = self.forks.pop(thread, None)
        if fork is not None:
            fork.running -= 1
            self._start_some(fork)
        elif thread is self.main:
            self.root.alive = False

    def _main(self, steps: list[Any], place: Place) -> Thread:
        yield from self._sequence(steps, place)
        if self.ending is None:
            self._drop({"deadline"}, self.root)
            self.ending = "finished"

    def _deadline(self) -> Thread:
        if (yield ("deadline", "", 0)).ok:
            self._end("partial")

    # -- failing, ending, undoing ------------------------------------------------------------------------------

    def _blocked(self, region: Region) -> bool:
        return self.ending is not None or any(one.failed for one in region.chain())

    def _drop(self, kinds: set[str], region: Region) -> None:
        """Who waits for a timer, a person or a signal in there is sent home; who works is waited for."""
        for wait in list(self.waiting):
            thread = self.waiting.get(wait)
            if thread is not None and wait[0] in kinds and self.regions[thread].inside(region):
                self._resume(thread, DROPPED)

    def _end(self, how: str) -> None:
        """From here on nothing starts."""
        if self.ending is not None:
            return
        self.ending, self.paused = how, False
        self._drop(IDLE, self.root)

    def _fail_region(self, region: Region, *, rejected: bool = False) -> None:
        region.failed = True
        self._degrade(region.name, rejected=rejected)
        self.failing.append(region)
        self._drop(IDLE, region)

    def _degrade(self, name: str, *, rejected: bool) -> None:
        if self.degraded is None:
            self.degraded = (name, rejected)

    def _settle(self) -> None:
        while self._conclude_a_region():
            pass
        if self.ending is None or self.root.alive or self.failing or self.undoing:
            return
        if any(wait[0] != "compensation_dead_letter" for wait in self.waiting):
            return
        if self.ending in {"failed", "cancelled"}:
            left = [name for name, _ in self.completed if name not in self.handled]
            if left:
                self._spawn(self._compensate(left[-1]), None)
                return
        ordinary = "partial" if self.degraded else "succeeded"
        ending = ordinary if self.ending == "finished" else self.ending
        self.status = "dead" if self.stuck else ending

    def _conclude_a_region(self) -> bool:
        for region in sorted(self.failing, key=lambda one: -len(list(one.chain()))):
            others = [one for one in self.failing if one is not region and one.inside(region)]
            if region.alive or others or any(self.owners[name].inside(region) for name in self.undoing):
                continue
            left = [name for name, owner in self.completed if owner.inside(region) and name not in self.handled]
            if left:
                self._spawn(self._compensate(left[-1]), None)
            else:
                self.failing.remove(region)
                assert region.thread is not None
                self._resume(region.thread, Answer())
            return True
        return False
