"""The stage of the tests about approvals: a tool that pays at a bank, the built-in policy, and two people.

Ada starts runs, Bob approves. What was paid is read from the bank's own file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from engines.conftest import Desk
from engines.harness import Bank, Observer, until
from interlock.app import App
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.execution.approvals import Act, Approval
from interlock.guard.gate import composed
from interlock.identity.principal import Principal
from interlock.machine.events import ReviewDecided, event_to_json
from interlock.store.commit import Commit
from interlock.store.rows import NewSignal


@dataclass
class Scene:
    """One application with a worker, and who is about."""

    desk: Desk
    seen: Observer
    bank: Bank
    bob: Principal

    @property
    def app(self) -> App:
        return self.desk.app

    # -- people --------------------------------------------------------------------------------------------------

    async def asked(self, name: str = "bare", **value: Any) -> tuple[str, str]:
        """A run that asks for the approval of its call: (run, review)."""
        run = await self.desk.start(name, **value)
        return run, await self.seen.review(run, "approve_act")

    async def approve(self, review: str) -> None:
        await self.app.reviews.decide(self.bob, review, "approve", "")

    async def approved_while_paused(self, name: str = "bare") -> tuple[str, str]:
        """A run whose call is approved and is to be made as soon as the run is resumed."""
        run, review = await self.asked(name)
        await self.pause(run)
        await self.approve(review)
        await self.taken(run, "review_decided")
        await self.seen.asleep(run)
        return run, review

    async def pause(self, run: str) -> None:
        await self.app.signals.pause(self.desk.admin, run, "a look")
        await self.taken(run, "pause_requested")

    async def resume(self, run: str) -> None:
        await self.app.signals.resume(self.desk.admin, run)
        await self.taken(run, "resume_requested")

    async def taken(self, run: str, kind: str, count: int = 1) -> None:
        """Waits until the run's journal has so many events of a kind."""

        def there() -> bool:
            return sum(event["type"] == kind for event in self.seen.journal(run)) >= count

        await until(there, lambda: f"no {kind}: {self.seen.kinds(run)}")

    async def nothing_happens(self, run: str) -> None:
        """The run asks again or has failed; either way its call was not made, and once it is cancelled never will be."""

        def refused() -> bool:
            events = [event["type"] for event in self.seen.journal(run)]
            open_again = events.count("approval_needed") > 1 and bool(self.open_reviews(run))
            return open_again or self.seen.status(run) in {"failed", "cancelled"}

        await until(refused, lambda: f"{self.seen.run(run)} {self.seen.kinds(run)}")
        await self.end(run)

    async def end(self, run: str) -> None:
        if self.seen.status(run) not in {"failed", "cancelled"}:
            await self.desk.cancel(run)
        await self.seen.finished(run)
        assert self.seen.rows("select step from effects where run_id = %s and status <> 'failed'", run) == []
        assert self.bank.requests == 0

    # -- looking and forging -------------------------------------------------------------------------------------

    def open_reviews(self, run: str) -> list[str]:
        query = "select review_id from reviews where run_id = %s and status = 'open' order by created_at"
        return [row[0] for row in self.seen.rows(query, run)]

    def why(self, run: str) -> set[str]:
        """Why approvals did not count, as the audit log has it."""
        return {
            one["detail"]["why"]
            for one in self.seen.audit(run)
            if one["event_type"] in {"approval.refused", "approval.expired"}
        }

    def act(self, review: str) -> Act:
        """The act that a review is about, from its row."""
        org, run, act = self.seen.rows("select org_id, run_id, act from reviews where review_id = %s", review)[0]
        arguments = Ref.from_json(act["arguments"])
        found = Act(org, run, act["step"], act["tool"], act["contract"], arguments, act["version"], act["policy"])
        assert found.digest == act["digest"]
        return found

    def tamper(self, statement: str, *values: Any) -> None:
        """As the owner of the database, past every trigger."""
        connection = self.seen.connection
        connection.execute("set session_replication_role = replica")
        connection.execute(statement, values)  # type: ignore[arg-type]
        connection.execute("set session_replication_role = origin")

    def resign(self, review: str, **changes: Any) -> None:
        """Changes an approval and signs it anew, as only the installation can."""
        names = [field.name for field in dataclasses.fields(Approval)]
        columns = ", ".join("extract(epoch from expires_at)::bigint" if one == "expires" else one for one in names)
        row = self.seen.rows(f"select {columns} from approvals where review_id = %s", review)[0]
        given = {**dict(zip(names, row, strict=True)), **changes}
        approval = Approval(**{**given, "roles": tuple(given["roles"])})
        self.tamper(
            "update approvals set step = %s, digest = %s, approver = %s, expires_at = to_timestamp(%s), signature = %s "
            "where review_id = %s",
            *(approval.step, approval.digest, approval.approver, approval.expires),
            *(approval.signature(self.app.approving.key), review),
        )

    async def forge_decision(self, run: str, step: str, digest: str) -> None:
        """A decision that no person took, as a signal."""
        org = self.desk.admin.org_id
        sealed = await self.app.artifacts.seal(org, composed({"approved": True}), DEFINED)
        event = event_to_json(ReviewDecided(step, self.app.clock.now(), True, sealed.ref, digest=digest))
        signal = NewSignal(org_id=org, run_id=run, event=event)
        await self.app.committer.submit(Commit(org, artifacts=[sealed.row], new_signals=[signal]))


Attack = Callable[[Scene], Awaitable[None]]
