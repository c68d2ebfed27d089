from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engines.harness import (
    ASK,
    BOOM,
    BOOM_CODE,
    BOOM_TOOL,
    HUSH,
    NOTE,
    NOTE_CODE,
    NOTE_TOOL,
    PERMIT_ALL,
    PROMPT,
    Bank,
    Model,
    Observer,
    WorkerProcess,
    pay,
    refund_tool,
    think,
    until,
    workflow,
    write,
)
from interlock.app import App
from interlock.base.settings import Settings
from interlock.identity.principal import Principal
from interlock.policy.decision import Policies

StartBank = Callable[..., Bank]
OpenApp = Callable[..., Any]
Spawn = Callable[..., WorkerProcess]
Lapse = Callable[[str], Awaitable[None]]


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    async with Model() as fake:
        fake.answers["think"] = {"verdict": "good", "words": "well"}
        yield fake


@pytest.fixture
def start_bank(tmp_path: Path) -> Iterator[StartBank]:
    """Starts a bank with the given faults."""
    started: list[Bank] = []

    def start(*flags: str) -> Bank:
        started.append(Bank(tmp_path / f"bank{len(started)}", *flags))
        return started[-1]

    yield start
    for bank in started:
        bank.close()


@pytest.fixture
def bank(start_bank: StartBank, request: pytest.FixtureRequest) -> Bank:
    """A bank that honours idempotency keys; its faults by indirect parametrization."""
    return start_bank(*getattr(request, "param", ()))


@pytest.fixture
def strict(start_bank: StartBank, request: pytest.FixtureRequest) -> Bank:
    """A bank that pays every time it is asked, whatever the key."""
    return start_bank("--no-idempotency", *getattr(request, "param", ()))


def faults(fixture: str, *flags: str) -> pytest.MarkDecorator:
    """Starts that bank with these faults."""
    return pytest.mark.parametrize(fixture, [flags], indirect=True, ids=[" ".join(flags)])


@pytest.fixture
def seen(owner: psycopg.Connection[Any]) -> Observer:
    return Observer(owner)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Workflows around paying refunds; the tools differ in what they promise about repetition."""
    directory = tmp_path / "project"
    keyed, probed = pay("pay", "refund_keyed", "bank"), pay("pay", "refund_probed", "strict")
    files = {
        "policies/main.cedar": PERMIT_ALL,
        "prompts/think.yaml": PROMPT,
        "tools/note/tool.yaml": NOTE_TOOL,
        "tools/note/main.py": NOTE_CODE,
        "tools/boom/tool.yaml": BOOM_TOOL,
        "tools/boom/main.py": BOOM_CODE,
        **refund_tool("refund_keyed", "bank", "honours_idempotency", "compensate"),
        **refund_tool("refund_probed", "strict", "probe", "compensate"),
        **refund_tool("refund_blind", "strict", "compensate"),
        **refund_tool("refund_slow", "strict", "probe", "compensate", timeout=1),
        **refund_tool("refund_hush", "strict", "probe", code=HUSH),
        **refund_tool("refund_liar", "strict", "honours_idempotency"),
        **workflow("pay_keyed", keyed, NOTE, allow="refund_keyed, note", output="{refund: $steps.pay.refund_id}"),
        **workflow("pay_probed", probed, allow="refund_probed", output="{refund: $steps.pay.refund_id}"),
        **workflow(
            "pay_blind",
            pay("pay", "refund_blind", "strict"),
            allow="refund_blind",
            output="{refund: $steps.pay.refund_id}",
        ),
        **workflow("pay_slow", pay("pay", "refund_slow", "strict", attempts=9), allow="refund_slow"),
        **workflow("pay_hush", pay("pay", "refund_hush", "strict"), allow="refund_hush"),
        **workflow("pay_liar", pay("pay", "refund_liar", "strict"), allow="refund_liar"),
        **workflow("think_pay", think(), keyed, allow="refund_keyed"),
        **workflow("pay_think", keyed, think(), allow="refund_keyed"),
        **workflow("ask_pay", ASK, keyed, allow="refund_keyed", output="{approved: $steps.ask.approved}"),
        **workflow(
            "ask_beside_think",
            "- id: both\n  kind: parallel\n  branches:\n",
            "    ask:\n" + _indent(ASK, 6),
            "    think:\n" + _indent(think(), 6),
        ),
        **workflow(
            "pay_twice_boom",
            pay("pay_a", "refund_keyed", "bank", ticket="first"),
            pay("pay_b", "refund_keyed", "bank", ticket="second"),
            BOOM,
            allow="refund_keyed, boom",
        ),
        **workflow("only_think", think(), NOTE, allow="note", output="{words: $steps.think.words}"),
    }
    write(directory, files)
    return directory


def _indent(text: str, by: int) -> str:
    return "".join(" " * by + line for line in text.splitlines(keepends=True))


@pytest.fixture
def settings(model: Model, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of every process of a test: a lease that no stall breaks (`Observer.lapse`). Banks run if a test asks for them."""

    def address(bank: str) -> str:
        return request.getfixturevalue(bank).address if bank in request.fixturenames else "127.0.0.1:9"

    return {
        "models": {"default": model.pin},
        "providers": model.providers,
        "variables": {name: address(name) for name in ("bank", "strict")},
        "worker": {"concurrency": 8, "lease_seconds": 60},
        "sandbox": {"warm": 0},
        "review": {"self_approval": True},  # one person plays everybody
    }


@pytest.fixture
async def open_app(
    owner_url: str, admin: Principal, project: Path, data_dir: Path, settings: dict[str, Any], model: Model
) -> AsyncIterator[OpenApp]:
    """Opens applications of this test's installation in this process; keywords replace settings, or the active policies."""
    opened: list[App] = []

    async def make(
        *, start_worker: bool = False, deploy: bool = False, policies: Policies | None = None, **changes: Any
    ) -> App:
        database = {"url": owner_url, "pool_size": 4}
        given = Settings(**{"database": database, **settings, **changes, "data_dir": data_dir})
        app = App(project, given, policies=policies)
        await app.__aenter__()
        opened.append(app)
        if deploy:
            await app.admin.deploy(admin, app.read_project())
        if start_worker:
            await app.start_worker()
        return app

    yield make
    model.release_all()
    for app in reversed(opened):
        await app.__aexit__(None, None, None)


@pytest.fixture
def lapse(seen: Observer) -> Lapse:
    """Ends the leases of a worker that died or was stopped."""

    async def end(worker: str) -> None:
        seen.lapse(worker=worker)

    return end


@pytest.fixture
def spawn(
    project: Path, data_dir: Path, database_url: str, settings: dict[str, Any], tmp_path: Path, lapse: Lapse
) -> Iterator[Spawn]:
    """Starts a worker of this test's installation as a process; `crash=(point, runs)` makes it kill itself.

    For `poison`, `wall` and `together`, see `worker_process`.
    """
    numbers = itertools.count()
    started: list[WorkerProcess] = []

    def start(
        *,
        crash: tuple[str, int] | None = None,
        poison: str | None = None,
        wall: float = 0.0,
        together: int = 0,
        url: str | None = None,
        **changes: Any,
    ) -> WorkerProcess:
        given = {
            **settings,
            **changes,
            "data_dir": str(data_dir),
            "database": {"url": url or database_url, "pool_size": 4},
        }
        config = {"project": str(project), "settings": given, "crash": crash}
        config |= {"poison": poison, "wall": wall, "together": together}
        started.append(WorkerProcess(tmp_path / f"worker{next(numbers)}", config, lapse))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


class Desk:
    """Starts runs and decides reviews, as a door would."""

    def __init__(self, app: App, admin: Principal) -> None:
        self.app = app
        self.admin = admin
        self._numbers = itertools.count(1)

    async def start(self, name: str, **value: Any) -> str:
        """A new run; the ticket is the run's own unless given."""
        given = {"ticket": f"t-{next(self._numbers)}", "text": "the matter", **value}
        run_id, new = await self.app.submission.accept(self.admin, name, given, None)
        assert new
        return run_id

    async def result(self, run_id: str) -> Any:
        """What the run gave."""
        return await self.app.runs.result(self.admin, run_id)

    def pass_time(self, seconds: float) -> None:
        """Moves its clock on; a timer whose moment has come fires within twice the driver's `HOLD_SECONDS`."""
        self.app.clock._offset += seconds

    async def flush(self) -> None:
        """All spans, those of finished runs included: they come after the commit in which the run ends."""
        await until(lambda: not self.app.engine._drivers, lambda: "runs are still driven")  # type: ignore[union-attr]
        await self.app.tracing.flush()

    async def decide(self, review_id: str, decision: Any, output: Any = None) -> None:
        await self.app.reviews.decide(self.admin, review_id, decision, "", output)

    async def cancel(self, run_id: str) -> None:
        await self.app.signals.cancel(self.admin, run_id, "no longer needed")


@pytest.fixture
async def desk(open_app: OpenApp, admin: Principal) -> Desk:
    """An application without a worker, with the project deployed."""
    return Desk(await open_app(deploy=True), admin)
