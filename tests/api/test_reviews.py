"""The list of reviews: pages, in the order in which people were asked."""

from __future__ import annotations

from .conftest import Served


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
    assert (await client.get("/v1/reviews", params={"after": "rev_nosuch"})).json() == {"reviews": []}
    for limit in ("0", "201", "x", "-1"):
        assert (await client.get("/v1/reviews", params={"limit": limit})).status_code == 422
    stranger = await working.client("stranger")
    assert (await stranger.get("/v1/reviews", params={"after": ids[0]})).json() == {"reviews": []}
