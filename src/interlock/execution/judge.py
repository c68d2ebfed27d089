"""Policy decision about a call with its approvals, and the review that opens if only an approval is missing.

A call that the policy allows without an approval needs none. One that it allows with an approval uses that up in the commit that
writes its effect as intended. One that it would allow with a missing approval asks for it (`LacksApproval`). All else
is refused. An approval of another call, however similar, never carries this one through, under any policy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from interlock.base.clock import Clock
from interlock.base.errors import ApprovalRejected, Denied
from interlock.base.json import Json
from interlock.execution.approvals import NO_STANDING, Act, Approval, Approvals, Standing, act_of
from interlock.execution.attempt import Attempt
from interlock.execution.call import Call, CallUnapproved, ToolCall
from interlock.identity.principal import ROLES
from interlock.policy.decision import NO_APPROVAL, ApprovalFacts, Decision, PolicyEngine, Question, decide
from interlock.policy.schema import tool_attributes
from interlock.store.artifacts import Sealed
from interlock.store.entries import Entry, EventType
from interlock.telemetry import names

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
    """Asks the policy in force about calls."""

    def __init__(self, approvals: Approvals, clock: Clock) -> None:
        self._approvals = approvals
        self._clock = clock

    async def judge(self, attempt: Attempt) -> None:
        """Leaves the policy's decision, and the approvals it rests on, with the attempt.

        Raises:
            Denied: the policy does not allow the call, or a person refused it.
            LacksApproval: it would, with an approval of this call.
        """
        call, policy = attempt.call, attempt.call.caller.policy
        standing = await self._standing(attempt, policy.version)
        facts = _facts(call, standing)
        answer = await _answer(policy, call, facts)
        attempt.decision, attempt.standing = answer, standing
        attempt.attributes |= {
            names.POLICY_DECISION: "allow" if answer.allowed else "deny",
            names.POLICY_VERSION: answer.version,
            names.POLICY_REASONS: list(answer.reasons),
        }
        if answer.allowed:
            return
        # With an effect in doubt no question can be asked about a call, before one about what became of the last one is answered.
        if isinstance(call, ToolCall) and call.effect is not None and not attempt.in_doubt:
            for role, roles in _ASKED:
                more = replace(
                    facts, present=True, roles=facts.roles | roles, quorum=facts.quorum + 1, digest_matches=True
                )
                if (await decide(policy, question_of(call, more))).allowed:
                    await self._ask(attempt, call, role, policy.version)
        question = question_of(call, facts)
        raise Denied(f"policy {answer.version} denies {question.action} {question.resource}: {answer.reasons[0]}")

    async def judge_again(self, attempt: Attempt) -> None:
        """Judges a mutating call just before it is dispatched, if its policy could decide otherwise by now.

        Raises:
            Denied, LacksApproval: as `judge`.
        """
        call, before = attempt.call, attempt.decision
        answer = await _answer(call.caller.policy, call, _facts(call, attempt.standing))
        if before is None or not answer.allowed or answer.version != before.version:
            await self.judge(attempt)

    async def _ask(self, attempt: Attempt, call: ToolCall, role: str, policy: str) -> NoReturn:
        sealed = await attempt.sealed_arguments(call)
        assert call.effect is not None
        act = act_of(call.caller, call.effect, sealed.ref, policy)
        if call.approvable and await self._approvals.rejected(act):
            raise ApprovalRejected(f'a person refused the call of tool "{act.tool}"')
        raise LacksApproval(act, sealed, role)

    async def _standing(self, attempt: Attempt, policy: str) -> Standing:
        call = attempt.call
        if not isinstance(call, ToolCall) or call.effect is None or not call.approvable:
            return NO_STANDING
        sealed = await attempt.sealed_arguments(call)
        key = call.effect.effect(sealed.ref).idempotency_key
        return await self._approvals.standing(act_of(call.caller, call.effect, sealed.ref, policy), key)

    # -- outcomes and records ----------------------------------------------------------------------------------

    def lacking(self, attempt: Attempt, lack: LacksApproval) -> CallUnapproved:
        """The outcome of an attempt that only lacks an approval."""
        return CallUnapproved(
            at=self._clock.now(),
            act=lack.act.digest,
            arguments=lack.arguments,
            policy=lack.act.policy,
            role=lack.role,
            artifacts=[lack.arguments.row],
            # An effect that was intended under the policy before it may be intended anew once it is approved.
            effects=[attempt.effect.failed()] if attempt.effect is not None else [],
            audit=self.refusals(attempt),
        )

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

    def _entry(self, attempt: Attempt, event_type: EventType, review_id: str, detail: dict[str, Json]) -> Entry:
        call, decision = attempt.call, attempt.decision
        return Entry(
            org_id=call.caller.org_id,
            event_type=event_type,
            actor=call.caller.principal.actor,
            action="call_tool",
            resource=call.target,
            at=self._clock.now(),
            decision="allow" if event_type == "approval.consumed" else "deny",
            run_id=call.caller.run_id,
            trace_id=call.caller.trace.trace_id,
            policy_version=None if decision is None else decision.version,
            detail={"step": call.name, "review": review_id, **detail},
        )


def question_of(call: Call, facts: ApprovalFacts) -> Question:
    """The question about a call with these facts about its approval."""
    principal, labels = call.caller.principal, call.labels
    attributes: dict[str, Json]
    if isinstance(call, ToolCall):
        attributes = tool_attributes(call.tool.contract)
    else:
        attributes = {"provider": call.provider.name, "model": call.request.model}
    return Question(
        user_id=principal.user_id,
        org_id=principal.org_id,
        roles=principal.roles,
        action="call_tool" if isinstance(call, ToolCall) else "call_model",
        resource=call.tool.contract.name if isinstance(call, ToolCall) else call.alias,
        attributes=attributes,
        context={
            "workflow": call.caller.workflow,
            "step": call.path,
            "trust": labels.trust.name.lower(),
            "sensitivity": labels.sensitivity.name.lower(),
            "approval": facts.to_json(),
        },
    )


async def _answer(policy: PolicyEngine, call: Call, facts: ApprovalFacts) -> Decision:
    """The decision with these facts about approvals; without any, if the approval is of another call."""
    answer = await decide(policy, question_of(call, facts))
    if answer.allowed and facts.present and not facts.digest_matches:
        return await decide(policy, question_of(call, NO_APPROVAL))
    return answer


def _facts(call: Call, standing: Standing) -> ApprovalFacts:
    if isinstance(call, ToolCall) and call.tool.contract.mutating and call.is_found:
        return _DONE_WITH  # a fixed answer in the place of the tool's: nothing is done that could be approved
    return standing.facts


def _of(approval: Approval) -> dict[str, Json]:
    return {"digest": approval.digest, "approver": approval.approver}
