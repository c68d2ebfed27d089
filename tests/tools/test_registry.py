"""The registry: what a call in a sandbox comes to, in the words of the machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.base.errors import ContractViolation, Denied, FailureKind, NothingHappened
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import SandboxResult
from interlock.tools.bundles import pack, unpack
from interlock.tools.registry import Tool, Tools, error_of
from interlock.workflows.contracts import ToolContract
from interlock.workflows.schemas import check_value, validator_for

CONTRACT: dict[str, Any] = {
    "name": "probe",
    "description": "",
    "effect": "pure",
    "input": {"type": "object"},
    "output": {"type": "object"},
    "timeout": 10,
}

Make = Callable[..., tuple[Tools, Tool]]


@pytest.fixture
async def sandbox() -> AsyncIterator[BubblewrapSandbox]:
    sandbox = BubblewrapSandbox(warm=0)
    yield sandbox
    await sandbox.close()


@pytest.fixture
def make(tmp_path: Path, sandbox: BubblewrapSandbox) -> Make:
    def make(source: str, **contract: Any) -> tuple[Tools, Tool]:
        directory = tmp_path / "tool"
        directory.mkdir()
        (directory / "main.py").write_text(source)
        digest, packed = pack(directory)

        async def locate(bundle: str) -> Path:
            return unpack(bundle, packed, tmp_path / "cache")

        return Tools(sandbox, locate), Tool(ToolContract.model_validate({**CONTRACT, **contract}), digest)

    return make


async def call(
    tools: Tools, tool: Tool, arguments: dict[str, Any], function: Any = "run", **context: Any
) -> SandboxResult:
    return await tools.call(tool, function, arguments, context=context, allowed=frozenset({"probe"}))


async def test_a_tool_gets_its_arguments_and_its_context(make: Make) -> None:
    tools, tool = make("def run(a, context): return {'a': a, 'key': context['idempotency_key']}\n")
    result = await call(tools, tool, {"a": ["é", None, 1.5]}, idempotency_key="k-1")
    assert (result.ending, result.output) == ("ok", {"a": ["é", None, 1.5], "key": "k-1"})


async def test_only_what_the_workflow_allows_is_called(make: Make, tmp_path: Path) -> None:
    tools, tool = make("def run(): return {}\n")
    for allowed in (frozenset[str](), frozenset({"prob", "probe2", "*"})):
        with pytest.raises(Denied, match='tool "probe" is not in this workflow\'s allow list'):
            await tools.call(tool, "run", {}, context={}, allowed=allowed)
    assert not (tmp_path / "cache").exists(), "not even fetched"


@pytest.mark.parametrize(
    ("source", "contract", "said", "kind"),
    [
        ("def run(): raise ValueError('boom')", {}, 'tool "probe" failed (ValueError)', FailureKind.PERMANENT),
        ("def run(): raise ConnectionError", {}, "failed (ConnectionError)", None),
        ("import os\ndef run(): os._exit(3)", {}, 'tool "probe" crashed', FailureKind.TRANSIENT),
        ("import os\ndef run(): os.kill(os.getpid(), 11)", {}, "crashed", FailureKind.TRANSIENT),
        ("import time\ndef run(): time.sleep(60)", {"timeout": 0.5}, "did not answer within 0.5 s", FailureKind.TRANSIENT),
        ("def run(): return bytearray(200 * 2**20) and {}", {"limits": {"memory_mib": 64}}, "64 MiB", FailureKind.PERMANENT),
        ("def run(): return {1, 2}", {}, "", FailureKind.PERMANENT),
        ("def run(:", {}, "SyntaxError", FailureKind.PERMANENT),
        ("run = 1", {}, "", FailureKind.PERMANENT),
        ("def other(): pass", {}, "", FailureKind.PERMANENT),
    ],
    ids=["raises", "raises for the network", "exits", "signal", "hangs", "memory", "no JSON", "syntax", "not callable", "no run"],
)  # fmt: skip
async def test_every_way_to_fail_has_a_sentence(
    make: Make, source: str, contract: dict[str, Any], said: str, kind: FailureKind | None
) -> None:
    tools, tool = make(source + "\n", **contract)
    result = await call(tools, tool, {})
    assert result.ending != "ok"
    error = error_of(tool.contract, result)
    assert str(error).startswith('tool "probe" ')
    assert said in str(error)
    assert "\n" not in str(error)
    assert "boom" not in str(error), "what the tool said may hold what it was given"
    if kind is not None:
        assert error.kind is kind


async def test_a_tool_can_ask_for_patience_and_can_swear_that_nothing_happened(make: Make) -> None:
    source = "from interlock_tool import Fail, Retry\n"
    source += "def run(how): raise Retry('busy', retry_after=7) if how == 'retry' else Fail('no')\n"
    tools, tool = make(source)
    patience = error_of(tool.contract, await call(tools, tool, {"how": "retry"}))
    assert (patience.kind, patience.retry_after) == (FailureKind.RATE_LIMITED, 7)
    assert isinstance(error_of(tool.contract, await call(tools, tool, {"how": "fail"})), NothingHappened)


async def test_the_error_of_a_tool_without_egress_says_so(make: Make) -> None:
    source = "import socket\ndef run(): socket.create_connection(('127.0.0.1', 9))\n"
    tools, tool = make(source)
    result = await call(tools, tool, {})
    said = 'tool "probe" failed (ConnectionRefusedError)'
    assert (
        str(error_of(tool.contract, result)) == f"{said}; it may reach no address: add HOST:PORT to egress in tool.yaml"
    )
    permitted = tool.contract.model_copy(update={"egress": ["127.0.0.1:9"]})
    assert str(error_of(permitted, result)) == said


@pytest.mark.parametrize("error", ["a\0b", "Bad\0Name: x", "x" * 100, "Ärger: é", "", None, "No class: at all"])
def test_messages_hold_a_class_name_or_nothing_of_the_tools(error: str | None) -> None:
    # A NUL in a failure's message could not be written into the journal, and the run would be tried for ever.
    found = error_of(ToolContract.model_validate(CONTRACT), SandboxResult("raised", error=error))
    assert str(found) in {'tool "probe" failed (an exception)', 'tool "probe" failed (Ärger)'}
    assert ("Ärger" in str(found)) is (error == "Ärger: é")


def test_a_violation_names_the_place_and_never_the_value() -> None:
    schema = {
        "type": "object",
        "properties": {
            "mail": {"type": "string", "format": "email", "maxLength": 10},
            "list": {"type": "array", "items": {"type": "integer"}},
            "kind": {"enum": ["a", "b"]},
        },
        "required": ["mail"],
        "additionalProperties": False,
    }
    validator = validator_for(schema)
    secret = "ada.lovelace@example.com"
    for value, said in (
        ({"mail": secret}, "input: mail: the value is longer than 10 characters"),
        ({"mail": "a@b.c", "list": [1, secret]}, "input: list/1: is a string; must be a whole number"),
        ({"mail": "a@b.c", "kind": secret}, "input: kind: the value is not one of"),
        ({}, '"mail" is a required property'),
        (secret, "input: is a string; must be an object"),
    ):
        with pytest.raises(ContractViolation) as found:
            check_value(validator, value, what="input")
        assert said in str(found.value)
        assert secret not in str(found.value)
    check_value(validator, {"mail": "a@b.c"}, what="input")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"question": 5}, "input: question: is 5 (a number); must be a string"),
        ({"question": None}, "input: question: is null; must be a string"),
        ({"question": ["long"]}, "input: question: is a list; must be a string"),
        ({"question": "q", "kind": "c"}, 'input: kind: the value is not one of "a" or "b"; it is "c" (a string)'),
        (5, "input: is 5 (a number); must be an object"),
    ],
)
def test_the_error_names_the_value(value: object, said: str) -> None:
    properties = {"question": {"type": "string"}, "kind": {"enum": ["a", "b"]}}
    validator = validator_for({"type": "object", "properties": properties, "required": ["question"]})
    with pytest.raises(ContractViolation) as found:
        check_value(validator, value, what="input", to_sender=True)
    assert str(found.value) == said
