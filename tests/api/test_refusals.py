"""Refused requests are on record, in a number of entries that does not grow with the number of requests."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from interlock.base.errors import Unavailable
from interlock.identity.principal import Principal
from interlock.services.refusals import Refusals

from .conftest import Serve

KEY = {"user_id": "mallory", "roles": ["admin"]}


def entries(owner: psycopg.Connection[Any], org_id: str, event_type: str) -> list[dict[str, Any]]:
    query = "select entry from audit where org_id = %s and entry ->> 'event_type' = %s order by seq"
    return [row[0] for row in owner.execute(query, (org_id, event_type)).fetchall()]


async def test_what_a_role_may_not_is_on_record(serve: Serve, owner: psycopg.Connection[Any]) -> None:
    served = await serve()
    viewer = await served.client("viewer")
    for _ in range(50):
        assert (await viewer.post("/v1/keys", json=KEY)).status_code == 403
    assert (await viewer.put("/v1/quotas", json={"scope": "org", "rate": 1})).status_code == 403
    assert (await viewer.delete("/v1/keys/abc")).status_code == 403
    assert (await viewer.get("/v1/me")).status_code == 200
    assert entries(owner, "acme", "access.denied") == [], "it is counted first"
    await served.app.services.refusals.flush()
    await served.app.services.refusals.flush()
    (entry,) = entries(owner, "acme", "access.denied")
    assert (entry["actor"], entry["decision"], entry["action"]) == ("user:viewer-1", "deny", "request")
    requests = {"POST /v1/keys": 50, "PUT /v1/quotas": 1, "DELETE /v1/keys/{key_id}": 1}
    assert (entry["detail"]["count"], entry["detail"]["requests"]) == (52, requests)
    assert entries(owner, "globex", "access.denied") == []
    assert (await served.app.audit.verify("acme")).ok


async def test_requests_without_a_valid_key_are_on_record_at_the_installation(
    serve: Serve, owner: psycopg.Connection[Any]
) -> None:
    served = await serve()
    unknown = await served.client(key="il_" + "0" * 16 + "_" + "0" * 40)
    malformed = await served.client(key="no key")
    for client in (unknown, malformed):
        for _ in range(5):
            answer = await client.get("/v1/runs/some-run")
            assert answer.status_code == 401
    await served.app.services.refusals.flush()
    (entry,) = entries(owner, "local", "auth.refused")
    assert (entry["actor"], entry["decision"]) == ("address:127.0.0.1", "deny")
    assert entry["detail"]["requests"] == {"GET /v1/runs/{run_id}": 10}
    assert entries(owner, "acme", "auth.refused") == []
    assert "some-run" not in str(entry)


async def test_a_source_of_wrong_keys_gets_429(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlock.identity.wrong_keys._PER_SECOND", 0.0)
    served = await serve()
    good = await served.client()
    assert (await good.get("/v1/me")).status_code == 200
    statuses = []
    for number in range(40):
        guess = await served.client(key=f"il_{number:016}_{'0' * 40}")
        statuses.append(await guess.get("/v1/me"))
    assert [one.status_code for one in statuses[:30]] == [401] * 30
    assert statuses[-1].status_code == 429
    assert statuses[-1].headers["Retry-After"] == "1"
    assert statuses[-1].json()["error"]["code"] == "too_many_requests"
    assert (await good.get("/v1/me")).status_code == 200


async def test_a_flood_writes_a_bounded_number_and_nothing_is_lost(
    serve: Serve, owner: psycopg.Connection[Any]
) -> None:
    served = await serve()
    refusals = served.app.services.refusals
    for number in range(3000):
        refusals.note_unauthenticated(f"198.51.100.{number}", f"GET /{number % 500}")
        refusals.note_denied(Principal(f"u{number}", "acme", frozenset()), "GET /x")
    await refusals.flush()
    unknown, denied = entries(owner, "local", "auth.refused"), entries(owner, "acme", "access.denied")
    assert len(unknown) + len(denied) <= 102
    assert sum(one["detail"]["count"] for one in unknown) == 3000
    assert sum(one["detail"]["count"] for one in denied) == 3000
    assert all(len(one["detail"]["requests"]) <= 21 for one in unknown)


async def test_counts_wait_for_a_database_that_is_away(serve: Serve, owner: psycopg.Connection[Any]) -> None:
    served = await serve()
    app = served.app

    class Away:
        async def submit(self, commit: object) -> None:
            raise Unavailable("away")

    refusals = Refusals(Away(), app.clock, ensure_org=app.admin.ensure_org)  # type: ignore[arg-type]
    refusals.note_denied(Principal("eve", "acme", frozenset()), "GET /x")
    with pytest.raises(Unavailable):
        await refusals.flush()
    refusals._committer = app.committer
    refusals.note_denied(Principal("eve", "acme", frozenset()), "GET /x")
    await refusals.close()
    (entry,) = entries(owner, "acme", "access.denied")
    assert entry["detail"]["count"] == 2
