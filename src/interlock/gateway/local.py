"""Local provider: a small model in this process, without key, network or hub. For first steps, tests and offline use.

llama.cpp (through xllamacpp) runs inside a C++ server object that must listen on an address. It gets a Unix socket in a
private directory, which is removed as soon as it listens, and a random key, so that no other process can connect. Calls
reach the model as function calls, in threads, with the GIL released. Without Unix sockets it is loopback and the key.

The reasons for the defaults are documented at `DEFAULT_THREADS`, `DEFAULT_PARALLEL` and `_grammar`, measured on 2 shared
cores (EPYC) with short requests of 394 prompt tokens, 359 of them a shared prefix. Flash attention, an 8-bit KV cache and
smaller batches had no effect beyond noise, so they keep the library's defaults.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import queue
import re
import secrets
import socket
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock.base.errors import FailureKind, ProviderError
from interlock.base.json import Json, JsonObject
from interlock.gateway.failures import scrub
from interlock.gateway.openai import read_completion, wire_messages
from interlock.gateway.provider import ModelRequest, ModelResponse
from interlock.gateway.weights import SMOLLM2_135M, Weights, ensure_weights, verify, weights_path

if TYPE_CHECKING:
    import xllamacpp

_CORES = os.cpu_count() or 1

DEFAULT_PARALLEL = min(4, _CORES)
"""Concurrent copies of the model; the weights are mapped, so copies share them. Each has one slot: on a CPU, several slots
of one copy give no gain (measured, 16 calls: 0.98 requests/s with one slot, 0.89 with two, 0.56 with four), and if calls
are never mixed in one batch, greedy answers repeat exactly."""

DEFAULT_THREADS = max(1, _CORES // (2 * DEFAULT_PARALLEL))
"""Threads of one copy. llama.cpp's threads synchronise by spinning barriers: with as many threads as cores, any other load on
the host makes them wait for each other at full CPU load (measured on 2 busy cores: 0.1 requests/s and 7 s of CPU per
request with two threads, 0.7 requests/s and 1.0 s with one). Copies of one thread each have no barrier."""

# Largest integer that every JSON reader keeps exact (RFC 8259, 6). Without a bound a small model writes endless digits.
_SAFE_INTEGER = 2**53 - 1
# Cache of prompts, so that a new slot finds the shared prefix: 23 KiB per token, about 11,000 tokens.
_PROMPT_CACHE_MIB = 256
# Look-around and back-references: llguidance cannot compile them, and would drop the whole grammar.
_UNGRAMMATICAL = re.compile(r"\(\?<?[=!]|\\[1-9]|\\k<|\(\?P=")


class LocalProvider:
    """`Provider` for local weights.

    The model is loaded on the first call (about 1 s per copy, in a thread, digest verified). Greedy calls repeat exactly
    except for effects of llama.cpp's prompt cache: a prompt read in other parts may change the last bit of a sum.

    Cancelling a call ends its generation at the next token; if the prompt is being read, it is read to its end first.

    Args:
        name: name of the provider in messages and records.
        weights: the model.
        directory: directory of its file; None for the user's cache.
        fetch: download a missing file on first use. Off by default, so that a first call does not download 93 MB
            unexpectedly.
        parallel: copies of the model, each answering one call at a time; further calls queue.
        context: maximum tokens of a call, prompt and answer together.
        threads: CPU threads of each copy.
        repeat_penalty: above 1 discourages tokens of the last 64; 1 is off. Grammar and `maxLength` limit
            repetition better, because a penalty also affects the quotes and commas of JSON.
    """

    def __init__(
        self,
        name: str = "local",
        *,
        weights: Weights = SMOLLM2_135M,
        directory: Path | None = None,
        fetch: bool = False,
        parallel: int = DEFAULT_PARALLEL,
        context: int = 2048,
        threads: int = DEFAULT_THREADS,
        repeat_penalty: float = 1.0,
    ) -> None:
        self.name = name
        self._weights = weights
        self._directory = directory
        self._fetch = fetch
        self._parallel = parallel
        self._context = context
        self._threads = threads
        self._repeat_penalty = repeat_penalty
        # Last in, first out: under low load the copy that has cached the prompts answers.
        self._idle: queue.LifoQueue[xllamacpp.Server] = queue.LifoQueue()
        self._pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix=f"interlock-{name}")
        self._loading: asyncio.Task[None] | None = None
        self._stops: set[threading.Event] = set()
        self._closed = False

    async def load(self) -> None:
        """Load the model now instead of at the first call.

        Raises:
            NotFound: the weights are missing and `fetch` is off.
            Unavailable: they cannot be fetched or read.
            IntegrityError: they are not the pinned file.
            ProviderError: llama.cpp cannot load them.
        """
        await self._ready()

    async def complete(self, request: ModelRequest) -> ModelResponse:
        """Makes one call. Raises as documented at `Provider`, and as `load` on first use."""
        if request.model != self._weights.name:
            raise self._permanent(f'serves only the model "{self._weights.name}", not "{request.model}"')
        try:
            # The deadline covers loading and queueing, as `ModelRequest.timeout` says: the whole call.
            async with asyncio.timeout(request.timeout):
                await self._ready()
                body = await self._generate(_body(request, self._repeat_penalty))
        except TimeoutError:
            raise ProviderError(
                f'provider "{self.name}" did not answer within {request.timeout:g} s', kind=FailureKind.TRANSIENT
            ) from None
        return read_completion(self.name, request, body)

    async def close(self) -> None:
        """End running generations and free the model; may be called twice."""
        self._closed = True
        for stop in self._stops:
            stop.set()
        loading, self._loading = self._loading, None
        if loading is not None:
            await asyncio.wait([loading])
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        # Drops the last references: the destructors join llama.cpp's threads, which must not block the loop.
        await asyncio.to_thread(self._idle.queue.clear)

    async def _ready(self) -> None:
        if self._closed:
            raise self._permanent("is closed")
        if self._loading is None or _failed(self._loading):
            self._loading = asyncio.create_task(asyncio.to_thread(self._load))
        # Shielded: cancelling one waiting call must not cancel the load for the others.
        await asyncio.shield(self._loading)

    def _load(self) -> None:
        if self._fetch:
            path = ensure_weights(self._weights, directory=self._directory)
        else:
            path = weights_path(self._weights, self._directory)
            verify(path, self._weights)
        # Imported here: 105 MB of shared library, needed only for local models.
        import xllamacpp  # noqa: PLC0415

        for _ in range(self._parallel):
            with tempfile.TemporaryDirectory(prefix="interlock-", ignore_cleanup_errors=True) as private:
                params = self._params(xllamacpp.CommonParams(), path, Path(private))
                try:
                    self._idle.put(xllamacpp.Server(params))
                except (RuntimeError, ValueError) as error:
                    raise self._permanent("cannot load its weights", error) from error

    def _params(self, params: xllamacpp.CommonParams, path: Path, private: Path) -> xllamacpp.CommonParams:
        params.model.path = str(path)
        params.model_alias = {self._weights.name}
        params.n_parallel = 1
        params.n_ctx = self._context
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = self._threads
            cpu.poll = 0
        params.cache_ram_mib = _PROMPT_CACHE_MIB
        params.verbosity = -1
        params.offline = True
        params.hostnames = [str(private / "s") + ".sock"] if hasattr(socket, "AF_UNIX") else ["127.0.0.1"]
        params.api_keys = [secrets.token_urlsafe(32)]
        params.n_threads_http = 1
        params.endpoint_slots = False
        params.ui = False
        return params

    async def _generate(self, body: JsonObject) -> JsonObject:
        stop = threading.Event()
        self._stops.add(stop)
        try:
            running = asyncio.get_running_loop().run_in_executor(self._pool, self._call, body, stop)
            return await running
        finally:
            # Cancelled, timed out or done: the callback reads this at the next token.
            stop.set()
            self._stops.discard(stop)

    def _call(self, body: JsonObject, stop: threading.Event) -> JsonObject:
        """One blocking generation, in a pool thread. Streamed, because only a stream can be ended early."""
        pieces: list[str] = []
        last: dict[str, Json] = {}
        finish: str | None = None

        def receive(chunk: dict[str, Any]) -> bool:
            nonlocal finish
            last.update(chunk)
            for choice in chunk.get("choices", ()):
                pieces.append(choice.get("delta", {}).get("content") or "")
                finish = choice.get("finish_reason") or finish
            return stop.is_set()

        if stop.is_set():
            raise self._permanent("was cancelled before it began")
        server = self._idle.get()  # does not block: there are as many threads as copies
        try:
            server.handle_chat_completions(body, receive)
        except (RuntimeError, ValueError) as error:
            raise self._permanent("cannot take this request", error) from error
        finally:
            self._idle.put(server)
            del server
        if "error" in last:
            raise self._far_error(last["error"])
        if finish is None:
            # Only `close` leads here while a call waits: an incomplete answer must not be returned.
            raise ProviderError(f'provider "{self.name}" was closed while it answered', kind=FailureKind.TRANSIENT)
        message = {"role": "assistant", "content": "".join(pieces)}
        return {**last, "choices": [{"index": 0, "message": message, "finish_reason": finish}]}

    def _far_error(self, error: object) -> ProviderError:
        error = error if isinstance(error, Mapping) else {"message": str(error)}
        kind = FailureKind.PERMANENT if error.get("code") == 400 else FailureKind.TRANSIENT
        error_detail = scrub(str(error.get("message", "no reason given")), None)
        return ProviderError(f'provider "{self.name}" cannot answer: {error_detail}', kind=kind)

    def _permanent(self, what: str, cause: BaseException | None = None) -> ProviderError:
        detail = None if cause is None else scrub(str(cause), None)
        return ProviderError(f'provider "{self.name}" {what}', kind=FailureKind.PERMANENT, detail=detail)


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _body(request: ModelRequest, repeat_penalty: float) -> JsonObject:
    body: dict[str, Json] = {
        "messages": wire_messages(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": (request.seed or 0) % 2**32,
        "cache_prompt": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if repeat_penalty != 1.0:
        body["repeat_penalty"] = repeat_penalty
    if request.schema is not None:
        body["grammar"] = _grammar(json.dumps(request.schema))
    return body


@functools.lru_cache(maxsize=256)
def _grammar(schema: str) -> str:
    """An llguidance grammar of exactly the schema's JSON, without white space.

    Passed as a grammar instead of `response_format`, whose converter in this library ignores bounds of numbers,
    `multipleOf` and escapes in patterns, and allows free white space, which small models repeat endlessly: of 24 answers
    limited to 80 tokens 9 were complete JSON with `response_format`, all 24 with the grammar, at 42 tokens instead of 74.
    Rules that a grammar cannot express (`uniqueItems`, `not`, `if`) are checked by the validator, as for every answer.
    """
    sayable = _sayable(json.loads(schema))
    assert isinstance(sayable, dict)  # as every schema of an answer
    options = {"whitespace_flexible": False, "lenient": True}
    return f"%llguidance {{}}\nstart: %json {json.dumps({**sayable, 'x-guidance': options})}"


def _sayable(schema: Json) -> Json:
    """The schema without keywords that invalidate the grammar, and with integers limited to those that JSON keeps exact."""
    if isinstance(schema, list):
        return [_sayable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: value if key in {"enum", "const"} else _sayable(value) for key, value in schema.items()}
    pattern, target = result.get("pattern"), result.get("$ref")
    if isinstance(pattern, str) and _UNGRAMMATICAL.search(pattern):
        del result["pattern"]
    if isinstance(target, str) and not target.startswith("#"):
        del result["$ref"]
    if result.get("type") == "integer" and not {"enum", "const"} & set(result):
        if not {"minimum", "exclusiveMinimum"} & set(result):
            result["minimum"] = -_SAFE_INTEGER
        if not {"maximum", "exclusiveMaximum"} & set(result):
            result["maximum"] = _SAFE_INTEGER
    return result
