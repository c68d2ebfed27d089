"""Acts that lack an approval: the question to a person, and what follows their decision.

The machine knows an act by its digest only; what goes into it is for `execution.approvals`. An approval never carries a call
through: the kernel judges it anew when the step is performed again, so a decision about another act leads to another question.
"""

from __future__ import annotations

from dataclasses import replace

from interlock.base.errors import FailureKind
from interlock.machine import events as ev
from interlock.machine.events import Failure
from interlock.machine.failures import attempt_failed, out_of_time
from interlock.machine.state import ApprovalRequest, StepState, StepStatus
from interlock.machine.transition import Transition
from interlock.workflows.spec import ToolStep

MAX_ASKED = 2
"""Questions about one variant of an instance. The second is for an act that changed while the first was open."""

REFUSED = "approval_rejected"
"""Code of the failure of an act that a person refused."""


def approval_needed(transition: Transition, event: ev.ApprovalNeeded) -> bool:
    """Handler of `ApprovalNeeded`: asks a person, unless nothing may start here or the act was asked for too often."""
    name = event.step
    step = transition.current(name, StepStatus.RUNNING, event.attempt)
    if step is None or not isinstance(transition.program.work(name, step.variant, step.tool), ToolStep):
        return False
    step = replace(step, failure=None)  # the kernel looked for an effect in doubt before it judged the call
    if transition.blocked(name):
        transition.put(name, replace(step, status=StepStatus.FAILED))
        transition.unlimit(name)
    elif step.expired:
        out_of_time(transition, name, step)
    elif step.asked >= MAX_ASKED:
        message = f"what was approved is not what is to be done, {MAX_ASKED} times in a row"
        attempt_failed(transition, name, step, Failure(FailureKind.DENIED, "approval_mismatch", message))
    else:
        request = ApprovalRequest(event.digest, event.input, event.policy, event.role)
        transition.put(name, replace(step, status=StepStatus.APPROVING, asked=step.asked + 1, request=request))
        transition.commands.append(ev.OpenReview(name, "approve_act"))
    return True


def act_decided(transition: Transition, event: ev.ReviewDecided, step: StepState) -> bool:
    """A person decided about the act of a step in `APPROVING`: it is performed again, or has failed as denied."""
    name = event.step
    if step.request is None or event.digest != step.request.digest:
        return False
    step = replace(step, decisions=(*step.decisions, event.at), request=None)
    if event.approved:
        transition.perform(name, replace(step, attempt=step.attempt + 1, deferrals=0))
        return True
    work = transition.program.work(name, step.variant, step.tool)
    tool = f' of tool "{work.tool}"' if isinstance(work, ToolStep) else ""
    transition.fail(name, step, Failure(FailureKind.DENIED, REFUSED, f"a person refused the call{tool}"))
    return True
