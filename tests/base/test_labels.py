"""Labels join as a lattice: whatever is combined, in whichever order, nothing gets cleaner than its dirtiest part."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from interlock.base.labels import NEUTRAL, Labels, Sensitivity, Trust

_names = st.frozensets(st.sampled_from("abcd"), max_size=3)
LABELS = st.builds(
    Labels, st.sampled_from(Trust), st.sampled_from(Sensitivity), _names, _names, st.none() | st.floats(0, 2e9)
)


@given(LABELS, LABELS, LABELS)
def test_join_is_associative_commutative_and_idempotent(a: Labels, b: Labels, c: Labels) -> None:
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(b) == b.join(a)
    assert a.join(a) == a
    assert a.join(NEUTRAL) == a


@given(LABELS, LABELS)
def test_join_only_ever_gets_worse(a: Labels, b: Labels) -> None:
    joined = a.join(b)
    assert joined.trust <= a.trust
    assert joined.sensitivity >= a.sensitivity
    assert joined.subjects >= a.subjects
    assert joined.origins >= a.origins
    assert joined.as_of is not None or a.as_of is None
    assert joined.as_of is None or a.as_of is None or joined.as_of <= a.as_of


def test_an_example() -> None:
    order = Labels(Trust.USER, Sensitivity.PII, frozenset({"p1"}), frozenset({"input"}), None)
    price = Labels(Trust.TOOL, Sensitivity.INTERNAL, frozenset(), frozenset({"tool:prices"}), 1000.0)
    assert order.join(price) == Labels(
        Trust.TOOL, Sensitivity.PII, frozenset({"p1"}), frozenset({"input", "tool:prices"}), 1000.0
    )


def test_nobody_is_more_trusted_than_the_system() -> None:
    assert sorted(Trust) == [Trust.TOOL, Trust.USER, Trust.DEVELOPER, Trust.SYSTEM]
    assert sorted(Sensitivity) == [Sensitivity.PUBLIC, Sensitivity.INTERNAL, Sensitivity.PII, Sensitivity.SECRET]


@given(LABELS)
def test_round_trip_through_text(labels: Labels) -> None:
    assert Labels.from_json(json.loads(json.dumps(labels.to_json()))) == labels
