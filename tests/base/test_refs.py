"""References and the one byte string of a value."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.base.refs import Ref, canonical_json

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def _shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, _shuffled(one, rng)) for key, one in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [_shuffled(one, rng) for one in value] if isinstance(value, list) else value


@given(_JSON, st.randoms(use_true_random=True))
def test_one_value_one_byte_string(value: Any, rng: random.Random) -> None:
    packed = canonical_json(value)
    assert json.loads(packed) == value
    assert canonical_json(_shuffled(value, rng)) == packed
    assert packed.isascii()
    assert b"\n" not in packed


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        ({"b": 1, "a": [True, None, "ä\n"]}, b'{"a":[true,null,"\\u00e4\\n"],"b":1}'),
        ({}, b"{}"),
        ("\U0001f600", b'"\\ud83d\\ude00"'),
        (10**20, b"100000000000000000000"),
        (-0.5, b"-0.5"),
    ],
)
def test_pinned(value: Any, packed: bytes) -> None:
    """Digests, signatures and idempotency keys hang on these bytes."""
    assert canonical_json(value) == packed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], {"a": {"b": float("nan")}}])
def test_what_json_has_no_number_for(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), {"a": 1j}, {(1, 2): 3}])
def test_what_is_not_json(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_ref_comes_back_from_text() -> None:
    ref = Ref("ab" * 32, 17, Labels(Trust.USER, Sensitivity.PII, subjects=frozenset({"s2", "s1"}), as_of=5.5))
    assert Ref.from_json(json.loads(json.dumps(ref.to_json()))) == ref
