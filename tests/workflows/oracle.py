"""A second opinion on what a run does: the workflow interpreted the naive way, one green thread a branch.

It shares no code with the machine and has no events, attempts tables or flattened scopes: a step is a generator that yields
what it waits for, and a sequence is a loop over its steps. What it cannot know (what the world answers, and in
which order) it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

Wait = tuple[str, str, int]
"""(what, step, attempt): what is "perform", "retry", "approve", "confirm", "undo", "undo_retry" or "deadline"."""


@dataclass(frozen=True)
class Answer:
    """What the world answers to one wait.

    Attributes:
        ok: it worked; for reviews: approved.
        kind: of a failure.
        ambiguous: the effect may have happened all the same.
        facts: of the result.
    """

    ok: bool = True
    kind: str = ""
    ambiguous: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class _Over(Exception):
    """This thread has nothing more to do: the run is ending."""


_DROPPED = Answer(ok=False, kind="dropped")
Thread = Generator[Any, Answer, None]


class Oracle:
    """Interprets `workflow` (plain data).

    Args:
        truth: evaluates a condition's text; raises LookupError if it cannot be evaluated.
        undoable: steps with a compensation.
        facts: of the input.

    `waiting` is everything the run waits for now; `answer` lets one of them come true; `status` is the outcome.
    """

    def __init__(
        self,
        workflow: dict[str, Any],
        *,
        truth: Callable[[str, dict[str, dict[str, Any]]], bool],
        undoable: set[str],
        facts: dict[str, Any],
    ) -> None:
        self.truth = truth
        self.undoable = undoable
        self.facts: dict[str, dict[str, Any]] = {step["id"]: {} for step in _steps(workflow["steps"])} | {
            "input": facts
        }
        self.retries_left = workflow.get("budget", {}).get("retries", 10)
        self.waiting: dict[Wait, Thread] = {}
        self.limits = {step["id"]: step.get("retry", {}).get("max_attempts", 3) for step in _steps(workflow["steps"])}
        self.parents: dict[Thread, tuple[Thread, set[Thread]]] = {}
        self.performed: list[tuple[str, int]] = []
        self.succeeded: set[str] = set()
        self.completed: list[str] = []
        self.undone: list[str] = []
        self.stuck: list[str] = []
        self.ending: str | None = None
        self.status: str | None = None
        if workflow.get("deadline"):
            self.waiting["deadline", "", 0] = self._deadline()
            next(self.waiting["deadline", "", 0])
        self._resume(self._main(workflow["steps"]), None)
        self._settle()

    # -- what the world does -----------------------------------------------------------------------------------

    def answer(self, wait: Wait, answer: Answer) -> None:
        self._resume(self.waiting.pop(wait), answer)
        self._settle()

    def cancel(self) -> None:
        self._end("cancelled")
        self._settle()

    # -- threads -----------------------------------------------------------------------------------------------

    def _resume(self, thread: Thread, answer: Answer | None) -> None:
        try:
            wanted = next(thread) if answer is None else thread.send(answer)
        except _Over:
            return
        except StopIteration:
            self._joined(thread)
            return
        if isinstance(wanted, list):
            unfinished = set(wanted)
            for child in wanted:
                self.parents[child] = (thread, unfinished)
            for child in wanted:
                self._resume(child, None)
        else:
            if wanted[0] == "perform":
                self.performed.append((wanted[1], wanted[2]))
            self.waiting[wanted] = thread

    def _joined(self, thread: Thread) -> None:
        if thread not in self.parents:
            return
        parent, unfinished = self.parents[thread]
        unfinished.remove(thread)
        if not unfinished:
            self._resume(parent, Answer())

    def _main(self, steps: list[Any]) -> Thread:
        yield from self._sequence(steps)
        if self.ending is None:
            self.status = "succeeded"
            self.waiting.clear()  # the deadline

    def _deadline(self) -> Thread:
        answer = yield
        if answer.ok:
            self._end("partial")

    def _end(self, how: str) -> None:
        """From here on nothing starts: who waits for a timer or a reviewer is sent home, who works is waited for."""
        if self.ending is not None:
            return
        self.ending = how
        for wait in [wait for wait in self.waiting if wait[0] in {"retry", "approve", "deadline"}]:
            self._resume(self.waiting.pop(wait), _DROPPED)

    def _settle(self) -> None:
        if self.ending is None or self.waiting or self.status is not None:
            return
        if self.ending in {"failed", "cancelled"} and len(self.undone) + len(self.stuck) < len(self.completed):
            done = {*self.undone, *self.stuck}
            self._resume(self._undo(next(step for step in reversed(self.completed) if step not in done)), None)
            return
        self.status = "dead" if self.stuck else self.ending

    # -- the language ------------------------------------------------------------------------------------------

    def _sequence(self, steps: list[Any]) -> Thread:
        for step in steps:
            if self.ending is not None:
                raise _Over
            kind = step["kind"]
            if kind in {"tool", "model"}:
                yield from self._work(step)
            elif kind == "review":
                yield from self._review(step)
            elif kind == "parallel":
                yield [self._sequence(branch) for branch in step["branches"].values()]
            else:
                yield from self._choice(step)
            if self.ending is not None:
                raise _Over

    def _choice(self, step: dict[str, Any]) -> Thread:
        taken, case = step.get("otherwise", []), -1
        try:
            for number, one in enumerate(step["cases"]):
                if self.truth(one["when"], self.facts):
                    taken, case = one["steps"], number
                    break
        except LookupError:
            self._end("failed")
            raise _Over from None
        self.facts[step["id"]] = {"case": case}
        yield from self._sequence(taken)

    def _review(self, step: dict[str, Any]) -> Thread:
        answer = yield ("approve", step["id"], 0)
        if answer.kind == "dropped":
            raise _Over
        self.facts[step["id"]] = {"approved": answer.ok}
        if not answer.ok and step.get("on_reject", "fail") == "fail":
            self._end("failed")
            raise _Over
        self.succeeded.add(step["id"])

    def _work(self, step: dict[str, Any]) -> Thread:
        name, attempt = step["id"], 1
        while True:
            answer = yield ("perform", name, attempt)
            if answer.ok:
                self._success(name, answer)
                return
            again = answer.kind in {"transient", "rate_limited"} and attempt < self.limits[name]
            if again and self.ending is None and self.retries_left > 0:
                self.retries_left -= 1
                again = (yield ("retry", name, attempt)).ok
                if again:
                    attempt += 1
                    continue
            if answer.ambiguous:
                confirmed = yield ("confirm", name, attempt)
                if confirmed.ok:
                    self._success(name, confirmed)
                    return
            elif self.ending is None:
                self._end("partial" if answer.kind == "budget" else "failed")
            if self.ending is not None:
                raise _Over
            attempt += 1  # a person says that it did not happen: so let it happen

    def _success(self, name: str, answer: Answer) -> None:
        self.facts[name] = answer.facts
        self.succeeded.add(name)
        if name in self.undoable:
            self.completed.append(name)

    def _undo(self, name: str) -> Thread:
        attempt = 1
        while True:
            answer = yield ("undo", name, attempt)
            if answer.ok:
                self.undone.append(name)
                return
            if answer.kind not in {"transient", "rate_limited"} or attempt >= self.limits[name]:
                self.stuck.append(name)
                return
            yield ("undo_retry", name, attempt)
            attempt += 1


def _steps(steps: list[Any]) -> Iterator[dict[str, Any]]:
    for step in steps:
        yield step
        for part in [*step.get("branches", {}).values(), *(case["steps"] for case in step.get("cases", []))]:
            yield from _steps(part)
        yield from _steps(step.get("otherwise", []))
