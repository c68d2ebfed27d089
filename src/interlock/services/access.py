"""Access: from a presented API key to the principal."""

from __future__ import annotations

from interlock.identity.auth import Authenticator
from interlock.identity.principal import Principal
from interlock.services.views.installation import PrincipalView


class Access:
    """Authentication, without the authority to issue or revoke keys."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def authenticate(self, presented: str | None) -> Principal:
        """The principal behind a key.

        Raises:
            Unauthenticated: no key, or not a valid one.
        """
        return await self._authenticator.authenticate(presented)

    async def me(self, principal: Principal) -> PrincipalView:
        """The principal as a view; every valid key may ask."""
        return PrincipalView.model_validate(principal.to_json())
