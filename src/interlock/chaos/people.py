"""Simulated people of a chaos run: they decide reviews, ask the counter, and some decisions arrive twice or out of order."""

from __future__ import annotations

import asyncio
import random
from typing import Literal

from interlock.app import App
from interlock.base.errors import Conflict, Unavailable
from interlock.base.json import Json
from interlock.chaos.oracle import Oracle
from interlock.chaos.project import KINDS
from interlock.chaos.watch import RunWatch
from interlock.identity.principal import Principal
from interlock.services.reviews import ReviewQueue
from interlock.services.tool_answers import ToolAnswers
from interlock.services.views.reviews import ReviewView
from interlock.store.commit import Commit
from interlock.store.rows import NewSignal

_PAUSE = 0.2  # seconds between two reads of the queue
Verdict = Literal["approve", "reject"]


class People:
    """Decides every review of the organisation during a chaos run.

    Args:
        orders: run id → (kind of run, order); the answers depend on it.

    Attributes:
        confirmed: number of `confirm` questions answered after asking the counter.
        repeated: number of signals delivered again to a run that had not ended.
        twice: reviews that accepted a second decision, which is a violation.
    """

    def __init__(
        self,
        app: App,
        principal: Principal,
        oracle: Oracle,
        watch: RunWatch,
        orders: dict[str, tuple[str, str]],
        seed: int,
    ) -> None:
        self._app = app
        self._principal = principal
        self._oracle = oracle
        self._watch = watch
        self._orders = orders
        self._random = random.Random(seed)  # noqa: S311  a schedule, not a secret
        self._tasks: list[asyncio.Task[None]] = []
        self._echoes: set[asyncio.Task[None]] = set()
        self.disorderly = False
        self.confirmed = 0
        self.answered = 0
        self.repeated = 0
        self.repeated_runs: set[str] = set()
        self.twice: list[str] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._answer_forever())]

    async def close(self) -> None:
        for task in (*self._tasks, *self._echoes):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._echoes, return_exceptions=True)

    async def _answer_forever(self) -> None:
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                waiting = await self._app.reviews.page(self._principal)
            except Unavailable:
                continue
            if self.disorderly:
                self._random.shuffle(waiting)  # so the last question may be answered first
            for review in waiting:
                if review.run_id in self._orders:
                    await self._answer(review)

    async def _answer(self, review: ReviewView) -> None:
        kind, order = self._orders[review.run_id]
        output: Json = None
        decision: Verdict
        if review.purpose == "confirm":
            found = await self._oracle.find(f"{order}/{review.step}")
            decision = "approve" if found else "reject"
            output = {"effect": found[0]["effect"]} if found else None
        else:
            decision = "reject" if KINDS[kind].reject == review.step else "approve"
        try:
            signal = await self._decide(review, decision, output)
        except Conflict:
            return  # closed meanwhile
        except Unavailable:
            return  # read again at the next turn, if it is still open
        self.answered += 1
        self.confirmed += review.purpose == "confirm"
        if self.disorderly:
            echo = asyncio.create_task(self._echo(review, decision, output, signal))
            self._echoes.add(echo)
            echo.add_done_callback(self._echoes.discard)

    async def _decide(self, review: ReviewView, decision: Verdict, output: Json) -> list[NewSignal]:
        """Decides a review; returns the signals that were sent with the decision."""
        sent: list[NewSignal] = []
        committer = self._app.committer

        class Overheard:
            async def submit(self, commit: Commit) -> None:
                sent.extend(commit.new_signals)
                await committer.submit(commit)

        reviews = ReviewQueue(
            self._app.database,
            Overheard(),
            self._app.artifacts,
            self._app.clock,
            approving=self._app.approving,
            redaction=self._app.redaction,
            answers=ToolAnswers(self._app.database, self._app.versions),
        )
        await reviews.decide(self._principal, review.review_id, decision, "", output)
        return sent

    async def _echo(self, review: ReviewView, decision: Verdict, output: Json, signals: list[NewSignal]) -> None:
        """Sends the same signal again, at once and later, and the opposite decision on the decided review."""
        other: Verdict = "reject" if decision == "approve" else "approve"
        for wait in (0.0, self._random.uniform(0.1, 2.0)):
            await asyncio.sleep(wait)
            over = review.run_id not in self._watch.unfinished
            try:
                await self._app.committer.submit(Commit(self._principal.org_id, new_signals=signals))
                if not over:
                    self.repeated += len(signals)
                    self.repeated_runs.add(review.run_id)
                await self._app.reviews.decide(self._principal, review.review_id, other, "", output)
                self.twice.append(review.review_id)
            except (Conflict, Unavailable):
                continue
