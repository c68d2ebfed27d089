"""Aliases."""

from __future__ import annotations

import pytest

from interlock.base.errors import InvalidSpec
from interlock.gateway.provider import ModelRequest, ModelResponse, Usage
from interlock.gateway.router import Route, Router

from .conftest import request


class Counting:
    """The least a provider can be; counts how often it was closed."""

    name = "counting"

    def __init__(self) -> None:
        self.closed = 0

    async def complete(self, request: ModelRequest) -> ModelResponse:
        return ModelResponse(request.model, request.model, Usage())

    async def close(self) -> None:
        self.closed += 1


async def test_an_alias_names_a_provider_and_a_pinned_model() -> None:
    first, second = Counting(), Counting()
    router = Router({"default": Route(first, "big-2026-01"), "cheap": Route(second, "small-2026-01")})
    provider, bound = router.bind("cheap", request(model="cheap"))
    assert provider is second
    assert (await provider.complete(bound)).text == "small-2026-01"
    assert router.resolve("default") == Route(first, "big-2026-01")
    assert router.aliases == ("default", "cheap")


def test_an_unknown_alias_names_the_known_ones() -> None:
    router = Router({"default": Route(Counting(), "m"), "cheap": Route(Counting(), "m")})
    with pytest.raises(InvalidSpec) as caught:
        router.resolve("chaep")
    assert caught.value.message == 'model alias "chaep" is not configured; known: "default", "cheap"'


@pytest.mark.parametrize("routes", [{}, {" ": Route(Counting(), "m")}, {"default": Route(Counting(), " ")}])
def test_a_useless_table_is_refused(routes: dict[str, Route]) -> None:
    with pytest.raises(InvalidSpec):
        Router(routes)


async def test_a_shared_provider_is_closed_once() -> None:
    shared = Counting()
    router = Router({"a": Route(shared, "m1"), "b": Route(shared, "m2")})
    await router.close()
    assert shared.closed == 1
