"""Views of principals, keys, quotas, workers and health."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from interlock.admission.scopes import QuotaScope
from interlock.identity.principal import Role
from interlock.services.views.base import View


class PrincipalView(View):
    """The principal behind a key."""

    user_id: str
    org_id: str
    roles: list[Role]


class KeyView(View):
    """An API key, without its secret."""

    key_id: str
    user_id: str
    roles: list[Role]
    created_at: datetime
    revoked_at: datetime | None


class KeyList(View):
    """An organisation's keys, in the order of their creation."""

    keys: list[KeyView]


class IssuedKey(View):
    """A new key; `api_key` cannot be read again."""

    key_id: str
    api_key: str


class QuotaView(View):
    """A limit. Null is no limit, 0 a standstill; `rate` counts within `per_seconds`. Scope `org` has no name."""

    scope: QuotaScope
    name: str
    concurrency: int | None
    rate: int | None
    per_seconds: float


class QuotaList(View):
    """An organisation's quotas, by scope and name."""

    quotas: list[QuotaView]


class WorkerView(View):
    """A worker process of the database. `silent` is in seconds; `runs` counts what it holds."""

    worker_id: str
    host: str
    pid: int
    engine: str
    version: str
    started_at: datetime
    seen_at: datetime
    draining: bool
    runs: int
    silent: float


class RefusedEventView(View):
    """An event that receiver `sink` refused after `tries` attempts; `run_id` is empty if it belongs to no run."""

    sink: str
    event_id: int
    org_id: str
    topic: str
    run_id: str
    reason: str
    tries: int
    created_at: datetime
    failed_at: datetime


class Alive(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(View):
    """The process can do its work.

    Attributes:
        queue_depth: runs of all organisations that wait for a worker.
        workers: workers of this database that claim runs; with 0 no run goes on.
    """

    status: Literal["ok"] = "ok"
    queue_depth: int
    workers: int
