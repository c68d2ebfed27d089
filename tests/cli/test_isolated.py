from __future__ import annotations

import os
import signal

import pytest

from interlock.base.errors import InvalidSpec
from interlock.base.json import JsonObject
from interlock.cli.isolated import in_child


def test_a_result_comes_back() -> None:
    assert in_child(lambda: {"pid": os.getpid()}) != {"pid": os.getpid()}
    assert in_child(lambda: {"long": "x" * 1_000_000}) == {"long": "x" * 1_000_000}


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_one_sentence(number: signal.Signals) -> None:
    def crash() -> JsonObject:
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
        return {}

    with pytest.raises(
        InvalidSpec, match=f"the definitions cannot be read: a parser was ended by {number.name}; look for"
    ):
        in_child(crash)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (InvalidSpec("a.yaml:1: wrong"), InvalidSpec, "a.yaml:1: wrong"),
        (PermissionError(13, "Permission denied", "a.yaml"), PermissionError, "Permission denied: 'a.yaml'"),
        (MemoryError(), InvalidSpec, "more memory than there is"),
        (RecursionError("too deep"), RuntimeError, "RecursionError: too deep"),
    ],
)
def test_errors_come_back(error: Exception, raised: type[Exception], said: str) -> None:
    def fail() -> JsonObject:
        raise error

    with pytest.raises(raised, match=said):
        in_child(fail)
