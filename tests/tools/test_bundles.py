"""Bundles: the same files are the same bundle, and nothing but plain files goes in or comes out."""

from __future__ import annotations

import gzip
import hashlib
import io
import multiprocessing
import os
import random
import socket
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.base.errors import IntegrityError, InvalidSpec
from interlock.tools.bundles import MAX_BUNDLE_BYTES, is_intact, pack, unpack

FILES = {
    "main.py": b"def run(): return {}\n",
    "data/faq.json": b"{}",
    "data/deep/er.txt": "é\0\n".encode(),
    "z.py": b"",
}


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def read(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    return write(tmp_path / "tool", FILES)


def archive_of(*members: tarfile.TarInfo, content: bytes = b"x") -> tuple[str, bytes]:
    """A tar with these members, and its true digest: what somebody could deploy who does not use `pack`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def test_the_same_files_are_the_same_bundle(tool: Path, tmp_path: Path) -> None:
    digest, packed = pack(tool)
    assert digest == hashlib.sha256(packed).hexdigest()
    names = list(FILES)
    random.Random(7).shuffle(names)
    other = write(tmp_path / "elsewhere" / "under" / "another" / "name", {name: FILES[name] for name in names})
    for number, path in enumerate(sorted(other.rglob("*"))):
        os.utime(path, (number * 1e6, number * 1e7))
        if path.is_file():
            path.chmod(0o600 if number % 2 else 0o755)
        if os.geteuid() == 0:
            os.chown(path, 1000 + number, 1000 + number)
    other.chmod(0o700)
    # What tools and systems leave behind is none of it.
    write(
        other,
        {
            "__pycache__/main.cpython-311.pyc": b"x",
            "data/__pycache__/x.pyc": b"x",
            ".git/HEAD": b"x",
            ".DS_Store": b"x",
        },
    )
    assert pack(other) == (digest, packed)


@pytest.mark.parametrize(
    "change",
    [
        lambda tool: (tool / "z.py").write_bytes(b" "),
        lambda tool: (tool / "z.py").unlink(),
        lambda tool: (tool / "z.py").rename(tool / "y.py"),
        lambda tool: (tool / "new").mkdir(),
        lambda tool: (tool / "data" / "faq.json").rename(tool / "faq.json"),
        lambda tool: (tool / ".hidden").write_bytes(b""),
    ],
    ids=["content", "removed", "renamed", "empty directory", "moved", "hidden file"],
)
def test_other_files_are_another_bundle(tool: Path, change: Callable[[Path], object]) -> None:
    before, _ = pack(tool)
    change(tool)
    assert pack(tool)[0] != before


def test_what_was_packed_comes_out(tool: Path, tmp_path: Path) -> None:
    digest, packed = pack(tool)
    place = unpack(digest, packed, tmp_path / "cache" / "made")
    assert place == tmp_path / "cache" / "made" / digest
    assert read(place) == FILES
    assert all(
        path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644) for path in [place, *place.rglob("*")]
    )
    before = place.stat().st_ino
    assert unpack(digest, packed, tmp_path / "cache" / "made") == place
    assert place.stat().st_ino == before, "unpacked once is enough"


def compiled(place: Path) -> None:
    (place / "__pycache__").mkdir()
    (place / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"other code")


def linked(place: Path) -> None:
    (place / "main.py").unlink()
    (place / "main.py").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    "alter",
    [
        lambda place: (place / "main.py").write_text("def run(): return 'other code'\n"),
        lambda place: (place / "main.py").unlink(),
        lambda place: (place / "more.py").write_text(""),
        lambda place: (place / "empty").mkdir(),
        compiled,
        linked,
    ],
)
def test_an_altered_copy_is_moved_aside(tool: Path, tmp_path: Path, alter: Callable[[Path], object]) -> None:
    digest, packed = pack(tool)
    cache = tmp_path / "cache"
    place = unpack(digest, packed, cache)
    alter(place)
    assert not is_intact(place, digest)
    assert unpack(digest, packed, cache) == place
    assert read(place) == FILES
    assert is_intact(place, digest)
    (aside,) = [path for path in cache.iterdir() if path != place]
    assert aside.name.startswith(f"{digest}.altered-")


def links(tool: Path) -> dict[str, Callable[[], object]]:
    return {
        "symlink to a file": lambda: (tool / "link").symlink_to(tool / "z.py"),
        "symlink out of the tool": lambda: (tool / "data" / "link").symlink_to("/etc/passwd"),
        "symlink to a directory": lambda: (tool / "link").symlink_to(tool / "data", target_is_directory=True),
        "dangling symlink": lambda: (tool / "link").symlink_to("nowhere"),
        "named pipe": lambda: os.mkfifo(tool / "link"),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(os.path.relpath(tool / "link")),
    }


@pytest.mark.parametrize("kind", links(Path()))
def test_links_and_devices_are_refused(tool: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tool)  # a socket's name may not be long
    links(tool)[kind]()
    with pytest.raises(InvalidSpec, match="link: a tool may hold plain files and directories only"):
        pack(tool)


def test_main_must_be_a_file_of_the_tool(tool: Path, tmp_path: Path) -> None:
    (tool / "main.py").rename(tmp_path / "main.py")
    with pytest.raises(InvalidSpec, match=r"a tool needs a main\.py with a function run; add it"):
        pack(tool)
    (tool / "main.py").symlink_to(tmp_path / "main.py")
    with pytest.raises(InvalidSpec, match="replace the link"):
        pack(tool)
    (tool / "main.py").unlink()
    (tool / "main.py").mkdir()
    with pytest.raises(InvalidSpec, match="add it"):
        pack(tool)


def test_a_name_that_is_not_utf8_is_refused(tool: Path) -> None:
    Path(os.fsdecode(os.fsencode(tool) + b"/\xff")).write_bytes(b"")
    with pytest.raises(InvalidSpec, match="not UTF-8"):
        pack(tool)


def test_the_size_limit_counts_all_files_and_reads_none_too_many(tool: Path) -> None:
    half = MAX_BUNDLE_BYTES // 2
    used = sum(map(len, FILES.values()))
    for name, size in (("a.bin", half), ("b.bin", half - used)):
        with (tool / name).open("wb") as file:
            file.truncate(size)
    assert pack(tool)[0]
    with (tool / "b.bin").open("ab") as file:
        file.write(b"!")
    with pytest.raises(InvalidSpec, match="over 64 MiB; keep large data outside the tool"):
        pack(tool)
    # A file larger than any memory, of which the disk holds nothing: reading it first would be the end of us.
    with (tool / "b.bin").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(InvalidSpec, match="over 64 MiB"):
        pack(tool)


def test_another_archive_than_the_pinned_one_is_refused(tool: Path, tmp_path: Path) -> None:
    digest, packed = pack(tool)
    changed = bytearray(packed)
    changed[600] ^= 1
    for bad in (bytes(changed), packed[:-1], packed + b"\0", b""):
        with pytest.raises(IntegrityError, match="is not what was deployed"):
            unpack(digest, bad, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


HOSTILE = {
    "parent": [member("../escaped")],
    "parent inside": [member("data/../../escaped")],
    "absolute": [member("/tmp/interlock-escaped")],
    "symlink": [member("link", tarfile.SYMTYPE, link="/etc")],
    "symlink then file": [member("link", tarfile.SYMTYPE, link=".."), member("link/escaped")],
    "hard link": [member("link", tarfile.LNKTYPE, link="../escaped")],
    "device": [member("null", tarfile.CHRTYPE)],
    "pipe": [member("pipe", tarfile.FIFOTYPE)],
    "file as a directory": [member("main.py"), member("main.py/escaped")],
    "directory as a file": [member("main.py", tarfile.DIRTYPE), member("main.py")],
    "name with NUL": [member("a\0b/../../escaped")],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_reaches_out_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    digest, packed = archive_of(*HOSTILE[kind])
    cache = tmp_path / "outside" / "cache"
    try:
        place = unpack(digest, packed, cache)
    except IntegrityError:
        assert list(cache.iterdir()) == []
    else:
        # Only what tar itself cut off at the NUL may come out, and inside.
        assert kind == "name with NUL"
        assert read(place) == {"a": b"x"}
    assert sorted(path.name for path in tmp_path.rglob("*") if "escaped" in path.name) == []
    assert not Path("/tmp/interlock-escaped").exists()


def test_garbage_with_its_own_digest_is_refused(tmp_path: Path, tool: Path) -> None:
    _, packed = pack(tool)
    for garbage in (b"not a tar at all" * 100, gzip.compress(packed)):
        with pytest.raises(IntegrityError, match="cannot be unpacked"):
            unpack(hashlib.sha256(garbage).hexdigest(), garbage, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def _unpack_at(gate: object, digest: str, packed: bytes, cache: Path) -> None:
    gate.wait()  # type: ignore[attr-defined]
    unpack(digest, packed, cache)


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_many_may_unpack_at_once(tool: Path, tmp_path: Path, kind: str) -> None:
    write(tool, {f"data/{number}.bin": os.urandom(2000) for number in range(60)})
    digest, packed = pack(tool)
    cache = tmp_path / "cache"
    failed: list[object] = []
    if kind == "processes":
        context = multiprocessing.get_context("fork")
        gate = context.Barrier(4)
        started = [context.Process(target=_unpack_at, args=(gate, digest, packed, cache)) for _ in range(4)]
        for process in started:
            process.start()
        for process in started:
            process.join(30)
        failed = [process.exitcode for process in started if process.exitcode != 0]
    else:
        gate = threading.Barrier(8)

        def work() -> None:
            try:
                _unpack_at(gate, digest, packed, cache)
            except Exception as error:  # noqa: BLE001  told below
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert failed == []
    assert read(cache / digest) == read(tool)
    assert [path.name for path in cache.iterdir()] == [digest], "nobody's half-unpacked copy is left"
