"""Rows of administration: organisations, keys, quotas, versions, workers, events. Parts of a commit, as in `rows.py`."""

from __future__ import annotations

from collections.abc import Mapping

from interlock.base.json import Json
from interlock.base.values import value


@value(frozen=True, slots=True, kw_only=True)
class NewOrg:
    """An organisation with an empty audit log; refused if it exists."""

    org_id: str
    name: str


@value(frozen=True, slots=True, kw_only=True)
class NewKey:
    """An API key; `secret_hash` is the hexadecimal SHA-256 of its secret."""

    key_id: str
    org_id: str
    secret_hash: str
    user_id: str
    roles: list[str]


@value(frozen=True, slots=True, kw_only=True)
class RevokedKey:
    """An API key that ends; refused unless the organisation has it and it is in force."""

    org_id: str
    key_id: str


@value(frozen=True, slots=True, kw_only=True)
class NewQuota:
    """A quota, which replaces the one of the same scope and name."""

    org_id: str
    scope: str
    name: str
    concurrency: int | None
    rate: int | None
    per_seconds: float


@value(frozen=True, slots=True, kw_only=True)
class RemovedQuota:
    """A quota that ends; refused if there is none."""

    org_id: str
    scope: str
    name: str


@value(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A version of a workflow; one that is stored already stays as it is."""

    org_id: str
    name: str
    version: str
    definition: Mapping[str, Json]
    created_by: str


@value(frozen=True, slots=True, kw_only=True)
class MovedHead:
    """The version of a workflow that new runs get from now on."""

    org_id: str
    name: str
    version: str


@value(frozen=True, slots=True, kw_only=True)
class DrainedWorker:
    """A worker that is asked to drain; nothing happens if it is gone."""

    worker_id: str


@value(frozen=True, slots=True, kw_only=True)
class RequeuedDelivery:
    """An event that is sent to the receiver `sink` again; refused unless that receiver refused it."""

    sink: str
    event_id: int
