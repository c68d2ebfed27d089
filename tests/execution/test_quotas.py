"""A tool at its quota: the call waits its turn, and nothing is called meanwhile."""

from __future__ import annotations

from engines.harness import NOTE, Observer, until, workflow
from execution.conftest import Deploy
from interlock.admission.quotas import Quota


async def test_a_call_waits_until_its_tool_has_room(deploy: Deploy, seen: Observer) -> None:
    desk = await deploy(workflow("w", NOTE, allow="note"))
    await desk.app.admin.set_quota(desk.admin, Quota("tool", "note", concurrency=0))
    run = ""

    async def held() -> bool:  # as soon as the worker has heard of the quota
        nonlocal run
        run = await desk.start("w")
        await until(lambda: len(seen.journal(run)) > 1, lambda: f"nothing happens: {seen.kinds(run)}")
        return seen.kinds(run)[1] == "step_deferred note"

    await until(held, lambda: "the quota is not kept")
    assert 0 < seen.journal(run)[1]["delay"] <= 1
    await desk.app.admin.set_quota(desk.admin, Quota("tool", "note", concurrency=1))
    assert await seen.finished(run) == ["succeeded"]
    assert {event["attempt"] for event in seen.journal(run) if "attempt" in event} == {1}, "waiting is no attempt"
    used = "select count(*) from quota_uses where lease_until > now()"
    await until(lambda: seen.rows(used) == [(0,)], lambda: "it still has its place")


async def test_workflows_at_their_quota_wait_in_the_queue(deploy: Deploy, seen: Observer) -> None:
    desk = await deploy(workflow("w", NOTE, allow="note"))
    await desk.app.admin.set_quota(desk.admin, Quota("workflow", "w", rate=2, per_seconds=3600))
    runs = [await desk.start("w") for _ in range(5)]
    await until(
        lambda: [seen.status(run) for run in runs].count("succeeded") == 2, lambda: str([seen.status(r) for r in runs])
    )
    assert sorted(seen.status(run) for run in runs) == ["queued"] * 3 + ["succeeded"] * 2
    await desk.app.admin.remove_quota(desk.admin, "workflow", "w")
    assert set(await seen.finished(*runs)) == {"succeeded"}
