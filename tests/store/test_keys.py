"""The master key's file: made once, readable by its owner only, and never guessed at when it is damaged."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.pool import ThreadPool
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from interlock.base.errors import InvalidSpec
from interlock.store.keys import KEY_BYTES, load_or_create_secret

SPAWN = multiprocessing.get_context("spawn")


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "master.key"
    before = os.umask(0)
    try:
        key = load_or_create_secret(path)
    finally:
        os.umask(before)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert load_or_create_secret(path) == key == path.read_bytes()
    assert list(path.parent.iterdir()) == [path]
    assert load_or_create_secret(tmp_path / "another.key") != key


@pytest.mark.parametrize("content", [b"", b"x", bytes(KEY_BYTES - 1), bytes(KEY_BYTES + 1)])
def test_a_damaged_key_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(content)
    with pytest.raises(InvalidSpec, match=f"master.key: has {len(content)} bytes"):
        load_or_create_secret(path)
    assert path.read_bytes() == content


def test_what_a_killed_process_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    # A container's process has the same number every time.
    (tmp_path / f"master.{os.getpid()}").write_bytes(b"half")
    assert len(load_or_create_secret(tmp_path / "master.key")) == KEY_BYTES


def create(path: str, together: Barrier, found: multiprocessing.SimpleQueue[bytes]) -> None:
    with ThreadPool(4) as threads:
        together.wait(30)
        for key in threads.map(load_or_create_secret, [Path(path)] * 4):
            found.put(key)


def test_processes_that_start_together_get_one_key(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "master.key"
    together, found = SPAWN.Barrier(3), SPAWN.SimpleQueue()
    processes = [SPAWN.Process(target=create, args=(str(path), together, found)) for _ in range(3)]
    for process in processes:
        process.start()
    keys = {found.get() for _ in range(12)}
    for process in processes:
        process.join()
    assert keys == {path.read_bytes()}
    assert list(path.parent.iterdir()) == [path]
