"""Administration: what owners do with an installation and its organisations.

Every act is one commit with its audit entry: neither is there without the other.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg

from interlock.admission.quotas import Quota, list_quotas
from interlock.base.clock import Clock
from interlock.base.errors import NotFound, Unauthenticated
from interlock.base.files import write_private
from interlock.base.json import JsonObject
from interlock.definitions.project import Project
from interlock.definitions.versions import Versions
from interlock.fleet.workers import drainable, workers
from interlock.identity.auth import Authenticator, new_key, new_org
from interlock.identity.principal import Principal
from interlock.services.policies import PolicySets
from interlock.services.views.deployments import VersionView, WorkflowView
from interlock.services.views.installation import KeyView, QuotaView, RefusedEventView, WorkerView
from interlock.store.admin_rows import RemovedQuota, RequeuedDelivery, RevokedKey
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.entries import Entry, EventType
from interlock.store.outbox import MOST_REFUSED, refused_events

LOCAL_ORG = "local"
_ONE_ORG = "orgs_pkey"


@dataclass(frozen=True, slots=True)
class Deployed:
    """Changes by a deployment.

    Attributes:
        workflows: `name@version` of those that are new.
        policy: version of the policy set that it activated; None if that was active before, or the project has none.
    """

    workflows: list[str]
    policy: str | None

    def lines(self) -> list[str]:
        """The changes, for people; none if everything was deployed before."""
        activated = [] if self.policy is None else [f"activated policy set {self.policy}"]
        return [*activated, *(f"deployed {name}" for name in self.workflows)]


class Administration:
    """Deployments, keys, quotas, workers.

    Args:
        data: directory of the installation, where the local admin's key is kept.
        webhook_key: key of the webhook's signatures, hexadecimal.
    """

    def __init__(
        self,
        database: Database,
        committer: Committer,
        versions: Versions,
        authenticator: Authenticator,
        policies: PolicySets,
        clock: Clock,
        *,
        data: Path,
        webhook_key: str = "",
    ) -> None:
        self._database = database
        self._committer = committer
        self._versions = versions
        self._authenticator = authenticator
        self._policies = policies
        self._clock = clock
        self._data = data
        self._webhook_key = webhook_key

    async def deploy(self, principal: Principal, project: Project) -> Deployed:
        """Deploys every workflow of a project and activates its policies, all in one commit.

        A project without policies leaves the active policy set as it is.
        """
        principal.require("workflow.deploy")
        commit = Commit(principal.org_id)
        policy = None
        if project.policy is not None:
            activation = await self._policies.propose_text(principal, project.policy, project.names, commit)
            policy = activation.version if activation.changed else None
        deployed = []
        for definition in project.definitions.values():
            proposed = await self._versions.propose(principal.org_id, definition, project.bundles, by=principal.user_id)
            if proposed is not None:
                name = f"{definition.name}@{definition.version}"
                commit.new_versions.append(proposed[0])
                commit.moved_heads.append(proposed[1])
                commit.audit.append(self._entry(principal, "workflow.deployed", "deploy", f"workflow:{name}"))
                deployed.append(name)
        if commit.audit:
            await self._committer.submit(commit)
        if policy is not None:
            await self._policies.committed()
        return Deployed(deployed, policy)

    async def roll_back(self, principal: Principal, name: str, version: str) -> tuple[str, bool]:
        """Makes an older version of a workflow what new runs get, on record; (version, whether that is news)."""
        principal.require("workflow.deploy")
        whole, moved = await self._versions.propose_earlier(principal.org_id, name, version)
        if moved is not None:
            entry = self._entry(principal, "workflow.deployed", "roll_back", f"workflow:{name}@{whole}")
            await self._committer.submit(Commit(principal.org_id, moved_heads=[moved], audit=[entry]))
        return whole, moved is not None

    async def workflows(self, principal: Principal) -> list[WorkflowView]:
        """Deployed workflows and the version that new runs get."""
        principal.require("workflow.read")
        rows = await self._database.rows("list_heads", org=principal.org_id)
        return [WorkflowView.model_validate(dict(row)) for row in rows]

    async def versions(self, principal: Principal, workflow: str, *, limit: int = 50) -> list[VersionView]:
        """A workflow's versions, newest first; raises NotFound for a workflow that was never deployed."""
        principal.require("workflow.read")
        found = await self._versions.history(principal.org_id, workflow, limit=limit)
        return [VersionView.model_validate(one) for one in found]

    async def workers(self) -> list[WorkerView]:
        """The installation's workers. As `ask_to_drain`, for those who can open its database: no API key is enough."""
        return [WorkerView.model_validate(one) for one in await workers(self._database)]

    async def ask_to_drain(self, worker_id: str | None, *, login: str) -> list[str]:
        """Asks one worker, or all that are there, to finish the steps under way and go; the ids of those asked.

        Workers belong to the installation, so this is on record in its own organisation, `local`.

        Args:
            login: who asks, as the machine they are on knows them: `name@host`.

        Raises:
            NotFound: no such worker.
        """
        asked = await drainable(self._database, worker_id)
        if asked:
            principal = await self._local_admin()
            entries = [
                self._entry(principal, "worker.drain_requested", "drain", f"worker:{one.worker_id}", {"login": login})
                for one in asked
            ]
            await self._committer.submit(Commit(LOCAL_ORG, drained_workers=asked, audit=entries))
        return [one.worker_id for one in asked]

    async def refused_events(self) -> list[RefusedEventView]:
        """Events that their receivers refused, of all organisations; as `workers`, for those who can open the database."""
        return [RefusedEventView.model_validate(asdict(one)) for one in await refused_events(self._database)]

    async def webhook_key(self) -> str:
        """Key of the webhook's signatures, hexadecimal; as `workers`, for those who can open the database."""
        return self._webhook_key

    async def requeue_events(self, event_id: int | None, *, login: str) -> int:
        """Sends refused events to their receivers again, all or one, on record in organisation `local`; how many deliveries.

        Raises:
            NotFound: that event was not refused.
        """
        refused = await refused_events(self._database, event_id)
        if not refused and event_id is not None:
            raise NotFound(f"no receiver refused event {event_id}; `interlock events refused` lists those that were")
        requeued = 0
        while refused:
            again = [RequeuedDelivery(sink=one.sink, event_id=one.event_id) for one in refused]
            resource = "event:*" if event_id is None else f"event:{event_id}"
            detail: JsonObject = {"login": login, "deliveries": len(again)}
            entry = self._entry(await self._local_admin(), "events.requeued", "requeue_events", resource, detail)
            await self._committer.submit(Commit(LOCAL_ORG, requeued_deliveries=again, audit=[entry]))
            requeued += len(again)
            refused = await refused_events(self._database) if event_id is None and len(again) == MOST_REFUSED else []
        return requeued

    async def keys(self, principal: Principal) -> list[KeyView]:
        """The organisation's keys, without secrets."""
        principal.require("key.manage")
        rows = await self._database.rows("list_api_keys", org=principal.org_id)
        return [KeyView.model_validate(dict(row)) for row in rows]

    async def issue_key(self, principal: Principal, user_id: str, roles: frozenset[str]) -> str:
        """A new API key in the principal's organisation, on record."""
        principal.require("key.manage")
        key, row = new_key(principal.org_id, user_id, roles)
        entry = self._entry(principal, "key.created", "create_key", f"key:{row.key_id}")
        await self._committer.submit(Commit(principal.org_id, new_keys=[row], audit=[entry]))
        return key

    async def revoke_key(self, principal: Principal, key_id: str) -> None:
        """Revokes a key, on record; raises NotFound unless it is one of the organisation's, and in force."""
        principal.require("key.manage")
        row = RevokedKey(org_id=principal.org_id, key_id=key_id)
        entry = self._entry(principal, "key.revoked", "revoke_key", f"key:{key_id}")
        try:
            await self._committer.submit(Commit(principal.org_id, revoked_keys=[row], audit=[entry]))
        except NotFound as error:
            raise NotFound(f'no active key "{key_id}" in this organisation') from error
        finally:
            self._authenticator.forget(key_id)

    async def quotas(self, principal: Principal) -> list[QuotaView]:
        """The organisation's quotas."""
        principal.require("quota.manage")
        return [QuotaView.model_validate(asdict(one)) for one in await list_quotas(self._database, principal.org_id)]

    async def set_quota(self, principal: Principal, quota: Quota) -> None:
        """Sets or replaces a quota, on record.

        Raises:
            NotFound: it names a workflow or tool that no deployed workflow has.
        """
        principal.require("quota.manage")
        await self._require_known(principal.org_id, quota)
        entry = self._entry(principal, "quota.changed", "set_quota", f"quota:{quota.scope}:{quota.name}")
        row = quota.row(principal.org_id)
        await self._committer.submit(Commit(principal.org_id, new_quotas=[row], audit=[entry]))

    async def _require_known(self, org_id: str, quota: Quota) -> None:
        """Refuses a name without effect: a misspelt limit would look like one."""
        if quota.scope == "org":
            return
        heads = await self._database.rows("list_heads", org=org_id)
        known = {str(row["name"]) for row in heads}
        if quota.scope == "tool":
            known = {tool for row in heads for tool in (await self._versions.head(org_id, row["name"])).tools}
        if quota.name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise NotFound(f'no deployed {quota.scope} is called "{quota.name}"; deployed are: {listed}')

    async def remove_quota(self, principal: Principal, scope: str, name: str) -> None:
        """Removes a quota, on record; raises NotFound if there is none."""
        principal.require("quota.manage")
        entry = self._entry(principal, "quota.changed", "remove_quota", f"quota:{scope}:{name}")
        row = RemovedQuota(org_id=principal.org_id, scope=scope, name=name)
        try:
            await self._committer.submit(Commit(principal.org_id, removed_quotas=[row], audit=[entry]))
        except NotFound as error:
            raise NotFound(f'there is no quota for {scope} "{name}"; `interlock quota list` shows them') from error

    async def ensure_org(self, org_id: str, name: str) -> None:
        """Creates an organisation unless it exists, on record in its own audit log."""
        row = new_org(org_id, name)
        there = await self._database.row("org_exists", org_id, org=org_id)
        if there is not None and there["there"]:
            return
        entry = Entry(org_id, "org.created", "system", "create_org", f"org:{org_id}", self._clock.now())
        try:
            await self._committer.submit(Commit(org_id, new_orgs=[row], audit=[entry]))
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != _ONE_ORG:  # else another process created it at the same moment
                raise

    async def local_principal(self) -> tuple[Principal, str]:
        """The organisation and admin key of a single-machine installation; made on first use, kept in `client.json`."""
        path = self._data / "client.json"
        principal = await self._local_admin()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, Unauthenticated):
            # The file may be older than the database, or the key revoked: a reader of the key files can make another key.
            key = str(json.loads(path.read_text())["api_key"])
            await self._authenticator.authenticate(key)
            return principal, key
        key = await self.issue_key(principal, principal.user_id, principal.roles)
        write_private(path, json.dumps({"api_key": key}))
        return principal, key

    async def _local_admin(self) -> Principal:
        """Principal of the operator who opens this installation's database, in its own organisation."""
        await self.ensure_org(LOCAL_ORG, "Local")
        return Principal("local-admin", LOCAL_ORG, frozenset({"admin"}))

    def _entry(
        self,
        principal: Principal,
        event_type: EventType,
        action: str,
        resource: str,
        detail: JsonObject | None = None,
    ) -> Entry:
        now = self._clock.now()
        return Entry(
            principal.org_id, event_type, principal.actor, action, resource, now, decision="allow", detail=detail or {}
        )
