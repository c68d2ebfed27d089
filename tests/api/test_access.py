"""Who may call what. The routes come from the OpenAPI document, the rights from the table below: a new route fails here."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from interlock.identity.principal import ROLES

from .conftest import Served, problem_of

READERS = frozenset({"admin", "developer", "operator", "reviewer", "viewer"})
EVERYBODY = READERS
ADMIN = frozenset({"admin"})
KEEPERS = frozenset({"admin", "operator"})
AUDITORS = frozenset({"admin", "operator", "viewer"})

# (method, path) → the roles that may; None is open to all, without a key.
ROUTES: dict[tuple[str, str], frozenset[str] | None] = {
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("POST", "/v1/runs"): frozenset({"admin", "developer", "operator"}),
    ("GET", "/v1/runs"): READERS,
    ("GET", "/v1/runs/{run_id}"): READERS,
    ("GET", "/v1/runs/{run_id}/result"): READERS,
    ("GET", "/v1/runs/{run_id}/values"): READERS,
    ("GET", "/v1/runs/{run_id}/failures"): READERS,
    ("GET", "/v1/runs/{run_id}/trace"): READERS,
    ("GET", "/v1/runs/{run_id}/events"): READERS,
    ("POST", "/v1/runs/{run_id}/cancel"): frozenset({"admin", "operator"}),
    ("POST", "/v1/runs/{run_id}/signals/{name}"): frozenset({"admin", "developer", "operator"}),
    ("POST", "/v1/runs/{run_id}/pause"): KEEPERS,
    ("POST", "/v1/runs/{run_id}/resume"): KEEPERS,
    ("GET", "/v1/reviews"): READERS,
    ("GET", "/v1/reviews/{review_id}"): READERS,
    ("POST", "/v1/reviews/{review_id}/decision"): frozenset({"admin", "reviewer"}),
    ("POST", "/v1/reviews/{review_id}/revocation"): frozenset({"admin", "reviewer"}),
    ("GET", "/v1/dead-letters"): KEEPERS,
    ("GET", "/v1/dead-letters/{dead_letter_id}"): KEEPERS,
    ("POST", "/v1/dead-letters/{dead_letter_id}/requeue"): KEEPERS,
    ("POST", "/v1/dead-letters/{dead_letter_id}/discard"): KEEPERS,
    ("GET", "/v1/workflows"): READERS,
    ("GET", "/v1/workflows/{workflow}/versions"): READERS,
    ("GET", "/v1/policies"): READERS,
    ("GET", "/v1/policies/{policy}"): READERS,
    ("POST", "/v1/policies/{policy}/activate"): ADMIN,
    ("GET", "/v1/me"): EVERYBODY,
    ("POST", "/v1/keys"): ADMIN,
    ("GET", "/v1/keys"): ADMIN,
    ("DELETE", "/v1/keys/{key_id}"): ADMIN,
    ("GET", "/v1/quotas"): ADMIN,
    ("PUT", "/v1/quotas"): ADMIN,
    ("DELETE", "/v1/quotas"): ADMIN,
    ("GET", "/v1/audit"): AUDITORS,
    ("GET", "/v1/audit/verify"): AUDITORS,
    ("GET", "/v1/audit/key"): AUDITORS,
    ("GET", "/v1/audit/export"): AUDITORS,
}

BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/runs"): {"workflow": "ask", "input": {"text": "hello"}},
    ("POST", "/v1/runs/{run_id}/cancel"): {"reason": "test"},
    ("POST", "/v1/runs/{run_id}/signals/{name}"): {"payload": {"text": "test"}},
    ("POST", "/v1/runs/{run_id}/pause"): {"reason": "test"},
    ("POST", "/v1/reviews/{review_id}/decision"): {"decision": "approve"},
    ("POST", "/v1/reviews/{review_id}/revocation"): {},
    ("POST", "/v1/dead-letters/{dead_letter_id}/requeue"): {"note": "test"},
    ("POST", "/v1/dead-letters/{dead_letter_id}/discard"): {"note": "test"},
    ("POST", "/v1/keys"): {"user_id": "new", "roles": ["viewer"]},
    ("PUT", "/v1/quotas"): {"scope": "org", "rate": 1000},
}

GUARDED = [route for route, roles in ROUTES.items() if roles is not None]


class World:
    """In the first organisation: runs that are finished, wait for a review, and listen; two dead letters; a spare key."""

    def __init__(self, served: Served, finished: str, waiting: str, review: str, key_id: str) -> None:
        self.served = served
        self.ids = {"review_id": review, "key_id": key_id, "dead_letter_id": "", "name": "go", "workflow": "ask"}
        self.ids["policy"] = "built-in"
        self.listening = ""
        self.dead_letters: list[str] = []
        self.finished, self.waiting = finished, waiting

    async def call(self, client: httpx.AsyncClient, route: tuple[str, str]) -> httpx.Response:
        method, path = route
        run = self.waiting if path.endswith("/cancel") else self.finished
        if path.endswith(("/{name}", "/pause", "/resume")):
            run = self.listening
        self.ids["dead_letter_id"] = self.dead_letters[path.endswith("/discard")]
        query = {"scope": "org"} if route == ("DELETE", "/v1/quotas") else {}
        return await client.request(method, path.format(run_id=run, **self.ids), json=BODIES.get(route), params=query)


@pytest.fixture
async def world(working: Served) -> World:
    finished, waiting = await working.start("first"), await working.start("second")
    await working.finish(finished)
    spare = await working.app.authenticator.issue("acme", "leaver", frozenset({"viewer"}))
    world = World(working, finished, waiting, await working.review(waiting), spare.split("_")[1])
    for text in ("third", "fourth"):
        run = await working.finish(await working.start(text), "reject")
        world.dead_letters += run["dead_letters"]
    answer = await (await working.client()).post("/v1/runs", json={"workflow": "listen", "input": {}})
    world.listening = answer.json()["run_id"]
    return world


def test_the_table_names_every_route(served: Served) -> None:
    document = served.server._server.config.app.openapi()
    there = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert there == set(ROUTES)


async def test_open_routes_need_no_key(served: Served) -> None:
    client = await served.client(None)
    for method, path in ROUTES.keys() - GUARDED:
        answer = await client.request(method, path)
        assert answer.status_code == 200, path
        assert answer.json()["status"] == "ok"


BAD_HEADERS: dict[str, str | None] = {
    "no key": None,
    "a key nobody issued": "Bearer il_0000000000000000_" + "0" * 40,
    "garbage": "Bearer garbage",
    "scheme only": "Bearer",
    "another scheme": "Basic {key}",
    "no scheme": "{key}",
    "a character too many": "Bearer {key}0",
    "wrong secret": "Bearer {wrong}",
    "two keys": "Bearer {key} {key}",
    "not ASCII": "Bearer \u00b2\u00e9",
}


async def test_without_a_valid_key_every_route_answers_401(world: World, subtests: pytest.Subtests) -> None:
    key = world.served.keys["admin"]
    wrong = key[:-1] + ("1" if key.endswith("0") else "0")
    client = await world.served.client(None)
    for name, header in BAD_HEADERS.items():
        with subtests.test(name):
            sent = header.replace("{wrong}", wrong).replace("{key}", key) if header is not None else None
            client.headers = httpx.Headers([(b"Authorization", sent.encode("latin-1"))] if sent is not None else [])
            everywhere = name in {"no key", "garbage", "wrong secret"}
            for route in GUARDED if everywhere else [("GET", "/v1/me"), ("POST", "/v1/runs")]:
                answer = await world.call(client, route)
                assert answer.status_code == 401, route
                assert answer.headers["WWW-Authenticate"] == "Bearer", route
                assert problem_of(answer)[0] == "unauthenticated", route
    assert (await (await world.served.client()).get(f"/v1/runs/{world.waiting}")).json()["status"] == "waiting"


async def test_a_revoked_key_is_refused_at_once(world: World) -> None:
    key = await world.served.app.authenticator.issue("acme", "leaver", frozenset({"admin"}))
    client, admin = await world.served.client(key=key), await world.served.client()
    assert (await client.get("/v1/me")).status_code == 200
    assert (await admin.delete(f"/v1/keys/{key.split('_')[1]}")).status_code == 204
    for route in GUARDED:
        answer = await world.call(client, route)
        assert (answer.status_code, problem_of(answer)[0]) == (401, "unauthenticated"), route
    again = await admin.delete(f"/v1/keys/{key.split('_')[1]}")
    assert (again.status_code, problem_of(again)[0]) == (404, "not_found")


@pytest.mark.parametrize("role", sorted(ROLES - {"admin"}))
async def test_every_role_may_what_the_table_says_and_nothing_else(world: World, role: str) -> None:
    client = await world.served.client(role)
    # Reads first: the writes change what they would see.
    for route in sorted(GUARDED, key=lambda route: route[0] != "GET"):
        answer = await world.call(client, route)
        if role in (ROUTES[route] or ()):
            # The world's review approves no call, so there is nothing to revoke.
            allowed = {409} if route[1].endswith("/revocation") else range(300)
            assert answer.status_code in allowed, (route, answer.text)
        else:
            assert answer.status_code == 403, (route, answer.text)
            code, message = problem_of(answer)
            assert code == "denied"
            assert f"this key has {role}" in message


async def test_revealing_needs_operator_and_goes_on_record(working: Served) -> None:
    run_id = await working.start("mail ada@example.com")
    await working.finish(run_id)
    path = f"/v1/runs/{run_id}/result"
    for role in ("viewer", "developer", "reviewer"):
        answer = await (await working.client(role)).get(path, params={"reveal": True})
        assert (answer.status_code, problem_of(answer)[0]) == (403, "denied"), role
    operator = await working.client("operator")
    assert "ada@example.com" not in (await operator.get(path)).text

    def revealed() -> list[Any]:
        return [one for one in entries if one["entry"]["event_type"] == "value.revealed"]

    entries = (await operator.get("/v1/audit", params={"run_id": run_id})).json()["entries"]
    assert revealed() == []
    assert (await operator.get(path, params={"reveal": True})).json() == {"output": {"text": "mail ada@example.com"}}
    entries = (await operator.get("/v1/audit", params={"run_id": run_id})).json()["entries"]
    assert [one["entry"]["actor"] for one in revealed()] == ["user:operator-1"]


async def test_another_organisation_finds_nothing(world: World) -> None:
    stranger = await world.served.client("stranger")
    with_ids = [
        route for route in GUARDED if "{" in route[1] and not {"{workflow}", "{policy}"} & set(route[1].split("/"))
    ]
    assert len(with_ids) >= 9
    for route in with_ids:
        answer = await world.call(stranger, route)
        assert (answer.status_code, problem_of(answer)[0]) == (404, "not_found"), route
    for path in ("/v1/runs", "/v1/reviews?status=all", f"/v1/reviews?status=all&run_id={world.finished}"):
        answer = await stranger.get(path)
        assert list(answer.json().values()) == [[], None], path  # the list, and no next page
    admin = await world.served.client()
    # … and has changed nothing: the run waits, the review is open, the key works, the log does not name the stranger.
    assert (await admin.get(f"/v1/runs/{world.waiting}")).json()["status"] == "waiting"
    assert (await admin.get(f"/v1/reviews/{world.ids['review_id']}")).json()["status"] == "open"
    listed = {one["key_id"]: one["revoked_at"] for one in (await admin.get("/v1/keys")).json()["keys"]}
    assert listed[world.ids["key_id"]] is None
    theirs = (await stranger.get("/v1/audit", params={"limit": 1000})).json()["entries"]
    assert {one["org_id"] for one in theirs} == {"globex"}
    assert (await stranger.get("/v1/audit", params={"run_id": world.finished})).json() == {"entries": [], "next": None}
    export = (await stranger.get("/v1/audit/export")).text
    assert world.finished not in export
    assert "globex" in export
    keys = {one["user_id"] for one in (await stranger.get("/v1/keys")).json()["keys"]}
    assert keys == {"eve"}


async def test_the_same_idempotency_key_in_two_organisations_is_two_runs(served: Served) -> None:
    body = {"workflow": "ask", "input": {"text": "hello"}}
    started = []
    for role in ("admin", "stranger"):
        answer = await (await served.client(role)).post("/v1/runs", json=body, headers={"Idempotency-Key": "same"})
        assert answer.status_code == 201
        started.append(answer.json()["run_id"])
    assert started[0] != started[1]


async def test_a_key_sees_itself_and_lists_show_no_secret(served: Served) -> None:
    admin = await served.client()
    made = await admin.post("/v1/keys", json={"user_id": "ann", "roles": ["viewer", "reviewer"]})
    assert made.status_code == 201
    key = made.json()["api_key"]
    assert made.json()["key_id"] == key.split("_")[1]
    seen = await (await served.client(key=key)).get("/v1/me")
    assert seen.json() == {"user_id": "ann", "org_id": "acme", "roles": ["reviewer", "viewer"]}
    listed = await admin.get("/v1/keys")
    assert made.json()["key_id"] in listed.text
    assert key.split("_")[2] not in listed.text
    audit = (await admin.get("/v1/audit")).text
    assert "key.created" in audit
    assert key.split("_")[2] not in audit


BAD_KEYS: list[Any] = [
    {"user_id": "x", "roles": []},
    {"user_id": "x", "roles": ["root"]},
    {"user_id": "", "roles": ["viewer"]},
    {"user_id": "x" * 201, "roles": ["viewer"]},
    {"user_id": "nul\0", "roles": ["viewer"]},
    {"user_id": "x", "roles": ["viewer"], "org_id": "globex"},
    {"user_id": "x"},
    [],
    None,
]


async def test_a_bad_key_request_makes_no_key(served: Served, subtests: pytest.Subtests) -> None:
    admin = await served.client()
    before = (await admin.get("/v1/keys")).json()
    for body in BAD_KEYS:
        with subtests.test(body=body):
            answer = await admin.post("/v1/keys", json=body)
            assert answer.status_code == 422
            problem_of(answer)
            assert (await admin.get("/v1/keys")).json() == before
