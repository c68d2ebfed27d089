from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.audit.log import AuditLog
from interlock.store.commit import Committer
from interlock.store.database import Database

from .rows import deploy

if TYPE_CHECKING:
    from conftest import Tenant

MASTER_KEY, AUDIT_KEY = bytes(range(32)), bytes(range(32, 64))


@pytest.fixture
def workflow(owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]) -> None:
    """Both organisations have the workflow that the rows of `rows.py` belong to."""
    for tenant in tenants:
        deploy(owner, tenant.org_id)


@pytest.fixture
def audit_log() -> AuditLog:
    return AuditLog(AUDIT_KEY)


@pytest.fixture
async def committer(database: Database, audit_log: AuditLog, workflow: None) -> AsyncIterator[Committer]:
    committer = Committer(database, audit_log.seal)
    committer.start()
    yield committer
    await committer.close()
