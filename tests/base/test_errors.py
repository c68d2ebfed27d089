"""The error tree: what clients, scripts and operators rely on."""

from __future__ import annotations

from interlock.base import errors
from interlock.base.errors import FailureKind, InterlockError, ProviderError, StepError


def _tree(kind: type[InterlockError] = InterlockError) -> list[type[InterlockError]]:
    return [
        kind,
        *(one for child in kind.__subclasses__() if child.__module__ == errors.__name__ for one in _tree(child)),
    ]


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in _tree()]
    assert sorted(codes) == sorted(set(codes))


def test_statuses_and_exit_codes_make_sense() -> None:
    for kind in _tree():
        assert 400 <= kind.http_status <= 599
        assert 1 <= kind.exit_code <= 125, "0 is success, and shells use what is above"


def test_the_docstring_shows_the_whole_tree() -> None:
    shown = errors.__doc__ or ""
    assert [kind.__name__ for kind in _tree() if kind.__name__ not in shown] == []


def test_what_is_only_for_the_log_is_not_in_the_message() -> None:
    error = ProviderError("the provider refused", kind=FailureKind.RATE_LIMITED, retry_after=3.0, detail="key sk-123")
    assert str(error) == error.message == "the provider refused"
    assert (error.detail, error.kind, error.retry_after) == ("key sk-123", FailureKind.RATE_LIMITED, 3.0)
    assert StepError("x").kind is FailureKind.TRANSIENT
