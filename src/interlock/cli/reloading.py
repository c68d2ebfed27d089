"""Reloading of a project by `interlock dev`: files are watched, sound workflows are deployed, faults are printed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import watchfiles

from interlock.app import App
from interlock.base.errors import InterlockError
from interlock.base.settings import SETTINGS_FILE, load_settings, on_own_machine
from interlock.cli.console import errors
from interlock.identity.principal import Principal

_WATCHED = ("workflows", "prompts", "tools", "policies", "schemas")


class Reloading:
    """Deploys the project of an open application again and again.

    Args:
        principal: deploys.
    """

    def __init__(self, app: App, principal: Principal) -> None:
        self._app = app
        self._principal = principal
        self._faulty = False

    async def deploy(self) -> None:
        """Deploys the sound workflows, and prints what was deployed, every fault, and when there is none any more."""
        try:
            project, faults = await asyncio.to_thread(self._app.read_sound_parts)
            lines = (await self._app.admin.deploy(self._principal, project)).lines() if project.definitions else []
        except InterlockError as error:
            lines, faults = [], [error.message]
        except Exception as error:  # noqa: BLE001  a file deleted while it was read, or a bug, must not end the reloading
            lines, faults = [], [f"not deployed: {type(error).__name__}: {error}"]
        for line in lines:
            errors.print(line, style="green")
        for fault in faults:
            errors.print(fault, style="red", soft_wrap=True)
        if faults:
            errors.print("workflows that use a faulty file keep their deployed version", style="dim")
        elif self._faulty and not lines:
            errors.print("no faults any more; all workflows are as deployed", style="green")
        self._faulty = bool(faults)

    async def watch(self) -> None:
        """Deploys after every change of a definition or of the settings, until it is cancelled."""
        async for changed in _changes(self._app.project):
            if self._app.project / SETTINGS_FILE in changed and not self._reload_settings():
                continue
            await self.deploy()

    def _reload_settings(self) -> bool:
        """Takes over models and variables; False if the file is faulty."""
        try:
            settings = on_own_machine(load_settings(self._app.project))
        except InterlockError as error:
            errors.print(error.message, style="red", soft_wrap=True)
            self._faulty = True
            return False
        others = self._app.reload_definition_settings(settings)
        if others:
            errors.print(f"{SETTINGS_FILE}: a change of {', '.join(others)} needs a restart", style="yellow")
        return True


async def _changes(project: Path) -> AsyncIterator[set[Path]]:
    """Changed files; directories of definitions may be created while they are watched."""
    while True:
        places = [project / name for name in _WATCHED if (project / name).is_dir()]
        created = asyncio.Event()
        found: asyncio.Queue[set[Path]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(_watch_tree(places, found, created)),
            asyncio.create_task(_watch_root(project, places, found, created)),
        ]
        try:
            while not created.is_set() or not found.empty():
                yield await found.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_tree(places: list[Path], found: asyncio.Queue[set[Path]], created: asyncio.Event) -> None:
    if not places:
        await created.wait()
        return
    async for changes in watchfiles.awatch(*places):
        found.put_nowait({Path(path) for _, path in changes})


async def _watch_root(
    project: Path, places: list[Path], found: asyncio.Queue[set[Path]], created: asyncio.Event
) -> None:
    """Watches the settings file and new directories, but not below the project, where the database's files are."""
    async for changes in watchfiles.awatch(project, recursive=False):
        paths = {Path(path) for _, path in changes}
        fresh = {path for path in paths if path.name in _WATCHED and path.is_dir() and path not in places}
        if fresh:
            created.set()
        wanted = fresh | {path for path in paths if path.name == SETTINGS_FILE}
        if wanted:
            found.put_nowait(wanted)
