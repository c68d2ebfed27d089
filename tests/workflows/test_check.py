"""One workflow against its prompts, tools and models: what does not fit is named with its place and the mend."""

from __future__ import annotations

from typing import Any

import pytest

from interlock.workflows import check as check_module
from interlock.workflows.check import Problem, check_workflow
from interlock.workflows.contracts import ToolContract
from interlock.workflows.source import parse_yaml, validate
from interlock.workflows.spec import MAX_STEPS, Workflow

from .texts import MODELS, PROMPTS, TOOLS, WORKFLOW, prompt


def _problems(text: str, **parts: Any) -> list[str]:
    source = parse_yaml(text, "w.yaml")
    given = {"prompts": PROMPTS, "tools": TOOLS, "models": MODELS} | parts
    problems = check_workflow(validate(Workflow, source), **given)
    return [source.complaint(problem.path, problem.message) for problem in problems]


def _changed(*changes: tuple[str, str], **parts: Any) -> list[str]:
    text = WORKFLOW
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return _problems(text, **parts)


def test_nothing_is_wrong() -> None:
    assert _problems(WORKFLOW) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        # tools
        (
            "allow: [lookup, refund]",
            "allow: [lookup]",
            'w.yaml:51: steps.1.cases.0.steps.1.cases.0.steps.0.tool: step "pay" uses tool "refund", which is not in allow; '
            "add it or remove the step",
        ),
        (
            "allow: [lookup, refund]",
            "allow: [lookup, refund, nuke]",
            'w.yaml:12: allow.2: tool "nuke" does not exist; known tools: lookup, refund',
        ),
        (
            "tool: lookup",
            "tool: look_up",
            'w.yaml:20: steps.0.branches.one.0.tool: step "customer": tool "look_up" does not exist; '
            "known tools: lookup, refund",
        ),
        (
            "input: {customer_id: $input.customer_id, amount",
            "input: {amount",
            'w.yaml:52: steps.1.cases.0.steps.1.cases.0.steps.0.input: step "pay": tool "refund" needs argument '
            '"customer_id"; bind it in input',
        ),
        (
            "note: $$ paid",
            "memo: $$ paid",
            'w.yaml:52: steps.1.cases.0.steps.1.cases.0.steps.0.input.memo: step "pay": tool "refund" has no argument '
            '"memo"; known arguments: amount, customer_id, note',
        ),
        # prompts and models
        (
            "prompt: sort",
            "prompt: sorted",
            'w.yaml:24: steps.0.branches.two.0.prompt: step "classify": prompt "sorted" does not exist; known prompts: sort',
        ),
        (
            "prompt: sort",
            "prompt: sort\n          model: huge",
            'w.yaml:25: steps.0.branches.two.0.model: step "classify": model "huge" is not in the settings; '
            "known models: default, large",
        ),
        (
            "            text: $input.text\n",
            "            txt: $input.text\n",
            'w.yaml:25: steps.0.branches.two.0.values: step "classify": prompt "sort" needs slot "text"; bind it in values',
        ),
        (
            "            text: $input.text\n",
            "            text: $input.text\n            tone: polite\n",
            'w.yaml:27: steps.0.branches.two.0.values.tone: step "classify": prompt "sort" has no slot "tone"; '
            "known slots: text",
        ),
        # references
        (
            "            text: $input.text\n",
            "            text: $input.txt\n",
            'w.yaml:25: steps.0.branches.two.0.values: "$input.txt": the input has no field "txt"; '
            "known fields: amount, customer_id, text",
        ),
        (
            "            text: $input.text\n",
            "            text: $steps.pay.id\n",
            'w.yaml:25: steps.0.branches.two.0.values: "$steps.pay.id": "pay" is not an earlier step; there are no steps yet',
        ),
        (
            "            text: $input.text\n",
            "            text: $steps.customer.name\n",  # a parallel branch runs beside this one
            'w.yaml:25: steps.0.branches.two.0.values: "$steps.customer.name": "customer" is not an earlier step; '
            "there are no steps yet",
        ),
        (
            "            text: $input.text\n",
            "            text: $steps.classify.summary\n",  # itself
            'w.yaml:25: steps.0.branches.two.0.values: "$steps.classify.summary": "classify" is not an earlier step; '
            "there are no steps yet",
        ),
        (
            "            text: $input.text\n",
            "            text: $text\n",
            'w.yaml:25: steps.0.branches.two.0.values: "$text" is not a reference; '
            "write $input.field, $steps.id.field, $run.id, $item, $index, $last.id.field, or $$ for a literal $",
        ),
        (
            "paid: $steps.pay.id",
            "paid: $steps.pay.refund_id",
            'w.yaml:54: output: "$steps.pay.refund_id": step "pay" has no field "refund_id"; known fields: id',
        ),
        (
            "paid: $steps.pay.id",
            "paid: $steps.approve.reason",
            'w.yaml:54: output: "$steps.approve.reason": step "approve" has no field "reason"; '
            "known fields: approved, by, note",
        ),
        (
            "paid: $steps.pay.id",
            "paid: $steps.wanted.taken",
            'w.yaml:54: output: "$steps.wanted.taken": step "wanted" has no field "taken"; known fields: case',
        ),
        (
            "paid: $steps.pay.id",
            "paid: $steps.gather.result",
            'w.yaml:54: output: "$steps.gather.result": step "gather" has no field "result"; there are no fields yet',
        ),
        ("run: $run.id", "run: $run.name", 'w.yaml:54: output: "$run.name": a run has only $run.id'),
        (
            "subject: $input.customer_id",
            "subject: $input.customer",
            'w.yaml:11: subject: "$input.customer": the input has no field "customer"; '
            "known fields: amount, customer_id, text",
        ),
        # conditions
        (
            "when: approve.approved",
            "when: approve.approved &&",
            "w.yaml:47: steps.1.cases.0.steps.1.cases.0.when: step \"decided\": condition 'approve.approved &&' is not CEL",
        ),
        (
            "when: approve.approved",
            "when: approval.approved",
            'w.yaml:47: steps.1.cases.0.steps.1.cases.0.when: step "decided": condition reads "approval", which is not an earlier '
            "step; known names: approve, classify, customer, gather, input",
        ),
        (
            "when: classify.wants_refund && input.amount < 100.0",
            "when: approve.approved",  # inside the branch, so later
            'w.yaml:37: steps.1.cases.0.when: step "wanted": condition reads "approve", which is not an earlier step; '
            "known names: classify, customer, gather, input",
        ),
        # ids
        (
            "- id: pay\n",
            "- id: classify\n",
            'w.yaml:49: steps.1.cases.0.steps.1.cases.0.steps.0.id: step id "classify" is used twice; '
            "ids are unique in a workflow",
        ),
        # schemas
        (
            "urgency: {type: integer}",
            "urgency: {type: int}",
            "w.yaml:27: steps.0.branches.two.0.output: is not valid JSON Schema: ",
        ),
        (
            "          output:\n            type: object\n",
            "          output:\n            title: x\n",
            'w.yaml:27: steps.0.branches.two.0.output: step "classify": the output schema must have type: object',
        ),
        ("type: string, maxLength: 4000", "type: string, pattern: '('", "w.yaml:3: input: is not valid JSON Schema: "),
        ("  required: [text, customer_id]", "  required: text", "w.yaml:3: input: is not valid JSON Schema: "),
    ],
)
def test_one_fault_gives_one_complaint_about_it(old: str, new: str, complaint: str) -> None:
    found = _changed((old, new))
    assert found, "nothing was found"
    assert any(one.startswith(complaint) for one in found), found
    consequences = [one for one in found if not one.startswith(complaint) and "has no slot" not in one]
    if "used twice" not in complaint:  # there the doubled id makes one of the two unreadable
        assert consequences == []


def test_faults_come_in_the_order_of_the_file() -> None:
    found = _changed(
        ("allow: [lookup, refund]", "allow: [refund]"), ("prompt: sort", "prompt: x"), ("$run.id", "$run.x")
    )
    assert [one.split(":")[1] for one in found] == ["20", "24", "54"]


def test_after_a_branch_what_may_have_run_can_be_read() -> None:
    text = WORKFLOW.replace("otherwise: []", "otherwise: [{id: no, kind: review, title: No?}]")
    assert _problems(text.replace("$steps.pay.id", "[$steps.pay.id, $steps.no.by, $steps.wanted.case]")) == []


def test_one_case_cannot_read_another() -> None:
    found = _changed(("otherwise: []", "otherwise: [{id: no, kind: review, title: No?, show: {a: $steps.approve.by}}]"))
    assert found == [
        'w.yaml:53: steps.1.otherwise.0.show: "$steps.approve.by": "approve" is not an earlier step; '
        "known steps: classify, customer, gather"
    ]


def test_schemas_that_say_nothing_about_fields_allow_all() -> None:
    tools = {**TOOLS, "refund": TOOLS["refund"].model_copy(update={"output": {"type": "object"}})}
    assert _changed(("$steps.pay.id", "$steps.pay.anything.at.all"), tools=tools) == []


def test_nested_fields_are_the_schemas_affair() -> None:
    assert _changed(("$steps.classify.urgency", "$steps.classify.summary.0.x")) == []


@pytest.mark.parametrize("part", ["input", "output"])
@pytest.mark.parametrize(
    "schema", [{"type": "objekt"}, {"properties": ["a"]}, {"required": "a"}, {"required": [[]]}, {"$ref": "#/nowhere"}]
)
def test_a_tools_broken_schema_is_named_once(part: str, schema: dict[str, Any]) -> None:
    tools = {**TOOLS, "refund": TOOLS["refund"].model_copy(update={part: schema})}
    (found,) = _problems(WORKFLOW, tools=tools)
    assert found.startswith(f'w.yaml:12: allow.1: tool "refund": {part} is not valid JSON Schema: ')
    assert found.endswith("; correct it")


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/schema.json", "file:///etc/hostname"])
def test_checking_a_schema_fetches_nothing(place: str) -> None:
    """A definition comes from outside; checking it must neither call other hosts nor read other files."""
    (found,) = _changed(("urgency: {type: integer}", f"urgency: {{$ref: '{place}'}}"))
    assert "is not valid JSON Schema" in found
    assert "disabled" in found


def _row(count: int) -> str:
    steps = "".join(f"  - {{id: s{number}, kind: review, title: Ok?}}\n" for number in range(count))
    return f"name: w\ninput: {{}}\nsteps:\n{steps}"


def test_five_hundred_steps_are_enough() -> None:
    assert _problems(_row(MAX_STEPS)) == []
    assert _problems(_row(MAX_STEPS + 1)) == [
        "w.yaml:3: steps: 501 steps are more than the 500 a workflow may have; split it"
    ]


def test_without_any_parts() -> None:
    found = _problems(WORKFLOW, tools={}, prompts={}, models=[])
    assert 'w.yaml:12: allow.0: tool "lookup" does not exist; there are no tools yet' in found
    assert any(one.endswith('prompt "sort" does not exist; there are no prompts yet') for one in found)
    assert any(one.endswith('model "default" is not in the settings; there are no models yet') for one in found)


def test_problems_are_plain_data() -> None:
    workflow = validate(Workflow, parse_yaml(WORKFLOW.replace("$run.id", "$run.x"), "w.yaml"))
    problems = check_workflow(workflow, prompts=PROMPTS, tools=TOOLS, models=MODELS)
    assert problems == [Problem(("output",), '"$run.x": a run has only $run.id')]


def test_contracts_given_are_not_changed() -> None:
    broken = ToolContract(name="t", description="", effect="pure", input={"type": "objekt"}, output={})
    tools = {"t": broken}
    check_module.check_workflow(validate(Workflow, parse_yaml(_row(1), "w.yaml")), prompts={}, tools=tools, models=[])
    assert tools == {"t": broken}
    assert broken.input == {"type": "objekt"}


def test_a_prompt_with_other_slots() -> None:
    prompts = {"sort": prompt("sort", "{{ text }} {{ tone }}", text={}, tone={})}
    assert _problems(WORKFLOW, prompts=prompts) == [
        'w.yaml:25: steps.0.branches.two.0.values: step "classify": prompt "sort" needs slot "tone"; bind it in values'
    ]


def test_a_model_without_a_batch_api_takes_no_batches() -> None:
    batch = ("prompt: sort\n", "prompt: sort\n          batch: true\n")
    assert _changed(batch) == []
    model = next(iter(MODELS))
    assert _changed(batch, unbatched=[model]) == [
        f'w.yaml:25: steps.0.branches.two.0.batch: step "classify": the provider of model "{model}" has no batch API; '
        "remove batch"
    ]
