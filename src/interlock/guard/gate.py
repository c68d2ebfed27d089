"""The gate: every text of a person, a model or a tool passes it before it is stored or sent on.

::

    stage          injected orders          personal data and credentials
    input          flagged, or refused      redacted
    human_text     flagged, or refused      redacted
    tool_output    flagged                  found, and the value labelled
    model_output   flagged                  found, and the value labelled
    recalled       flagged                  found, and the value labelled

What a tool or a model gave is not redacted: a later step may need the address that it looked up, and a token would break a
contract that asks for one. It is labelled `pii` instead, so a policy can keep it from a model or a tool.

Detectors take time that grows with the text. Above `INLINE_CHARACTERS` they run in a thread, so the event loop goes on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from interlock.base.acceptance import MARK
from interlock.base.accepted import Accepted
from interlock.base.errors import Denied
from interlock.base.json import Json
from interlock.guard.injection import scan
from interlock.guard.pii import Redactor, find, strings

INLINE_CHARACTERS = 20_000
"""Characters of a value's texts that are looked at in the event loop: a few milliseconds."""


class Stage(StrEnum):
    """Where a value came from."""

    INPUT = "input"
    TOOL_OUTPUT = "tool_output"
    MODEL_OUTPUT = "model_output"
    RECALLED = "recalled"
    HUMAN_TEXT = "human_text"


_OF_PEOPLE = frozenset({Stage.INPUT, Stage.HUMAN_TEXT})


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the gate made of a value.

    Attributes:
        accepted: the value as it may be stored and sent on.
        injections: kinds of injected orders; `personal`: kinds of personal data and credentials, each sorted.
        action: what was done about them.
    """

    accepted: Accepted
    injections: tuple[str, ...]
    personal: tuple[str, ...]
    action: Literal["pass", "flag", "redact"]

    @property
    def value(self) -> Any:
        return self.accepted.value

    @property
    def findings(self) -> list[str]:
        """As audit entries name them: kinds of orders as they are, kinds of personal data as `personal:KIND`."""
        return [*self.injections, *(f"personal:{kind}" for kind in self.personal)]

    @property
    def flags(self) -> list[str]:
        """As runs name them: `injection:KIND` and `redacted:KIND`."""
        return [
            *(f"injection:{kind}" for kind in self.injections),
            *(f"redacted:{kind}" for kind in self.personal if self.action == "redact"),
        ]


async def inspect(
    value: Json, stage: Stage, org: str, *, redactor: Redactor | None = None, block: bool = False
) -> Inspection:
    """Looks at a value.

    Args:
        org: whose value it is.
        redactor: replaces personal data in what people write; None redacts for good, without a way back.
        block: refuse what people write if it holds an injected order (`guard.on_injection`).

    Raises:
        Denied: it is refused. Nothing of it may be stored.
    """
    del org  # detectors are the same for every organisation today
    people = stage in _OF_PEOPLE
    if people and redactor is None:
        redactor = Redactor.new()
    if sum(map(len, strings(value))) > INLINE_CHARACTERS:
        found = await asyncio.to_thread(_detect, value, redactor if people else None)
    else:
        found = _detect(value, redactor if people else None)
    injections, personal, shown = found
    if injections and people and block:
        named = ", ".join(f"injection:{kind}" for kind in injections)
        raise Denied(f"the {_NAMES[stage]} looks like an injected order ({named}); guard.on_injection is set to block")
    redacted = people and bool(personal)
    action: Literal["pass", "flag", "redact"] = "redact" if redacted else "flag" if injections or personal else "pass"
    return Inspection(Accepted(shown, MARK), tuple(injections), tuple(personal), action)


def composed(value: Any) -> Accepted:
    """A value that is put together from accepted values and from what a definition says: bound arguments, a rendered request."""
    return Accepted(value, MARK)


def secret(vault: dict[str, str]) -> Accepted:
    """A redactor's vault: it holds what was redacted, and is stored under the label `secret`."""
    return Accepted(vault, MARK)


def _detect(value: Any, redactor: Redactor | None) -> tuple[list[str], list[str], Any]:
    injections = scan(value)
    if redactor is None:
        return injections, sorted({one.kind for text in strings(value) for one in find(text)}), value
    shown = redactor.redact(value)
    return injections, sorted(redactor.counts), shown


_NAMES = {Stage.INPUT: "input", Stage.HUMAN_TEXT: "value"}
