"""Parsing of a sandbox's answer, whose bytes come from untrusted code.

A tool shares its process with the runner, so it can write anything to the channel. Every field is checked here for type
and size before it is used, so a hostile tool can only give a wrong answer to its own job.
Its output is only decoded here: `execution/executors.py` holds it against the bounds and the contract of the tool.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from interlock.base.error_detail import MAX_PRINTED, MAX_TRACEBACK, last_lines
from interlock.base.errors import Denied
from interlock.base.json import InvalidJson, Json, decode_json, sentence
from interlock.sandbox.environment import Ending, Job, SandboxResult

ENVELOPE_BYTES = 128 * 1024  # in addition to the output: ending, error text, traceback
_MAX_ERROR = 1000  # characters; an error is one sentence
_MAX_PAUSE = 24 * 3600.0  # seconds
_FROM_RUNNER: Mapping[str, Ending] = {
    "ok": "ok",
    "raised": "raised",
    "crashed": "crashed",
    "out_of_memory": "out_of_memory",
    "garbage": "garbage",
    "too_large": "too_large",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements made by the host, which the answer cannot forge."""

    printed: str
    seconds: float
    start_seconds: float


def read_answer(line: bytes, job: Job, measured: Measured) -> SandboxResult:
    """The result encoded in a complete answer line.

    Raises:
        Denied: the runner found the tool outside the job's allowlist.
    """
    try:
        answer = decode_json(line)
    except InvalidJson as fault:
        return ended("garbage", measured, f"the tool's answer is not JSON: {fault.message}")
    if not isinstance(answer, dict):
        return ended("garbage", measured, "the tool's answer is not a JSON object")
    # Accepted only if it is true: otherwise a tool could fill the audit log with denials that never happened.
    if answer.get("ending") == "denied" and job.tool not in job.allowed_tools:
        raise Denied(f'tool "{job.tool}" is not in the workflow\'s allow list; the sandbox refused it')
    ending = _FROM_RUNNER.get(str(answer.get("ending")))
    if ending is None:
        return ended("garbage", measured, "the tool's answer has no known ending")
    if ending == "ok":
        if "output" not in answer:
            return ended("garbage", measured, "the tool's answer has no output")
        return ended("ok", measured, output=answer["output"])
    if ending == "out_of_memory":
        return ended(ending, measured, f"the tool used up its {job.limits.memory_bytes} bytes of memory")
    error, traceback = answer.get("error"), answer.get("traceback")
    return ended(
        ending,
        measured,
        error if isinstance(error, str) else "the tool failed without saying why",
        retryable=ending == "raised" and answer.get("retryable") is True,
        nothing_happened=ending == "raised" and answer.get("nothing_happened") is True,
        retry_after=_pause(answer.get("retry_after")) if ending == "raised" else None,
        traceback=traceback if ending == "raised" and isinstance(traceback, str) else "",
    )


def ended(
    ending: Ending,
    measured: Measured,
    error: str | None = None,
    *,
    output: Json = None,
    retryable: bool = False,
    nothing_happened: bool = False,
    retry_after: float | None = None,
    traceback: str = "",
) -> SandboxResult:
    return SandboxResult(
        ending=ending,
        output=output,
        error=None if error is None else sentence(error, _MAX_ERROR),
        retryable=retryable,
        nothing_happened=nothing_happened,
        retry_after=retry_after,
        traceback=last_lines(traceback, MAX_TRACEBACK),
        printed=last_lines(measured.printed, MAX_PRINTED),
        seconds=measured.seconds,
        start_seconds=measured.start_seconds,
    )


def describe_exit(status: int | None, job: Job) -> str:
    """Why the tool's process ended before it answered; `status` is bubblewrap's, None if we had to kill it."""
    if status is None or status < 0:
        return "the tool closed its answer channel and was killed"
    number = status - 128
    if number == signal.SIGXCPU:
        return f"the tool used up its {job.limits.cpu_seconds} processor seconds"
    if number in signal.valid_signals():
        return f"the tool was killed by {signal.Signals(number).name} before it answered"
    return f"the tool exited with status {status} before it answered"


def _pause(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_PAUSE:
        return None
    return float(value)
