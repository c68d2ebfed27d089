"""Cedar schema of the questions that the kernel asks, and the check of policies against it.

The schema has the entity types `User`, `Tool` and `Model`, the actions `call_tool` and `call_model`, and the context. Cedar's
validator checks attributes and types. Names of tools and models, and values of closed vocabularies such as `effect`, are checked
here, because an entity type of Cedar cannot have both attributes and a list of its entities.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from typing import Any, get_args

import cedarpy

from interlock.base.errors import InvalidSpec
from interlock.base.json import Json
from interlock.base.labels import Sensitivity, Trust
from interlock.policy.cedar import CedarPolicy
from interlock.policy.decision import Action
from interlock.policy.text import Statement, Token, excess, statements
from interlock.workflows.contracts import ToolContract

_STRING: dict[str, Any] = {"type": "String"}
_STRINGS: dict[str, Any] = {"type": "Set", "element": _STRING}
_BOOLEAN: dict[str, Any] = {"type": "Boolean"}
_APPROVAL = {
    "present": _BOOLEAN,
    "roles": _STRINGS,
    "quorum": {"type": "Long"},
    "digest_matches": _BOOLEAN,
    "reviews": _STRINGS,
    "approvers": _STRINGS,
}
_ENTITIES: dict[str, dict[str, Any]] = {
    "User": {"org": _STRING, "roles": _STRINGS},
    "Tool": {"effect": _STRING, "scopes": _STRINGS},
    "Model": {"provider": _STRING, "model": _STRING},
}
_RESOURCES: dict[Action, str] = {"call_tool": "Tool", "call_model": "Model"}
_CONTEXT = {
    "workflow": _STRING,
    "step": _STRING,
    "trust": _STRING,
    "sensitivity": _STRING,
    "approval": {"type": "Record", "attributes": _APPROVAL},
}
_ATTRIBUTES = frozenset({*_CONTEXT, *_APPROVAL, *(name for shape in _ENTITIES.values() for name in shape)})

_MISSING = re.compile(r"attribute `(?P<path>[^`]+)` (?:on entity type `(?P<type>\w+)`|in context for .*) not found")
_UNKNOWN_ACTION = re.compile(r"unrecognized action `Action::\"(?P<name>.*)\"`")
_UNKNOWN_TYPE = re.compile(r"unrecognized entity type `(?P<name>[^`]+)`")
_NO_ACTION = "unable to find an applicable action"
_INTERNAL = re.compile(r"__cedar::internal::(\w+)")
_QUOTED = re.compile(r"[`'](.+?)[`']")

_SHOWN = 60  # characters of a name in a message
_LISTED = 20  # names in a message
_REPORTED = 50  # faults of one text


@dataclass(frozen=True, slots=True)
class Names:
    """Names that a policy may use.

    Attributes:
        models: aliases of models.
        roles: of principals.
    """

    tools: frozenset[str]
    models: frozenset[str]
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a policy text: its line, and a sentence that names the text and the correction."""

    line: int
    message: str


def tool_attributes(contract: ToolContract) -> dict[str, Json]:
    """Attributes of a tool that a policy reads."""
    return {"effect": contract.effect, "scopes": sorted(contract.scopes)}


def cedar_schema() -> dict[str, Any]:
    """The schema in Cedar's JSON format."""
    shapes = {name: {"shape": {"type": "Record", "attributes": shape}} for name, shape in _ENTITIES.items()}
    context = {"type": "Record", "attributes": _CONTEXT}
    actions = {
        action: {"appliesTo": {"principalTypes": ["User"], "resourceTypes": [resource], "context": context}}
        for action, resource in _RESOURCES.items()
    }
    return {"": {"entityTypes": shapes, "actions": actions}}


@cache
def parsed_schema() -> cedarpy.Schema:
    """The schema, parsed once."""
    return cedarpy.Schema.from_json_str(json.dumps(cedar_schema()))


def faults_of(text: str, names: Names) -> list[Fault]:
    """Faults of a policy text, in the order of its lines. A text that Cedar cannot parse has one fault only."""
    fault = excess(text)
    if fault is not None:
        return [Fault(1, fault)]
    parts = statements(text)
    try:
        CedarPolicy(text)
    except InvalidSpec as error:
        return [Fault(_unparsable_line(text, parts), error.message.partition(": ")[2])]
    found = chain(_by_cedar(text, parts), (fault for part in parts for fault in _by_name(part, names)))
    return sorted(dict.fromkeys(islice(found, _REPORTED)), key=lambda fault: fault.line)


def checked(text: str, names: Names, *, source: str) -> CedarPolicy:
    """The policy set of a text.

    Raises:
        InvalidSpec: one line for each fault, `source:line: fault; correction`.
    """
    faults = faults_of(text, names)
    if faults:
        raise InvalidSpec("\n".join(f"{source}:{fault.line}: {fault.message}" for fault in faults))
    return CedarPolicy(text, source=source)


def _unparsable_line(text: str, parts: list[Statement]) -> int:
    """Line of the first policy that Cedar cannot parse, or of the place in it where the parser stopped."""
    for part in parts:
        refusal = _refusal(part)
        if refusal is None:
            continue
        quoted = _QUOTED.search(refusal)
        named = next((token.line for token in part if quoted and token.text == quoted[1]), None)
        if named is not None:
            return named
        for line in range(part[0].line, part[-1].line):
            refusal = _refusal([token for token in part if token.line <= line])
            if refusal is not None and "unexpected end of input" not in refusal:
                return line
        return part[-1].line
    return max(len(text.splitlines()), 1)


def _refusal(part: Statement) -> str | None:
    """The parser's reason against a policy; None if it has none."""
    try:
        cedarpy.PolicySet.from_str(" ".join(token.text for token in part))
    except ValueError as error:
        return str(error)
    return None


# -- the validator's faults ------------------------------------------------------------------------------------------------


def _by_cedar(text: str, parts: list[Statement]) -> Iterator[Fault]:
    errors = cedarpy.validate_policies(text, parsed_schema()).errors
    faulty = {error.policy_id for error in errors if _NO_ACTION not in error.error}
    for error in errors:
        number = error.policy_id.removeprefix("policy")
        part = parts[int(number)] if number.isdigit() and int(number) < len(parts) else parts[0]
        if _NO_ACTION not in error.error:
            yield _in_words(error.error, part)
        elif error.policy_id not in faulty:  # else it follows from the other fault
            message = "no call fits its head; call_tool is about a Tool, call_model about a Model"
            yield Fault(part[0].line, f"the policy never applies: {message}")


def _in_words(error: str, part: Statement) -> Fault:
    if match := _MISSING.search(error):
        return _missing(part, match["path"], match["type"])
    if match := _UNKNOWN_ACTION.search(error):
        return _unknown(part, match["name"], "action", _RESOURCES)
    if match := _UNKNOWN_TYPE.search(error):
        return _unknown(part, match["name"], "entity type", _ENTITIES)
    reason = _INTERNAL.sub(lambda match: "Bool" if match[1] in ("True", "False") else match[1], error)
    reason = re.sub(r"^for policy `\w+`, ", "", reason)
    mend = "compare values of one type" if "type" in reason else "correct the condition"
    return Fault(part[0].line, f"the policy's condition is not valid: {reason}; {mend}")


def _missing(part: Statement, path: str, entity: str | None) -> Fault:
    """An attribute that an entity type or the context does not have."""
    *parents, name = path.split(".")
    if entity is not None:
        owner, known = f"a {entity}", list(_ENTITIES.get(entity, ()))
        if parents:
            owner, known = ".".join(parents), []
    else:
        owner = ".".join(["context", *parents])
        known = list(_APPROVAL if parents == ["approval"] else () if parents else _CONTEXT)
    line = next((token.line for token in part if token.value == name), part[0].line)
    mend = _suggestion(name, known)
    if entity == "Model" and name in _ENTITIES["Tool"]:
        mend = (
            f'only a Tool has it: write action == Action::"call_tool" in the head, or test `resource has {name}` first'
        )
    if entity == "Tool" and name in _ENTITIES["Model"]:
        mend = f'only a Model has it: write action == Action::"call_model" in the head, or test `resource has {name}` first'
    return Fault(line, f'"{_short(name)}" is no attribute of {owner}; {mend}')


def _unknown(part: Statement, name: str, kind: str, known: Iterable[str]) -> Fault:
    line = next((token.line for token in part if token.value == name), part[0].line)
    return Fault(line, f'"{_short(name)}" is no {kind}; {_suggestion(name, known)}')


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"


def _suggestion(name: str, known: Iterable[str]) -> str:
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1) if len(name) <= _SHOWN else []
    if near:
        return f'write "{near[0]}"'
    if not choices:
        return "there is none; remove it"
    more = f" and {len(choices) - _LISTED} more" if len(choices) > _LISTED else ""
    return f"known are {', '.join(choices[:_LISTED])}{more}"


# -- names and closed vocabularies -----------------------------------------------------------------------------------------


def _by_name(part: Statement, names: Names) -> Iterator[Fault]:
    entities = {"Tool": ("tool", names.tools), "Model": ("model", names.models)}
    values: Mapping[str, frozenset[str]] = {
        "effect": frozenset(get_args(ToolContract.model_fields["effect"].annotation)),
        "trust": frozenset(one.name.lower() for one in Trust),
        "sensitivity": frozenset(one.name.lower() for one in Sensitivity),
    }
    for index, token in enumerate(part):
        after = part[index + 1 : index + 4]
        texts = [one.text for one in after]
        if token.text in entities and texts[:1] == ["::"] and len(after) > 1 and after[1].kind == "string":
            kind, known = entities[token.text]
            if after[1].value not in known:
                yield _one_of(after[1], kind, known)
        if token.text == "." and texts[:1] != [] and texts[0] in values:
            for literal in _compared(part, index):
                if literal.value not in values[texts[0]]:
                    yield _one_of(literal, texts[0], values[texts[0]])
        if token.text == "." and texts[:2] == ["roles", "."]:
            for literal in _arguments(part, index + 4):
                if literal.value not in names.roles:
                    yield _one_of(literal, "role", names.roles)
        if token.text == "has":
            # The validator takes an unknown attribute after `has` for one that is never there.
            yield from _tested(part, index + 1)


def _tested(part: Statement, index: int) -> Iterator[Fault]:
    """Unknown attributes in the chain `a.b.c` that begins at a token."""
    while index < len(part) and part[index].kind != "operator":
        token = part[index]
        if token.value not in _ATTRIBUTES:
            yield _one_of(token, "attribute", _ATTRIBUTES)
        if part[index + 1 : index + 2] == [] or part[index + 1].text != ".":
            return
        index += 2


def _one_of(token: Token, kind: str, known: frozenset[str]) -> Fault:
    return Fault(token.line, f'"{_short(token.value)}" is no known {kind}; {_suggestion(token.value, known)}')


def _compared(part: Statement, dot: int) -> list[Token]:
    """The string with which the attribute after a dot is compared, on either side."""
    found = []
    if len(part) > dot + 3 and part[dot + 2].text in ("==", "!="):
        found.append(part[dot + 3])
    start = dot - 1
    while start > 1 and part[start - 1].text == ".":
        start -= 2
    if start > 1 and part[start - 1].text in ("==", "!="):
        found.append(part[start - 2])
    return [token for token in found if token.kind == "string"]


def _arguments(part: Statement, index: int) -> Iterator[Token]:
    """Strings in the parentheses that open at a token: of `contains("x")` or `containsAny(["x", "y"])`."""
    if index >= len(part) or part[index].text != "(":
        return
    for token in part[index + 1 :]:
        if token.text == ")":
            return
        if token.kind == "string":
            yield token
