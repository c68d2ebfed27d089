"""Guard gate: inspects every text of a person, a model or a tool before it is stored or forwarded.

::

    stage          prompt injection         personal data and credentials
    input          flagged, or refused      redacted
    human_text     flagged, or refused      redacted
    tool_output    flagged                  found, and the value labelled
    model_output   flagged                  found, and the value labelled
    recalled       flagged                  found, and the value labelled

Output of a tool or a model is not redacted: a later step may need an address in it, and a token would violate a contract
that requires an address. It is labelled `pii` instead, so a policy can refuse it to a model or a tool.

The time of the detectors grows with the text. Above `INLINE_CHARACTERS` they run in a thread, in pieces
(`windows`), to keep the event loop free.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Literal

from interlock.base.acceptance import MARK
from interlock.base.accepted import Accepted
from interlock.base.errors import Denied
from interlock.base.json import Json
from interlock.base.values import value
from interlock.guard.injection import scan
from interlock.guard.pii import Redactor, find, strings

INLINE_CHARACTERS = 20_000
"""Maximum characters of a value's texts for an inspection in the event loop: a few milliseconds."""
# Of their own, and few: they compete with the event loop for the interpreter lock, and must not delay the work of other threads.
_THREADS = ThreadPoolExecutor(2, "guard")


class Stage(StrEnum):
    """Source of a value."""

    INPUT = "input"
    TOOL_OUTPUT = "tool_output"
    MODEL_OUTPUT = "model_output"
    RECALLED = "recalled"
    HUMAN_TEXT = "human_text"


_OF_PEOPLE = frozenset({Stage.INPUT, Stage.HUMAN_TEXT})


@value(frozen=True, slots=True)
class Inspection:
    """Result of an inspection.

    Attributes:
        accepted: the value in the form that may be stored and forwarded.
        injections: kinds of prompt injection; `personal`: kinds of personal data and credentials; both sorted.
        action: reaction to the findings.
    """

    accepted: Accepted
    injections: tuple[str, ...]
    personal: tuple[str, ...]
    action: Literal["pass", "flag", "redact"]

    @property
    def value(self) -> Json:
        return self.accepted.value

    @property
    def findings(self) -> list[str]:
        """Names for audit entries: kinds of injection unchanged, kinds of personal data as `personal:KIND`."""
        return [*self.injections, *(f"personal:{kind}" for kind in self.personal)]

    @property
    def flags(self) -> list[str]:
        """Names for the flags of runs: `injection:KIND` and `redacted:KIND`."""
        return [
            *(f"injection:{kind}" for kind in self.injections),
            *(f"redacted:{kind}" for kind in self.personal if self.action == "redact"),
        ]


async def inspect(
    value: Json, stage: Stage, org: str, *, redactor: Redactor | None = None, block: bool = False
) -> Inspection:
    """Inspects a value.

    Args:
        org: organisation of the value.
        redactor: replaces personal data in text of people; None redacts irreversibly.
        block: refuse text of people that contains a prompt injection (`guard.on_injection`).

    Raises:
        Denied: the value is refused; no part of it may be stored.
    """
    del org  # detectors are the same for every organisation today
    people = stage in _OF_PEOPLE
    if people and redactor is None:
        redactor = Redactor.new()
    texts = list(strings(value))
    if sum(map(len, texts)) > INLINE_CHARACTERS:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(_THREADS, _detect, value, texts, redactor if people else None)
    else:
        found = _detect(value, texts, redactor if people else None)
    injections, personal, shown = found
    if injections and people and block:
        named = ", ".join(f"injection:{kind}" for kind in injections)
        raise Denied(f"the {_NAMES[stage]} looks like an injected order ({named}); guard.on_injection is set to block")
    redacted = people and bool(personal)
    action: Literal["pass", "flag", "redact"] = "redact" if redacted else "flag" if injections or personal else "pass"
    return Inspection(Accepted(shown, MARK), tuple(injections), tuple(personal), action)


def composed(value: Json) -> Accepted:
    """Accepts a value composed of accepted values and parts of a definition: bound arguments, a rendered request."""
    return Accepted(value, MARK)


def secret(vault: dict[str, str]) -> Accepted:
    """Accepts a redactor's vault, which contains the redacted values and is stored with the label `secret`."""
    return Accepted(vault, MARK)


def _detect(value: Json, texts: list[str], redactor: Redactor | None) -> tuple[list[str], list[str], Json]:
    injections = scan(texts)
    if redactor is None:
        return injections, sorted({one.kind for text in texts for one in find(text)}), value
    shown = redactor.redact(value)
    return injections, sorted(redactor.counts), shown


_NAMES = {Stage.INPUT: "input", Stage.HUMAN_TEXT: "value"}
