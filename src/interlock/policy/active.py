"""Active policies: the policy set of every organisation, in memory, as the database has it.

The policy set is apart from workflow versions, so that an activation applies to runs in flight at their next call.
"""

from __future__ import annotations

import asyncio

from interlock.base.errors import InvalidSpec
from interlock.policy.cedar import CedarPolicy, version_of
from interlock.policy.decision import PolicyEngine, RefusingEngine
from interlock.store.database import Database
from interlock.store.queries import QUERIES
from interlock.telemetry import names
from interlock.telemetry.logs import log

BUILT_IN = "built-in"
"""Name of the policy set that is in force where none was activated."""
_PATIENCE = 2.0  # seconds for the database to answer a refresh

_Key = tuple[str, str]  # organisation and version


class ActivePolicies:
    """The policy sets in force. `refresh` reads anew what changed; before the first one everything is refused.

    A policy set that is damaged, or that this release cannot parse, refuses every call of its organisation.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._built_in = CedarPolicy()
        self._unknown = RefusingEngine("the active policy is not known yet")
        self._loaded: dict[_Key, CedarPolicy] = {}
        self._unusable: frozenset[_Key] = frozenset()
        self._engines: dict[str, PolicyEngine] | None = None
        self._refreshing = asyncio.Lock()

    def of(self, org_id: str) -> PolicyEngine:
        """The policy engine of an organisation; the built-in policy set if it never activated one."""
        return self._unknown if self._engines is None else self._engines.get(org_id, self._built_in)

    async def refresh(self) -> None:
        """Reads which policy sets are in force, and those of them that are not in memory."""
        # One at a time, so that an earlier answer of the database does not replace a later one.
        async with asyncio.timeout(_PATIENCE), self._refreshing:
            async with self._database.connection("") as connection:
                rows = await connection.fetch(QUERIES["active_policies"].sql)
            engines: dict[str, PolicyEngine] = {}
            unusable: set[_Key] = set()
            for key in ((row["org_id"], row["version"]) for row in rows):
                policy = self._loaded.get(key) or await self._load(key)
                engines[key[0]] = policy
                if isinstance(policy, CedarPolicy):
                    self._loaded[key] = policy
                else:
                    unusable.add(key)
            self._engines, self._unusable = engines, frozenset(unusable)
            in_force = {(row["org_id"], row["version"]) for row in rows}
            self._loaded = {key: policy for key, policy in self._loaded.items() if key in in_force}

    async def _load(self, key: _Key) -> CedarPolicy | RefusingEngine:
        org_id, version = key
        async with self._database.connection(org_id) as connection:
            row = await connection.fetchrow(QUERIES["get_policy_set"].sql, org_id, version)
        try:
            if row is None or version_of(row["text"]) != version:
                raise InvalidSpec("the text is missing or is not what was activated")
            return CedarPolicy(row["text"], source=f"policy set {version}")
        except InvalidSpec as error:
            if key not in self._unusable:
                log(names.LOG_POLICY, error.message, level="error", org_id=org_id, version=version)
            return RefusingEngine(f"policy set {version} cannot be used: activate another one", version=version)
