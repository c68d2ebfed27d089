"""The list of reviews: pages, in the order in which people were asked."""

from __future__ import annotations

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
    assert (await client.get("/v1/reviews", params={"after": "rev_nosuch"})).json() == {"reviews": [], "next": None}
    for limit in ("0", "201", "x", "-1"):
        assert (await client.get("/v1/reviews", params={"limit": limit})).status_code == 422
    stranger = await working.client("stranger")
    assert (await stranger.get("/v1/reviews", params={"after": ids[0]})).json() == {"reviews": [], "next": None}


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
