"""Which call a review stands for, and whether it shows that call; the check refuses it otherwise."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from interlock.base.errors import InvalidSpec
from interlock.base.settings import Settings
from interlock.definitions.approvals import needs_approval
from interlock.definitions.project import read_project
from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy
from interlock.workflows.approvals import covered_acts
from interlock.workflows.check import check_workflow
from interlock.workflows.check_approvals import ApprovalCheck
from interlock.workflows.contracts import ToolContract
from interlock.workflows.source import parse_yaml, validate
from interlock.workflows.spec import Workflow

ANYTHING: dict[str, Any] = {"type": "object"}
TOOLS = {
    "look": ToolContract(name="look", description="", effect="pure", input=ANYTHING, output=ANYTHING),
    "pay": ToolContract(name="pay", description="", effect="mutating", input=ANYTHING, output=ANYTHING),
    "send": ToolContract(name="send", description="", effect="mutating", input=ANYTHING, output=ANYTHING),
}
HEAD = "name: w\ninput: {type: object}\nallow: [look, pay, send]\nsteps:\n"
PERMIT = "permit(principal, action, resource);"
PAY = "- {id: pay, kind: tool, tool: pay, input: {amount: $input.amount, to: $input.to}}\n"
ASK = "- {id: ask, kind: review, title: Pay?, show: {a: $input.amount, b: $input.to}}\n"
GREET = "- {id: ask, kind: review, title: May we send a friendly greeting?}\n"


def read(steps: str) -> Workflow:
    return validate(Workflow, parse_yaml(HEAD + textwrap.indent(steps, "  "), "w.yaml"))


def problems(steps: str, policy: str = DEFAULT_POLICY) -> list[str]:
    workflow = read(steps)
    needs = needs_approval(CedarPolicy(policy), workflow, TOOLS)
    return [one.message for one in check_workflow(workflow, prompts={}, tools=TOOLS, models=[], needs_approval=needs)]


def notes(steps: str, policy: str = DEFAULT_POLICY) -> list[tuple[tuple[str | int, ...], str]]:
    workflow = read(steps)
    needs = needs_approval(CedarPolicy(policy), workflow, TOOLS)
    return [(one.path, one.message) for one in ApprovalCheck(workflow, TOOLS, needs).notes()]


@pytest.mark.parametrize(
    "steps",
    [
        ASK + PAY,
        ASK.replace("$input.amount, b: $input.to", "$input") + PAY,  # the whole of it shows its parts
        ASK + "- {id: look, kind: tool, tool: look}\n" + PAY,
        ASK + "- {id: by, kind: branch, cases: [{when: ask.approved, steps: [" + PAY[2:-1] + "]}]}\n",
        GREET.replace("}", ", approves: false}") + PAY,
        GREET.replace("}", ", approves: false}") + ASK.replace("id: ask", "id: real") + PAY,
        # A map's body is another one: each item asks for itself.
        GREET + "- {id: each, kind: map, items: $input.list, steps: [" + PAY[2:-1] + "]}\n",
        ASK.replace("}}", "}, approves: pay}") + "- {id: first, kind: tool, tool: send}\n" + PAY,
        ASK.replace("}}", "}, approves: pay}")
        + PAY.replace("}}", ", currency: EUR}}"),  # what is fixed is in the version
        ASK.replace("}}", ", c: {x: [EUR]}}}") + PAY.replace("}}", ", currency: EUR}}"),
        "- {id: pay, kind: tool, tool: pay}\n",  # asks for itself
    ],
)
def test_what_may_be_deployed(steps: str) -> None:
    assert problems(steps) == []


@pytest.mark.parametrize(
    ("steps", "hidden"),
    [
        (GREET + PAY, "$input.amount, $input.to"),
        (ASK.replace(", b: $input.to", "") + PAY, "$input.to"),
        (ASK.replace("$input.to", "$input.total") + PAY, "$input.to"),
        (GREET + "- {id: pay, kind: tool, tool: pay, input: {amount: 9999}}\n", "amount"),
        (GREET + "- {id: pay, kind: tool, tool: pay}\n", "(it has none)"),
        (ASK + PAY.replace("$input.to", "$run.id").replace("}}", ", more: [$input.deep]}}"), "$input.deep, $run.id"),
        (
            ASK + "- {id: look, kind: tool, tool: look}\n" + PAY.replace("$input.to", "$steps.look.name"),
            "$steps.look.name",
        ),
        (GREET + "- {id: by, kind: branch, cases: [{when: 'true', steps: [" + PAY[2:-1] + "]}]}\n", "$input.amount"),
        ("- {id: by, kind: parallel, branches: {a: [" + GREET[2:-1] + ", " + PAY[2:-1] + "]}}\n", "$input.amount"),
        (
            "- {id: each, kind: map, items: $input.list, steps: [" + GREET[2:-1] + ", " + PAY[2:-1] + "]}\n",
            "$input.amount",
        ),
    ],
)
def test_a_review_that_hides_what_it_approves(steps: str, hidden: str) -> None:
    (message,) = problems(steps)
    assert message.startswith(
        'step "ask": this review approves the call of tool "pay" in step "pay", and does not show'
    )
    assert hidden in message
    assert "approves: false" in message


def test_where_the_policy_wants_no_approval_only_what_is_said_is_held_against_it() -> None:
    assert problems(GREET + PAY, PERMIT) == []
    assert len(problems(GREET.replace("}", ", approves: pay}") + PAY, PERMIT)) == 1


@pytest.mark.parametrize("named", ["look", "nothing", "ask", "before"])
def test_an_act_that_is_none(named: str) -> None:
    before = "- {id: before, kind: tool, tool: send}\n"
    steps = before + GREET.replace("}", f", approves: {named}}}") + "- {id: look, kind: tool, tool: look}\n" + PAY
    (message,) = problems(steps)
    assert f'"{named}" is no later step beside this one that calls a mutating tool' in message


def test_which_call_each_review_covers() -> None:
    steps = """\
- {id: one, kind: review, title: "?"}
- id: by
  kind: branch
  cases:
    - {when: "true", steps: [{id: two, kind: review, title: "?"}, {id: pay, kind: tool, tool: pay}]}
  otherwise: [{id: send, kind: tool, tool: send}]
- {id: three, kind: review, title: "?", approves: last}
- {id: four, kind: review, title: "?"}
- {id: look, kind: tool, tool: look}
- {id: other, kind: tool, tool: pay}
- {id: last, kind: tool, tool: pay}
- {id: five, kind: review, title: "?"}
"""
    found = {
        review.id: act.id if act else None for review, act in covered_acts(read(steps).steps, lambda t: t != "look")
    }
    assert found == {"one": "send", "two": "pay", "three": "last", "four": "other", "five": None}


def test_calls_that_no_review_covers_are_noted() -> None:
    steps = (
        ASK.replace("id: ask", "id: ask")
        + PAY.replace("}}", "}, fallback: [{tool: send}]}")
        + "- {id: send, kind: tool, tool: send}\n"
        + "- {id: each, kind: map, items: $input.list, steps: [{id: inner, kind: tool, tool: pay}]}\n"
        + "- {id: assist, kind: agent, prompt: p, output: {type: object}, tools: [look, pay]}\n"
    )
    found = notes(steps)
    assert [path for path, _ in found] == [("steps", 1), ("steps", 2), ("steps", 4), ("steps", 3, "steps", 0)]
    assert 'tool "send"' in found[0][1]
    assert 'step "assist"' in found[2][1]
    assert notes(steps, PERMIT) == []


@pytest.mark.parametrize(
    ("policy", "needed"),
    [
        (DEFAULT_POLICY, True),
        (PERMIT, False),
        ('permit(principal, action == Action::"call_model", resource);', False),  # no approval would help
        ("permit(principal, action, resource) when { context.approval.quorum >= 2 };", True),
        (
            'permit(principal, action, resource) when { context.trust != "tool" || context.approval.digest_matches };',
            True,
        ),
        ('permit(principal, action, resource) when { context.step != "pay" || context.approval.present };', True),
        (
            'permit(principal, action, resource) when { principal.roles.contains("admin") || context.approval.present };',
            True,
        ),
    ],
)
def test_what_a_policy_wants_approved(policy: str, needed: bool) -> None:
    assert needs_approval(CedarPolicy(policy), read(PAY), TOOLS)("pay", "pay") is needed


def test_the_project_reports_both(project: Path) -> None:
    (project / "tools/pay").mkdir(parents=True)
    contract = "name: pay\ndescription: x\neffect: mutating\ninput: {type: object}\noutput: {type: object}\n"
    (project / "tools/pay/tool.yaml").write_text(contract)
    (project / "tools/pay/main.py").write_text("def run(**given):\n    return given\n")
    text = HEAD.replace("look, pay, send", "pay") + textwrap.indent(GREET + PAY, "  ")
    (project / "workflows/w.yaml").write_text(text)
    with pytest.raises(InvalidSpec, match=r"workflows/w\.yaml:5: steps\.0\.show: "):
        read_project(project, Settings())
    (project / "workflows/w.yaml").write_text(text.replace("greeting?", "greeting?, approves: false"))
    (note,) = read_project(project, Settings()).notes
    assert note.startswith('workflows/w.yaml:6: steps.1: step "pay": a person has to approve the call of tool "pay"')
