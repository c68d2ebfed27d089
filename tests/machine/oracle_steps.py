"""The oracle's reading of the language: each kind of step, and what follows when one fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .oracle_threads import Fork, Frame, Home, Over, Place, Region, Thread, Wait
from .oracle_work import Job, Worker

CONTAINERS = {"parallel", "branch", "map", "loop", "subworkflow", "agent"}


class Language(Worker):
    """The part of the oracle that knows the language."""

    _fail_region: Callable[..., None]
    _degrade: Callable[..., None]
    workflow: dict[str, Any]
    subworkflows: dict[str, dict[str, Any]]
    truth: Callable[[str, Callable[[str], dict[str, Any]]], bool]
    root: Region

    def _sequence(self, steps: list[Any], place: Place) -> Thread:
        for step in steps:
            if self._blocked(place.region):
                raise Over
            name = place.space + step["id"]
            inside = partial(getattr(self, "_" + step["kind"]), step, name)
            if step["kind"] in CONTAINERS and step.get("on_failure") == "continue":
                yield from self._guarded(inside, name, place)
            else:
                yield from inside(place)
            if self._blocked(place.region):
                raise Over

    def _guarded(
        self, inside: Callable[[Place], Thread], name: str, place: Place, then: Callable[[bool], None] | None = None
    ) -> Thread:
        """Something that may fail by itself; once it has and its effects are undone, the run goes on behind it."""
        region = Region(name, place.region)
        fork = Fork(iter([(inside(Place(place.space, place.frame, region)), region)]))
        yield fork
        region.alive = False
        if region.failed:
            region.thread = fork.parent
            yield ()  # until all is undone
        elif self._blocked(place.region):
            raise Over
        if then is not None:
            then(not region.failed)

    def _fail(self, place: Place, *, rejected: bool = False) -> None:
        """Whatever is innermost around here that may fail by itself does; else the run."""
        if place.region is self.root:
            self._end("failed")
        else:
            self._fail_region(place.region, rejected=rejected)

    def _without(self, step: dict[str, Any], name: str, place: Place, *, rejected: bool = False) -> None:
        """A step that is no container has failed."""
        if step.get("on_failure") == "continue":
            self._degrade(name, rejected=rejected)
            return
        self._fail(place, rejected=rejected)
        raise Over

    # -- steps that do something -------------------------------------------------------------------------------

    def _tool(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        ladder = [one.get("tool") for one in step.get("fallback", [])]
        job = Job(name, place, step.get("tool"), step.get("retry", {}).get("max_attempts", 3), ladder)
        if (yield from self._for_good(step, job)):
            place.frame.facts[step["id"]] = job.answer.facts
            self.told[name] = (place.frame, step["id"])

    _model = _tool

    def _for_good(self, step: dict[str, Any], job: Job) -> Any:
        """A generator that ends with whether the job succeeded; a failed one may wait for a person first."""
        while not (yield from self._do(job, step.get("deadline"))):
            held = self.workflow.get("on_failure") == "hold" and job.place.region is self.root
            if step.get("on_failure") == "continue" or not held:
                self._without(step, job.name, job.place)
                return False
            if job.agent is not None:
                self.waiting.pop(self._agent_wait(job.agent), None)  # its time stands still
            decided = yield ("dead_letter", job.name, 0)
            if not decided.ok:
                if decided.kind != "dropped":
                    self._end("failed")
                raise Over
            job.attempt, job.variant, job.tries, job.asked, job.expired = job.attempt + 1, 0, 1, 0, False
            job.begun = job.attempt
            if job.agent is not None and job.limited:
                self.agent_begun[job.agent] = self.agent_begun.get(job.agent, 1) + 1
                self._spawn(self._agent_limit(job.agent, job.place), job.place.region)
        return True

    def _review(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        limits = [("review_limit", name, 0)] if "deadline" in step else []
        answer = yield [("approve", name, 0), *limits]
        if answer.kind == "dropped":
            raise Over
        if answer.kind == "timer":
            self._without(step, name, place)
            return
        place.frame.facts[step["id"]] = {"approved": answer.ok}
        if not answer.ok and step.get("on_reject", "fail") == "fail":
            self._without(step, name, place, rejected=True)

    def _wait(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        facts: dict[str, Any] = {}
        if "signal" in step:
            self.signal_names[name] = step["signal"]
            kept = self.kept.get(step["signal"])
            limits = [("wait", name, 0)] if "timeout" in step else []
            answer = kept.pop(0) if kept else (yield [("signal", name, 0), *limits])
            if answer.kind == "timer" and step.get("on_timeout", "fail") == "fail":
                self._without(step, name, place)
                return
            facts = {"received": False} if answer.kind == "timer" else {**answer.facts, "received": True}
        elif "duration" in step or self._is_moment(step["until"], place):
            answer = yield ("wait", name, 0)
        else:
            self._without(step, name, place)
            return
        if answer.kind == "dropped":
            raise Over
        place.frame.facts[step["id"]] = facts

    def _is_moment(self, until: str, place: Place) -> bool:
        if not until.startswith("$"):
            return until.endswith("Z")
        return type(place.frame.see(until.split(".")[-2].removeprefix("$")).get("n")) is int

    # -- containers --------------------------------------------------------------------------------------------

    def _parallel(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        place.frame.facts[step["id"]] = {}
        yield Fork((self._sequence(branch, place), place.region) for branch in step["branches"].values())

    def _branch(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        taken, case = step.get("otherwise", []), -1
        try:
            for number, one in enumerate(step["cases"]):
                if self.truth(one["when"], place.frame.see):
                    taken, case = one["steps"], number
                    break
        except LookupError:
            self._fail(place)
            raise Over from None
        place.frame.facts[step["id"]] = {"case": case}
        yield from self._sequence(taken, place)

    def _loop(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        for number in range(1, step["max_iterations"] + 1):
            frame = place.frame.open(step["id"])
            yield from self._sequence(step["steps"], Place(f"{name}#{number}/", frame, place.region))
            try:
                met = self.truth(step["until"], frame.see)
            except LookupError:
                self._fail(place)
                raise Over from None
            if met:
                break
        if not met and step.get("on_limit", "fail") == "fail":
            self._fail(place)
            raise Over
        place.frame.facts[step["id"]] = {"iterations": number, "met": met}

    def _looked_up(self, step: dict[str, Any], name: str, place: Place) -> Any:
        """A generator that ends with the facts of a map's items or a subworkflow's input."""
        job = Job(name, place, None, 1, [])
        if not (yield from self._do(job)):
            self._fail(place)
            raise Over
        if self._blocked(place.region):
            raise Over
        return job.answer.facts

    def _map(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        count = (yield from self._looked_up(step, name, place)).get("count")
        if count is None or count > step.get("max_items", 1000):
            self._fail(place)
            raise Over
        facts = {"count": count, "succeeded": 0, "failed": 0}

        def over(succeeded: bool) -> None:
            facts["succeeded" if succeeded else "failed"] += 1

        def item(number: int) -> Thread:
            frame = place.frame.open(step["id"])
            at = Place(f"{name}#{number}/", frame, place.region)
            if step.get("on_item_failure") == "continue":
                yield from self._guarded(partial(self._sequence, step["steps"]), f"{name}#{number}", at, over)
            else:
                yield from self._sequence(step["steps"], at)
                over(succeeded=True)

        yield Fork(((item(number), place.region) for number in range(1, count + 1)), step.get("concurrency", 8))
        place.frame.facts[step["id"]] = facts

    def _subworkflow(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        facts = yield from self._looked_up(step, name, place)
        steps = self.subworkflows[step["workflow"]]["steps"]
        yield from self._sequence(steps, Place(f"{name}/", Frame(Home(facts, steps)), place.region))
        place.frame.facts[step["id"]] = {}

    # -- agents ------------------------------------------------------------------------------------------------

    def _agent(self, step: dict[str, Any], name: str, place: Place) -> Thread:
        if "deadline" in step:
            self._spawn(self._agent_limit(name, place), place.region)
        try:
            for number in range(1, step["max_turns"] + 1):
                answer = yield from self._turn(step, f"{name}#{number}/turn", place)
                if not answer.calls:
                    place.frame.facts[step["id"]] = answer.facts
                    return
                yield from self._calls(step, f"{name}#{number}", answer.calls, place)
            self._fail(place)
            raise Over
        finally:
            self.waiting.pop(self._agent_wait(name), None)

    def _agent_wait(self, name: str) -> Wait:
        begun = self.agent_begun.get(name, 0)
        return ("agent_limit", name, begun)

    def _agent_limit(self, name: str, place: Place) -> Thread:
        if (yield self._agent_wait(name)).ok:
            self._fail(place)

    def _turn(self, step: dict[str, Any], name: str, place: Place) -> Any:
        tries = step.get("retry", {}).get("max_attempts", 3)
        job = Job(name, place, None, tries, [None for _ in step.get("fallback", [])])
        job.may_call = (frozenset(step["tools"]), step.get("max_calls", 8))
        job.agent, job.limited = name[: name.rfind("#")], "deadline" in step
        yield from self._for_good({}, job)
        if self._blocked(place.region):
            raise Over
        return job.answer

    def _calls(self, step: dict[str, Any], frame: str, calls: tuple[str, ...], place: Place) -> Thread:
        """Side by side as far as they only look; what changes something has its turn alone."""
        numbered = list(enumerate(calls, start=1))
        for alone, group in itertools.groupby(numbered, key=lambda one: one[0] if one[1] in self.mutating else 0):
            del alone
            yield Fork(self._group(step, frame, list(group), place))
            if self._blocked(place.region):
                raise Over

    def _group(
        self, step: dict[str, Any], frame: str, group: list[tuple[int, str]], place: Place
    ) -> Iterator[tuple[Thread, Region]]:
        tries = step.get("retry", {}).get("max_attempts", 3)
        for number, tool in group:
            yield self._do(Job(f"{frame}/call#{number}", place, tool, tries, [])), place.region
