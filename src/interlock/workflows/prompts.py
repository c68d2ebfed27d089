"""Prompts: versioned Jinja templates with typed slots; one template for each message, so that roles are never mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import jsonschema_rs
from jinja2 import meta, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from interlock.base.errors import ContractViolation, InvalidSpec
from interlock.base.refs import canonical_json
from interlock.workflows.prompt_work import MAX_CHARACTERS, WORK, Unbounded, Work, bounded, charge_tree, charged_filters
from interlock.workflows.schemas import Validator, validator_for
from interlock.workflows.spec import JsonSchema, Part

_MAX_ARGUMENT = 1000  # of a filter: characters of a text, size of a number

# Permitted parts of a template: output of slots, conditions and loops. It cannot call, assign or calculate; `prompt_work`
# bounds what the rest may cost.
_NODES: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Neg, nodes.List, nodes.Tuple),
    *(nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Slice),
    *(nodes.If, nodes.CondExpr, nodes.For, nodes.And, nodes.Or, nodes.Not, nodes.Compare, nodes.Operand, nodes.Test),
    *(nodes.Filter, nodes.Keyword),
)
# Filters whose result is at most six times as large as their input, or a `join`.
# Not `random`, which would make two renderings differ.
_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items"),
    *("join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round"),
    *("select", "selectattr", "sort", "string", "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount"),
)


class _Environment(ImmutableSandboxedEnvironment):
    """Environment in which a template reads only fields of its slots: `order.items` is a field, never a dict's method."""

    def getattr(self, obj: object, attribute: str) -> object:
        if isinstance(obj, LoopContext):
            return super().getattr(obj, attribute)
        return self._field(obj, attribute, self.undefined(obj=obj, name=attribute))

    def getitem(self, obj: object, argument: object) -> object:
        # The requested name may be a slot's value, which messages must not contain.
        return self._field(obj, argument, self.undefined(hint="a list or an object has no element of that name"))

    def _field(self, obj: Any, argument: object, missing: object) -> object:
        try:
            found: object = obj[argument]
        except (TypeError, LookupError):
            return missing
        return found


# Undefined names are errors, not "".
_ENVIRONMENT = _Environment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
)
_ENVIRONMENT.globals.clear()
_ENVIRONMENT.filters = charged_filters({name: _ENVIRONMENT.filters[name] for name in _FILTERS})


class Turn(Part):
    """One message; `content` is a Jinja template over the slots."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str = Field(min_length=1)


class PromptSpec(Part):
    """`prompts/<name>.yaml`. Slots are typed with JSON Schema; every slot is required."""

    description: str = ""
    slots: dict[str, JsonSchema] = Field(default_factory=dict)
    messages: list[Turn] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A compiled prompt. `digest` is what a workflow version pins."""

    name: str
    spec: PromptSpec
    digest: str
    _templates: tuple[tuple[str, jinja2.Template | str], ...]
    _validator: Validator

    def render(self, values: Mapping[str, object]) -> list[tuple[str, str]]:
        """(role, content) pairs.

        Raises:
            ContractViolation: a slot is missing, unknown or of the wrong type, or the template failed on it.
        """
        for error in self._validator.iter_errors(dict(values)):
            raise ContractViolation(f'prompt "{self.name}": {error.place[1:] or "its slots"}: {error.message}')
        try:
            given = {**values, WORK: Work()}
            return [
                (role, template if isinstance(template, str) else bounded(template.generate(given)).strip())
                for role, template in self._templates
            ]
        except (Unbounded, jinja2.UndefinedError) as error:
            raise ContractViolation(f'prompt "{self.name}" cannot be rendered: {error.message}') from error
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
            # Python's own message may contain a slot's value.
            raise ContractViolation(f'prompt "{self.name}" cannot be rendered: {type(error).__name__}') from error


def _parse(content: str) -> nodes.Template:
    """The template's tree, in which all work is charged.

    Raises:
        jinja2.TemplateSyntaxError: not a template, or it contains a part that is not permitted.
    """
    tree = _ENVIRONMENT.parse(content)
    for node in tree.find_all(nodes.Node):
        refused = _refused(node)
        if refused:
            raise jinja2.TemplateSyntaxError(f"a prompt may not use {refused}", node.lineno)
    charge_tree(tree)
    return tree


def _fixed(tree: nodes.Template) -> str | None:
    """Constant text of a template without slots, such as many system messages."""
    if not all(type(node) in (nodes.Output, nodes.TemplateData) for node in tree.find_all(nodes.Node)):
        return None
    text = "".join(node.data for node in tree.find_all(nodes.TemplateData)).strip()
    return text if len(text) <= MAX_CHARACTERS else None


def _refused(node: nodes.Node) -> str | None:
    if type(node) not in _NODES:
        return f"{type(node).__name__}; it may show slots, choose (if) and repeat (for)"
    if isinstance(node, nodes.Name) and node.name == "self":
        return '"self"; read a slot'
    loaded = isinstance(node, nodes.List | nodes.Tuple) and getattr(node, "ctx", "load") == "load"
    if loaded and not all(isinstance(item, nodes.Const) for item in node.iter_child_nodes()):
        return "a list of anything but literals; bind the list to a slot"
    if isinstance(node, nodes.Filter):
        arguments = [*node.args, *(pair.value for pair in node.kwargs), *filter(None, (node.dyn_args, node.dyn_kwargs))]
        if not all(isinstance(one, nodes.Const) and _small(one.value) for one in arguments):
            return f'"{node.name}" with an argument that is not a short literal'
        if node.name == "tojson" and arguments:
            return '"tojson" with arguments'
    return None


def _small(value: str | float | None) -> bool:
    return len(value) <= _MAX_ARGUMENT if isinstance(value, str) else value is None or abs(value) <= _MAX_ARGUMENT


def compile_prompt(name: str, spec: PromptSpec) -> Prompt:
    """Compiles the templates and checks that they use exactly the declared slots.

    Raises:
        InvalidSpec: a fault, with the message and the slot.
    """
    templates = []
    used: set[str] = set()
    for number, turn in enumerate(spec.messages):
        try:
            tree = _parse(turn.content)
            used |= meta.find_undeclared_variables(tree)
            templates.append((turn.role, _fixed(tree) or _ENVIRONMENT.from_string(tree)))
        except jinja2.TemplateSyntaxError as error:
            raise InvalidSpec(f'prompt "{name}": messages.{number}: line {error.lineno}: {error.message}') from error
        except (RecursionError, SyntaxError, ValueError, MemoryError) as error:  # Python's own limits
            raise InvalidSpec(
                f'prompt "{name}": messages.{number}: is nested too deeply or holds too long a number; simplify it'
            ) from error
    for slot in sorted(used - spec.slots.keys()):
        raise InvalidSpec(f'prompt "{name}" uses "{slot}", which is not in slots; declare its type there')
    for slot in sorted(spec.slots.keys() - used):
        raise InvalidSpec(f'prompt "{name}" declares slot "{slot}" and never uses it; remove it')
    schema = {
        "type": "object",
        "properties": spec.slots,
        "required": sorted(spec.slots),
        "additionalProperties": False,
    }
    try:
        validator = validator_for(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        place = ".".join(["slots", *(str(part) for part in list(getattr(error, "instance_path", []))[1:])])
        message = str(getattr(error, "message", error)).splitlines()[0]
        raise InvalidSpec(f'prompt "{name}": {place}: not valid JSON Schema: {message}') from error
    digest = hashlib.sha256(canonical_json(spec.model_dump(mode="json"))).hexdigest()
    return Prompt(name, spec, digest, tuple(templates), validator)
