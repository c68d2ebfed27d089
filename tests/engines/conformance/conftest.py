from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engines.temporal.conftest import MASTER_KEY, TemporalServer
from interlock.definitions.versions import Version
from interlock.identity.principal import Principal

from .driven import drive
from .scenario import Record, Scenario, read_scenarios
from .simulated import Simulated
from .world import compile_versions, write_project

ORG = "acme"

Played = Callable[[Scenario], Record]
"""What an engine made of a scenario; fails with the reason if it made nothing of it."""


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    return read_scenarios()


@pytest.fixture(scope="module")
def conformance_project(tmp_path_factory: pytest.TempPathFactory, scenarios: list[Scenario]) -> Path:
    return write_project(tmp_path_factory.mktemp("conformance") / "project", scenarios)


@pytest.fixture(scope="module")
def versions(conformance_project: Path) -> dict[str, Version]:
    return compile_versions(conformance_project)


@pytest.fixture(scope="module")
def simulator(versions: dict[str, Version]) -> Played:
    return lambda scenario: Simulated(scenario, versions[scenario.workflow_name].program).play()


def _drive(request: pytest.FixtureRequest, **settings: Any) -> Played:
    """Plays all scenarios that this session tests on an engine, side by side, over a database of their own."""
    engine = settings.get("engine", "postgres")
    server = request.getfixturevalue("server")
    project: Path = request.getfixturevalue("conformance_project")
    made: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    data = made.mktemp(f"data-{engine}")
    key = data / "keys" / "master.key"
    key.parent.mkdir(mode=0o700)
    key.write_bytes(MASTER_KEY)  # the server's roles derive from it
    key.chmod(0o600)
    url = server.create_database()
    request.addfinalizer(lambda: server.drop_database(url))
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("insert into orgs (org_id, name) values (%s, %s)", (ORG, ORG))
        owner.execute("insert into audit_heads (org_id) values (%s)", (ORG,))
    admin = Principal("ada", ORG, frozenset({"admin"}))
    wanted = _selected(request, engine)
    records = asyncio.run(drive(project, url, data, admin, wanted, **settings))

    def played(scenario: Scenario) -> Record:
        record = records[scenario.id]
        if isinstance(record, str):
            pytest.fail(record, pytrace=False)
        return record

    return played


def _selected(request: pytest.FixtureRequest, engine: str) -> list[Scenario]:
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    found = [one["scenario"] for one in params if "scenario" in one and one.get("engine") == engine]
    return list({scenario.id: scenario for scenario in found}.values())


@pytest.fixture(scope="module")
def postgres(request: pytest.FixtureRequest) -> Played:
    return _drive(request)


@pytest.fixture(scope="module")
def own_temporal_server() -> Iterator[TemporalServer]:
    server = TemporalServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def temporal_engine(request: pytest.FixtureRequest, own_temporal_server: TemporalServer) -> Played:
    # As for its own tests: this server cannot pin versions, and keeps a task for ever for the worker that had the run.
    address = own_temporal_server.address
    section = {"address": address, "task_queue": "conformance", "versioned": False, "cached_runs": 0}
    return _drive(request, engine="temporal", temporal=section)
