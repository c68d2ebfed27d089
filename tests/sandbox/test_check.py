from __future__ import annotations

from pathlib import Path

import pytest

from interlock.sandbox.check import _settings, probe_sandbox


async def test_this_host_is_fit() -> None:
    assert await probe_sandbox() == []


async def test_a_start_that_fails_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    (found,) = await probe_sandbox(bwrap=broken, sysctl=tmp_path)
    assert found.startswith("A trial sandbox did not start (bwrap: setting up uid map: Permission denied); make sure")
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("0\n")
    (found,) = await probe_sandbox(bwrap=broken, sysctl=tmp_path)
    assert "user.max_user_namespaces=15000" in found


@pytest.mark.parametrize(
    ("setting", "value", "word", "root_too"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000", True),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1", False),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor", False),
    ],
)
def test_settings(tmp_path: Path, setting: str, value: str, word: str, root_too: bool) -> None:
    file = tmp_path / setting
    file.parent.mkdir()
    file.write_text(f"{value}\n")
    assert [word in sentence for sentence in _settings(tmp_path, as_root=False)] == [True]
    assert bool(_settings(tmp_path, as_root=True)) is root_too
    file.write_text("7\n")
    assert _settings(tmp_path, as_root=False) == []


@pytest.mark.parametrize(("release", "fit"), [("5.13.0-51-generic", False), ("5.14.0", True), ("6.18.44-x", True)])
async def test_kernels(release: str, fit: bool) -> None:
    assert (await probe_sandbox(release=release) == []) is fit
