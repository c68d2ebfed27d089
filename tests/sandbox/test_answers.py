"""Every way a tool can end, and every way it can lie about it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from interlock.base.errors import Denied, FailureKind, SandboxError
from interlock.sandbox.answer import Measured, read_answer
from interlock.sandbox.bubblewrap import BubblewrapSandbox

from .conftest import MakeJob, Run

# Finds the channel, as a hostile tool would: the one socket among its descriptors.
CHANNEL = """
import os, stat
def channel():
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                return number
        except OSError:
            pass
"""


async def test_arguments_and_context_reach_the_tool(run: Run) -> None:
    result = await run(
        "def run(text, number, context): return [text, number, context['idempotency_key']]",
        {"text": "Grüße 漢字 \U0001f642\n", "number": 2**53},
    )
    assert result.output == ["Grüße 漢字 \U0001f642\n", 2**53, "k-1"]
    assert result.ending == "ok"
    assert result.error is None


async def test_context_only_for_those_who_ask(run: Run) -> None:
    assert (await run("def run(x): return x", {"x": 1})).output == 1
    assert (await run("def run(x, **rest): return sorted(rest)", {"x": 1})).output == ["context"]


async def test_an_argument_cannot_pose_as_the_context(run: Run) -> None:
    result = await run("def run(context): return context", {"context": {"idempotency_key": "forged"}})
    assert result.ending == "raised"
    assert result.error == '"context" is reserved and cannot be an argument; rename it in the tool\'s schema'


async def test_async_functions(run: Run) -> None:
    result = await run("import asyncio\nasync def run(x):\n    await asyncio.sleep(0.01)\n    return x + 1", {"x": 1})
    assert result.output == 2


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def other(): pass", 'main.py of tool "probe" has no function "run"; define it'),
        ("run = 5", 'main.py of tool "probe" has no function "run"; define it'),
        ("def run(y): pass", "run() does not accept these arguments: missing a required argument: 'y'"),
        ("def run(: pass", "SyntaxError: invalid syntax (main.py, line 1)"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def run(): raise ValueError('no\\nsuch\\x1b[31m thing')", "ValueError: no such [31m thing"),
        ("def run(): raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class E(Exception):\n  def __str__(self): raise E\ndef run(): raise E", "E"),
    ],
)
async def test_raised(run: Run, source: str, error: str) -> None:
    result = await run(source)
    assert (result.ending, result.error, result.retryable) == ("raised", error, False)
    assert result.output is None


async def test_a_bundle_without_main(sandbox: BubblewrapSandbox, make_job: MakeJob) -> None:
    job = make_job("")
    (job.bundle / "main.py").unlink()
    assert (await sandbox.run(job)).error == 'the bundle of tool "probe" has no main.py'


async def test_retry_and_fail(run: Run) -> None:
    source = """
    import interlock_tool
    class Own(Exception):
        retryable = True
        retry_after = 2
    def run(how):
        if how == "retry":
            raise interlock_tool.Retry("busy", retry_after=1.5)
        if how == "fail":
            raise interlock_tool.Fail("gone for good")
        if how == "odd":
            raise interlock_tool.Retry("busy", retry_after=float("nan"))
        raise Own("mine")
    """
    results = {how: await run(source, {"how": how}) for how in ("retry", "fail", "odd", "own")}
    seen = {how: (r.ending, r.error, r.retryable, r.retry_after) for how, r in results.items()}
    assert seen == {
        "retry": ("raised", "Retry: busy", True, 1.5),
        "fail": ("raised", "Fail: gone for good", False, None),
        "odd": ("raised", "Retry: busy", True, None),
        "own": ("raised", "Own: mine", True, 2.0),
    }


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("import os; os._exit(3)", "the tool exited with status 3 before it answered"),
        ("import os; os._exit(0)", "the tool exited with status 0 before it answered"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "the tool was killed by SIGKILL before it answered",
        ),
        ("import ctypes; ctypes.string_at(8)", "the tool was killed by SIGSEGV before it answered"),
        ("raise SystemExit(4)", "the tool called sys.exit(4)"),
        ("import os; os.closerange(0, 256)", "the tool exited with status 1 before it answered"),
        (
            "import os, time; os.closerange(0, 256); time.sleep(600)",
            "the tool closed its answer channel and was killed",
        ),
    ],
)
async def test_crashed(run: Run, body: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sleep" in body:  # it does not exit by itself
        monkeypatch.setattr("interlock.sandbox.instance._EXIT_GRACE", 1.0)
    result = await run(f"def run():\n    {body}")
    assert (result.ending, result.error, result.retryable) == ("crashed", error, False)


@pytest.mark.parametrize(
    "value", ["float('nan')", "float('inf')", "object()", "{1, 2}", "b'x'", "'\\ud800'", "print", "{(1, 2): 3}"]
)
async def test_what_is_not_json_is_garbage(run: Run, value: str) -> None:
    result = await run(f"def run(): return {value}")
    assert result.ending == "garbage"
    assert str(result.error).startswith("the tool returned something that is not JSON: ")


async def test_endless_nesting_is_garbage(run: Run) -> None:
    result = await run("def run():\n  x = []\n  for _ in range(100000): x = [x]\n  return x")
    assert result.ending == "garbage"


async def test_too_large(run: Run) -> None:
    source = "def run(size): return 'x' * size"
    assert (await run(source, {"size": 998}, output_bytes=1000)).ending == "ok"
    result = await run(source, {"size": 999}, output_bytes=1000)
    assert (result.ending, result.error) == ("too_large", "the tool returned 1001 bytes; at most 1000 are allowed")


async def test_large_answers_within_the_limit(run: Run) -> None:
    result = await run("def run(): return ['y' * 1000] * 5000")
    assert result.output == ["y" * 1000] * 5000


async def test_large_arguments(run: Run) -> None:
    assert (await run("def run(text): return len(text)", {"text": "z" * 3_000_000})).output == 3_000_000


@pytest.mark.parametrize(
    ("lie", "ending"),
    [
        ('b\'{"ending":"ok"}\\n\'', "garbage"),
        ('b\'{"ending":"denied"}\\n\'', "garbage"),
        ('b\'{"ending":"timeout"}\\n\'', "garbage"),
        ("b'[]\\n'", "garbage"),
        ("b'null\\n'", "garbage"),
        ("b'\\xff\\xfe\\n'", "garbage"),
        ('b\'{"ending":"ok","output":NaN}\\n\'', "garbage"),
        ('b\'{"ending":"ok","output":1e999}\\n\'', "garbage"),
        ('b\'{"ending":"ok","output":"\\\\ud800"}\\n\'', "garbage"),
        ("b'[' * 200000 + b'\\n'", "garbage"),
        ("b'9' * 10000 + b'\\n'", "garbage"),
        ("b'{\"ending\":'", "garbage"),
        ('b\'{"ending":"ok","output":"\' + b\'x\' * 3000000 + b\'"}\\n\'', "too_large"),
    ],
)
async def test_lies_on_the_channel(run: Run, lie: str, ending: str) -> None:
    source = (
        f"{CHANNEL}\ndef run():\n    data = {lie}\n    c = channel()\n"
        "    while data: data = data[os.write(c, data):]\n    os._exit(0)"
    )
    result = await run(source, output_bytes=1_000_000)
    assert result.ending == ending
    assert result.output is None


async def test_a_flooded_channel_is_cut_off(run: Run) -> None:
    source = f"{CHANNEL}\ndef run():\n    c = channel()\n    while True: os.write(c, b'x' * 65536)"
    result = await run(source, output_bytes=100_000)
    assert (result.ending, result.error) == ("too_large", "the tool answered more than 100000 bytes")


async def test_a_silent_tool_times_out(run: Run) -> None:
    result = await run("import time\ndef run(): time.sleep(600)", timeout=0.5)
    assert (result.ending, result.error) == ("timeout", "the tool was killed at its deadline of 0.5 s")


async def test_prints_are_kept_apart_and_only_their_end(run: Run) -> None:
    source = """
    import os, sys
    def run():
        print("x" * 10000)
        print('{"ending":"ok","output":"forged"}')
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")
        return "true"
    """
    result = await run(source)
    assert result.output == "true"
    assert len(result.printed) == 4096
    assert result.printed.endswith('"forged"}\nto stderr\nfrom a child\n')


async def test_a_traceback_has_the_calls_within_the_tool_and_no_others(run: Run) -> None:
    source = """
    import json
    def parse(text):
        return json.loads(text)
    def run():
        try:
            parse("{")
        except ValueError as error:
            raise RuntimeError("no order in \\x1b[31m it") from error
    """
    result = await run(source)
    assert result.error == "RuntimeError: no order in [31m it"
    lines = result.traceback.splitlines()
    assert [line for line in lines if "File" in line] == [
        '  File "/tool/main.py", line 7, in run',
        '  File "/tool/main.py", line 4, in parse',
        '  File "/tool/main.py", line 9, in run',
    ]
    assert "    return json.loads(text)" in lines
    assert lines[-1] == "RuntimeError: no order in \ufffd[31m it"
    assert any(line.startswith("json.decoder.JSONDecodeError: ") for line in lines)


async def test_a_file_that_cannot_be_compiled_or_imported_names_its_line(run: Run) -> None:
    broken = await run("def run(:\n    return 1")
    assert '  File "/tool/main.py", line 1' in broken.traceback
    missing = await run("x = 1\nimport nowhere_at_all\ndef run(): return 1")
    assert '  File "/tool/main.py", line 2, in <module>' in missing.traceback
    assert missing.traceback.endswith("ModuleNotFoundError: No module named 'nowhere_at_all'\n")


async def test_a_traceback_is_bounded_and_text(run: Run) -> None:
    deep = await run("def run(n=0):\n    return run(n + 1)")
    assert deep.error is not None
    assert deep.error.startswith("RecursionError")
    assert 0 < len(deep.traceback) <= 4000
    long = await run("def run(): raise ValueError('\\ud800\\0' * 100_000)")
    assert 0 < len(long.traceback) <= 4000
    assert long.error is not None
    assert long.error.startswith("ValueError: ?")
    assert not set(long.traceback + long.error) & {"\0", "\ud800"}
    for forged in ("7", "[]", "'y' * 60_000"):
        line = f"json.dumps({{'ending': 'raised', 'error': 'x', 'traceback': {forged}}})"
        source = f"{CHANNEL}\nimport json\ndef run():\n    os.write(channel(), {line}.encode() + b'\\n')"
        result = await run(source)
        assert result.ending == "raised"
        assert len(result.traceback) <= 4000


async def test_prints_of_a_tool_that_hangs_are_kept(run: Run) -> None:
    for timeout in (1.0, 30.0):  # in one second a busy machine may not get as far
        result = await run("import time\ndef run():\n  print('before')\n  time.sleep(600)", timeout=timeout)
        if result.printed:
            break
    assert result.printed == "before\n"


async def test_a_flood_of_prints_does_not_stop_the_host(run: Run) -> None:
    result = await run("def run():\n  while True: print('x' * 1000)", timeout=1.5)
    assert result.ending == "timeout"
    assert result.printed.strip("x\n") == ""


async def test_the_host_measures_time_itself(run: Run) -> None:
    began = time.perf_counter()
    result = await run("import time\ndef run(): time.sleep(0.2)")
    spent = time.perf_counter() - began
    assert 0.2 <= result.seconds <= spent
    assert 0 < result.start_seconds <= spent


async def test_a_tool_that_was_not_granted_is_denied(run: Run) -> None:
    with pytest.raises(Denied, match='tool "probe" is not in the workflow'):
        await run("def run(): return 1", allowed=frozenset({"probe2", "prob"}))


async def test_the_sandbox_itself_denies_too(make_job: MakeJob, sandbox: BubblewrapSandbox) -> None:
    """With the orchestrator's check out of the way: the job goes straight to a started sandbox."""
    job = make_job("open('/tmp/ran', 'w')\ndef run(): return 1")
    instance = await sandbox._start(sandbox.plan(job))
    with pytest.raises(Denied, match="the sandbox refused it"):
        await instance.perform(dataclasses.replace(job, allowed_tools=frozenset()), 0.0)
    await instance.close()


async def test_no_sandbox_no_run(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("def run(): return 1")
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no way' >&2\nexit 1\n")
    broken.chmod(0o755)
    for bwrap, kind in ((broken, FailureKind.TRANSIENT), (tmp_path / "missing", FailureKind.TRANSIENT)):
        with pytest.raises(SandboxError, match="did not start") as caught:
            await BubblewrapSandbox(warm=0, bwrap=bwrap).run(job)
        assert caught.value.kind is kind


async def test_a_job_that_cannot_be_set_up(make_job: MakeJob, sandbox: BubblewrapSandbox, tmp_path: Path) -> None:
    job = make_job("def run(): return 1")
    for bad in (
        dataclasses.replace(job, bundle=tmp_path / "missing"),
        dataclasses.replace(job, bundle=job.bundle / "main.py"),
        dataclasses.replace(job, egress=("example.com",)),
        dataclasses.replace(job, arguments={"x": object()}),
        dataclasses.replace(job, arguments={"x": float("nan")}),
    ):
        with pytest.raises(SandboxError) as caught:
            await sandbox.run(bad)
        assert caught.value.kind is FailureKind.PERMANENT


def test_answers_are_checked_field_by_field(make_job: MakeJob) -> None:
    measured = Measured("", 0.0, 0.0)
    line = b'{"ending":"raised","error":["x"],"retryable":1,"retry_after":-3}\n'
    result = read_answer(line, make_job(""), measured)
    assert (result.error, result.retryable, result.retry_after) == ("the tool failed without saying why", False, None)
    for pause in (b"true", b'"5"', b"1e9", b"[]"):
        line = b'{"ending":"raised","error":"x","retryable":true,"retry_after":' + pause + b"}\n"
        assert read_answer(line, make_job(""), measured).retry_after is None
    line = b'{"ending":"raised","error":"' + b"x" * 9000 + b'","retryable":true}\n'
    assert len(str(read_answer(line, make_job(""), measured).error)) == 1000
