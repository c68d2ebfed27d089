"""The newer kinds of step: what does not fit is named with its place and the mend."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from interlock.base.errors import InvalidSpec
from interlock.workflows.check import check_workflow
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import Prompt, PromptSpec, compile_prompt
from interlock.workflows.source import parse_yaml, validate
from interlock.workflows.spec import Workflow

HEAD = """\
name: w
input:
  type: object
  properties:
    text: {type: string}
    at: {type: number}
    places: {type: array, items: {type: object, properties: {name: {type: string}}, additionalProperties: false}}
allow: [look, pay]
steps:
"""
ANYTHING: dict[str, Any] = {"type": "object"}
NAMED = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
LOOKED = {
    **NAMED,
    "properties": {"name": {"type": "string"}, "found": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
}
TOOLS = {
    "look": ToolContract(name="look", description="", effect="pure", input=NAMED, output=LOOKED),
    "pay": ToolContract(name="pay", description="", effect="mutating", input=ANYTHING, output=ANYTHING),
    "other": ToolContract(name="other", description="", effect="pure", input=ANYTHING, output=ANYTHING),
}
CHILD = """\
name: child
input: {type: object, properties: {ticket: {type: string}}, required: [ticket], additionalProperties: false}
allow: [look]
steps: [{id: look, kind: tool, tool: look, input: {name: $input.ticket}}]
output: {found: $steps.look.name}
"""
LOOK = "{id: look, kind: tool, tool: look, input: {name: x}}"


def prompts() -> dict[str, Prompt]:
    spec = {"slots": {"text": {"type": "string"}}, "messages": [{"role": "user", "content": "{{ text }}"}]}
    return {"think": compile_prompt("think", PromptSpec.model_validate(spec))}


def problems(steps: str, *others: str, tail: str = "") -> list[str]:
    text = HEAD + textwrap.indent(textwrap.dedent(steps), "  ") + tail
    workflow = validate(Workflow, parse_yaml(text, "w.yaml"))
    known = [workflow, *(validate(Workflow, parse_yaml(other, "other.yaml")) for other in others)]
    found = check_workflow(
        workflow, prompts=prompts(), tools=TOOLS, models=["default"], workflows={one.name: one for one in known}
    )
    return [problem.message for problem in found]


AGENT = "{id: a, kind: agent, prompt: think, values: {text: $input.text}, output: {type: object}, tools: [look]"
MODEL = "{id: m, kind: model, prompt: think, values: {text: $input.text}, output: {type: object}"
EACH = "- id: each\n  kind: map\n  items: $input.places\n  steps: [{id: look, kind: tool, tool: look, input: {name: $item.name}}]\n"
AGAIN = "- id: again\n  kind: loop\n  until: look.found\n  max_iterations: 3\n  steps: [" + LOOK + "]\n"
INNER = "- {id: inner, kind: subworkflow, workflow: child, input: {ticket: $input.text}}\n"


@pytest.mark.parametrize(
    "steps",
    [
        f"- {AGENT}}}\n",
        EACH + "- {id: after, kind: tool, tool: look, input: {name: $steps.each.0.name}}\n",
        EACH + "- {id: b, kind: branch, cases: [{when: each.failed > 0, steps: []}]}\n",
        AGAIN + "- {id: after, kind: tool, tool: look, input: {name: $steps.look.name}}\n",
        AGAIN.replace("name: x", "name: $last.look.name"),
        INNER + "- {id: after, kind: tool, tool: look, input: {name: $steps.inner.found}}\n",
        "- {id: w1, kind: wait, until: '2026-12-24T18:00:00+01:00'}\n- {id: w2, kind: wait, until: $input.at}\n",
        "- {id: w1, kind: wait, signal: paid, timeout: 9, on_timeout: continue}\n"
        "- {id: b, kind: branch, cases: [{when: w1.received, steps: []}]}\n",
        f"- {LOOK}\n- {{id: b, kind: branch, cases: [{{when: 'look.kind == \"a\" && input.at > 3', steps: []}}]}}\n",
        "- {id: look, kind: tool, tool: look, input: {name: $run.id}}\n",
        "- {id: look, kind: tool, tool: look, input: {name: x}, fallback: [{value: {name: y}}, {last_good: true, max_age: 9}]}\n",
    ],
)
def test_nothing_is_wrong(steps: str) -> None:
    assert problems(steps, CHILD) == []


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        (f"- {AGENT.replace('[look]', '[other]')}}}\n", 'step "a" uses tool "other", which is not in allow'),
        (f"- {AGENT}, fallback: [{{value: {{}}}}]}}\n", "an agent falls back to other models only"),
        (f"- {AGENT}, fallback: [{{model: huge}}]}}\n", 'model "huge" is not in the settings; known models: default'),
        (f"- {MODEL}, cache: 60, temperature: 1}}\n", "answers at a temperature above 0 differ by intent"),
        (f"- {MODEL}, fallback: [{{tool: look}}]}}\n", "only a tool step falls back to a tool"),
        (f"- {LOOK[:-1]}, fallback: [{{model: default}}]}}\n", "only a model step falls back to a model"),
        (f"- {LOOK[:-1]}, fallback: [{{tool: other}}]}}\n", 'uses tool "other", which is not in allow'),
        (f"- {LOOK[:-1]}, fallback: [{{tool: look, input: {{}}}}]}}\n", 'tool "look" needs argument "name"'),
        (f"- {LOOK[:-1]}, fallback: [{{value: {{name: 7}}}}]}}\n", "does not fit the step's output schema"),
        (
            "- {id: pay, kind: tool, tool: pay, fallback: [{last_good: true, max_age: 9}]}\n",
            "cannot replace its effect",
        ),
        (EACH.replace("$input.places", "$input.text"), '"$input.text" is not a list'),
        (EACH.replace("$input.places", "[1]"), "steps.0.items: is a list; must be a string"),
        (EACH.replace("$input.places", "places"), "items must be a reference to a list"),
        (EACH.replace("$item.name", "$item.place"), '"$item.place": the item has no field "place"; known fields: name'),
        (
            EACH + "- {id: x, kind: tool, tool: look, input: {name: $steps.look.name}}\n",
            '"look" is not an earlier step',
        ),
        (f"- {LOOK.replace('name: x', 'name: $item.name')}\n", "there is no item outside a map step"),
        (f"- {LOOK.replace('name: x', 'name: $index')}\n", "there is no index outside map and loop steps"),
        (
            f"- {LOOK.replace('name: x', 'name: $last.look.name')}\n",
            "there is no previous iteration outside a loop step",
        ),
        (AGAIN.replace("name: x", "name: $last.draft.name"), 'the loop has no step "draft"; known steps: look'),
        (AGAIN.replace("look.found", "other.met"), 'condition reads "other", which is not an earlier step'),
        *(
            (f"- {LOOK}\n- {{id: b, kind: branch, cases: [{{when: {when!r}, steps: []}}]}}\n", said)
            for when, said in (
                ('look.kind == "c"', '"look.kind" is never "c"; its values are "a", "b"'),
                ("'c' != look.kind", '"look.kind" is never "c"; its values are "a", "b"'),
                ("look.kind == 1", '"look.kind" is never 1'),
                ("look.found == 'true'", '"look.found" is true or false and is compared with the string "true"'),
                ("input.at == '5'", '"input.at" is a number and is compared with the string "5"'),
            )
        ),
        *(
            (f"- {LOOK.replace('name: x', f'name: {bound}')}\n", f'argument "name" of tool "look": {said}')
            for bound, said in (
                ("5", "is 5 (a number); must be a string"),
                ("[x, $input.text]", "is a list; must be a string"),
                ("$input.at", '"$input.at" is a number; must be a string'),
                ("$input.places", '"$input.places" is a list; must be a string'),
            )
        ),
        (
            f"- {MODEL.replace('$input.text', '$input.at')}}}\n",
            'slot "text" of prompt "think": "$input.at" is a number; must be a string',
        ),
        (
            INNER.replace("$input.text", "$input.at"),
            'field "ticket" of workflow "child": "$input.at" is a number; must',
        ),
        (INNER.replace("child", "nephew"), 'workflow "nephew" does not exist; known workflows: child, w'),
        (INNER.replace("child", "w"), "a workflow cannot contain itself"),
        (INNER.replace("ticket: $input.text", ""), 'workflow "child" needs "ticket"; bind it in input'),
        (
            INNER.replace("$input.text}", "$input.text, more: 1}"),
            'workflow "child" takes no "more"; known fields: ticket',
        ),
        (
            INNER + "- {id: x, kind: tool, tool: look, input: {name: $steps.inner.lost}}\n",
            'has no field "lost"; known fields: found',
        ),
        ("- {id: w1, kind: wait, until: tomorrow}\n", "until is not a moment; write 2026-12-24T18:00:00+01:00"),
        ("- {id: w1, kind: wait, until: '2026-12-24T18:00:00'}\n", "until is not a moment"),
        ("- {id: w1, kind: wait, until: $input.text}\n", '"$input.text" is not a number field'),
        (
            "- {id: w1, kind: wait, signal: paid}\n- {id: w2, kind: wait, signal: paid, payload: {type: object}}\n",
            'another step waits for signal "paid" with another payload',
        ),
    ],
)
def test_one_fault_is_named(steps: str, complaint: str) -> None:
    try:
        found = problems(steps, CHILD)
    except InvalidSpec as error:
        found = [error.message]
    assert len(found) == 1, found
    assert complaint in found[0]


def test_a_subworkflow_brings_no_tool_of_its_own() -> None:
    child = CHILD.replace("allow: [look]", "allow: [look, other]")
    assert problems(INNER, child) == ['step "inner": workflow "child" uses tool "other", which is not in allow; add it']


def test_a_circle_of_workflows_is_found() -> None:
    child = CHILD.replace("steps: [", "steps: [{id: back, kind: subworkflow, workflow: w}, ")
    assert "a workflow cannot contain itself" in problems(INNER, child)[0]


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ("{id: w1, kind: wait}", "a wait has exactly one of duration, until, signal"),
        ("{id: w1, kind: wait, duration: 1, signal: paid}", "a wait has exactly one of duration, until, signal"),
        ("{id: w1, kind: wait, duration: 1, timeout: 2}", "only a wait for a signal has a timeout and a payload"),
        (LOOK[:-1] + ", fallback: [{}]}", "a fallback is exactly one of tool, model, last_good, value"),
        (LOOK[:-1] + ", fallback: [{last_good: true}]}", "last_good needs max_age"),
        (LOOK[:-1] + ", fallback: [{value: {}, input: {}}]}", "only a fallback to a tool has an input"),
        (
            "{id: a, kind: loop, until: 'true', max_iterations: 5000, steps: [" + LOOK + "]}",
            "is 5000; must be at most 1000",
        ),
        ("{id: a, kind: map, items: $input.places, steps: []}", "at least 1 entry"),
    ],
)
def test_the_shape_of_a_step(step: str, complaint: str) -> None:
    with pytest.raises(InvalidSpec, match=complaint):
        problems(f"- {step}\n")


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        (AGAIN.replace("look.found", "look.name == 'x'"), 'reads "look.name", which is not a fact; known facts: found'),
        (AGAIN.replace("look.found", "has(look.lost)"), 'reads "look.lost", which is not a fact'),
        (AGAIN.replace("look.found", "input.text == 'look.found'"), 'reads "input.text", which is not a fact'),
        ("- {id: w, kind: wait, signal: go, payload: {properties: {received: {type: string}}}}\n", "call that field"),
        ("- {id: w, kind: wait, signal: go, payload: {properties: 5}}\n", "is not of type"),
    ],
)
def test_what_can_never_be_known_is_named(steps: str, complaint: str) -> None:
    found = problems(steps, CHILD)
    assert len(found) == 1, found
    assert complaint in found[0]


def test_what_stands_in_quotes_is_no_reference_and_a_signal_may_bring_anything() -> None:
    assert problems(AGAIN.replace("look.found", "look.found && 'look.lost' != \"a.b\"")) == []
    assert (
        problems("- {id: w, kind: wait, signal: go}\n- {id: l, kind: tool, tool: look, input: {name: $steps.w.who}}\n")
        == []
    )


def test_one_signal_means_one_thing_through_all_workflows() -> None:
    child = CHILD.replace("steps: [", "steps: [{id: w, kind: wait, signal: go, payload: {type: object}}, ")
    wait = "- {id: w1, kind: wait, signal: go, payload: {properties: {a: {type: integer}}}}\n"
    (found,) = problems(wait + INNER, child)
    assert 'workflow "child" waits for signal "go" with another payload' in found
    assert problems(wait.replace("go", "come") + INNER, child) == []
