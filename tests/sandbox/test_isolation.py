"""What a tool can see, write and reach of the host: nothing."""

from __future__ import annotations

import asyncio
import os
import secrets
import site
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.sandbox.bubblewrap import BubblewrapSandbox

from .conftest import MakeJob, Run, processes_with

READ = """
def run(paths):
    seen = {}
    for path in paths:
        try:
            with open(path) as file:
                seen[path] = file.read()
        except OSError as error:
            seen[path] = None
    return seen
"""


async def test_secrets_of_the_host_do_not_exist(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sk-live-1")
    at_home = Path.home() / f".interlock-test-{secrets.token_hex(4)}"
    at_home.write_text("sk-live-2")
    try:
        paths = [str(secret), str(at_home), "/etc/passwd", "/etc/group", "/proc/1/root/etc/passwd", __file__]
        assert all(Path(path).read_text() for path in paths if not path.startswith("/proc/1"))  # or it proves nothing
        result = await run(READ, {"paths": paths})
    finally:
        at_home.unlink()
    assert result.ending == "ok"
    assert result.output == dict.fromkeys(paths)


async def test_only_the_layout_is_visible(run: Run) -> None:
    result = await run("import os\ndef run(): return [os.listdir('/'), os.listdir('/etc'), os.listdir('/tmp')]")
    root, etc, tmp = result.output
    known = {"bin", "dev", "etc", "interlock", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "tool", "usr"}
    prefix = {Path(sys.base_prefix).parts[1]}
    assert set(root) <= known | prefix
    assert set(etc) <= {"ld.so.cache", "ssl"}
    assert tmp == []


async def test_nothing_but_tmp_can_be_written(run: Run) -> None:
    source = """
    import os, sys
    def run():
        written = []
        places = []
        for where, inner, _ in os.walk("/"):
            if where.count("/") > 3 or where == "/proc":
                inner.clear()
            places.append(os.path.join(where, ".probe"))
        places += ["/tool/main.py", "/proc/sys/kernel/hostname", "/proc/self/oom_adj2", sys.executable]
        for place in places:
            try:
                with open(place, "a") as file:
                    file.write("")
                written.append(place)
            except OSError:
                pass
        return [len(places), written]
    """
    result = await run(source)
    count, written = result.output
    assert count > 50
    assert written == ["/tmp/.probe"]


async def test_the_environment_is_empty_of_the_host(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_TEST_TOKEN", "sk-live-3")
    source = """
    import os
    def run():
        try:  # what bubblewrap itself was started with; closed if it belongs to root
            init = open("/proc/1/environ").read()
        except PermissionError:
            init = ""
        return [dict(os.environ), init]
    """
    environment, init = (await run(source)).output
    assert set(environment) <= {"PATH", "HOME", "TMPDIR", "LANG", "PWD", "MALLOC_ARENA_MAX"}
    assert init == ""


async def test_command_lines_name_no_path_of_the_host(make_job: MakeJob, sandbox: BubblewrapSandbox) -> None:
    source = """
    import os
    def run():
        return {name: open(f"/proc/{name}/cmdline").read().split("\\0") for name in os.listdir("/proc") if name.isdigit()}
    """
    job = make_job(source, egress=("127.0.0.1:9",))
    lines = (await sandbox.run(job)).output
    assert lines["1"][0] == "bwrap"
    assert len(lines) == 3
    words = [word for line in lines.values() for word in line]
    python = os.path.realpath(sys.executable)  # mounted under the same path inside
    assert {word for word in words if word.startswith("/")} == {python, "/interlock/runner.py"}
    for path in (job.bundle, Path(__file__).parents[2], *site.getsitepackages()):
        assert not any(str(path) in word for word in words)


async def test_the_tool_owns_nothing_and_can_do_nothing(run: Run) -> None:
    source = """
    import os
    def run():
        status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
        names = ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp")
        return {name: status[name].split() for name in names}
    """
    result = await run(source)
    status = result.output
    assert status["Uid"] == ["65534"] * 4
    assert status["Gid"] == ["65534"] * 4
    assert status["Groups"] in ([], ["65534"])
    assert {int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a second user to give")
async def test_a_tool_started_by_root_is_not_root_outside(sandbox: BubblewrapSandbox, make_job: MakeJob) -> None:
    marker = f"5{secrets.randbelow(10**8):08d}"
    source = "import subprocess\ndef run(marker): subprocess.run(['sleep', marker])"
    task = asyncio.create_task(sandbox.run(make_job(source, {"marker": marker})))
    async with asyncio.timeout(120):
        while not (found := processes_with(f"sleep\0{marker}")):
            await asyncio.sleep(0.02)
    assert [Path(f"/proc/{pid}").stat().st_uid for pid in found] == [65534]
    task.cancel()


async def test_no_network_without_egress(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass  # the host itself can
        source = """
        import os, socket
        def run(port):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=3)
                reached = True
            except ConnectionRefusedError:
                reached = False
            return {"reached": reached, "interfaces": os.listdir("/proc/sys/net/ipv4/neigh"),
                    "routes": open("/proc/net/route").read().splitlines()[1:], "proxy": os.environ.get("http_proxy")}
        """
        result = await run(source, {"port": port})
    assert result.ending == "ok", result
    assert result.output["reached"] is False
    assert set(result.output["interfaces"]) <= {"default", "lo"}
    assert result.output["routes"] == []
    assert result.output["proxy"] is None


async def test_abstract_sockets_of_the_host_are_out_of_reach(run: Run) -> None:
    name = f"interlock-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        source = """
        import socket
        def run(name):
            socket.socket(socket.AF_UNIX).connect("\\0" + name)
        """
        result = await run(source, {"name": name})
    assert (result.ending, result.error) == ("raised", "ConnectionRefusedError: [Errno 111] Connection refused")


async def test_processes_of_the_host_are_invisible(run: Run) -> None:
    source = "import os\ndef run(): return sorted(int(name) for name in os.listdir('/proc') if name.isdigit())"
    result = await run(source)
    assert result.output == [1, 2]


async def test_jobs_share_no_state(sandbox: BubblewrapSandbox, make_job: MakeJob) -> None:
    job = make_job(
        """
        import os
        seen = []
        def run():
            seen.append(1)
            before = os.listdir("/tmp")
            open("/tmp/left", "w").write("x")
            return [len(seen), before]
        """
    )
    for _ in range(3):
        assert (await sandbox.run(job)).output == [1, []]


async def test_installed_libraries_and_modules_of_the_bundle_can_be_imported(
    sandbox: BubblewrapSandbox, make_job: MakeJob
) -> None:
    if not any(Path(path, "pydantic").is_dir() for path in site.getsitepackages()):
        pytest.skip("pydantic comes from elsewhere than this interpreter's libraries")
    job = make_job("import pydantic, part, json\ndef run(): return [part.name, json.__file__.startswith('/tool')]")
    (job.bundle / "part.py").write_text("name = 'part'")
    (job.bundle / "json.py").write_text("raise RuntimeError('a bundle must not replace the standard library')")
    assert (await sandbox.run(job)).output == ["part", False]


async def test_a_bundle_closed_to_others_still_works(sandbox: BubblewrapSandbox, make_job: MakeJob) -> None:
    job = make_job("def run(): return open('/tool/data/words').read()")
    (job.bundle / "data").mkdir(mode=0o700)
    words = job.bundle / "data/words"
    words.write_text("closed")
    for path in (words, job.bundle / "main.py"):
        path.chmod(0o600)
    job.bundle.chmod(0o700)
    assert (await sandbox.run(job)).output == "closed"


async def test_a_link_in_the_bundle_leads_nowhere_on_the_host(
    sandbox: BubblewrapSandbox, make_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("sk-live-4")
    job = make_job("def run(): return open('/tool/link').read()")
    (job.bundle / "link").symlink_to(tmp_path / "secret")
    result = await sandbox.run(job)
    assert result.ending == "raised"
    assert "FileNotFoundError" in str(result.error)


def test_a_worker_that_is_killed_takes_its_sandboxes_along(tmp_path: Path) -> None:
    """SIGKILL gives the worker no chance to clean up; the kernel must do it."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    marker = f"6{secrets.randbelow(10**8):08d}"
    (bundle / "main.py").write_text(f"import subprocess\ndef run(): subprocess.run(['sleep', '{marker}'])")
    program = f"""
import asyncio
from pathlib import Path
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import Job
job = Job(Path({str(bundle)!r}), "t", "run", {{}}, {{}}, frozenset({{"t"}}))
asyncio.run(BubblewrapSandbox(warm=0).run(job))
"""
    worker = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert _eventually(lambda: len(processes_with(f"sleep\0{marker}")) == 1)
    finally:
        worker.kill()
        worker.wait()
    assert _eventually(lambda: not processes_with(f"sleep\0{marker}"))


def _eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.025)
    return False
