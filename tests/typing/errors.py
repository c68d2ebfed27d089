"""A user's program that handles errors, labels and time. Checked by mypy, not run."""

from typing import assert_type

from interlock.base.clock import Clock, ManualClock, SystemClock
from interlock.base.errors import FailureKind, InterlockError, InvalidInput, InvalidSpec, StepError
from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.base.refs import Ref, RefJson, canonical_json


def explain(error: InterlockError) -> tuple[str, int, str | None]:
    if isinstance(error, StepError):
        assert_type(error.kind, FailureKind)
        assert_type(error.retry_after, float | None)
    assert_type(error.code, str)
    assert_type(error.exit_code, int)
    return error.message, error.http_status, error.detail


def refuse(place: str) -> InvalidInput:
    return InvalidSpec(f"{place}: is empty; add a step", detail="log only")


def fail() -> StepError:
    return StepError("the service is down", kind=FailureKind.TRANSIENT, retry_after=2.5)


def label(ref: Ref) -> Labels:
    private = Labels(trust=Trust.USER, sensitivity=Sensitivity.PII, subjects=frozenset({"customer:1"}))
    assert_type(ref.to_json(), RefJson)
    assert_type(canonical_json({"a": 1}), bytes)
    return private.join(ref.labels)


def clock(*, real: bool) -> Clock:
    return SystemClock() if real else ManualClock(1_700_000_000.0)


def mistakes(error: InterlockError, ref: Ref) -> None:
    str(error.retry_after)  # type: ignore[attr-defined]
    InvalidInput("text", "log only")  # type: ignore[call-arg]
    Labels(subjects={"customer:1"})  # type: ignore[arg-type,call-arg]
    ref.size = 3  # type: ignore[misc]
