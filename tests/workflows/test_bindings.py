"""References and what they find."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.workflows.bindings import Reference, dig, parse, references, resolve


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$input", Reference("input", None, (), "$input")),
        ("$input.text", Reference("input", None, ("text",), "$input.text")),
        ("$input.a.0.b-c_D", Reference("input", None, ("a", "0", "b-c_D"), "$input.a.0.b-c_D")),
        ("$steps.classify", Reference("steps", "classify", (), "$steps.classify")),
        ("$steps.s1.items.2", Reference("steps", "s1", ("items", "2"), "$steps.s1.items.2")),
        ("$run.id", Reference("run", None, ("id",), "$run.id")),
    ],
)
def test_references(text: str, expected: Reference) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("literal", ["", "plain", "5 $", "input.text", "$$", "$$input.text", 5, None, True, 1.5])
def test_literals(literal: Any) -> None:
    assert parse(literal) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "$",
            "$inputs",
            "$input.",
            "$input..a",
            "$input.a b",
            "$input[0]",
            "$steps",
            "$steps.",
            "$steps.Upper",
            "$step.a",
        ),
        *("$input.text\n", "$ input", "$run.id ", "$steps.a.ü", "${bank}", "$env.HOME", "$input.__class__()"),
    ],
)
def test_what_only_looks_like_a_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a reference; write"):
        parse(text)


def test_references_are_found_at_any_depth_and_keys_are_none() -> None:
    tree = {"$input.key": ["$input.a", {"b": "$steps.s.b"}, "text", 5], "c": "$$no"}
    assert [one.text for one in references(tree)] == ["$input.a", "$steps.s.b"]


def test_resolve_replaces_references_only() -> None:
    tree = {"a": "$input.a", "b": ["$run.id", "x", None, 3], "money": "$$5", "two": "$$$$"}
    found = resolve(tree, lambda reference: {"looked up": reference.text})
    assert found == {
        "a": {"looked up": "$input.a"},
        "b": [{"looked up": "$run.id"}, "x", None, 3],
        "money": "$5",
        "two": "$$$",
    }
    assert tree["a"] == "$input.a"


def test_what_is_found_is_not_looked_into() -> None:
    """A value that a customer wrote may look like a reference; it stays text."""
    assert resolve("$input.text", lambda _: "$steps.secret.key") == "$steps.secret.key"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((), {"a": [10, {"b": None, "0": "zero"}]}),
        (("a", "0"), 10),
        (("a", "1", "0"), "zero"),
        (("a", "1", "b"), None),
        (("a", "2"), None),
        (("a", "-1"), None),
        (("a", "b"), None),
        (("a", "0", "deeper"), None),
        (("nope", "at", "all"), None),
        (("a", "²"), None),
        (("a", "9" * 5000), None),
    ],
)
def test_dig(path: tuple[str, ...], expected: Any) -> None:
    assert dig({"a": [10, {"b": None, "0": "zero"}]}, path) == expected


@given(st.text(max_size=30))
def test_any_string_is_a_literal_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except ValueError:
        assert text.startswith("$")
        return
    assert (reference is None) == (not text.startswith("$") or text.startswith("$$"))
