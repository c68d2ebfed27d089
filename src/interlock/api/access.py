"""Access to the API: the use cases, and the principal behind the API key in the Authorization header."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from interlock.identity.principal import Principal
from interlock.services.use_cases import Services

# For the document only: `authenticate` refuses invalid keys with our own error body.
_SCHEME = HTTPBearer(
    scheme_name="apiKey", bearerFormat="il_<id>_<secret>", description="An API key of Interlock.", auto_error=False
)


def services_of(request: Request) -> Services:
    """The process's use cases."""
    services: Services = request.app.state.services
    return services


def presented_key(request: Request) -> str | None:
    """The key in the Authorization header; None without one, or under another scheme."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def address_of(request: Request) -> str:
    """The client's address."""
    return request.client.host if request.client is not None else ""


async def authenticated(request: Request) -> Principal:
    """The principal of the request's key, which is kept for the record of refusals.

    Raises:
        Unauthenticated: no valid key. TooManyRequests: too many wrong ones from this address.
    """
    access = services_of(request).access
    principal = await access.authenticate(presented_key(request), address=address_of(request))
    request.state.principal = principal
    return principal


async def principal_of(request: Request, _scheme: Annotated[object, Depends(_SCHEME)]) -> Principal:
    """The principal of the request's key; as `authenticated`."""
    return await authenticated(request)


UseCases = Annotated[Services, Depends(services_of)]
Caller = Annotated[Principal, Depends(principal_of)]
