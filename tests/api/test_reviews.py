"""The list of reviews: pages, in the order in which people were asked."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from .conftest import Serve, Served


async def test_pages(working: Served) -> None:
    ids = [await working.review(await working.start(f"n{number}")) for number in range(5)]
    client = await working.client("reviewer")
    seen: list[str] = []
    while page := (await client.get("/v1/reviews", params={"limit": 2} | ({"after": seen[-1]} if seen else {}))).json()[
        "reviews"
    ]:
        assert len(page) <= 2
        seen += [one["review_id"] for one in page]
    assert seen == ids
    # The page goes on where it stood, whatever was decided meanwhile.
    await client.post(f"/v1/reviews/{ids[1]}/decision", json={"decision": "approve"})
    after = (await client.get("/v1/reviews", params={"after": ids[1]})).json()["reviews"]
    assert [one["review_id"] for one in after] == ids[2:]
    admin = await working.client("admin")
    for path, name in (("/v1/reviews", "after"), ("/v1/runs", "before"), ("/v1/dead-letters", "after")):
        refused = await admin.get(path, params={name: "zzz"})
        assert refused.status_code == 422
        assert refused.json()["error"]["message"] == f'{name}: "zzz" is not in this list; use next of the previous page'
    for limit in ("0", "201", "x", "-1"):
        assert (await client.get("/v1/reviews", params={"limit": limit})).status_code == 422
    stranger = await working.client("stranger")
    assert (await stranger.get("/v1/reviews", params={"after": ids[0]})).status_code == 422


async def test_who_started_a_run_may_not_approve_it(serve: Serve) -> None:
    served = await serve(worker=True, review={"self_approval": False})
    review = await served.review(await served.start("mine"))
    mine = await served.client("admin")
    refused = await mine.post(f"/v1/reviews/{review}/decision", json={"decision": "approve"})
    assert refused.status_code == 403
    problem = refused.json()["error"]
    assert problem["code"] == "self_approval"
    assert "another person has to approve" in problem["message"]
    assert (await mine.post(f"/v1/reviews/{review}/revocation")).status_code == 409
    other = await served.client("reviewer")
    decided = (await other.post(f"/v1/reviews/{review}/decision", json={"decision": "approve"})).json()
    assert (decided["status"], decided["requester"], decided["act"]) == ("approved", "admin-1", None)


async def test_a_decision_sent_again_is_answered_as_the_first_time(working: Served) -> None:
    run_id = await working.start("mine")
    review = await working.review(run_id)
    reviewer, admin = await working.client("reviewer"), await working.client("admin")
    path, body = f"/v1/reviews/{review}/decision", {"decision": "approve", "note": "as agreed"}
    first = await reviewer.post(path, json=body)
    await working.run(run_id, lambda run: run["status"] == "succeeded")
    again = await reviewer.post(path, json=body)
    assert (first.status_code, again.status_code) == (200, 200)
    shown = {"review_id", "status", "decided_by", "note"}
    assert {name: again.json()[name] for name in shown} == {name: first.json()[name] for name in shown}
    for client, other in (
        (reviewer, {**body, "decision": "reject"}),
        (reviewer, {**body, "note": "otherwise"}),
        (admin, body),
    ):
        refused = await client.post(path, json=other)
        assert refused.status_code == 409
        assert refused.json()["error"]["message"] == "this review is already approved, by reviewer-1"
    entries = (await admin.get("/v1/audit", params={"run_id": run_id})).json()["entries"]
    assert [one["entry"]["event_type"] for one in entries].count("review.decided") == 1


async def test_a_deadline_is_named(serve: Serve, project: Path) -> None:
    (project / "workflows" / "soon.yaml").write_text(
        "name: soon\ninput: {type: object}\nsteps:\n  - {id: approve, kind: review, title: Now?, deadline: 3600}\n"
    )
    served = await serve(worker=True)
    client = await served.client()
    run_id = (await client.post("/v1/runs", json={"workflow": "soon", "input": {}})).json()["run_id"]
    review = (await client.get(f"/v1/reviews/{await served.review(run_id)}")).json()
    asked, deadline = (datetime.fromisoformat(review[name]) for name in ("created_at", "deadline"))
    assert (deadline - asked).total_seconds() == 3600
    run = (await client.get(f"/v1/runs/{run_id}")).json()
    (wait,) = run["waits_for"]
    assert abs((datetime.fromisoformat(wait["until"]) - deadline).total_seconds()) < 60
    assert (await client.get("/v1/reviews")).json()["reviews"][0]["deadline"] == review["deadline"]
