"""The mapping of the state against plain dicts, every version of it, in any order of reading and changing."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.machine.persistent import PersistentMap, changed_keys

_KEYS = st.sampled_from("abcdef")
_CHANGES = st.lists(st.tuples(_KEYS, st.none() | st.integers(0, 3)), max_size=4)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 30), _CHANGES), max_size=15), st.lists(st.integers(0, 30), max_size=20))
def test_every_version_stays_what_it_was(steps: list[tuple[int, Any]], reads: list[int]) -> None:
    versions: list[tuple[PersistentMap[int], dict[str, int]]] = [(PersistentMap({"a": 1, "b": 2}), {"a": 1, "b": 2})]
    for number, changes in steps:
        made, plain = versions[number % len(versions)]
        edit, copy = made.edit(), dict(plain)
        for key, value in changes:
            if value is None:
                assert edit.pop(key) == copy.get(key)
                copy.pop(key, None)
            else:
                edit[key] = value
                copy[key] = value
            assert {one: edit[one] for one in edit} == copy
            assert bool(edit) == bool(copy)
            assert all((one in edit) == (one in copy) and edit.get(one) == copy.get(one) for one in "abcdef")
        last = edit.last()
        versions.append((edit.done(), copy))
        assert last == next(reversed(list(versions[-1][0])), None)
    for number in [*reads, *range(len(versions))]:
        made, plain = versions[number % len(versions)]
        for key in "abcdef":
            assert (key in made) == (key in plain)
            assert made.get(key) == plain.get(key)
        assert made == plain
        assert sorted(made, key=made.position) == list(made)
    for (before, old), (after, new) in itertools.pairwise(versions):
        differ = {key for key in "abcdef" if old.get(key) != new.get(key) or (key in old) != (key in new)}
        assert changed_keys(before, after) >= differ


def test_keys_keep_their_order_in_an_older_version() -> None:
    first = PersistentMap(dict.fromkeys("abcde", 0))
    edit = first.edit()
    for key in "bd":
        edit.pop(key)
    edit["f"] = 1
    second = edit.done()
    assert list(second) == ["a", "c", "e", "f"]
    assert list(first) == ["a", "b", "c", "d", "e"]


def test_a_change_copies_nothing() -> None:
    """The newest version has the dict that the first one made; the changed keys of a step are known without a comparison."""
    made = first = PersistentMap({str(number): 0 for number in range(1000)})
    content = made._content
    for number in range(1000):
        before, edit = made, made.edit()
        edit[str(number)] = 1
        made = edit.done()
        assert changed_keys(before, made) == {str(number)}
    assert made._content is content
    assert set(made.values()) == {1}
    assert first["999"] == 0  # by the way back, which copies nothing either
    assert made._content is content
    assert set(first.values()) == {0}


def test_a_long_line_of_versions_can_be_dropped() -> None:
    made = first = PersistentMap[int]()
    for number in range(200_000):
        edit = made.edit()
        edit["a"] = number
        made = edit.done()
    assert "a" not in first
    del first
    gc.collect()
    assert made == {"a": 199_999}


def test_what_is_not_there() -> None:
    made = PersistentMap({"a": 1})
    edit = made.edit()
    edit.pop("a")
    for one in (edit, edit.done()):
        with pytest.raises(KeyError):
            one["a"]
        with pytest.raises(KeyError):
            one["b"]
    with pytest.raises(KeyError):
        edit.done().position("b")
