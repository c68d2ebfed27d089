"""Policy sets: reading them, and activating one for all calls of an organisation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from interlock.base.clock import Clock
from interlock.base.errors import Conflict, NotFound
from interlock.identity.principal import ROLES, Principal
from interlock.policy.active import BUILT_IN
from interlock.policy.cedar import DEFAULT_POLICY, version_of
from interlock.policy.schema import Names, checked
from interlock.services.views.policies import PolicyActivation, PolicySetText, PolicySetView
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.entries import Entry
from interlock.store.rows import ActivatedPolicy, NewPolicySet
from interlock.telemetry import names as telemetry_names
from interlock.telemetry.logs import log

_NO_NAMES = Names(frozenset(), frozenset(), ROLES)


class PolicySets:
    """Use cases of policy sets.

    Args:
        refresh: reads the active policies of this process anew.
    """

    def __init__(
        self, database: Database, committer: Committer, clock: Clock, *, refresh: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._committer = committer
        self._clock = clock
        self._refresh = refresh

    async def policies(self, principal: Principal) -> list[PolicySetView]:
        """The organisation's policy sets, newest first, and the built-in one."""
        principal.require("policy.read")
        active = await self._active(principal.org_id)
        rows = await self._database.rows("list_policy_sets", principal.org_id, org=principal.org_id)
        stored = [
            PolicySetView.model_validate({**dict(row), "built_in": False, "active": row["version"] == active})
            for row in rows
        ]
        return [*stored, _built_in(active=active is None)]

    async def policy(self, principal: Principal, name: str) -> PolicySetText:
        """A policy set with its text.

        Args:
            name: its version, an unambiguous prefix of it, or `built-in`.

        Raises:
            NotFound: there is no such policy set. Conflict: there are several.
        """
        principal.require("policy.read")
        active = await self._active(principal.org_id)
        if name == BUILT_IN:
            return PolicySetText(**dict(_built_in(active=active is None)), text=DEFAULT_POLICY)
        row = await self._found(principal.org_id, name)
        return PolicySetText.model_validate({**row, "built_in": False, "active": row["version"] == active})

    async def activate(self, principal: Principal, name: str) -> PolicyActivation:
        """Puts a policy set in force for all calls of the organisation, also of runs in flight, on record.

        Args:
            name: as for `policy`.

        Raises:
            InvalidSpec: it names a tool or model that no deployed version has, or has another fault.
        """
        principal.require("policy.activate")
        if name == BUILT_IN:
            return await self._put_in_force(principal, None)
        row = await self._found(principal.org_id, name)
        source = f"policy set {row['version']}"
        checked(row["text"], await self._names(principal.org_id, _NO_NAMES), source=source)
        return await self._put_in_force(principal, row["version"])

    async def activate_text(self, principal: Principal, text: str, names: Names) -> PolicyActivation:
        """Stores a policy set and puts it in force, on record; as `propose_text`."""
        commit = Commit(principal.org_id)
        activation = await self.propose_text(principal, text, names, commit)
        if activation.changed:
            await self._committer.submit(commit)
            await self.committed()
        return activation

    async def propose_text(self, principal: Principal, text: str, names: Names, into: Commit) -> PolicyActivation:
        """Adds what stores a policy set and puts it in force, on record, to a commit; the caller calls `committed` after it.

        Args:
            names: names that it may use besides those of the deployed versions.

        Raises:
            InvalidSpec: as `activate`.
        """
        version, org_id = version_of(text), principal.org_id
        before = await self._active(org_id)
        if before == version:
            return PolicyActivation(version=version, built_in=False, changed=False)
        principal.require("policy.activate")
        checked(text, await self._names(org_id, names), source=f"policy set {version}")
        into.new_policies.append(NewPolicySet(org_id=org_id, version=version, text=text, created_by=principal.user_id))
        self._propose(principal, version, before, into)
        return PolicyActivation(version=version, built_in=False, changed=True)

    async def committed(self) -> None:
        """Reads the active policies of this process anew, after a commit that changed them."""
        try:
            await self._refresh()
        except Exception as error:  # noqa: BLE001  it is in force; this process reads it within a second, as all others do
            log(telemetry_names.LOG_HEALTH_UNKNOWN, str(error), level="warning")

    async def _put_in_force(self, principal: Principal, version: str | None) -> PolicyActivation:
        before = await self._active(principal.org_id)
        if before != version:
            commit = Commit(principal.org_id)
            self._propose(principal, version, before, commit)
            await self._committer.submit(commit)
            await self.committed()
        named = version or version_of(DEFAULT_POLICY)
        return PolicyActivation(version=named, built_in=version is None, changed=before != version)

    def _propose(self, principal: Principal, version: str | None, before: str | None, into: Commit) -> None:
        org_id = principal.org_id
        entry = Entry(
            org_id=org_id,
            event_type="policy.activated",
            actor=principal.actor,
            action="activate_policy",
            resource=f"policy:{version or BUILT_IN}",
            at=self._clock.now(),
            decision="allow",
            policy_version=version or version_of(DEFAULT_POLICY),
            detail={"before": before or BUILT_IN},
        )
        into.activated_policies.append(ActivatedPolicy(org_id=org_id, version=version, activated_by=principal.user_id))
        into.audit.append(entry)

    async def _active(self, org_id: str) -> str | None:
        """Version of the policy set in force; None is the built-in one."""
        row = await self._database.row("get_active_policy", org_id, org=org_id)
        return None if row is None else row["version"]

    async def _found(self, org_id: str, name: str) -> dict[str, str]:
        found = await self._database.rows("find_policy_sets", org_id, name, org=org_id) if name else []
        if not found:
            raise NotFound(f'there is no policy set "{name}"; `interlock policies list` lists them')
        if len(found) > 1:
            raise Conflict(f'several policy sets begin with "{name}"; give more of the version')
        row = await self._database.row("get_policy_set", org_id, found[0]["version"], org=org_id)
        assert row is not None, "policy sets are never deleted"
        return dict(row)

    async def _names(self, org_id: str, more: Names) -> Names:
        row = await self._database.row("deployed_names", org_id, org=org_id)
        assert row is not None, "a select without a table gives one row"
        return Names(more.tools | set(row["tools"]), more.models | set(row["models"]), more.roles)


def _built_in(*, active: bool) -> PolicySetView:
    return PolicySetView(
        version=version_of(DEFAULT_POLICY), built_in=True, active=active, created_by=None, created_at=None
    )
