"""The principal: user, organisation and roles, and the permissions that roles grant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, TypedDict, get_args

from interlock.base.errors import Denied

Role = Literal["admin", "developer", "operator", "reviewer", "viewer"]
ROLES: frozenset[str] = frozenset(get_args(Role))

Permission = Literal[
    "run.start",
    "run.read",
    "run.cancel",
    "run.signal",
    "run.pause",
    "value.reveal",
    "review.read",
    "review.decide",
    "dead_letter.read",
    "dead_letter.decide",
    "audit.read",
    "workflow.read",
    "workflow.deploy",
    "policy.read",
    "policy.activate",
    "key.manage",
    "quota.manage",
]
"""Every permission that a use case may require."""

# Roles with each permission; `admin` has all permissions, and is the only role for those with an empty set.
_GRANTS: dict[Permission, frozenset[Role]] = {
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
    "policy.read": frozenset({"developer", "operator", "reviewer", "viewer"}),
    "policy.activate": frozenset(),
    "key.manage": frozenset(),
    "quota.manage": frozenset(),
}


class PrincipalJson(TypedDict):
    """`Principal` as JSON."""

    user_id: str
    org_id: str
    roles: list[str]


@dataclass(frozen=True, slots=True)
class Principal:
    """The acting user. Every row they cause carries `org_id`; every audit entry about it carries `user_id`."""

    user_id: str
    org_id: str
    roles: frozenset[str]

    def may(self, action: Permission) -> bool:
        return "admin" in self.roles or bool(_GRANTS[action] & self.roles)

    def require(self, action: Permission) -> None:
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

    def to_json(self) -> dict[str, str | list[str]]:
        return {"user_id": self.user_id, "org_id": self.org_id, "roles": sorted(self.roles)}

    @classmethod
    def from_json(cls, data: PrincipalJson) -> Self:
        return cls(data["user_id"], data["org_id"], frozenset(data["roles"]))
