"""The public fake itself: its instances are valid, its behaviours are what they say."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.gateway.openai import OpenAIProvider
from interlock.testing import FakeProvider, example_instance

from .conftest import SCHEMA, request

scalars = st.one_of(
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-1000, 1000),
        st.integers(0, 9),
    ),
    st.builds(lambda high: {"type": "integer", "maximum": high}, st.integers(-1000, 1000)),
    st.builds(lambda low: {"type": "integer", "exclusiveMinimum": low}, st.integers(-1000, 1000)),
    st.builds(lambda high: {"type": "number", "exclusiveMaximum": high}, st.integers(-1000, 1000)),
    st.builds(
        lambda low, span: {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + span},
        st.integers(-9, 9),
        st.sampled_from([0.25, 1, 7]),
    ),
    st.builds(
        lambda step, low: {"type": "integer", "multipleOf": step, "minimum": low},
        st.integers(1, 9),
        st.integers(-99, 99),
    ),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
        st.integers(0, 20),
        st.integers(0, 5),
    ),
    st.builds(lambda name: {"type": "string", "format": name}, st.sampled_from(["date", "date-time", "uuid", "email"])),
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"enum": ["x", 1]}, {"const": [1]}, {"type": ["null", "string"]}]
    ),
)


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 3)
    )
    objects = st.dictionaries(st.sampled_from("abcd"), inner).map(
        lambda fields: {
            "type": "object",
            "properties": fields,
            "required": sorted(fields)[:2],
            "additionalProperties": False,
        }
    )
    return st.one_of(arrays, objects, inner.map(lambda schema: {"anyOf": [schema, {"type": "null"}]}))


@given(st.recursive(scalars, containers, max_leaves=8))
def test_examples_are_valid_by_an_independent_validator(schema: dict[str, Any]) -> None:
    value = example_instance(schema)
    jsonschema_rs.validate(schema, value, validate_formats=True)
    assert example_instance(schema) == value


def test_references_recursion_and_allof() -> None:
    schema: dict[str, Any] = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}},
                "required": ["name"],
            }
        },
        "allOf": [{"$ref": "#/$defs/node"}, {"type": "object", "properties": {"n": {"const": 3}}, "required": ["n"]}],
    }
    assert example_instance(schema) == {"name": "text", "n": 3}


async def test_what_has_no_example_is_said(fake: FakeProvider, openai: OpenAIProvider) -> None:
    with pytest.raises(ValueError, match="script an answer"):
        example_instance({"type": "string", "pattern": "^a$"})
    with pytest.raises(Exception, match="script an answer"):
        await openai.complete(request(schema={"type": "string", "pattern": "^a$"}))


async def test_it_counts_and_records(fake: FakeProvider, openai: OpenAIProvider) -> None:
    await openai.complete(request(schema=SCHEMA))
    assert fake.count == 1
    assert fake.requests[0].path == "/v1/chat/completions"
    assert fake.requests[0].body["model"] == "pinned-1"
