"""Labels: trust, sensitivity and provenance of a value. A combined value has the join of the labels."""

from __future__ import annotations

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

    trust: Trust = Trust.SYSTEM
    sensitivity: Sensitivity = Sensitivity.PUBLIC
    subjects: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    as_of: float | None = None

    def join(self, other: Labels) -> Labels:
        """The labels of a value made from both. Associative, commutative, idempotent; `Labels()` is neutral."""
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


def join_all(labels: list[Labels]) -> Labels:
    """The join of any number of labels; `Labels()` for none."""
    joined = Labels()
    for one in labels:
        joined = joined.join(one)
    return joined
