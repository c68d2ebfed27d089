"""Names with structure: of step instances, timers, commands and effects. No other module cuts or builds such text.

Journals, rows and the state keep names as plain text. The functions are for the machine's inner loop, the types for
everything else; `parse` and `str` are each other's inverse, and `parse` raises InvalidName and nothing else.

- instance    `each#3/charge`: ids of steps from the outside in, numbered where a body happens more than once
- timer       `retry:each#3/charge:2`, `wait:hear`, `deadline`
- command     `perform:each#3/charge:2`
- effect      `each#3/charge`, `each#3/charge~1` for its first fallback
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import Self

from interlock.base.errors import InvalidInput
from interlock.base.values import value

TURN, CALL = "turn", "call"
"""What an agent's model calls and tool calls are named within a turn."""

_NUMBER = re.compile(r"#\d+")
_SEGMENT = re.compile(r"([a-z][a-z0-9_]{0,62})(?:#([1-9][0-9]{0,8}))?")
_COUNT = re.compile(r"0|[1-9][0-9]{0,18}")


class InvalidName(InvalidInput):
    code = "invalid_name"


# -- instances, as text --------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def path_of(name: str) -> str:
    """The path of an instance: its name without the numbers."""
    return _NUMBER.sub("", name) if "#" in name else name


def space_of(name: str) -> str:
    """Prefix of an instance's siblings: `each#3/charge` → `each#3/`."""
    return name[: name.rfind("/") + 1]


def body_of(name: str) -> str:
    """Prefix of the steps in an instance's body: `each#3` → `each#3/`."""
    return f"{name}/"


def id_of(name: str) -> str:
    """The last id of a path."""
    return name[name.rfind("/") + 1 :]


def beside(name: str, step: str) -> str:
    """A sibling: `each#3/charge`, `mail` → `each#3/mail`."""
    return space_of(name) + step


def within(name: str, step: str) -> str:
    """A step in the body of an instance: `each#3`, `charge` → `each#3/charge`."""
    return f"{name}/{step}"


def enclosing(name: str) -> str:
    """The instance whose body a step is in: `each#3/charge` → `each#3`; empty for a step of the run's own."""
    return name[: max(name.rfind("/"), 0)]


def frame_of(name: str, number: int) -> str:
    """An item, round or turn: `each`, 3 → `each#3`."""
    return f"{name}#{number}"


def is_numbered(name: str) -> bool:
    """True if an instance is an item, a round, a turn or a call."""
    return name.rfind("#") > name.rfind("/")


def unnumbered(name: str) -> str:
    """Container of an item, round or turn: `each#3` → `each`."""
    return name[: name.rfind("#")]


def turn_of(frame: str) -> str:
    """The model call of an agent's turn: `assist#4` → `assist#4/turn`."""
    return f"{frame}/{TURN}"


def call_of(frame: str, number: int) -> str:
    """A tool call of an agent's turn: `assist#4`, 1 → `assist#4/call#1`."""
    return f"{frame}/{CALL}#{number}"


# -- instances, as a type ------------------------------------------------------------------------------------------


@value(frozen=True, slots=True)
class Segment:
    id: str
    number: int | None = None

    def __str__(self) -> str:
        return self.id if self.number is None else f"{self.id}#{self.number}"


@value(frozen=True, slots=True)
class InstanceName:
    """A step instance, or an item, round or turn. At least one segment."""

    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(tuple(_segment(part, text) for part in text.split("/")))

    @property
    def path(self) -> str:
        """Its ids without the numbers."""
        return "/".join(one.id for one in self.segments)

    @property
    def number(self) -> int | None:
        """Which item, round, turn or call it is."""
        return self.segments[-1].number

    @property
    def frame(self) -> InstanceName | None:
        """The instance whose body it is in; None for a step of the run's own."""
        return InstanceName(self.segments[:-1]) if len(self.segments) > 1 else None

    def numbered(self, number: int | None) -> InstanceName:
        """The same with another number, or none: `each#3` → `each#4`, `each`."""
        return InstanceName((*self.segments[:-1], Segment(self.segments[-1].id, number)))

    def __str__(self) -> str:
        return "/".join(str(one) for one in self.segments)


def _segment(part: str, text: str) -> Segment:
    found = _SEGMENT.fullmatch(part)
    if found is None:
        raise _invalid("a step", text)
    return Segment(found[1], None if found[2] is None else int(found[2]))


# -- timers --------------------------------------------------------------------------------------------------------


class TimerKind(StrEnum):
    RETRY = "retry"  # an attempt that failed is to be made again; counts: attempt
    DEFER = "defer"  # an attempt that could not begin; counts: attempt, deferrals
    COMPENSATE = "compensate"  # a compensation that failed; counts: its attempt
    WAIT = "wait"  # a wait step's time
    LIMIT = "limit"  # an instance's deadline; counts: the attempt with which it began, unless that is 1
    DEADLINE = "deadline"  # the run's


_COUNTS = {TimerKind.RETRY: (1,), TimerKind.DEFER: (2,), TimerKind.COMPENSATE: (1,), TimerKind.LIMIT: (0, 1)}


@value(frozen=True, slots=True)
class TimerKey:
    """A timer of a run. Names the attempt where there may be several, so that one that fires twice does not cut the next short."""

    kind: TimerKind
    instance: str = ""
    counts: tuple[int, ...] = ()

    @classmethod
    def retry(cls, instance: str, attempt: int) -> Self:
        return cls(TimerKind.RETRY, instance, (attempt,))

    @classmethod
    def defer(cls, instance: str, attempt: int, deferrals: int) -> Self:
        return cls(TimerKind.DEFER, instance, (attempt, deferrals))

    @classmethod
    def compensate(cls, instance: str, attempt: int) -> Self:
        return cls(TimerKind.COMPENSATE, instance, (attempt,))

    @classmethod
    def wait(cls, instance: str) -> Self:
        return cls(TimerKind.WAIT, instance)

    @classmethod
    def limit(cls, instance: str, begun: int) -> Self:
        """A requeued step's deadline is another timer: the old one, delivered twice, must not end the new."""
        return cls(TimerKind.LIMIT, instance, () if begun == 1 else (begun,))

    @classmethod
    def parse(cls, text: str) -> Self:
        kind, *rest = text.split(":")
        if kind not in _KINDS or (kind == TimerKind.DEADLINE) != (not rest):
            raise _invalid("a timer", text)
        if not rest:
            return cls(TimerKind.DEADLINE)
        instance, *counts = rest
        InstanceName.parse(instance)
        numbers = tuple(_count(one, "a timer", text) for one in counts)
        if len(numbers) not in _COUNTS.get(_KINDS[kind], (0,)) or (kind == TimerKind.LIMIT and numbers == (1,)):
            raise _invalid("a timer", text)
        return cls(_KINDS[kind], instance, numbers)

    def __str__(self) -> str:
        return ":".join((self.kind.value, *([self.instance] if self.instance else []), *map(str, self.counts)))


_KINDS = {kind.value: kind for kind in TimerKind}
DEADLINE = str(TimerKey(TimerKind.DEADLINE))


# -- commands and effects ------------------------------------------------------------------------------------------


class CommandKind(StrEnum):
    PERFORM = "perform"
    COMPENSATE = "compensate"


_COMMANDS = {kind.value: kind for kind in CommandKind}


@value(frozen=True, slots=True)
class CommandKey:
    """A Perform or Compensate of the machine, as engines that claim single commands know it."""

    kind: CommandKind
    instance: str
    attempt: int

    @classmethod
    def parse(cls, text: str) -> Self:
        kind, *rest = text.split(":")
        if kind not in _COMMANDS or len(rest) != 2:
            raise _invalid("a command", text)
        InstanceName.parse(rest[0])
        return cls(_COMMANDS[kind], rest[0], _count(rest[1], "a command", text))

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.instance}:{self.attempt}"


@value(frozen=True, slots=True)
class EffectName:
    """Name of an instance's work in the effect ledger and the jitter: another variant is another effect."""

    instance: str
    variant: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        instance, mark, variant = text.partition("~")
        InstanceName.parse(instance)
        number = _count(variant, "an effect", text) if mark else 0
        if mark and number == 0:
            raise _invalid("an effect", text)
        return cls(instance, number)

    def __str__(self) -> str:
        return f"{self.instance}~{self.variant}" if self.variant else self.instance


def _count(text: str, what: str, whole: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise _invalid(what, whole)
    return int(text)


def _invalid(what: str, text: str) -> InvalidName:
    return InvalidName(f"{text[:60]!a} is not the name of {what}")
