"""Prompts: versioned Jinja templates with typed slots, one template a turn, so that roles never mix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import jsonschema_rs
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from interlock.base.errors import ContractViolation, InvalidSpec
from interlock.base.refs import canonical_json
from interlock.workflows.spec import JsonSchema, Part

# Immutable sandbox: a template reads its slots and nothing of Python; undefined names are errors, not "".
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
)


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
    _templates: tuple[tuple[str, jinja2.Template], ...]
    _validator: Any

    def render(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(role, content) pairs.

        Raises:
            ContractViolation: a slot is missing, unknown or of the wrong type, or the template failed on it.
        """
        try:
            self._validator.validate(dict(values))
        except jsonschema_rs.ValidationError as error:
            place = "/".join(str(part) for part in error.instance_path) or "its slots"
            raise ContractViolation(f'prompt "{self.name}": {place}: {error.message}') from error
        try:
            return [(role, template.render(**values).strip()) for role, template in self._templates]
        except jinja2.TemplateError as error:
            raise ContractViolation(f'prompt "{self.name}" cannot be rendered: {error.message}') from error
        except (TypeError, ValueError, ArithmeticError, OverflowError) as error:
            raise ContractViolation(f'prompt "{self.name}" cannot be rendered: {error}') from error


def compile_prompt(name: str, spec: PromptSpec) -> Prompt:
    """Compiles the templates and checks that they use exactly the declared slots.

    Raises:
        InvalidSpec: naming the turn and the slot.
    """
    templates = []
    used: set[str] = set()
    for number, turn in enumerate(spec.messages):
        try:
            used |= meta.find_undeclared_variables(_ENVIRONMENT.parse(turn.content))
            templates.append((turn.role, _ENVIRONMENT.from_string(turn.content)))
        except jinja2.TemplateSyntaxError as error:
            raise InvalidSpec(f'prompt "{name}": messages.{number}: line {error.lineno}: {error.message}') from error
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
        validator = jsonschema_rs.validator_for(schema)
    except jsonschema_rs.ValidationError as error:
        raise InvalidSpec(f'prompt "{name}": slots: not valid JSON Schema: {error.message}') from error
    digest = hashlib.sha256(canonical_json(spec.model_dump(mode="json"))).hexdigest()
    return Prompt(name, spec, digest, tuple(templates), validator)
