"""Policy decision about a call with its approvals, and the review that opens if only an approval is missing.

A call that the policy allows without an approval needs none. One that it allows with an approval uses that up in the commit that
writes its effect as intended. One that it would allow with a missing approval asks for it (`LacksApproval`). All else
is refused. An approval of another call, however similar, never carries this one through, under any policy.
"""

from __future__ import annotations

from typing import Any, NoReturn

from interlock.base.clock import Clock
from interlock.base.errors import ApprovalRejected, Denied
from interlock.execution.approvals import NO_STANDING, Act, Approval, Approvals, Standing, act_of
from interlock.execution.attempt import Attempt, is_found, mutates
from interlock.execution.effects import idempotency_key
from interlock.execution.executors import CallRequest
from interlock.execution.steps import StepExecution, StepOutcome
from interlock.guard.gate import composed
from interlock.identity.principal import ROLES
from interlock.machine.events import ApprovalNeeded
from interlock.policy.decision import NO_APPROVAL, ApprovalFacts, Decision, PolicyEngine, Question, decide
from interlock.store.artifacts import Sealed
from interlock.store.entries import Entry, EventType
from interlock.telemetry import names
from interlock.workflows.spec import ToolStep

_ASKED: tuple[tuple[str, frozenset[str]], ...] = (
    ("reviewer", frozenset({"reviewer"})),
    ("operator", frozenset({"reviewer", "operator"})),
    ("developer", frozenset({"reviewer", "developer"})),
    ("admin", frozenset({"admin"})),
)
"""Who may be asked: the role that the review is to have, and the roles that such a person has; the first that helps."""

_DONE_WITH = ApprovalFacts(True, ROLES, 1, digest_matches=True)


class LacksApproval(Exception):
    """The policy would allow the call if a person of this role approved it.

    Attributes:
        arguments: what the call is to be made with, to be committed with the question.
    """

    def __init__(self, act: Act, arguments: Sealed, role: str) -> None:
        super().__init__(f'the call of tool "{act.tool}" needs an approval')
        self.act = act
        self.arguments = arguments
        self.role = role


class Judge:
    """Asks the active policy of a run's organisation about its calls."""

    def __init__(self, approvals: Approvals, clock: Clock) -> None:
        self._approvals = approvals
        self._clock = clock

    async def judge(self, attempt: Attempt, prepared: CallRequest) -> None:
        """Leaves the policy's answer, and the approvals it rests on, with the attempt.

        Raises:
            Denied: the policy does not allow the call, or a person refused it.
            LacksApproval: it would, with an approval of this call.
        """
        execution, question = attempt.execution, prepared.question
        policy = execution.run.policy
        standing = await self._standing(attempt, prepared, policy.version)
        facts = self._facts(execution, standing)
        answer = await self._answer(policy, question, facts)
        attempt.answer, attempt.standing = answer, standing
        attempt.attributes |= {
            names.POLICY_DECISION: "allow" if answer.allowed else "deny",
            names.POLICY_VERSION: answer.version,
            names.POLICY_REASONS: list(answer.reasons),
        }
        if answer.allowed:
            return
        # With an effect in doubt no question can be asked about a call, before one about what became of the last one is answered.
        if mutates(execution) and not attempt.in_doubt:
            for role, roles in _ASKED:
                more = ApprovalFacts(True, facts.roles | roles, facts.quorum + 1, digest_matches=True)
                if (await decide(policy, question.approved(more))).allowed:
                    await self._ask(attempt, prepared, role, policy.version)
        raise Denied(f"policy {answer.version} denies {question.action} {question.resource}: {answer.reasons[0]}")

    async def judge_again(self, attempt: Attempt, prepared: CallRequest) -> None:
        """Judges a call of a mutating tool just before it is dispatched, if its policy could decide otherwise by now.

        Raises:
            Denied, LacksApproval: as `judge`.
        """
        policy, facts = attempt.execution.run.policy, self._facts(attempt.execution, attempt.standing)
        answer = await self._answer(policy, prepared.question, facts)
        before = attempt.answer
        if before is None or not answer.allowed or answer.version != before.version:
            await self.judge(attempt, prepared)

    @staticmethod
    async def _answer(policy: PolicyEngine, question: Question, facts: ApprovalFacts) -> Decision:
        answer = await decide(policy, question.approved(facts))
        if answer.allowed and facts.present and not facts.digest_matches:
            return await decide(policy, question.approved(NO_APPROVAL))
        return answer

    async def _ask(self, attempt: Attempt, prepared: CallRequest, role: str, policy: str) -> NoReturn:
        sealed = await arguments_for(attempt, prepared)
        act = self._act(attempt.execution, sealed, policy)
        if _may_be_approved(attempt.execution) and await self._approvals.rejected(act):
            raise ApprovalRejected(f'a person refused the call of tool "{act.tool}"')
        raise LacksApproval(act, sealed, role)

    async def _standing(self, attempt: Attempt, prepared: CallRequest, policy: str) -> Standing:
        execution = attempt.execution
        if not mutates(execution) or not _may_be_approved(execution):
            return NO_STANDING
        sealed = await arguments_for(attempt, prepared)
        key = idempotency_key(execution.run.run_id, execution.effect_name, sealed.ref.digest)
        return await self._approvals.standing(self._act(execution, sealed, policy), key)

    @staticmethod
    def _facts(execution: StepExecution, standing: Standing) -> ApprovalFacts:
        tool = execution.run.version.tools.get(execution.step.tool) if isinstance(execution.step, ToolStep) else None
        if tool is not None and tool.contract.mutating and is_found(execution):
            return _DONE_WITH  # a fixed answer in the place of the tool's: nothing is done that could be approved
        return standing.facts

    @staticmethod
    def _act(execution: StepExecution, sealed: Sealed, policy: str) -> Act:
        assert isinstance(execution.step, ToolStep)
        return act_of(execution.run, execution.effect_name, execution.step.tool, sealed.ref, policy)

    # -- outcomes and records ----------------------------------------------------------------------------------

    def lacking(self, attempt: Attempt, lack: LacksApproval) -> StepOutcome:
        """The outcome of an attempt that only lacks an approval."""
        execution = attempt.execution
        event = ApprovalNeeded(
            execution.name,
            execution.attempt,
            attempt.began,
            self._clock.now(),
            lack.act.digest,
            lack.arguments.ref,
            lack.act.policy,
            lack.role,
        )
        # An effect that was intended under the policy before it: it may be intended anew once it is approved.
        effects = [attempt.effect.row("failed")] if attempt.effect is not None else []
        return StepOutcome(event, artifacts=[lack.arguments.row], effects=effects, audit=self.refusals(attempt))

    def refusals(self, attempt: Attempt) -> list[Entry]:
        """Entries about approvals that did not count, if the attempt came to nothing for want of one that does."""
        standing = attempt.standing
        if standing.unused or standing.used:
            return []
        return [
            self._entry(attempt, "approval.expired" if why == "expired" else "approval.refused", review, {"why": why})
            for review, why in standing.refused
        ]

    def consumptions(self, attempt: Attempt) -> list[Entry]:
        """Entries about the approvals that the attempt's effect uses up."""
        return [self._entry(attempt, "approval.consumed", one.review_id, _of(one)) for one in attempt.standing.unused]

    def _entry(self, attempt: Attempt, event_type: EventType, review_id: str, detail: dict[str, Any]) -> Entry:
        execution = attempt.execution
        assert isinstance(execution.step, ToolStep)
        return Entry(
            org_id=execution.run.org_id,
            event_type=event_type,
            actor=execution.run.principal.actor,
            action="call_tool",
            resource=f"tool:{execution.step.tool}",
            at=self._clock.now(),
            decision="allow" if event_type == "approval.consumed" else "deny",
            run_id=execution.run.run_id,
            trace_id=execution.run.trace.trace_id,
            policy_version=None if attempt.answer is None else attempt.answer.version,
            detail={"step": execution.name, "review": review_id, **detail},
        )


async def arguments_for(attempt: Attempt, prepared: CallRequest) -> Sealed:
    """Arguments of the call, sealed once an attempt."""
    if attempt.arguments is None:
        run = attempt.execution.run
        attempt.arguments = await run.artifacts.seal(run.org_id, composed(prepared.payload), prepared.labels)
    return attempt.arguments


def _may_be_approved(execution: StepExecution) -> bool:
    """True if there can be an approval: a review covers the step, or one was asked for. Saves all other calls the question."""
    return execution.here.asked > 0 or execution.path in execution.run.version.covered.values()


def _of(approval: Approval) -> dict[str, Any]:
    return {"digest": approval.digest, "approver": approval.approver}
