"""dev, serve, worker, migrate."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated

import typer

from interlock.api.server import Server
from interlock.app import App
from interlock.base import loop
from interlock.base.errors import Conflict, InterlockError, InvalidInput
from interlock.base.json import JsonObject
from interlock.base.settings import Settings, on_own_machine
from interlock.cli.connection import SELF_APPROVAL, announced, find_server, settings_here
from interlock.cli.console import AsJson, detach_from_terminal, errors, print_answer, short, visible
from interlock.cli.location import project_directory
from interlock.cli.reloading import Reloading
from interlock.definitions.project import read_project, require_project
from interlock.sandbox.check import probe_sandbox
from interlock.telemetry import logs

_HEALTH_SECONDS = 2.0


def register(cli: typer.Typer) -> None:
    cli.command("dev")(dev)
    cli.command("serve")(serve)
    cli.command("worker")(worker)
    cli.command("deploy")(deploy)
    cli.command("migrate")(migrate)


def dev(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Overrides server.port; 0 selects a free port.")
    ] = None,
) -> None:
    """Run everything in one process: API, worker, database. Definitions are reloaded when their files change."""
    settings = on_own_machine(settings_here())
    if settings.review.self_approval:
        errors.print(SELF_APPROVAL, style="dim")
    _run(_serve(settings, port=port, worker=True, reload=True))


def serve(port: Annotated[int | None, typer.Option(min=0, max=65535, help="Overrides server.port.")] = None) -> None:
    """Run the API only; workers run elsewhere on the same database."""
    _run(_serve(settings_here(), port=port, worker=False, reload=False))


def worker(
    engine: Annotated[
        str | None,
        typer.Option(help="Engine whose runs the worker drives: postgres or temporal; overrides the setting."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Overrides temporal.address: host:port of the server.")] = None,
    unversioned: Annotated[
        bool, typer.Option("--unversioned", help="For a Temporal server that cannot pin runs to worker versions.")
    ] = False,
) -> None:
    """Run a worker only. Any number of workers can share one database."""

    async def main(settings: Settings) -> None:
        stop = _Stop()
        logs.configure(level=settings.telemetry.log_level)
        async with App(project_directory(), settings, notice=_notice) as app:
            await app.start_worker()
            errors.print("worker runs; Ctrl-C finishes the steps under way and releases the other runs")
            watching = asyncio.create_task(_watch_health(app))
            await stop.wait(app.worker_registry.asked)
            errors.print("stopping: finishing the steps under way …; press Ctrl-C again to interrupt them")
            watching.cancel()
            await app.prepare_to_close()

    _run(main(_for_engine(settings_here(), engine, address, unversioned=unversioned)))


def _for_engine(settings: Settings, engine: str | None, address: str | None, *, unversioned: bool) -> Settings:
    if engine not in {None, "postgres", "temporal"}:
        raise InvalidInput(f'--engine "{engine}" is not known; use postgres or temporal')
    chosen = engine or settings.engine
    changes: dict[str, str | bool] = {"address": address} if address else {}
    if unversioned:
        changes["versioned"] = False
    if changes and chosen != "temporal":
        raise InvalidInput("--address and --unversioned are for the Temporal engine; add --engine temporal")
    temporal = settings.temporal.model_copy(update=changes)
    return settings.model_copy(update={"engine": chosen, "temporal": temporal})


def deploy(
    workflow: Annotated[str | None, typer.Argument(help="With --to: the workflow to roll back.")] = None,
    to: Annotated[str | None, typer.Option(help="An earlier version; `interlock versions` lists them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Deploy the project in this directory as the version for new runs, and activate its policies for all runs.

    Existing runs keep their version of the workflow. A project without policies leaves the active policy set as it is.
    """
    if (workflow is None) != (to is None):
        raise InvalidInput("to roll back give both, --to VERSION and WORKFLOW; to deploy the project neither")
    settings = settings_here()
    if workflow is not None and to is not None:
        _roll_back(settings, workflow, to, as_json=as_json)
        return
    project = read_project(project_directory(), settings)
    logs.configure(level="warning")

    async def main() -> list[str]:
        async with App(project_directory(), settings) as app:
            principal, _ = await app.admin.local_principal()
            return (await app.admin.deploy(principal, project)).lines()

    changes = asyncio.run(main())
    text = "\n".join(changes) or "nothing to do: this version is deployed already"
    print_answer({"changes": list(changes)}, text, as_json=as_json)


def _roll_back(settings: Settings, workflow: str, to: str, *, as_json: bool) -> None:
    logs.configure(level="warning")

    async def main() -> tuple[str, bool]:
        async with App(project_directory(), settings) as app:
            principal, _ = await app.admin.local_principal()
            return await app.admin.roll_back(principal, workflow, to)

    version, moved = asyncio.run(main())
    text = f"new runs get {workflow}@{version}"
    answer: JsonObject = {"workflow": workflow, "version": version, "changed": moved}
    print_answer(answer, text if moved else f"nothing to do: {text}", as_json=as_json)


def migrate(as_json: AsJson = False) -> None:
    """Migrate the database to this version's schema."""
    settings = settings_here()
    logs.configure(level="warning")

    async def main() -> list[str]:
        async with App(project_directory(), settings) as app:
            return app.migrated

    applied = asyncio.run(main())
    text = f"applied {', '.join(applied)}" if applied else "nothing to do: the database is up to date"
    print_answer({"applied": list(applied)}, text, as_json=as_json)


async def _serve(settings: Settings, *, port: int | None, worker: bool, reload: bool) -> None:
    stop = _Stop()
    running = await find_server(settings)
    if running is not None:
        raise Conflict(f"a server for this project already runs at {running[0]}; stop it first")
    if reload:
        require_project(project_directory())
    logs.configure(level=settings.telemetry.log_level, file=_log_file(settings) if reload else None)
    for problem in await probe_sandbox() if worker else []:
        errors.print(f"tools cannot run here: {problem}", style="yellow")
    errors.print("starting PostgreSQL …" if settings.database.url is None else "connecting …")
    async with App(project_directory(), settings, notice=_notice) as app:
        server = Server(
            app.services,
            host=settings.server.host,
            port=settings.server.port if port is None else port,
            payload_bytes=settings.limits.payload_bytes,
        )
        principal, _ = await app.admin.local_principal()
        reloading = Reloading(app, principal)
        if worker:
            await reloading.deploy()
            await app.start_worker(_print_tool_output if reload else None)
        await server.start()
        watching = [asyncio.create_task(reloading.watch())] if reload else []
        watching += [asyncio.create_task(_drain_when_asked(app))] if worker else []
        watching += [asyncio.create_task(_watch_health(app))]
        try:
            with announced(settings, server.url):
                errors.print(f"Interlock runs at {server.url} (API documentation at /docs); Ctrl-C stops it")
                if reload:
                    errors.print(
                        f"log: {short(_log_file(settings))}; a key for the API: interlock keys create NAME --role developer"
                    )
                await stop.wait()
        finally:
            errors.print("stopping: finishing the steps under way …")
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await server.stop()
            await app.prepare_to_close()


def _log_file(settings: Settings) -> Path:
    return settings.data_dir / "log" / "interlock.jsonl"


def _notice(sentence: str) -> None:
    errors.print(sentence, style="yellow", soft_wrap=True)


async def _watch_health(app: App) -> None:
    """Prints one line when the process cannot do its work any more, and one when it can again."""
    said: str | None = None
    while True:
        await asyncio.sleep(_HEALTH_SECONDS)
        try:
            await app.services.health.ready()
        except InterlockError as error:
            if said is None:
                _notice(error.message)
            said = error.message
        else:
            if said is not None:
                errors.print("the database answers again" if "database did not" in said else "there is room again")
            said = None


def _print_tool_output(tool: str, place: str, text: str) -> None:
    errors.print(f"tool {visible(tool)} ({visible(place)})", style="yellow")
    for line in text.splitlines():
        errors.print(f"  {visible(line)}", soft_wrap=True)


async def _drain_when_asked(app: App) -> None:
    await app.worker_registry.asked.wait()
    errors.print("asked to drain: runs are released, the API continues")
    await app.drain_worker()


class _Stop:
    """Stop signals. The first interrupts a start, or ends a running process in order; the second interrupts that end."""

    def __init__(self) -> None:
        self._stop_requested = asyncio.Event()
        self._main = asyncio.current_task()
        self._starting = True
        running = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # As SIGINT is for a command that a shell script starts in the background.
            if signal.getsignal(name) is signal.SIG_IGN:
                continue
            with contextlib.suppress(NotImplementedError):
                running.add_signal_handler(name, self._hang_up if name is signal.SIGHUP else self._signal)

    def _hang_up(self) -> None:
        """Ends in order without the terminal, which was closed; a shell repeats this signal, so only the first counts."""
        detach_from_terminal()
        if not self._stop_requested.is_set():
            self._signal()

    def _signal(self) -> None:
        again = self._stop_requested.is_set()
        self._stop_requested.set()
        if self._main is not None and again is not self._starting:
            self._main.cancel()

    async def wait(self, *others: asyncio.Event) -> None:
        """Waits for a stop signal or another of these events; work under way is then finished in order."""
        self._starting = False
        waiting = [asyncio.create_task(event.wait()) for event in (self._stop_requested, *others)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        self._stop_requested.set()


def _run(main: Coroutine[object, None, None]) -> None:
    try:
        loop.run(main)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # stop signal during the start
