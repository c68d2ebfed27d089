"""Random bytes of the operating system, which is asked for many at once: a step needs six small pieces, each a system call."""

from __future__ import annotations

import os

_PIECE = 16
_PIECES = 256

# `pop` and `extend` of a list are atomic, so no piece is given twice, to a thread or to a signal handler.
_pool: list[bytes] = []
os.register_at_fork(after_in_child=_pool.clear)  # a child process must not give what its parent gives


def random_bytes(count: int) -> bytes:
    """Bytes of `os.urandom`, fit for keys and nonces; each is given once."""
    if count > _PIECE:
        return os.urandom(count)
    while True:
        try:
            return _pool.pop()[:count]
        except IndexError:
            block = os.urandom(_PIECE * _PIECES)
            _pool.extend([block[at : at + _PIECE] for at in range(0, len(block), _PIECE)])
