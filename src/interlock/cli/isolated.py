"""Work in a child process, so that a crash in a native library ends the child and becomes one sentence."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

from interlock.base.errors import InvalidSpec
from interlock.base.json import Json, JsonObject


def in_child(work: Callable[[], JsonObject]) -> JsonObject:
    """The result of `work`, which a copy of this process executes; it must not use threads, and only its result is kept.

    Raises:
        InvalidSpec: as `work` does, or the child was ended by a signal.
        OSError: as `work` does.
        RuntimeError: another error of `work`.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(json.dumps(_outcome(work)).encode())
        finally:
            os._exit(0)  # without the exit handlers, which belong to the parent
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        raise InvalidSpec(
            f"the definitions cannot be read: a parser was ended by {name}; look for a condition, policy, schema or prompt "
            "that is very long or nested very deeply, and shorten it"
        )
    outcome = json.loads(content)
    if outcome["kind"] == "result":
        result: JsonObject = outcome["value"]
        return result
    raise _error(outcome["kind"], outcome["value"])


def _outcome(work: Callable[[], JsonObject]) -> dict[str, Json]:
    try:
        return {"kind": "result", "value": work()}
    except InvalidSpec as error:
        return {"kind": "spec", "value": error.message}
    except OSError as error:
        return {"kind": "system", "value": [error.errno, error.strerror, str(error.filename or "") or None]}
    except MemoryError:
        return {"kind": "spec", "value": "the definitions need more memory than there is; shorten them"}
    except Exception as error:  # noqa: BLE001  the parent raises it
        return {"kind": "other", "value": f"{type(error).__name__}: {error}"}


def _error(kind: str, value: Json) -> Exception:
    if kind == "spec":
        return InvalidSpec(str(value))
    if kind == "system" and isinstance(value, list):
        return OSError(*value)
    return RuntimeError(str(value))
