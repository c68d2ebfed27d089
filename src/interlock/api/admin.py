"""Workflows, policies, keys, quotas, audit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from interlock.admission.quotas import Quota
from interlock.admission.scopes import QuotaScope
from interlock.api.access import Caller, UseCases
from interlock.api.body import Body, Limit, Name, PathId, QueryId, StrictRoute
from interlock.api.errors import documented
from interlock.identity.auth import key_id_of
from interlock.identity.principal import Role
from interlock.services.views.audit import AuditEntryView, AuditKeys, AuditPage, AuditVerdict
from interlock.services.views.deployments import VersionList, WorkflowList
from interlock.services.views.installation import IssuedKey, KeyList, PrincipalView, QuotaList
from interlock.services.views.policies import PolicyActivation, PolicySetList, PolicySetText

router = APIRouter(prefix="/v1", tags=["admin"], route_class=StrictRoute)


class NewKey(Body):
    """A request for an API key."""

    user_id: Name = Field(min_length=1, max_length=200)
    roles: list[Role] = Field(min_length=1)


class NewQuota(Body):
    """Request to set a quota; scope `org` has no name."""

    scope: QuotaScope
    name: Name = Field(default="", max_length=200)
    concurrency: int | None = Field(default=None, ge=0, le=1_000_000)
    rate: int | None = Field(default=None, ge=0, le=1_000_000)
    per_seconds: float = Field(default=60.0, gt=0, le=86_400)


@router.get("/workflows", operation_id="list_workflows", responses=documented())
async def workflows(caller: Caller, services: UseCases) -> WorkflowList:
    """List deployed workflows and their head versions, which new runs use."""
    return WorkflowList(workflows=await services.administration.workflows(caller))


@router.get("/workflows/{workflow}/versions", operation_id="list_versions", responses=documented(404))
async def versions(workflow: PathId, caller: Caller, services: UseCases, limit: Limit = 50) -> VersionList:
    """List a workflow's versions.

    Newest first, with the digests of their parts and the number of their runs.
    """
    return VersionList(versions=await services.administration.versions(caller, workflow, limit=limit))


@router.get("/policies", operation_id="list_policies", responses=documented())
async def policies(caller: Caller, services: UseCases) -> PolicySetList:
    """List the organisation's policy sets.

    Newest first, with the built-in one at the end.
    """
    return PolicySetList(policies=await services.policies.policies(caller))


@router.get("/policies/{policy}", operation_id="get_policy", responses=documented(404, 409))
async def policy_set(policy: PathId, caller: Caller, services: UseCases) -> PolicySetText:
    """Get a policy set with its text.

    By its version, the beginning of it, or `built-in`.
    """
    return await services.policies.policy(caller, policy)


@router.post("/policies/{policy}/activate", operation_id="activate_policy", responses=documented(404, 409))
async def activate_policy(policy: PathId, caller: Caller, services: UseCases) -> PolicyActivation:
    """Activate a policy set.

    It applies to every call of the organisation from then on, also of runs in flight.
    """
    return await services.policies.activate(caller, policy)


@router.get("/me", operation_id="get_me", responses=documented())
async def me(caller: Caller, services: UseCases) -> PrincipalView:
    """Get the principal behind the key."""
    return await services.access.me(caller)


@router.post("/keys", status_code=201, operation_id="create_key", responses=documented(413))
async def create_key(body: NewKey, caller: Caller, services: UseCases) -> IssuedKey:
    """Create a key in the caller's organisation; it is shown once."""
    key = await services.administration.issue_key(caller, body.user_id, frozenset(body.roles))
    return IssuedKey(key_id=key_id_of(key), api_key=key)


@router.get("/keys", operation_id="list_keys", responses=documented())
async def keys(caller: Caller, services: UseCases) -> KeyList:
    """List the organisation's keys, without secrets."""
    return KeyList(keys=await services.administration.keys(caller))


@router.delete("/keys/{key_id}", status_code=204, operation_id="revoke_key", responses=documented(404))
async def revoke_key(key_id: PathId, caller: Caller, services: UseCases) -> None:
    """Revoke a key."""
    await services.administration.revoke_key(caller, key_id)


@router.get("/quotas", operation_id="list_quotas", responses=documented())
async def quotas(caller: Caller, services: UseCases) -> QuotaList:
    """List the organisation's quotas."""
    return QuotaList(quotas=await services.administration.quotas(caller))


@router.put("/quotas", status_code=204, operation_id="set_quota", responses=documented(404, 413))
async def set_quota(body: NewQuota, caller: Caller, services: UseCases) -> None:
    """Set or replace the quota of a scope and name."""
    await services.administration.set_quota(caller, Quota(**body.model_dump()))


@router.delete("/quotas", status_code=204, operation_id="remove_quota", responses=documented(404))
async def remove_quota(
    caller: Caller, services: UseCases, scope: QuotaScope, name: Annotated[str, Query(max_length=200)] = ""
) -> None:
    """Remove a quota."""
    await services.administration.remove_quota(caller, scope, name)


@router.get("/audit", operation_id="list_audit", responses=documented())
async def audit(
    caller: Caller,
    services: UseCases,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    run_id: QueryId = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    """List audit entries in order."""
    found = await services.audit.page(caller, after=after, run_id=run_id, limit=limit)
    return AuditPage(entries=found, next=found[-1].seq if len(found) == limit else None)


@router.get("/audit/verify", operation_id="verify_audit", responses=documented())
async def verify(caller: Caller, services: UseCases) -> AuditVerdict:
    """Verify the organisation's whole log."""
    return await services.audit.verify(caller)


@router.get("/audit/key", operation_id="get_audit_keys", responses=documented())
async def audit_key(caller: Caller, services: UseCases) -> AuditKeys:
    """Get the public keys that verify this installation's entries."""
    return await services.audit.public_keys(caller)


@router.get(
    "/audit/export",
    operation_id="export_audit",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One AuditRow as JSON on each line, in the form that the stand-alone verifier reads.",
            "content": {"application/jsonl": {"schema": {"type": "string"}}},
        },
        **documented(),
    },
)
async def export(caller: Caller, services: UseCases) -> StreamingResponse:
    """Export the whole log as JSON lines."""
    rows = await services.audit.export(caller)
    return StreamingResponse(_lines(rows), media_type="application/jsonl")


async def _lines(rows: AsyncIterator[AuditEntryView]) -> AsyncIterator[str]:
    async for row in rows:
        yield json.dumps(row.to_json()) + "\n"
