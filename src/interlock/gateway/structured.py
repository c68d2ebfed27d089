"""Structured output for any provider: parse, validate, and request a limited number of corrections.

Providers guarantee JSON to different degrees (strict grammars, forced tools, mere requests), so every answer is validated
here, even if the provider enforces the schema. A correction names places and rules, never the invalid value or an
undeclared name: the answer may contain personal data, and error messages reach more places than answers.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import jsonschema_rs

from interlock.base.errors import FailureKind, InvalidInput, InvalidSpec, ProviderError
from interlock.base.json import InvalidJson, Json, JsonObject, parse_json
from interlock.base.usage import Usage
from interlock.base.values import value
from interlock.budget.prices import priced
from interlock.gateway.failures import BilledError
from interlock.gateway.provider import Message, ModelRequest, ModelResponse, Provider
from interlock.workflows.schemas import Validator, validator_for

MAX_CORRECTIONS = 2

_MAX_VIOLATIONS = 8
_MAX_VIOLATION_LENGTH = 200
# The model needs its previous answer to correct it, but an endless answer would fill the next prompt.
_MAX_ECHO = 8_000
_CACHE_SIZE = 256
_FENCE = "```"


@value(frozen=True, slots=True)
class StructuredResponse:
    """A valid answer.

    Attributes:
        value: the parsed JSON, valid against the request's schema.
        usage: the sum over all attempts (1 to `max_corrections + 1`), the invalid ones included, with their cost.
        response: the last answer of the provider, the source of `value`.
    """

    value: Json
    usage: Usage
    response: ModelResponse


_compiled: OrderedDict[bytes, Validator] = OrderedDict()


def compile_schema(schema: JsonObject) -> Validator:
    """The compiled validator of a schema; the last 256 are kept, by the schema's digest.

    Messages show no values and no undeclared names, formats are enforced, and references never leave the document.

    Raises:
        InvalidSpec: the schema itself is not valid, or refers outside itself.
    """
    digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).digest()
    found = _compiled.get(digest)
    if found is not None:
        _compiled.move_to_end(digest)
        return found
    try:
        compiled = validator_for(dict(schema), formats=True)
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
        answered: an existing answer to `request`, with its cost; it counts as the first attempt.

    Raises:
        InvalidInput: the request carries no schema.
        BilledError: kind INVALID when the last answer is invalid too; or a provider's failure after earlier calls were
            answered, with its own kind. `usage` is that of all calls, with their cost.
        ProviderError: the first call failed and nothing was charged.
    """
    if request.schema is None:
        raise InvalidInput("a structured completion needs a schema in its request")
    validator = validator or compile_schema(request.schema)
    used = Usage()
    problems: list[str] = []
    for attempt in range(1, max_corrections + 2):
        if answered is not None and attempt == 1:
            response = answered
        else:
            try:
                response = await complete_priced(provider, request)
            except ProviderError as error:
                raise _with_usage(error, used, provider.name) from error
        used += response.usage
        value, problems = _judge(response, validator)
        if not problems:
            return StructuredResponse(value, used, response)
        request = replace(request, messages=[*request.messages, *_correction(response.text, problems)])
    raise BilledError(
        f'provider "{provider.name}" gave no valid answer in {max_corrections + 1} attempts; the last one: '
        + "; ".join(problems),
        kind=FailureKind.INVALID,
        usage=used,
    )


async def complete_priced(provider: Provider, request: ModelRequest) -> ModelResponse:
    """One call of a provider; the usage of the response, or of a failure that was billed, has its cost.

    Raises:
        ProviderError: the call failed.
    """
    try:
        response = await provider.complete(request)
    except BilledError as error:
        usage = priced(error.usage, provider.name, request.model)
        raise BilledError(
            error.message, kind=error.kind, retry_after=error.retry_after, detail=error.detail, usage=usage
        ) from error
    usage = priced(response.usage, provider.name, request.model, answering=response.model)
    ending = (response.finish_reason, response.response_id, response.metadata)
    return ModelResponse(response.text, response.model, usage, *ending)


def _with_usage(error: ProviderError, used: Usage, provider: str) -> ProviderError:
    """The same failure, with the usage of this call and the earlier ones; unchanged if none of them was answered."""
    if not used.attempts:
        return error
    used += error.usage if isinstance(error, BilledError) else Usage(provider, attempts=1)
    return BilledError(error.message, kind=error.kind, retry_after=error.retry_after, detail=error.detail, usage=used)


def _judge(response: ModelResponse, validator: Validator) -> tuple[Json, list[str]]:
    """The value and its faults, each one line with place and rule."""
    if response.finish_reason == "length":
        # Even if it can be parsed: a cut tool input may be a valid object without its last fields.
        return None, ["the answer was cut off because it was too long; answer again, more briefly"]
    try:
        value = _parse(response.text)
    except InvalidJson as error:
        return None, [f"not valid JSON: {error.message}; answer with one JSON value and nothing else"]
    problems: list[str] = []
    for violation in validator.iter_errors(value):
        if len(problems) == _MAX_VIOLATIONS:
            problems.append("and more")
            break
        problems.append(f"{violation.place or 'the answer'}: {violation.message}"[:_MAX_VIOLATION_LENGTH])
    return value, problems


def _parse(text: str) -> Json:
    try:
        return parse_json(text)
    except InvalidJson:
        inner = _unfence(text)
        if inner is None:
            raise
        return parse_json(inner)


def _unfence(text: str) -> str | None:
    """Content of the text's only fenced block if the text ends with it; else None."""
    parts = text.split(_FENCE)
    if len(parts) != 3 or parts[2].strip():
        return None
    first, _, rest = parts[1].partition("\n")
    return rest if first.strip().lower() in {"", "json"} else None


def _correction(text: str, problems: Sequence[str]) -> tuple[Message, Message]:
    # Providers refuse empty turns.
    echo = text if len(text) <= _MAX_ECHO else text[:_MAX_ECHO] + "…"
    listed = "\n".join(f"- {problem}" for problem in problems)
    return (
        Message("assistant", echo.strip() or "(no answer)"),
        Message("user", f"Your answer is not valid:\n{listed}\nAnswer again with the corrected JSON only."),
    )
