"""The use cases of Interlock, as entry points get them.

An entry point (API, portal, CLI) holds this and nothing else of the process: no database, no keys, no engine. Every use case
takes the principal first and checks its permission itself, so an entry point cannot forget to.
"""

from __future__ import annotations

from dataclasses import dataclass

from interlock.services.access import Access
from interlock.services.administration import Administration
from interlock.services.audit_trail import AuditTrail
from interlock.services.dead_letters import DeadLetters
from interlock.services.followers import Followers
from interlock.services.health import Health
from interlock.services.policies import PolicySets
from interlock.services.refusals import Refusals
from interlock.services.reviews import ReviewQueue
from interlock.services.runs import Runs
from interlock.services.signals import Signals
from interlock.services.submit import Submission


@dataclass(frozen=True, slots=True)
class Services:
    """All use cases of one process."""

    access: Access
    submission: Submission
    runs: Runs
    followers: Followers
    signals: Signals
    reviews: ReviewQueue
    dead_letters: DeadLetters
    administration: Administration
    policies: PolicySets
    audit: AuditTrail
    health: Health
    refusals: Refusals
