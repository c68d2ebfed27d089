"""The oracle's reading of one step's work: attempts, retries, deferrals, fallbacks, doubts, deadlines, letters, undoing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .oracle_threads import DROPPED, EXPIRED, Answer, Fork, Over, Place, Region, Thread, Wait

RETRYABLE = {"transient", "rate_limited"}


@dataclass
class Job:
    """One instance of a step being worked on.

    Attributes:
        may_call: of an agent's turn, the tools it may ask for, and how many; `agent` is its name, `limited` whether that
            has a deadline.
        ladder: what is tried in its place, in order: each a tool's name, or None for what cannot be undone.
        asked: how often a person was asked to approve this way of doing it.
        doubt: the effect of an earlier attempt may have happened.
        begun: the attempt with which a person sent it on its way again; 0 before that.
    """

    name: str
    place: Place
    tool: str | None
    tries_allowed: int
    ladder: list[str | None]
    attempt: int = 1
    variant: int = 0
    tries: int = 1
    asked: int = 0
    doubt: bool = False
    expired: bool = False
    begun: int = 0
    may_call: tuple[frozenset[str], int] = (frozenset(), 0)
    agent: str | None = None
    limited: bool = False
    answer: Answer = field(default_factory=Answer)

    @property
    def does(self) -> str | None:
        return self.ladder[self.variant - 1] if self.variant else self.tool

    def may(self, calls: tuple[str, ...]) -> bool:
        """Whether an agent's turn may ask for these calls; other work asks for none."""
        tools, most = self.may_call
        return set(calls) <= tools and len(calls) <= most

    def again(self) -> None:
        self.attempt += 1
        self.tries += 1


class Worker:
    """The part of the oracle that does work; `Oracle` has the rest of what is used here."""

    _blocked: Callable[[Region], bool]
    _end: Callable[[str], None]
    _resume: Callable[[Thread, Answer | None], None]
    _spawn: Callable[[Thread, Region | None], None]

    def __init__(self) -> None:
        self.waiting: dict[Wait, Thread] = {}
        self.regions: dict[Thread, Region] = {}
        self.forks: dict[Thread, Fork] = {}
        self.performed: list[tuple[str, int]] = []
        self.succeeded: set[str] = set()
        self.completed: list[tuple[str, Region]] = []
        self.owners: dict[str, Region] = {}
        self.tries_allowed: dict[str, int] = {}
        self.handled: set[str] = set()  # completed, and undone, being undone or not to be undone
        self.undoing: set[str] = set()
        self.undone: list[str] = []
        self.stuck: list[str] = []
        self.given_up: list[str] = []
        self.failing: list[Region] = []
        self.kept: dict[str, list[Answer]] = {}
        self.signal_names: dict[str, str] = {}
        self.degraded: tuple[str, bool] | None = None
        self.told: dict[str, tuple[Any, str]] = {}  # where the facts of what can be undone are seen
        self.agent_begun: dict[str, int] = {}  # how often its deadline was set, if more than once
        self.ending: str | None = None
        self.status: str | None = None
        self.paused = False
        self.retries_left = 0
        self.undoable: set[str] = set()
        self.mutating: set[str] = set()

    # -- attempts ----------------------------------------------------------------------------------------------

    def _do(self, job: Job, deadline: float | None = None) -> Any:
        """A generator that ends with whether the job succeeded, or with Over."""
        try:
            if deadline is not None:
                self._spawn(self._limit(job), job.place.region)
            return (yield from self._attempts(job))
        finally:
            self._no_limit(job)

    def _no_limit(self, job: Job) -> None:
        self.waiting.pop(("limit", job.name, job.begun), None)

    def _limit(self, job: Job) -> Thread:
        yield ("limit", job.name, job.begun)
        idle = [
            wait
            for wait in self.waiting
            if wait[1] == job.name and wait[0] in {"retry", "defer", "paused", "approve_act"}
        ]
        if idle:
            self._resume(self.waiting[idle[0]], EXPIRED)
        else:
            job.expired = True  # it is being performed, or a person is asked about it

    def _attempts(self, job: Job) -> Any:
        while True:
            answer = yield from self._one_attempt(job)
            if answer.ok:
                return self._success(job, answer)
            if answer.kind not in {"expired", "dropped"}:
                if answer.kind == "budget" and not answer.ambiguous:
                    self._end("partial")
                    raise Over
                job.doubt = answer.ambiguous
                if self._may_retry(job, answer.kind):
                    self.retries_left -= 1
                    answer = yield ("retry", job.name, job.attempt)
                    if answer.ok:
                        job.again()
                        continue
            if answer.kind == "dropped":
                self._no_limit(job)
            job.expired = job.expired or answer.kind == "expired"
            if job.doubt:
                confirmed = yield ("confirm", job.name, job.attempt)
                if confirmed.ok:
                    return self._success(job, confirmed)
                job.doubt = False
                if not job.expired and not self._blocked(job.place.region):
                    job.again()  # a person says that it did not happen: so let it happen
                    continue
                answer = EXPIRED
            if self._blocked(job.place.region):
                raise Over
            if not self._next_way(job, answer.kind):
                return False

    def _approval(self, job: Job) -> Any:
        """A generator that ends with a person's yes, or with why there is none."""
        if self._blocked(job.place.region):
            return DROPPED
        if job.expired:
            return EXPIRED
        if job.asked == 2:
            return Answer(False, "denied")
        job.asked += 1
        decided = yield ("approve_act", job.name, job.attempt)
        if decided.ok:
            job.attempt += 1  # the same try: it had not begun
        return decided if decided.ok or decided.kind else Answer(False, "denied")

    def _one_attempt(self, job: Job) -> Any:
        """A generator that ends with the answer to an attempt, or with DROPPED or EXPIRED while it could not begin."""
        while True:
            if self.paused:
                resumed = yield ("paused", job.name, job.attempt)
                if not resumed.ok:
                    return resumed
            answer = yield ("perform", job.name, job.attempt)
            if answer.ok and not job.may(answer.calls):
                return Answer(False, "invalid")
            if answer.kind == "unapproved":
                job.doubt = False
                approved = yield from self._approval(job)
                if approved.ok:
                    continue
                return approved
            if answer.kind != "deferred":
                return answer
            if self._blocked(job.place.region):
                return DROPPED
            if job.expired:
                return EXPIRED
            later = yield ("defer", job.name, job.attempt)
            if not later.ok:
                return later

    def _may_retry(self, job: Job, kind: str) -> bool:
        return (
            kind in RETRYABLE
            and not job.expired
            and job.tries < job.tries_allowed
            and self.retries_left > 0
            and not self._blocked(job.place.region)
        )

    def _next_way(self, job: Job, kind: str) -> bool:
        """Whether there is a declared fallback; nothing is tried in the place of a refusal."""
        if kind == "denied" or job.variant >= len(job.ladder):
            return False
        self._no_limit(job)
        job.variant += 1
        job.attempt += 1
        job.tries, job.asked, job.doubt, job.expired = 1, 0, False, False
        return True

    def _success(self, job: Job, answer: Answer) -> bool:
        job.answer = answer
        self.succeeded.add(job.name)
        if job.does in self.undoable:
            self.completed.append((job.name, job.place.region))
            self.owners[job.name] = job.place.region
            self.tries_allowed[job.name] = job.tries_allowed
        return True

    # -- undoing -----------------------------------------------------------------------------------------------

    def _compensate(self, name: str, attempt: int = 1) -> Thread:
        self.handled.add(name)
        self.undoing.add(name)
        if name in self.told:
            frame, seen_as = self.told[name]
            frame.facts[seen_as] = {}
        while True:
            answer = yield ("undo", name, attempt)
            if answer.ok:
                self.undoing.remove(name)
                self.undone.append(name)
                return
            if answer.kind not in RETRYABLE or attempt % self.tries_allowed[name] == 0:
                self.undoing.remove(name)
                self.stuck.append(name)
                self._spawn(self._stuck(name, attempt), None)
                return
            yield ("undo_retry", name, attempt)
            attempt += 1

    def _stuck(self, name: str, attempt: int) -> Thread:
        """In the dead-letter queue, for as long as nobody looks at it."""
        answer = yield ("compensation_dead_letter", name, 0)
        self.stuck.remove(name)
        self.status = None
        if answer.ok:
            self._spawn(self._compensate(name, attempt + 1), None)
        else:
            self.given_up.append(name)
