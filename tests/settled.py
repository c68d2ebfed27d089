"""Rows of administration as tests write them: in a commit of their own, without an audit entry."""

from __future__ import annotations

from interlock.admission.quotas import Quota
from interlock.identity.auth import new_key
from interlock.store.admin_rows import NewQuota, RemovedQuota, RequeuedDelivery, RevokedKey
from interlock.store.commit import SETTLE, Commit, batch_of, encode
from interlock.store.database import Database


async def settle(database: Database, commit: Commit) -> None:
    """Writes a commit that has no audit entries."""
    async with database.connection(commit.org_id) as connection:
        await connection.execute(SETTLE, encode(commit.org_id, batch_of([commit])))


async def issue_key(database: Database, org_id: str, user_id: str, roles: frozenset[str]) -> str:
    """A new API key."""
    key, row = new_key(org_id, user_id, roles)
    await settle(database, Commit(org_id, new_keys=[row]))
    return key


async def revoke_key(database: Database, org_id: str, key_id: str) -> None:
    """Revokes an API key."""
    await settle(database, Commit(org_id, revoked_keys=[RevokedKey(org_id=org_id, key_id=key_id)]))


async def set_quota(database: Database, org_id: str, quota: Quota) -> None:
    """Sets a quota."""
    row: NewQuota = quota.row(org_id)
    await settle(database, Commit(org_id, new_quotas=[row]))


async def remove_quota(database: Database, org_id: str, scope: str, name: str) -> None:
    """Removes a quota."""
    await settle(database, Commit(org_id, removed_quotas=[RemovedQuota(org_id=org_id, scope=scope, name=name)]))


async def requeue_event(database: Database, sink: str, event_id: int) -> None:
    """Sends a refused event again."""
    await settle(database, Commit("", requeued_deliveries=[RequeuedDelivery(sink=sink, event_id=event_id)]))
