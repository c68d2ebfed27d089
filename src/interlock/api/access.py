"""Authentication: the API key in the Authorization header determines the principal that every handler uses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from interlock.app import App
from interlock.identity.principal import Principal


def app_of(request: Request) -> App:
    """The process's `App`."""
    app: App = request.app.state.interlock
    return app


async def principal_of(request: Request) -> Principal:
    """The principal of the request's key. Raises Unauthenticated without a valid key."""
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    return await app_of(request).authenticator.authenticate(key.strip() if scheme.lower() == "bearer" else None)


Services = Annotated[App, Depends(app_of)]
Caller = Annotated[Principal, Depends(principal_of)]
