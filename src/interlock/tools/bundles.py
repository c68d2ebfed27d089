"""Tool bundles: a tool's directory as one deterministic archive, named by its digest and verified when unpacked."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import shutil
import symtable
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from interlock.base.errors import IntegrityError, InvalidSpec
from interlock.base.files import read_bytes
from interlock.base.ids import random_token

# A tool is code and small data; larger data belongs in a store that the tool reaches by egress.
MAX_BUNDLE_BYTES = 64 * 1024 * 1024
_IGNORED = {"__pycache__", ".git", ".DS_Store"}


def pack(directory: Path) -> tuple[str, bytes]:
    """(SHA-256 of the archive, archive): same files, same digest, independent of dates and owners.

    Raises:
        InvalidSpec: no main.py, a link or device in it, or too large; names the path.
    """
    if not (directory / "main.py").is_file():
        raise InvalidSpec(f"{directory}: a tool needs a main.py with a function run; add it")
    buffer = io.BytesIO()
    total = 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            relative = path.relative_to(directory)
            if _IGNORED & set(relative.parts):
                continue
            try:
                str(relative).encode()
            except UnicodeEncodeError:
                raise InvalidSpec(f"{directory}: holds a file whose name is not UTF-8; rename it") from None
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InvalidSpec(
                    f"{path}: a tool may hold plain files and directories only; replace the link or device"
                )
            info = tarfile.TarInfo(relative.as_posix())
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
                continue
            total += path.stat().st_size  # checked first, because the file may be larger than memory
            if total > MAX_BUNDLE_BYTES:
                raise InvalidSpec(
                    f"{directory}: over {MAX_BUNDLE_BYTES // 2**20} MiB; keep large data outside the tool"
                )
            content = path.read_bytes()
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    packed = buffer.getvalue()
    return hashlib.sha256(packed).hexdigest(), packed


def missing_functions(main: Path, wanted: Iterable[str]) -> list[str]:
    """The wanted names that a tool's main.py does not define, as far as static analysis can tell.

    Raises:
        InvalidSpec: it is not Python; names the line.
        OSError: it cannot be read.
    """
    source = read_bytes(main)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the tool's code are not ours to report
            tree = ast.parse(source)
            table = symtable.symtable(source, "main.py", "exec")  # type: ignore[arg-type]  # takes bytes, as compile does
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InvalidSpec(f"{main}{line}: is not Python {version}: {said}; correct it") from None
    known = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    imported = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    if imported or "__getattr__" in known:
        return []  # names from a star import are known only at run time
    return [name for name in wanted if name not in known]


def unpack(digest: str, packed: bytes, cache: Path) -> Path:
    """Unpacks an archive into `cache/<digest>`, once; safe with concurrent processes.

    A directory that is there already and holds something else is moved aside, as `<digest>.altered-…`.

    Raises:
        IntegrityError: the archive is not the one the version pins.
    """
    if hashlib.sha256(packed).hexdigest() != digest:
        raise IntegrityError(f"tool bundle {digest[:12]}… is not what was deployed; deploy the workflow again")
    target = cache / digest
    if target.is_dir():
        if is_intact(target, digest):
            return target
        with contextlib.suppress(FileNotFoundError):  # another process was first
            target.rename(cache / f"{digest}.altered-{random_token()}")
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=cache))
    try:
        temporary.chmod(0o755)
        try:
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
                _extract(archive, temporary)
        except (tarfile.TarError, OSError) as error:
            raise IntegrityError(
                f"tool bundle {digest[:12]}… cannot be unpacked; deploy the workflow again", detail=str(error)
            ) from error
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def is_intact(directory: Path, digest: str) -> bool:
    """True if an unpacked bundle holds exactly the files that its digest names."""
    try:
        # `pack` leaves these out, but Python would load a compiled module from them.
        if any(path.name in _IGNORED for path in directory.rglob("*")):
            return False
        return pack(directory)[0] == digest
    except (InvalidSpec, OSError):
        return False


def _extract(archive: tarfile.TarFile, target: Path) -> None:
    """Writes plain files and directories, and refuses everything that `pack` never makes.

    Not with extractall: it has no filter before Python 3.11.4, and Debian 12 has an older version.
    """
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
            raise IntegrityError(
                f'tool bundle holds "{member.name[:80]}", which no tool may; deploy the workflow again'
            )
        if member.isdir():
            (target / path).mkdir(mode=0o755, parents=True, exist_ok=True)
            continue
        content = archive.extractfile(member)
        assert content is not None, "a regular file has content"
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content.read())
        (target / path).chmod(0o644)
