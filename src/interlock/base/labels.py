"""Labels: trust, sensitivity and provenance of a value. A combined value has the join of the labels.

Labels have no defaults: code that makes a value says where it comes from. What cannot say it is `UNTRUSTED`.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum
from functools import lru_cache
from typing import TypedDict

from interlock.base.values import value


class Trust(IntEnum):
    """Origin of a value by trust. A combination is as trustworthy as its least trusted part."""

    TOOL = 0
    USER = 1
    DEVELOPER = 2
    SYSTEM = 3


class Sensitivity(IntEnum):
    """Audience of a value. A combination is as sensitive as its most sensitive part."""

    PUBLIC = 0
    INTERNAL = 1
    PII = 2
    SECRET = 3


class LabelsJson(TypedDict):
    """`Labels` as JSON."""

    trust: str
    sensitivity: str
    subjects: list[str]
    origins: list[str]
    as_of: float | None


@value(frozen=True, slots=True)
class Labels:
    """The labels of one value.

    Attributes:
        trust: see `Trust`.
        sensitivity: see `Sensitivity`.
        subjects: pseudonyms of the people the value is about; destroying one of their keys erases the value.
        origins: sources, such as `input` or `tool:lookup_customer`.
        as_of: seconds since the epoch at which the oldest part was true; None if it does not age.
    """

    trust: Trust
    sensitivity: Sensitivity
    subjects: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    as_of: float | None = None

    def join(self, other: Labels) -> Labels:
        """The labels of a value made from both. Associative, commutative, idempotent; `NEUTRAL` is neutral."""
        as_of = self.as_of
        if as_of is None or (other.as_of is not None and other.as_of < as_of):
            as_of = other.as_of
        return Labels(
            trust=min(self.trust, other.trust),
            sensitivity=max(self.sensitivity, other.sensitivity),
            subjects=self.subjects | other.subjects,
            origins=self.origins | other.origins,
            as_of=as_of,
        )

    def passed(self, source: str, trust: Trust) -> Labels:
        """The labels of what a source, such as `tool:lookup`, made from a value with these; at most as trusted as the source."""
        return self.join(Labels(trust, Sensitivity.PUBLIC, origins=frozenset({source})))

    def secret(self) -> Labels:
        """These labels, for a value that only the vault may hold."""
        return replace(self, sensitivity=Sensitivity.SECRET)

    def to_json(self) -> LabelsJson:
        return {
            "trust": self.trust.name.lower(),
            "sensitivity": self.sensitivity.name.lower(),
            "subjects": sorted(self.subjects),
            "origins": sorted(self.origins),
            "as_of": self.as_of,
        }

    @classmethod
    def from_json(cls, data: LabelsJson) -> Labels:
        subjects, origins = tuple(data["subjects"]), tuple(data["origins"])
        return _labels(data["trust"], data["sensitivity"], subjects, origins, data["as_of"])


@lru_cache(maxsize=4096, typed=True)
def _labels(
    trust: str, sensitivity: str, subjects: tuple[str, ...], origins: tuple[str, ...], as_of: float | None
) -> Labels:
    """One object for equal labels: a journal of 30,000 values has few different ones."""
    return Labels(
        trust=Trust[trust.upper()],
        sensitivity=Sensitivity[sensitivity.upper()],
        subjects=frozenset(subjects),
        origins=frozenset(origins),
        as_of=as_of,
    )


NEUTRAL = Labels(Trust.SYSTEM, Sensitivity.PUBLIC)
"""Neutral element of `join`, to begin a join with; never the labels of a value."""
DEFINED = Labels(Trust.DEVELOPER, Sensitivity.PUBLIC)
"""Labels of what stands in a definition: literals of a binding, a declared result."""
UNTRUSTED = Labels(Trust.TOOL, Sensitivity.INTERNAL)
"""Labels of a value whose origin is not known."""
