"""Acts and their approvals. An act is one call of a mutating tool; an approval is a person's yes to exactly that call.

An act is named by a digest of everything that makes it this one call, and an approval by the same digest: any difference makes
another act. The digest is a plain SHA-256, and tells nothing about the arguments: they enter it by the keyed digest of their
stored value. What approves an act is signed with a key of the installation, so a row that only the database knows of, and no
person decided, approves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from interlock.base.labels import Labels
from interlock.base.refs import Ref, canonical_json
from interlock.base.values import value
from interlock.execution.call import Caller
from interlock.execution.effects import EffectSite
from interlock.policy.decision import NO_APPROVAL, ApprovalFacts
from interlock.store.database import Database, Row
from interlock.store.people_rows import ConsumedApproval, NewApproval
from interlock.tools.registry import Tool


@value(frozen=True, slots=True)
class Act:
    """One call of a mutating tool.

    Attributes:
        step: the instance, as the effect ledger calls it: a fallback's call is another act.
        contract: digest of the tool's contract and code.
        version, policy: of the workflow and of the policy set, as they are named everywhere.
    """

    org_id: str
    run_id: str
    step: str
    tool: str
    contract: str
    arguments: Ref
    version: str
    policy: str

    def document(self) -> dict[str, Any]:
        """Input of the digest. Without floating-point numbers, so its canonical JSON is that of RFC 8785."""
        return {
            "org": self.org_id,
            "run": self.run_id,
            "step": self.step,
            "tool": self.tool,
            "contract": self.contract,
            "arguments": self.arguments.digest,
            "labels": _exact(self.arguments.labels),
            "workflow_version": self.version,
            "policy": self.policy,
        }

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.document())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Data of an act that its review keeps."""
        return {
            "step": self.step,
            "tool": self.tool,
            "digest": self.digest,
            "contract": self.contract,
            "arguments": self.arguments.to_json(),
            "version": self.version,
            "policy": self.policy,
        }


def act_of(caller: Caller, site: EffectSite, arguments: Ref, policy: str) -> Act:
    """The act of a mutating call.

    Args:
        policy: version of the policy set in force when the approval is asked for or looked for.
    """
    return Act(
        site.org_id,
        site.run_id,
        site.step,
        site.tool.contract.name,
        contract_digest(site.tool),
        arguments,
        caller.version_id,
        policy,
    )


def contract_digest(tool: Tool) -> str:
    """Digest of what a tool promises and of the code that is to keep it."""
    what = {"contract": tool.contract.model_dump(mode="json"), "bundle": tool.bundle}
    return hashlib.sha256(canonical_json(what)).hexdigest()


# -- approvals ---------------------------------------------------------------------------------------------------------


@value(frozen=True, slots=True)
class Approval:
    """A person's yes to an act, as its row and its signature say.

    Attributes:
        review_id: of the review in which it was given; there is one approval of a review at most.
        roles: of the person, with the role that the review asked for.
        expires: seconds since the epoch, a whole number.
    """

    review_id: str
    org_id: str
    run_id: str
    step: str
    digest: str
    approver: str
    roles: tuple[str, ...]
    expires: int

    def signature(self, key: bytes) -> str:
        what = [
            self.review_id,
            self.org_id,
            self.run_id,
            self.step,
            self.digest,
            self.approver,
            *self.roles,
            self.expires,
        ]
        return hmac.new(key, canonical_json(what), hashlib.sha256).hexdigest()

    def row(self, key: bytes) -> NewApproval:
        """The row of `approvals`."""
        return NewApproval(
            review_id=self.review_id,
            org_id=self.org_id,
            run_id=self.run_id,
            step=self.step,
            digest=self.digest,
            approver=self.approver,
            roles=list(self.roles),
            expires=self.expires,
            signature=self.signature(key),
        )


@value(frozen=True, slots=True)
class Standing:
    """How an act stands with the approvals of its step.

    Attributes:
        unused: approvals of exactly this act that its effect has to use up.
        used: those that this very effect has used up in an earlier attempt; they stay its own until it is over.
        refused: (review, why) of the others.
    """

    unused: tuple[Approval, ...] = ()
    used: tuple[Approval, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def facts(self) -> ApprovalFacts:
        """Approval facts for the policy."""
        valid = self.unused + self.used
        if valid:
            roles = frozenset(role for one in valid for role in one.roles)
            approvers = frozenset(one.approver for one in valid)
            reviews = frozenset(one.review_id for one in valid)
            return ApprovalFacts(True, roles, len(approvers), digest_matches=True, reviews=reviews, approvers=approvers)
        if any(why == "mismatch" for _, why in self.refused):
            return ApprovalFacts(present=True)
        return NO_APPROVAL


NO_STANDING = Standing()


class Approvals:
    """Reads what people approved.

    Args:
        key: of the installation, see `approval_key`.
    """

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self._key = key

    async def standing(self, act: Act, effect_key: str) -> Standing:
        """How an act stands.

        Args:
            effect_key: the idempotency key of its effect.
        """
        rows = await self._database.rows("get_approvals", act.run_id, act.step, org=act.org_id)
        unused: list[Approval] = []
        used: list[Approval] = []
        refused: list[tuple[str, str]] = []
        for row in rows:
            approval = _approval(row)
            why = self._fault(approval, row, act, effect_key)
            if why is not None:
                refused.append((approval.review_id, why))
            else:
                (unused if row["consumed_by"] is None else used).append(approval)
        return Standing(tuple(unused), tuple(used), tuple(refused))

    async def rejected(self, act: Act) -> bool:
        """True if a person rejected this act in a review step after which the workflow continued; it must not ask again."""
        row = await self._database.row("get_rejection", act.run_id, act.step, act.digest, org=act.org_id)
        return row is not None

    def _fault(self, approval: Approval, row: Row, act: Act, effect_key: str) -> str | None:
        """Why an approval does not count for an act."""
        if not hmac.compare_digest(approval.signature(self._key), row["signature"]):
            return "forged"
        if (approval.org_id, approval.run_id, approval.step, approval.digest) != (
            act.org_id,
            act.run_id,
            act.step,
            act.digest,
        ):
            return "mismatch"
        if row["revoked"]:
            return "revoked"
        if row["consumed_by"] is not None:
            return None if row["consumed_by"] == effect_key else "used"
        return "expired" if row["expired"] else None


def approval_key(master_key: bytes) -> bytes:
    """The key that approvals of an installation are signed with."""
    return hmac.new(master_key, b"approvals", hashlib.sha256).digest()


def consumed_rows(approvals: Sequence[Approval], effect_key: str) -> list[ConsumedApproval]:
    """Rows that use approvals up, for the commit that writes their effect as intended."""
    return [
        ConsumedApproval(
            review_id=one.review_id,
            org_id=one.org_id,
            run_id=one.run_id,
            step=one.step,
            digest=one.digest,
            consumed_by=effect_key,
        )
        for one in approvals
    ]


def _approval(row: Row) -> Approval:
    names = ("review_id", "org_id", "run_id", "step", "digest", "approver")
    return Approval(**{name: row[name] for name in names}, roles=tuple(row["roles"]), expires=row["expires"])


def _exact(labels: Labels) -> dict[str, Any]:
    as_of = labels.as_of
    return {**labels.to_json(), "as_of": None if as_of is None else round(as_of * 1_000_000)}  # microseconds
