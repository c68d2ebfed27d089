"""A user's test of code that calls a model, with the fake provider. Checked by mypy, not run."""

from collections.abc import Mapping
from typing import Any, assert_type

from interlock.testing import (
    Behaviour,
    FakeProvider,
    RecordedRequest,
    answer,
    cut_stream,
    example_instance,
    hang,
    rate_limited,
    server_error,
    status,
)


async def my_test() -> None:
    async with FakeProvider() as fake:
        assert_type(fake, FakeProvider)
        assert_type(fake.url, str)
        fake.script(rate_limited(retry_after=2), rate_limited("Wed, 21 Oct 2026 07:28:00 GMT"), hang(), cut_stream())
        fake.script(answer({"category": "fees"}, finish_reason="length", usage=False, delay=0.5), answer("text"))
        fake.always(status(404, "no such model", headers={"x-request-id": "1"}))
        await fake.wait_until(lambda: fake.count == 3)
        request = fake.requests[-1]
        assert_type(request, RecordedRequest)
        assert_type(request.path, str)
        assert_type(request.headers, Mapping[str, str])
        assert_type(fake.connections, int)


def my_behaviour() -> Behaviour:
    assert_type(server_error(503), Behaviour)
    return Behaviour("raw", http_status=200, body=b"<html>", headers={"content-type": "text/html"})


def my_example(schema: dict[str, Any]) -> str:
    return str(example_instance(schema))


def mistakes(fake: FakeProvider) -> None:
    fake.script("text")  # type: ignore[arg-type]
    fake.always(hang)  # type: ignore[arg-type]
    Behaviour("slow")  # type: ignore[arg-type]
    answer({}, "stop")  # type: ignore[call-arg]
    fake.url = "http://localhost"  # type: ignore[misc]
