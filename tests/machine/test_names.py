"""Names with structure: text and types are each other's inverse, and no other module cuts or builds such text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import interlock
from interlock.machine import names
from interlock.machine.names import (
    CommandKey,
    CommandKind,
    EffectName,
    InstanceName,
    InvalidName,
    Segment,
    TimerKey,
    TimerKind,
)

_IDS = st.from_regex(r"\A[a-z][a-z0-9_]{0,10}\Z")
_SEGMENTS = st.builds(Segment, _IDS, st.none() | st.integers(1, 10**8))
_INSTANCES = st.builds(InstanceName, st.lists(_SEGMENTS, min_size=1, max_size=4).map(tuple))
_TEXTS = _INSTANCES.map(str)
_COUNTS = st.integers(0, 10**6)
_TIMERS = st.one_of(
    st.just(TimerKey(TimerKind.DEADLINE)),
    st.builds(TimerKey.retry, _TEXTS, _COUNTS),
    st.builds(TimerKey.defer, _TEXTS, _COUNTS, _COUNTS),
    st.builds(TimerKey.compensate, _TEXTS, _COUNTS),
    st.builds(TimerKey.wait, _TEXTS),
    st.builds(TimerKey.limit, _TEXTS, st.integers(1, 99)),
)
_COMMANDS = st.builds(CommandKey, st.sampled_from(CommandKind), _TEXTS, _COUNTS)
_EFFECTS = st.builds(EffectName, _TEXTS, _COUNTS)
TYPES: tuple[Any, ...] = (InstanceName, TimerKey, CommandKey, EffectName)


@settings(deadline=None)
@given(st.one_of(_INSTANCES, _TIMERS, _COMMANDS, _EFFECTS))
def test_round_trip(name: Any) -> None:
    assert type(name).parse(str(name)) == name


@settings(deadline=None)
@given(st.text() | st.text("ab#/:~12\n retywaitlim", max_size=20))
def test_hostile_text_is_a_name_or_refused_with_one_kind_of_error(text: str) -> None:
    for kind in TYPES:
        try:
            name = kind.parse(text)
        except InvalidName:
            continue
        assert str(name) == text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (InstanceName, ""),
        (InstanceName, "each#"),
        (InstanceName, "each#0"),
        (InstanceName, "each#03"),
        (InstanceName, "each//charge"),
        (InstanceName, "each#٣"),
        (TimerKey, "retry:a"),
        (TimerKey, "retry:a:1:2"),
        (TimerKey, "deadline:a"),
        (TimerKey, "limit:a:1"),
        (TimerKey, "wait:a:1"),
        (TimerKey, "nap:a"),
        (CommandKey, "perform:a"),
        (CommandKey, "destroy:a:1"),
        (CommandKey, "perform:a:-1"),
        (EffectName, "a~0"),
        (EffectName, "a~"),
        (EffectName, "~1"),
    ],
)
def test_what_is_no_name(kind: Any, text: str) -> None:
    with pytest.raises(InvalidName):
        kind.parse(text)


@settings(deadline=None)
@given(_INSTANCES)
def test_the_functions_on_text_agree_with_the_type(name: InstanceName) -> None:
    text = str(name)
    assert names.path_of(text) == name.path
    assert names.is_numbered(text) == (name.number is not None)
    assert names.enclosing(text) == (str(name.frame) if name.frame is not None else "")
    assert names.space_of(text) + str(name.segments[-1]) == text
    assert names.id_of(name.path) == name.segments[-1].id
    assert InstanceName.parse(names.within(text, "b")).frame == name
    assert names.beside(text, "b") == str(InstanceName((*name.segments[:-1], Segment("b"))))
    if name.number is not None:
        assert names.unnumbered(text) == str(name.numbered(None))
        assert names.frame_of(names.unnumbered(text), name.number) == text
    assert InstanceName.parse(names.call_of(text, 3)).number == 3
    assert InstanceName.parse(names.turn_of(text)).path == f"{name.path}/turn"


# What building or cutting such a name by hand looks like.
_BY_HAND = re.compile(
    r"""[rf]+["'](?:retry|defer|compensate|wait|limit|perform|deadline):\{     # a timer or a command
      | \{[a-z_.]+\}[#~]\{                                                     # an item, a variant
      | \{[a-z_.]*(?:name|frame|owner|path|container)\}/                       # a step in a body
      | (?:find|index|split|partition)\(["'][#~]["']                           # cutting at a number or a variant
      | ["']\#["']\ in\                                                        # looking for one
      | (?:name|frame|path|near|container|instance|timer)\.r?(?:find|split|partition|index)\(
    """,
    re.VERBOSE,
)


def test_no_other_module_cuts_or_builds_a_name() -> None:
    root = Path(interlock.__file__).parent
    packages = ("machine", "execution", "engines", "services", "cli", "api", "budget")
    files = [file for one in packages for file in (root / one).rglob("*.py") if file != root / "machine" / "names.py"]
    assert len(files) > 50
    found = [
        f"{file.relative_to(root)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if _BY_HAND.search(line) and "http" not in line
    ]
    assert not found, "use interlock.machine.names:\n" + "\n".join(found)


def test_the_pattern_finds_what_it_is_for() -> None:
    by_hand = [
        'name[: name.rfind("#")]',
        '"#" in name[name.rfind("/") + 1 :]',
        'f"retry:{name}:{step.attempt}"',
        'kind, name, *_ = timer.split(":")',
        'frame = f"{name}#{number}"',
        'f"{name}~{variant}"',
        'f"{frame}/{TURN}"',
        'head, _, number = frame.rpartition("#")',
    ]
    assert all(_BY_HAND.search(line) for line in by_hand)
