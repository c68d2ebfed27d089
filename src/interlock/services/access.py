"""Access: from a presented API key to the principal."""

from __future__ import annotations

from interlock.identity.auth import Authenticator
from interlock.identity.principal import Principal
from interlock.identity.wrong_keys import source_of
from interlock.services.views.installation import PrincipalView


class Access:
    """Authentication, without the authority to issue or revoke keys."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def authenticate(self, presented: str | None, *, address: str = "") -> Principal:
        """The principal behind a key.

        Args:
            address: of the client.

        Raises:
            Unauthenticated: no key, or not a valid one.
            TooManyRequests: too many wrong keys from this address.
        """
        return await self._authenticator.authenticate(presented, source=source_of(address))

    async def me(self, principal: Principal) -> PrincipalView:
        """The principal as a view; every valid key may ask."""
        return PrincipalView.model_validate(principal.to_json())
