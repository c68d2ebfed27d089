"""Workflows, keys, audit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from interlock.admission.quotas import Quota, QuotaScope
from interlock.api.access import Caller, Services
from interlock.api.body import Body, Name, StrictRoute
from interlock.identity.auth import key_id_of

router = APIRouter(prefix="/v1", tags=["admin"], route_class=StrictRoute)


class NewKey(Body):
    """A request for an API key."""

    user_id: Name = Field(min_length=1, max_length=200)
    roles: list[str] = Field(min_length=1)


class NewQuota(Body):
    """Request to set a quota; scope `org` has no name."""

    scope: QuotaScope
    name: Name = Field(default="", max_length=200)
    concurrency: int | None = Field(default=None, ge=0, le=1_000_000)
    rate: int | None = Field(default=None, ge=0, le=1_000_000)
    per_seconds: float = Field(default=60.0, gt=0, le=86_400)


@router.get("/workflows")
async def workflows(caller: Caller, services: Services) -> dict[str, Any]:
    """Deployed workflows and their head versions."""
    caller.require("workflow.read")
    rows = await services.database.rows("list_heads", org=caller.org_id)
    return {"workflows": [{**dict(row), "updated_at": row["updated_at"].isoformat()} for row in rows]}


@router.get("/workflows/{workflow}/versions")
async def versions(
    workflow: str, caller: Caller, services: Services, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> dict[str, Any]:
    """A workflow's versions, newest first, with the digests of their parts and the number of their runs."""
    caller.require("workflow.read")
    return {"versions": await services.versions.history(caller.org_id, workflow, limit=limit)}


@router.get("/me")
async def me(caller: Caller) -> dict[str, Any]:
    """The principal behind the key."""
    return caller.to_json()


@router.post("/keys", status_code=201)
async def create_key(body: NewKey, caller: Caller, services: Services) -> dict[str, Any]:
    """Issues a key in the caller's organisation; it is shown only in this response."""
    key = await services.admin.issue_key(caller, body.user_id, frozenset(body.roles))
    return {"key_id": key_id_of(key), "api_key": key}


@router.get("/keys")
async def keys(caller: Caller, services: Services) -> dict[str, Any]:
    """The organisation's keys, without secrets."""
    caller.require("key.manage")
    rows = await services.database.rows("list_api_keys", org=caller.org_id)
    return {
        "keys": [
            {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
            for row in rows
        ]
    }


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(key_id: str, caller: Caller, services: Services) -> None:
    """Revokes a key."""
    await services.admin.revoke_key(caller, key_id)


@router.get("/quotas")
async def quotas(caller: Caller, services: Services) -> dict[str, Any]:
    """The organisation's quotas."""
    return {"quotas": [asdict(quota) for quota in await services.admin.quotas(caller)]}


@router.put("/quotas", status_code=204)
async def set_quota(body: NewQuota, caller: Caller, services: Services) -> None:
    """Sets or replaces the quota of a scope and name."""
    await services.admin.set_quota(caller, Quota(**body.model_dump()))


@router.delete("/quotas", status_code=204)
async def remove_quota(
    caller: Caller,
    services: Services,
    scope: Annotated[str, Query(max_length=20)],
    name: Annotated[str, Query(max_length=200)] = "",
) -> None:
    """Removes a quota."""
    await services.admin.remove_quota(caller, scope, name)


@router.get("/audit")
async def audit(
    caller: Caller,
    services: Services,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    run_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Audit entries in order."""
    caller.require("audit.read")
    return {"entries": await services.audit.page(caller.org_id, after=after, run_id=run_id, limit=limit)}


@router.get("/audit/verify")
async def verify(caller: Caller, services: Services) -> dict[str, Any]:
    """Verifies the organisation's whole log."""
    caller.require("audit.read")
    verdict = await services.audit.verify(caller.org_id)
    return {"ok": verdict.ok, "verified": verdict.verified, "problem": verdict.problem, "last_hash": verdict.last_hash}


@router.get("/audit/key")
async def audit_key(caller: Caller, services: Services) -> dict[str, Any]:
    """Public keys that verify this installation's entries, hexadecimal."""
    caller.require("audit.read")
    return {"keys": {key_id: raw.hex() for key_id, raw in services.audit.public_keys.items()}}


@router.get("/audit/export")
async def export(caller: Caller, services: Services) -> StreamingResponse:
    """The whole log as JSON lines, as the stand-alone verifier reads it."""
    caller.require("audit.read")

    async def lines() -> AsyncIterator[str]:
        async for row in services.audit.all(caller.org_id):
            yield json.dumps(row) + "\n"

    return StreamingResponse(lines(), media_type="application/jsonl")
