"""References to stored values. Histories, journals, messages and traces carry a `Ref`, never the value."""

from __future__ import annotations

import json
from typing import Self, TypedDict

from interlock.base.labels import Labels, LabelsJson
from interlock.base.values import value

# Created once, because `json.dumps` creates one for every call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class RefJson(TypedDict):
    """A `Ref` as JSON."""

    digest: str
    size: int
    labels: LabelsJson


@value(frozen=True, slots=True)
class Ref:
    """Reference to a stored JSON value.

    Attributes:
        digest: 64 hexadecimal digits, an HMAC of the value under a key of its organisation and subjects, so that
            a low-entropy value cannot be confirmed by guessing.
        size: bytes of the value as canonical JSON.
        labels: see `Labels`.
    """

    digest: str
    size: int
    labels: Labels

    def to_json(self) -> RefJson:
        return {"digest": self.digest, "size": self.size, "labels": self.labels.to_json()}

    @classmethod
    def from_json(cls, data: RefJson) -> Self:
        return cls(data["digest"], data["size"], Labels.from_json(data["labels"]))


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, ASCII only, no NaN: one value, one byte string.

    Equal to RFC 8785 for the values hashed here (ASCII keys, integers, strings, booleans, null). It needs only the
    standard library, because the stand-alone audit verifier has no other dependency.

    Raises:
        ValueError: for NaN and infinity.
        TypeError: for values that are not JSON.
    """
    return _CANONICAL.encode(value).encode()
