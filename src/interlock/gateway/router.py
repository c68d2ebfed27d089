"""Which provider and which pinned model stand behind an alias.

Workflows name an alias ("default", "cheap", "judge"); what it means is decided once, in configuration. There is no
fallback here: retries, backoff and fallbacks belong to the machine, so that every engine replays them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from interlock.base.errors import InvalidSpec
from interlock.gateway.provider import ModelRequest, Provider


@dataclass(frozen=True, slots=True)
class Route:
    """What an alias stands for.

    Attributes:
        provider: makes the call.
        model: the provider's pinned model name, with its date or digest where the provider has one.
    """

    provider: Provider
    model: str


class Router:
    """A fixed table of aliases.

    Args:
        routes: alias → route; at least one.

    Raises:
        InvalidSpec: no routes, an empty alias, or a route without a model name.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        if not routes:
            raise InvalidSpec("models: no alias is configured; add at least one, such as default")
        for alias, route in routes.items():
            if not alias.strip():
                raise InvalidSpec("models: an alias is empty; name it")
            if not route.model.strip():
                raise InvalidSpec(f'models: alias "{alias}" names no model; set the provider\'s pinned model name')
        self._routes = dict(routes)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every known alias, in the order of configuration."""
        return tuple(self._routes)

    def resolve(self, alias: str) -> Route:
        """The route behind an alias.

        Raises:
            InvalidSpec: nobody configured it; the message names the known ones.
        """
        route = self._routes.get(alias)
        if route is None:
            known = ", ".join(f'"{name}"' for name in self._routes)
            raise InvalidSpec(f'model alias "{alias}" is not configured; known: {known}')
        return route

    def bind(self, alias: str, request: ModelRequest) -> tuple[Provider, ModelRequest]:
        """The provider to call and the request naming its pinned model. Raises as `resolve`."""
        route = self.resolve(alias)
        return route.provider, replace(request, model=route.model)

    async def close(self) -> None:
        """Close every provider once, however many aliases share it; may be called twice."""
        for provider in {id(route.provider): route.provider for route in self._routes.values()}.values():
            await provider.close()
