"""Policies are checked against the schema of what the kernel asks: each fault has its line, its text and the correction."""

from __future__ import annotations

import json
import subprocess
import sys

import cedarpy
import pytest

from interlock.base.errors import InvalidSpec
from interlock.identity.principal import ROLES
from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy
from interlock.policy.decision import NO_APPROVAL
from interlock.policy.schema import Names, cedar_schema, checked, faults_of, parsed_schema
from interlock.policy.text import MAX_CHAIN, MAX_OPERATORS, MAX_TEXT, excess, statements

NAMES = Names(frozenset({"issue_refund", "look_up"}), frozenset({"default", "cheap"}), ROLES)
TOOL = 'permit(principal, action == Action::"call_tool", resource)'
MODEL = 'permit(principal, action == Action::"call_model", resource)'
ANY = "permit(principal, action, resource)"


def test_what_may_be_read_is_accepted() -> None:
    text = f"""
        {TOOL} when {{ resource.effect == "pure" && resource.scopes.contains("read:users") }};
        {MODEL} when {{ resource.provider == "openai" || resource.model like "gpt-*" }};
        {ANY} when {{ principal.org == "acme" && principal.roles.contains("operator") }};
        {ANY} when {{ context.workflow == "triage" && context.step != "pay" && context.trust != "tool" }};
        {ANY} unless {{ context.sensitivity == "pii" || ["secret", "pii"].contains(context.sensitivity) }};
        {ANY} when {{ context.approval.present && context.approval.digest_matches && context.approval.quorum >= 2 }};
        {ANY} when {{ context.approval.roles.containsAny(["admin", "reviewer"]) }};
        {ANY} when {{ resource has effect && resource.effect == "mutating" }};
        permit(principal == User::"anybody", action in [Action::"call_tool"], resource == Tool::"look_up");
        forbid(principal is User, action, resource is Model) unless {{ resource == Model::"cheap" }};
    """
    assert faults_of(text, NAMES) == []
    assert faults_of(DEFAULT_POLICY, NAMES) == []
    assert faults_of("", NAMES) == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (f'{TOOL}\nwhen {{ resource.efect == "pure" }};', 2, '"efect" is no attribute of a Tool; write "effect"'),
        (f"{ANY}\nwhen {{\n context.aproval.present }};", 3, '"aproval" is no attribute of context; write "approval"'),
        (
            f"// resource.presnt\n{ANY} when {{ context.approval.presnt }};",
            2,
            '"presnt" is no attribute of context.approval; write "present"',
        ),
        (f'{ANY} when {{ principal.role == "x" }};', 1, '"role" is no attribute of a User; write "roles"'),
        (f"{ANY} when {{ context has flagged }};", 1, '"flagged" is no known attribute; known are approval, '),
        (f'{ANY} when {{ resource.effect == "pure" }};', 1, "only a Tool has it: write action == "),
        (f'{ANY} when {{ resource.provider == "x" }};', 1, "only a Model has it: write action == "),
        (
            f'{ANY};\n\nforbid(principal, action, resource == Tool::"isue_refund");',
            3,
            '"isue_refund" is no known tool; write "issue_refund"',
        ),
        (f'{TOOL} when {{ [Tool::"nope"].contains(resource) }};', 1, '"nope" is no known tool; known are issue_refund, '),
        (f'{ANY} unless {{ resource == Model::"defalt" }};', 1, '"defalt" is no known model; write "default"'),
        (f'{TOOL} when {{ resource.effect == "mutatin" }};', 1, '"mutatin" is no known effect; write "mutating"'),
        (f'{ANY} when {{ "usr" != context.trust }};', 1, '"usr" is no known trust; write "user"'),
        (f'{ANY} when {{ context.sensitivity == "PII" }};', 1, '"PII" is no known sensitivity; known are '),
        (f'{ANY} when {{ principal.roles.contains("admn") }};', 1, '"admn" is no known role; write "admin"'),
        (f'{ANY} when {{ context.approval.roles.contains("boss") }};', 1, '"boss" is no known role; known are admin, '),
        ('permit(principal, action == Action::"call_tol", resource);', 1, '"call_tol" is no action; write "call_tool"'),
        ('permit(principal, action, resource == Tol::"x");', 1, '"Tol" is no entity type; write "Tool"'),
        ('permit(principal in Group::"x", action, resource);', 1, '"Group" is no entity type; known are Model, Tool, User'),
        (
            'permit(principal, action == Action::"call_model", resource == Tool::"look_up");',
            1,
            "call_tool is about a Tool, call_model about a Model",
        ),
        (f"{ANY} when {{ context.approval.quorum == true }};", 1, "the types Bool and Long are not compatible; compare"),
        (f"{ANY};\n{ANY} when {{ contxt.trust }};", 2, "not valid Cedar: "),
        (f"{ANY};\npermit(\n principal, actin, resource);", 3, "not valid Cedar: "),
        (ANY, 1, "not valid Cedar: unexpected end of input"),
        ("permit(principal == ?principal, action, resource);", 1, "a policy with ?principal or ?resource never applies"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_with_its_line(text: str, line: int, says: str) -> None:
    [fault] = faults_of(text, NAMES)
    assert says in fault.message
    assert fault.line == line
    assert "\n" not in fault.message
    with pytest.raises(InvalidSpec) as error:
        checked(text, NAMES, source="policies/main.cedar")
    assert error.value.message == f"policies/main.cedar:{line}: {fault.message}"
    assert error.value.code == "invalid_spec"


def test_every_fault_is_reported_in_the_order_of_the_lines() -> None:
    text = f'{TOOL} when {{ resource.efect == 1 }};\n{ANY} when {{ context.foo }};\n{ANY} when {{ resource == Tool::"x" }};'
    assert [fault.line for fault in faults_of(text, NAMES)] == [1, 2, 3]


def test_strings_and_comments_are_not_code() -> None:
    text = f"""// Tool::"nope"; "
        @id("a; b") {ANY} when {{ context.step == "x // y; Tool::z" }}; // ; context has nope
        {ANY};"""
    assert faults_of(text, NAMES) == []
    assert [one[0].line for one in statements(text)] == [2, 3]
    assert len(statements(text)) == len(cedarpy.PolicySet.from_str(text))


def test_a_long_name_is_cut_and_many_faults_are_bounded() -> None:
    [fault] = faults_of(f'{ANY} when {{ resource == Tool::"{"x" * 100_000}" }};', NAMES)
    assert len(fault.message) < 300
    assert len(faults_of(f'{ANY} when {{ resource == Tool::"x" }};\n' * 2000, NAMES)) <= 50


# -- bounds, before native code --------------------------------------------------------------------------------------------

CHAINS = {
    "and": "true && " * 15_000 + "true",
    "or": "true||" * 20_000 + "true",
    "plus": "1+" * 40_000 + "1 == 2",
    "minus": "1 - " * 20_000 + "1 == 2",
    "times": "1*" * 40_000 + "1 == 2",
    "not": "!" * 100_000 + "true",
    "if": "if true then true else " * 8000 + "true",
    "attributes": "context" + ".a" * 40_000,
    "indexes": "context" + '["a"]' * 20_000,
    "has": "context has a" + ".a" * 20_000,
    "brackets": "(" * 1000 + "true" + ")" * 1000,
    "comments between": "true &&//\n" * 15_000 + "true",
    "strings between": '"a" == "b" && ' * 12_000 + "true",
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_could_end_the_process_is_refused_before_cedar_sees_it(name: str) -> None:
    text = f"{ANY} when {{ {CHAINS[name]} }};"
    assert len(text) <= MAX_TEXT
    assert excess(text) is not None
    with pytest.raises(InvalidSpec):
        CedarPolicy(text)
    [fault] = faults_of(text, NAMES)
    assert "split it up" in fault.message


def test_a_text_at_the_bounds_passes_native_code() -> None:
    """In a process of its own, in a thread with a small stack: here a crash would be the test run's end."""
    program = f"""
import asyncio, json, threading
from interlock.identity.principal import ROLES
from interlock.policy.cedar import CedarPolicy
from interlock.policy.decision import Question
from interlock.policy.schema import Names, faults_of

names = Names(frozenset(), frozenset(), ROLES)
question = Question("a", "o", frozenset(), "call_tool", "t", {{"effect": "pure", "scopes": []}}, {{}})
def main():
    for condition in (
        "true && " * {MAX_OPERATORS - 1} + "true",
        "1 + " * {MAX_OPERATORS - 1} + "1 == 2",
        "if true then true else " * {MAX_OPERATORS - 1} + "true",
        "context has a" + ".a" * {MAX_CHAIN - 1},
        "(" * 45 + "true" + ")" * 45,
    ):
        text = "permit(principal, action, resource) when {{ " + condition + " }};"
        CedarPolicy(text).evaluate(question)
        faults_of(text, names)
    print("alive")
threading.stack_size(1 << 20)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# -- the schema is that of the questions ---------------------------------------------------------------------------------


def test_the_schema_is_valid_and_strict() -> None:
    assert "call_tool" in str(parsed_schema())
    entities = [{"uid": {"type": "Tool", "id": "t"}, "attrs": {"effect": "pure", "scopes": []}, "parents": []}]
    cedarpy.Entities.from_json_str(json.dumps(entities), parsed_schema())
    entities[0]["attrs"] = {"effect": "pure", "scopes": [], "more": 1}
    with pytest.raises(ValueError, match="entity"):
        cedarpy.Entities.from_json_str(json.dumps(entities), parsed_schema())


def test_the_facts_of_an_approval_are_those_of_the_schema() -> None:
    context = cedar_schema()[""]["actions"]["call_tool"]["appliesTo"]["context"]["attributes"]
    assert set(context["approval"]["attributes"]) == set(NO_APPROVAL.to_json())
