"""Random bytes: each piece is given once, to threads and to child processes as well."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from interlock.base.entropy import random_bytes


@pytest.mark.parametrize("count", [0, 1, 8, 12, 16, 17, 32, 5000])
def test_the_length_is_the_one_asked_for(count: int) -> None:
    assert len(random_bytes(count)) == count


def test_no_piece_is_given_twice_to_threads() -> None:
    def take(_: int) -> list[bytes]:
        return [random_bytes(12) for _ in range(5000)]

    with ThreadPoolExecutor(8) as threads:
        taken = [piece for pieces in threads.map(take, range(8)) for piece in pieces]
    assert len(set(taken)) == 40_000


def test_a_child_process_gets_other_bytes_than_its_parent() -> None:
    random_bytes(12)  # the pool is filled
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"".join(random_bytes(16) for _ in range(300)))
        os._exit(0)
    os.waitpid(child, 0)
    ours = {random_bytes(16) for _ in range(300)}
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb"):
        said = pipe.read(300 * 16)
    assert len(ours | {said[at : at + 16] for at in range(0, len(said), 16)}) == 600


def test_every_bit_is_as_often_one_as_zero() -> None:
    ones = sum(int.from_bytes(random_bytes(16)).bit_count() for _ in range(4000))
    assert abs(ones - 4000 * 64) < 6 * (4000 * 128 / 4) ** 0.5
