"""Files: those that people wrote are read with bounds, and private ones are written whole.

Only regular files of bounded size are read, so that a pipe or a device stops no command.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 4 * 1024 * 1024


def read_bytes(path: Path) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `MAX_FILE_BYTES`; `strerror` says which.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE_BYTES // 2**20} MiB", str(path))
    return content


def read_text(path: Path) -> str:
    """Content of a regular file as UTF-8 text.

    Raises:
        OSError: as `read_bytes`. UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path).decode()


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """The reason in a few words, without the path."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8"


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fsync(file.fileno())
    temporary.replace(path)
