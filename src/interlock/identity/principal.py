"""The principal: user, organisation and roles, one typed value from the entry point to the journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from interlock.base.errors import Denied

Role = Literal["admin", "developer", "operator", "reviewer", "viewer"]
ROLES: frozenset[str] = frozenset(get_args(Role))

# Roles that may perform each action; `admin` may perform all. An action without roles is for admins only.
_GRANTS: dict[str, frozenset[str]] = {
    "run.start": frozenset({"developer", "operator"}),
    "run.read": frozenset({"developer", "operator", "reviewer", "viewer"}),
    "run.cancel": frozenset({"operator"}),
    "run.signal": frozenset({"developer", "operator"}),
    "run.pause": frozenset({"operator"}),
    "value.reveal": frozenset({"operator"}),
    "review.read": frozenset({"developer", "operator", "reviewer", "viewer"}),
    "review.decide": frozenset({"reviewer"}),
    "dead_letter.read": frozenset({"operator"}),
    "dead_letter.decide": frozenset({"operator"}),
    "audit.read": frozenset({"operator", "viewer"}),
    "workflow.read": frozenset({"developer", "operator", "reviewer", "viewer"}),
    "workflow.deploy": frozenset({"developer"}),
    "key.manage": frozenset(),
    "quota.manage": frozenset(),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The acting user. Every row they cause carries `org_id`; every audit entry about it carries `user_id`."""

    user_id: str
    org_id: str
    roles: frozenset[str]

    def may(self, action: str) -> bool:
        return "admin" in self.roles or bool(_GRANTS[action] & self.roles)

    def require(self, action: str) -> None:
        """Raises:
        Denied: the principal has no role for the action; names the action and its roles.
        """
        if not self.may(action):
            allowed = ", ".join(sorted(_GRANTS[action] | {"admin"}))
            raise Denied(
                f"{action} needs one of the roles {allowed}; this key has {', '.join(sorted(self.roles)) or 'none'}"
            )

    @property
    def actor(self) -> str:
        return f"user:{self.user_id}"

    def to_json(self) -> dict[str, Any]:
        return {"user_id": self.user_id, "org_id": self.org_id, "roles": sorted(self.roles)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data["user_id"], data["org_id"], frozenset(data["roles"]))
