"""Batch APIs of model providers: many calls submitted together, answered within a day, at half the price.

Both dialects identify calls by our ids, answer in any order, and may leave some calls without an answer. The result lines
are parsed here; a line outside the protocol, or about an unknown call, is skipped.

Sources: https://platform.openai.com/docs/api-reference/batch and https://platform.claude.com/docs/en/api/messages/batches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from interlock.base.errors import FailureKind, ProviderError
from interlock.base.json import Json, JsonObject
from interlock.gateway.failures import NotTheProtocol, kind_of, not_the_protocol, provider_words, status_error
from interlock.gateway.http import Endpoint
from interlock.gateway.provider import ModelRequest, ModelResponse, Provider

BatchAnswer = ModelResponse | ProviderError
Body = Callable[[ModelRequest], JsonObject]
Read = Callable[[ModelRequest, JsonObject], ModelResponse]

SUBMIT_SECONDS = 180.0
"""Maximum seconds of a submission, all its requests together."""

_UPLOAD_SECONDS, _CREATE_SECONDS, _LOOK_SECONDS, _FETCH_SECONDS = 120.0, 60.0, 30.0, 90.0
_MAX_RESULTS = 128 * 1024 * 1024  # bytes; `execution/batch/calls.py` limits the size of a batch
_PAGES = 10  # of a hundred batches, newest first
_FULL_SECONDS = 900.0  # until a provider with a full queue is asked again; it does not report a better time
_SLACK_SECONDS = 60.0  # maximum difference of the provider's clock and ours
# An id becomes part of a path of a request with our key, so it must not change the address.
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
# https://platform.claude.com/docs/en/api/errors
_ANTHROPIC_STATUS = {
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


@dataclass(frozen=True, slots=True)
class Ended:
    """A batch on which the provider has stopped working.

    Attributes:
        results: paths of its results, below the provider's address.
        error: error of the calls without a result.
    """

    results: tuple[str, ...]
    error: ProviderError


class ModelBatches(Protocol):
    """A provider's batch API. All methods raise only `ProviderError`, with the kinds documented at `Provider`."""

    async def submit(self, name: str, calls: Mapping[str, ModelRequest]) -> str:
        """Submits calls, by their ids, and returns the provider's id of the batch. `name` is our name of it.

        After an error of kind PERMANENT or RATE_LIMITED nothing was submitted; after TRANSIENT that is unknown.
        """
        ...

    async def find(self, name: str, ids: Collection[str], size: int, since: float, until: float) -> str | None:
        """The provider's id of a batch that may have been submitted between two moments (Unix time); None if it was not.

        Args:
            ids: ids of some of its calls.
            size: number of its calls.

        Raises:
            ProviderError: kind TRANSIENT also while the provider cannot answer this.
        """
        ...

    async def look(self, batch: str) -> Ended | None:
        """The end of a batch; None while the provider still works on its calls."""
        ...

    async def fetch(self, ended: Ended, calls: Mapping[str, ModelRequest]) -> dict[str, BatchAnswer]:
        """The available answers, by the ids of their calls."""
        ...


def batches_of(provider: Provider) -> ModelBatches | None:
    """A provider's batch API; None if it has none."""
    found: ModelBatches | None = getattr(provider, "batches", None)
    return found


class OpenAIBatches:
    """OpenAI's batch API: upload of a file of calls, creation of a batch, download of files of answers and errors."""

    def __init__(self, endpoint: Endpoint, body: Body, read: Read) -> None:
        self._endpoint = endpoint
        self._body = body
        self._read = read

    async def submit(self, name: str, calls: Mapping[str, ModelRequest]) -> str:
        lines = [
            {"custom_id": one, "method": "POST", "url": "/v1/chat/completions", "body": self._body(request)}
            for one, request in calls.items()
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = await self._endpoint.upload("/files", {"purpose": "batch"}, content, timeout=_UPLOAD_SECONDS)
        body: JsonObject = {
            "input_file_id": _id(self._endpoint, file.body),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"interlock": name},
        }
        return await _create(self._endpoint, "/batches", body, _CREATE_SECONDS)

    async def find(self, name: str, ids: Collection[str], size: int, since: float, until: float) -> str | None:  # noqa: ARG002
        cursor = ""
        for _ in range(_PAGES):
            page = (await self._endpoint.get(f"/batches?limit=100{cursor}", timeout=_LOOK_SECONDS)).body
            batches = _objects(page.get("data"))
            for batch in batches:
                metadata = batch.get("metadata")
                if isinstance(metadata, dict) and metadata.get("interlock") == name:
                    return _id(self._endpoint, batch)
            created = batches[-1].get("created_at") if batches else None
            if not page.get("has_more") or not isinstance(created, int | float) or created < since - _SLACK_SECONDS:
                return None
            cursor = f"&after={_id(self._endpoint, batches[-1])}"
        raise _undecided(self._endpoint.name)

    async def look(self, batch: str) -> Ended | None:
        body = (await self._endpoint.get(f"/batches/{batch}", timeout=_LOOK_SECONDS)).body
        status = str(body.get("status"))
        if status in {"validating", "in_progress", "finalizing", "cancelling"}:
            return None
        if status not in {"completed", "failed", "expired", "cancelled"}:
            raise not_the_protocol(self._endpoint.name, "a batch without a status")
        files = [body[key] for key in ("output_file_id", "error_file_id") if body.get(key)]
        if not all(isinstance(file, str) and _ID.fullmatch(file) for file in files):
            raise not_the_protocol(self._endpoint.name, "a batch with a file id that is none")
        return Ended(tuple(f"/files/{file}/content" for file in files), self._why(status, body))

    async def fetch(self, ended: Ended, calls: Mapping[str, ModelRequest]) -> dict[str, BatchAnswer]:
        return await _collect(self._endpoint, ended, calls, self._line)

    def _why(self, status: str, body: JsonObject) -> ProviderError:
        name = self._endpoint.name
        if status == "failed":
            errors = body.get("errors")
            found = _objects(errors.get("data") if isinstance(errors, dict) else None)
            error_detail = self._endpoint.clean(provider_words(found[0])) if found else "it does not say why"
            # Not a fault of the calls: the account's limit of queued tokens at the provider is reached.
            full = any(one.get("code") == "token_limit_exceeded" for one in found)
            kind, wait = (FailureKind.RATE_LIMITED, _FULL_SECONDS) if full else (FailureKind.PERMANENT, None)
            return ProviderError(f'provider "{name}" refused the batch: {error_detail}', kind=kind, retry_after=wait)
        return _unanswered(name, "ended" if status == "completed" else status)

    def _line(self, line: JsonObject, request: ModelRequest) -> ModelResponse:
        name, response, error = self._endpoint.name, line.get("response"), line.get("error")
        if isinstance(response, dict):
            status, body = response.get("status_code"), response.get("body")
            if isinstance(status, int) and not 200 <= status < 300:
                # Statuses below 400 are reported as 500, because this is not a redirect that a setting could correct.
                raise status_error(name, status if status >= 400 else 500, {}, _cleaned(self._endpoint, body), None)
            if isinstance(body, dict):
                return self._read(request, body)
        if isinstance(error, dict):
            if error.get("code") == "batch_expired":
                raise _unanswered(name, "expired")
            error_detail = self._endpoint.clean(provider_words(error))
            raise ProviderError(f'provider "{name}" did not make the call: {error_detail}', kind=FailureKind.PERMANENT)
        raise not_the_protocol(name, "a result without response and error")


class AnthropicBatches:
    """Anthropic's batch API: one request submits the calls, the results are downloaded as lines."""

    def __init__(self, endpoint: Endpoint, body: Body, read: Read) -> None:
        self._endpoint = endpoint
        self._body = body
        self._read = read

    async def submit(self, name: str, calls: Mapping[str, ModelRequest]) -> str:  # noqa: ARG002  the API has no names
        requests: Json = [{"custom_id": one, "params": self._body(request)} for one, request in calls.items()]
        return await _create(self._endpoint, "/v1/messages/batches", {"requests": requests}, SUBMIT_SECONDS)

    async def find(self, name: str, ids: Collection[str], size: int, since: float, until: float) -> str | None:  # noqa: ARG002
        """Batches have no names here and are identified by their results only; while one is in progress, it may be ours."""
        cursor, undecided = "", False
        for _ in range(_PAGES):
            page = (await self._endpoint.get(f"/v1/messages/batches?limit=100{cursor}", timeout=_LOOK_SECONDS)).body
            batches = _objects(page.get("data"))
            created = 0.0
            for batch in batches:
                created = _moment(batch.get("created_at"))
                if not since - _SLACK_SECONDS <= created <= until + _SLACK_SECONDS or _size(batch) != size:
                    continue
                if batch.get("processing_status") != "ended":
                    undecided = True
                    continue
                found = _id(self._endpoint, batch)
                raw = await self._endpoint.download(_results(found), timeout=_FETCH_SECONDS, limit=_MAX_RESULTS)
                if any(line.get("custom_id") in ids for line in _lines(raw) if isinstance(line.get("custom_id"), str)):
                    return found
            if not page.get("has_more") or not batches or created < since - _SLACK_SECONDS:
                break
            cursor = f"&after_id={_id(self._endpoint, batches[-1])}"
        else:
            undecided = True
        if undecided:
            raise _undecided(self._endpoint.name)
        return None

    async def look(self, batch: str) -> Ended | None:
        body = (await self._endpoint.get(f"/v1/messages/batches/{batch}", timeout=_LOOK_SECONDS)).body
        status = str(body.get("processing_status"))
        if status in {"in_progress", "canceling"}:
            return None
        if status != "ended":
            raise not_the_protocol(self._endpoint.name, "a batch without a status")
        # Not `results_url`, which names the same file: the key is sent to the configured address only.
        return Ended((_results(batch),), _unanswered(self._endpoint.name, "ended"))

    async def fetch(self, ended: Ended, calls: Mapping[str, ModelRequest]) -> dict[str, BatchAnswer]:
        return await _collect(self._endpoint, ended, calls, self._line)

    def _line(self, line: JsonObject, request: ModelRequest) -> ModelResponse:
        name, result = self._endpoint.name, line.get("result")
        kind = str(result.get("type")) if isinstance(result, dict) else ""
        if not isinstance(result, dict) or kind not in {"succeeded", "errored", "canceled", "expired"}:
            raise not_the_protocol(name, "a result of no known type")
        if kind == "succeeded":
            message = result.get("message")
            if not isinstance(message, dict):
                raise not_the_protocol(name, "a result without a message")
            return self._read(request, message)
        if kind != "errored":
            raise _unanswered(name, "cancelled" if kind == "canceled" else "expired")
        error = result.get("error")
        # The documented form has an error response around the error; some compatible servers send only the error.
        inner = error.get("error") if isinstance(error, dict) else None
        said = inner if isinstance(inner, dict) else error if isinstance(error, dict) else {}
        error_detail = self._endpoint.clean(provider_words(said))
        status = _ANTHROPIC_STATUS.get(str(said.get("type")), 400)
        raise ProviderError(f'provider "{name}" did not make the call: {error_detail}', kind=kind_of(status))


async def _create(endpoint: Endpoint, path: str, body: JsonObject, seconds: float) -> str:
    """Creates a batch and returns its id. After an unreadable success response the batch may exist nevertheless."""
    try:
        return _id(endpoint, (await endpoint.post(path, body, timeout=seconds)).body)
    except NotTheProtocol as error:
        raise ProviderError(error.message, kind=FailureKind.TRANSIENT) from error


async def _collect(
    endpoint: Endpoint,
    ended: Ended,
    calls: Mapping[str, ModelRequest],
    read: Callable[[JsonObject, ModelRequest], ModelResponse],
) -> dict[str, BatchAnswer]:
    """Answers by call id; of two lines for one call the first counts."""
    answers: dict[str, BatchAnswer] = {}
    for path in ended.results:
        raw = await endpoint.download(path, timeout=_FETCH_SECONDS, limit=_MAX_RESULTS)
        for line in _lines(raw):
            one = line.get("custom_id")
            if not isinstance(one, str) or one not in calls or one in answers:
                continue
            try:
                answers[one] = read(line, calls[one])
            except ProviderError as error:
                answers[one] = error
    return answers


def _lines(raw: bytes) -> list[JsonObject]:
    """The lines that are JSON objects."""
    found = []
    for line in raw.splitlines():
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return _objects(found)


def _objects(values: object) -> list[JsonObject]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _id(endpoint: Endpoint, body: JsonObject) -> str:
    found = body.get("id")
    if not isinstance(found, str) or not _ID.fullmatch(found):
        raise not_the_protocol(endpoint.name, "an object without an id")
    return found


def _results(batch: str) -> str:
    return f"/v1/messages/batches/{batch}/results"


def _size(batch: JsonObject) -> int:
    counts = batch.get("request_counts")
    return sum(n for n in counts.values() if isinstance(n, int)) if isinstance(counts, dict) else 0


def _moment(value: object) -> float:
    """Unix time of an RFC 3339 moment; 0 for anything else."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return moment.timestamp() if moment is not None and moment.tzinfo is not None else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _cleaned(endpoint: Endpoint, body: object) -> dict[str, str]:
    return {"message": endpoint.clean(provider_words(body))}


def _unanswered(name: str, how: str) -> ProviderError:
    """The error of a call that was never made or whose answer is lost: transient, unless the batch was cancelled."""
    kind = FailureKind.PERMANENT if how == "cancelled" else FailureKind.TRANSIENT
    return ProviderError(f'provider "{name}": the batch {_HOW[how]} without an answer to this call', kind=kind)


_HOW = {"cancelled": "was cancelled there", "expired": "expired", "ended": "ended"}


def _undecided(name: str) -> ProviderError:
    error = ProviderError(f'provider "{name}" cannot yet say whether it has the batch', kind=FailureKind.TRANSIENT)
    error.counts_against_breaker = False
    return error
