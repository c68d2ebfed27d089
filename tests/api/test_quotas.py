"""Quotas and priorities at the door."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from .conftest import Served

PATH = "/v1/quotas"


async def test_an_organisation_sees_and_changes_only_its_own(served: Served) -> None:
    ours, theirs = await served.client(), await served.client("stranger")
    for client, rate in ((ours, 1), (theirs, 2)):
        assert (await client.put(PATH, json={"scope": "org", "rate": rate})).status_code == 204
    kept = {"scope": "org", "name": "", "concurrency": None, "rate": 1, "per_seconds": 60.0}
    assert (await ours.get(PATH)).json() == {"quotas": [kept]}
    assert (await theirs.delete(PATH, params={"scope": "org"})).status_code == 204
    assert (await theirs.delete(PATH, params={"scope": "org"})).status_code == 404
    assert (await ours.get(PATH)).json() == {"quotas": [kept]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scope": "planet", "rate": 1},
        {"scope": "org"},
        {"scope": "org", "name": "x", "rate": 1},
        {"scope": "tool", "rate": 1},
        {"scope": "tool", "name": "a\0b", "rate": 1},
        {"scope": "org", "rate": 1.5},
        {"scope": "org", "rate": 10**30},
        {"scope": "org", "rate": 1, "per_seconds": -1},
        {"scope": "org", "rate": 1, "burst": 2},
    ],
)
async def test_what_is_no_quota_is_refused(body: dict[str, Any], served: Served) -> None:
    client = await served.client()
    assert (await client.put(PATH, json=body)).status_code == 422
    assert (await client.get(PATH)).json() == {"quotas": []}


async def test_a_name_without_effect_is_refused(served: Served) -> None:
    client = await served.client()
    for scope in ("workflow", "tool"):
        refused = await client.put(PATH, json={"scope": scope, "name": "nope", "concurrency": 1})
        assert refused.status_code == 404
        assert refused.json()["error"]["message"].startswith(f'no deployed {scope} is called "nope"; deployed are: ')


async def test_a_quota_is_named_as_what_a_run_waits_for(working: Served) -> None:
    client = await working.client()
    limit = {"scope": "workflow", "name": "ask", "concurrency": 0}
    assert (await client.put(PATH, json=limit)).status_code == 204
    run_id = await working.start()
    run = (await client.get(f"/v1/runs/{run_id}")).json()
    assert run["status"] == "queued"
    assert run["waits_for"] == [{"step": None, "for": "quota", "quota": "workflow ask: 0 at once", "until": None}]
    assert (await client.delete(PATH, params={"scope": "workflow", "name": "ask"})).status_code == 204
    assert (await working.finish(run_id))["status"] == "succeeded"


async def test_the_priority_of_a_run_reaches_the_queue(served: Served, owner: psycopg.Connection[Any]) -> None:
    client = await served.client()
    run = {"workflow": "ask", "input": {"text": "x"}}
    for priority in (-101, 101, 1.5, "high", None):
        assert (await client.post("/v1/runs", json={**run, "priority": priority})).status_code == 422
    answer = await client.post("/v1/runs", json={**run, "priority": -100})
    query = "select q.priority, r.priority, q.workflow from queue q join runs r using (run_id) where run_id = %s"
    assert owner.execute(query, (answer.json()["run_id"],)).fetchall() == [(-100, -100, "ask")]
