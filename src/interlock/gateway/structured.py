"""Structured output for any provider: parse, validate, and request a limited number of corrections.

Providers guarantee JSON to different degrees (strict grammars, forced tools, mere requests), so every answer is validated
here, even if the provider enforces the schema. A correction names places and rules, never the invalid value: the answer
may contain personal data, and error messages reach more places than answers.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jsonschema_rs

from interlock.base.errors import FailureKind, InvalidInput, InvalidSpec, ProviderError
from interlock.gateway.failures import BilledError
from interlock.gateway.provider import Message, ModelRequest, ModelResponse, Provider, Usage

MAX_CORRECTIONS = 2

_MAX_VIOLATIONS = 8
_MAX_VIOLATION_LENGTH = 200
# The model needs its previous answer to correct it, but an endless answer would fill the next prompt.
_MAX_ECHO = 8_000
_CACHE_SIZE = 256
_FENCE = "```"


class Validator(Protocol):
    """The part of `jsonschema_rs.Validator` used here, created by `compile_schema`, which masks values."""

    def iter_errors(self, instance: Any) -> Iterator[jsonschema_rs.ValidationError]: ...


@dataclass(frozen=True, slots=True)
class StructuredResponse:
    """A valid answer.

    Attributes:
        value: the parsed JSON, valid against the request's schema.
        usage: the sum over all attempts, the invalid ones included.
        attempts: calls made, 1 to `max_corrections + 1`.
        response: the last answer of the provider, the source of `value`.
    """

    value: Any
    usage: Usage
    attempts: int
    response: ModelResponse


_compiled: OrderedDict[bytes, Validator] = OrderedDict()


def compile_schema(schema: Mapping[str, Any]) -> Validator:
    """The compiled validator of a schema; the last 256 are kept, by the schema's digest.

    Messages show no values, formats are enforced, and references never leave the document.

    Raises:
        InvalidSpec: the schema itself is not valid, or refers outside itself.
    """
    digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).digest()
    found = _compiled.get(digest)
    if found is not None:
        _compiled.move_to_end(digest)
        return found
    try:
        # `offline`, because compiling a schema must not open a connection.
        compiled: Validator = jsonschema_rs.validator_for(
            dict(schema), mask="the value", validate_formats=True, offline=True
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise InvalidSpec(f"output schema is not a valid JSON Schema: {error.message[:200]}") from error  # type: ignore[union-attr]
    _compiled[digest] = compiled
    while len(_compiled) > _CACHE_SIZE:
        _compiled.popitem(last=False)
    return compiled


async def complete_structured(
    provider: Provider,
    request: ModelRequest,
    *,
    validator: Validator | None = None,
    max_corrections: int = MAX_CORRECTIONS,
    answered: ModelResponse | None = None,
) -> StructuredResponse:
    """Requests JSON that fits `request.schema`, with at most `max_corrections` further calls to correct it.

    Args:
        provider: makes the calls; `request.timeout` applies to each of them.
        request: must carry a schema.
        validator: compiled by the caller with `compile_schema`; None compiles (or finds) it here.
        max_corrections: further calls after an invalid answer.
        answered: an existing answer to `request`; it counts as the first attempt.

    Raises:
        InvalidInput: the request carries no schema.
        BilledError: kind INVALID when the last answer is invalid too; or a provider's failure after earlier attempts
            had already been charged for, with its own kind. `usage` holds what was spent.
        ProviderError: the first call failed and nothing was charged.
    """
    if request.schema is None:
        raise InvalidInput("a structured completion needs a schema in its request")
    validator = validator or compile_schema(request.schema)
    spent = Usage()
    problems: list[str] = []
    for attempt in range(1, max_corrections + 2):
        if answered is not None and attempt == 1:
            response = answered
        else:
            try:
                response = await provider.complete(request)
            except ProviderError as error:
                raise _with_usage(error, spent, attempt) from error
        spent += response.usage
        value, problems = _judge(response, validator)
        if not problems:
            return StructuredResponse(value, spent, attempt, response)
        request = replace(request, messages=[*request.messages, *_correction(response.text, problems)])
    raise BilledError(
        f'provider "{provider.name}" gave no valid answer in {max_corrections + 1} attempts; the last one: '
        + "; ".join(problems),
        kind=FailureKind.INVALID,
        usage=spent,
        attempts=max_corrections + 1,
    )


def _with_usage(error: ProviderError, spent: Usage, attempts: int) -> ProviderError:
    """The same failure with the usage of all attempts so far; unchanged if they cost nothing."""
    if isinstance(error, BilledError):
        spent += error.usage
    if not spent.total:
        return error
    return BilledError(
        error.message,
        kind=error.kind,
        retry_after=error.retry_after,
        detail=error.detail,
        usage=spent,
        attempts=attempts,
    )


def _judge(response: ModelResponse, validator: Validator) -> tuple[Any, list[str]]:
    """The value and its faults, each one line with place and rule."""
    if response.finish_reason == "length":
        # Even if it can be parsed: a cut tool input may be a valid object without its last fields.
        return None, ["the answer was cut off because it was too long; answer again, more briefly"]
    try:
        value = _parse(response.text)
    except (ValueError, RecursionError) as error:
        # JSONDecodeError's text contains line and column, not the document.
        return None, [
            f"not valid JSON: {str(error)[:_MAX_VIOLATION_LENGTH]}; answer with one JSON value and nothing else"
        ]
    problems: list[str] = []
    for violation in validator.iter_errors(value):
        if len(problems) == _MAX_VIOLATIONS:
            problems.append("and more")
            break
        problems.append(f"{_place(violation.instance_path)}: {violation.message}"[:_MAX_VIOLATION_LENGTH])
    return value, problems


def _parse(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except ValueError:
        inner = _unfence(text)
        if inner is None:
            raise
        return _STRICT.decode(inner)


def _unfence(text: str) -> str | None:
    """Content of the text's only fenced block if the text ends with it; else None."""
    parts = text.split(_FENCE)
    if len(parts) != 3 or parts[2].strip():
        return None
    first, _, rest = parts[1].partition("\n")
    return rest if first.strip().lower() in {"", "json"} else None


def _no_constant(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two parsers may keep different duplicates, so the validated value might differ from the used one.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object names the same key twice")
    return result


_STRICT = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_duplicates)


def _place(path: Sequence[str | int]) -> str:
    """A JSON pointer, or "the answer" for the root."""
    return "/" + "/".join(str(part) for part in path) if path else "the answer"


def _correction(text: str, problems: Sequence[str]) -> tuple[Message, Message]:
    # Providers refuse empty turns.
    echo = text if len(text) <= _MAX_ECHO else text[:_MAX_ECHO] + "…"
    listed = "\n".join(f"- {problem}" for problem in problems)
    return (
        Message("assistant", echo.strip() or "(no answer)"),
        Message("user", f"Your answer is not valid:\n{listed}\nAnswer again with the corrected JSON only."),
    )
