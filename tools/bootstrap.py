# ruff: noqa: T201  (this program speaks to the person at the terminal; rich is not installed yet)
"""Sets Interlock up in `.venv` from the lock files, with the standard library alone.

    setup   make or update `.venv`: locked dependencies, then the project itself, editable
    ready   exit code 0 when `.venv` is up to date (what a second `make setup` asks)

How it installs: the environment's pip fetches the locked `uv`, and uv installs the rest. uv does not read pip's
configuration, so where only pip knows the mirror, the proxy or the certificates, pip installs everything
itself. Every file must have a locked hash, and nothing is built from source.

The stamp is removed before `.venv` is touched and written when all is done: without it, `.venv` counts as
half made and is made afresh.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from commands import NEEDED_GB, CommandFailed, Runner, SetupFailed, Steps, is_disk_full

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".interlock-setup"
WORK = ROOT / ".cache" / "setup"
PYPROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements-dev.lock"

UP_TO_DATE = "setup: .venv is up to date"
OLDEST_GLIBC = (2, 28)  # what the locked wheels are built for (manylinux_2_28)
ARCHITECTURES = ("x86_64", "aarch64")

# --- what the machine must offer ---------------------------------------------------------------------------------


def check_machine() -> None:
    """Raises SetupFailed when the locked wheels cannot work here."""
    if sys.platform != "linux":
        raise SetupFailed(f"Interlock runs on Linux, and this is {platform.system()}; use a Linux machine, VM or WSL 2")
    if platform.machine() not in ARCHITECTURES or sys.maxsize < 2**32:
        raise SetupFailed(
            f"the locked packages exist for 64-bit x86_64 and aarch64, and this Python is for {platform.machine()} "
            f"({sys.maxsize.bit_length() + 1} bits); use a 64-bit Python on such a machine"
        )
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise SetupFailed(
            f"Interlock needs the standard build of CPython, and {sys.executable} is another one; name one with "
            "make setup PYTHON=/path/to/python3.12"
        )
    name, _, version = (_glibc() or "none 0.0").partition(" ")
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < OLDEST_GLIBC:
        raise SetupFailed(
            f"Interlock needs glibc {'.'.join(map(str, OLDEST_GLIBC))} or newer, and this system has "
            f"{'glibc ' + version if name == 'glibc' else 'another C library (musl?)'}; use Debian 12, Ubuntu 22.04 "
            "or newer (as a container: a Debian image instead of an Alpine one)"
        )


def _glibc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):  # musl has no such name
        return None


def check_place() -> None:
    """Raises SetupFailed when the checkout cannot be written or its disk is too full."""
    for path in (ROOT, VENV, WORK.parent, WORK):
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            where = "the checkout" if path == ROOT else str(path.relative_to(ROOT))
            raise SetupFailed(
                f"{where} cannot be written by this user ({path} belongs to {_owner(path)}, or is read-only); "
                "run as that user, give it to this one with chown, or clone the project to a directory of your own"
            )
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise SetupFailed(
            f"only {free:.1f} GB are free on the disk of {ROOT}, and setup needs {NEEDED_GB:.0f} GB; free some space"
        )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"


# --- what is installed, and whether it still fits ----------------------------------------------------------------


def fingerprint(base: str) -> dict[str, str]:
    """What the content of `.venv` depends on; `base` is the interpreter that it was, or would be, made from."""
    try:
        project = tomllib.loads(PYPROJECT.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SetupFailed(f"pyproject.toml cannot be read ({error}); mend it") from error
    # The settings of ruff, mypy and pytest change nothing that is installed.
    parts = [project.get(key) for key in ("build-system", "project")] + [project.get("tool", {}).get("hatch")]
    digest = hashlib.sha256(LOCK.read_bytes() + json.dumps(parts, sort_keys=True).encode()).hexdigest()
    # A moved checkout breaks every script of the environment: they begin with its absolute path.
    return {"python": f"{sysconfig.get_config_var('SOABI')} {base}", "place": str(ROOT), "content": digest}


def stamp() -> dict[str, str] | None:
    try:
        return dict(json.loads(STAMP.read_text()))
    except (OSError, ValueError):
        return None


def is_ready(base: str) -> bool:
    return stamp() == fingerprint(base) and (VENV / "bin" / "interlock").exists() and (VENV / "bin" / "pip").exists()


def base_python() -> str:
    """The interpreter itself, even when this runs in a virtual environment that is about to be made again."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def count_pins() -> int:
    return len(re.findall(r"^[a-z0-9].*==", LOCK.read_text(), re.MULTILINE))


def pin_of(package: str) -> Path:
    """A requirements file that holds one package of the lock, with its hashes."""
    block = re.search(rf"^{package}==.*?(?=^\S|\Z)", LOCK.read_text(), re.DOTALL | re.MULTILINE)
    if block is None:
        raise SetupFailed(f"{LOCK.name} does not name {package}; get the file as it was committed (git checkout)")
    path = WORK / f"{package}.txt"
    path.write_text(block[0])
    return path


# --- the steps ---------------------------------------------------------------------------------------------------


def make_venv(run: Runner) -> None:
    """Makes `.venv` afresh, with pip in it. Removes what is there only if it is a virtual environment."""
    if VENV.is_symlink() or (VENV.exists() and not VENV.is_dir()):
        raise SetupFailed(".venv is a link or a file, not a directory; remove it")
    if VENV.exists():
        content = {entry.name for entry in VENV.iterdir()}
        if not content <= {"include", "lib", "lib64", "bin"} and "pyvenv.cfg" not in content:
            raise SetupFailed(".venv exists but is not a virtual environment; move it away")
        shutil.rmtree(VENV)
    base = base_python()
    try:
        run.call([base, "-m", "venv", VENV])
    except CommandFailed as failure:
        if not re.search(r"ensurepip|No module named '?venv", failure.output):
            raise
        make_venv_without_ensurepip(run, base)


def make_venv_without_ensurepip(run: Runner, base: str) -> None:
    """Debian keeps ensurepip in a package of its own; pip can come from elsewhere."""
    shutil.rmtree(VENV, ignore_errors=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    advice = (
        f"this Python has no venv or ensurepip module, and there is no other pip here; install it (Debian, Ubuntu: "
        f"apt-get install python3-venv, or python{version}-venv) or name another Python with PYTHON="
    )
    try:
        run.call([base, "-m", "venv", "--without-pip", VENV])
    except CommandFailed as failure:
        raise SetupFailed(advice) from failure
    run.steps.note("ensurepip is missing (Debian: python3-venv); getting pip another way")
    wheel = find_pip_wheel()
    if wheel is None and shutil.which("uv"):
        run.call(["uv", "pip", "install", "--python", VENV_PYTHON, "--require-hashes", "-r", pin_of("pip")])
    elif wheel is None and _has_pip(run, base):
        run.call([base, "-m", "pip", "--python", VENV_PYTHON, "install", "--require-hashes", "-r", pin_of("pip")])
    else:
        wheel = wheel or download_pip_wheel(run)
        if wheel is None:
            raise SetupFailed(advice)
        run.call([VENV_PYTHON, wheel / "pip", "install", "--no-index", "--no-deps", wheel])


def find_pip_wheel(root: str = "/") -> Path | None:
    """The wheel that Debian, Ubuntu and Fedora keep for ensurepip's use."""
    found = [
        path for name in ("python-wheels", "python3-wheels") for path in Path(root, "usr/share", name).glob("pip-*.whl")
    ]
    return max(found, default=None)


def _has_pip(run: Runner, base: str) -> bool:
    try:
        run.call([base, "-m", "pip", "--python", VENV_PYTHON, "--version"])
    except CommandFailed:
        return False
    return True


def download_pip_wheel(run: Runner) -> Path | None:
    """The same wheel out of Debian's package: apt checks its signature, and installs nothing, so root is not needed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    place = WORK / "apt"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        run.call(["sh", "-c", 'cd "$1" && apt-get download -q python3-pip-whl && dpkg-deb -x ./*.deb .', "sh", place])
    except CommandFailed:
        return None
    return find_pip_wheel(str(place))


def install_locked(run: Runner, *, fresh: bool) -> None:
    """Brings `.venv` to exactly what the lock names."""
    pip: list[str | Path] = [
        VENV_PYTHON,
        "-m",
        "pip",
        "install",
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--no-deps",
    ]
    uv = VENV / "bin" / "uv"
    try:
        if fresh or not uv.exists():
            run.call([*pip, "--retries", "2", "-r", pin_of("uv")])
        sync = ["pip", "sync", "--require-hashes", "--only-binary", ":all:", "--compile-bytecode"]
        run.call([uv, *sync, "--python", VENV_PYTHON, LOCK])
    except CommandFailed as failure:
        if is_disk_full(failure.output):  # a full disk is no better for pip
            raise
        run.steps.note(f"no luck with uv: {failure}; trying pip alone")
        if not fresh:  # pip would leave what the lock no longer names
            make_venv(run)
        run.call([*pip, "--retries", "2", "-r", LOCK])


def install_project(run: Runner) -> None:
    run.call([VENV_PYTHON, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "-e", ROOT])


def setup() -> None:
    check_machine()
    check_place()
    with only_one() as lock_fd:
        base = base_python()
        if is_ready(base):
            print(UP_TO_DATE)
            return
        began, steps = time.monotonic(), Steps(3)
        run = Runner(steps, ROOT, WORK, lock_fd)
        wanted, was = fingerprint(base), stamp()
        fresh = was is None or any(was.get(key) != wanted[key] for key in ("python", "place"))
        STAMP.unlink(missing_ok=True)
        steps.start(f"{'making' if fresh else 'keeping'} .venv with Python {platform.python_version()}")
        if fresh:
            make_venv(run)
        steps.done()
        steps.start(f"installing {count_pins()} locked packages")
        install_locked(run, fresh=fresh)
        steps.done()
        steps.start("installing Interlock itself, editable")
        install_project(run)
        steps.done()
        STAMP.write_text(json.dumps(wanted))
        print(f"setup: .venv is ready, after {time.monotonic() - began:.0f} s")


@contextmanager
def only_one() -> Iterator[int]:
    """Holds the checkout's lock: `make demo` and `make test` in two terminals must not both make `.venv`."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: another setup is at work in this checkout; waiting for it …", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


# --- the door ----------------------------------------------------------------------------------------------------


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    try:
        if arguments == ["ready"]:
            if not is_ready(base_python()):
                return 1
            print(UP_TO_DATE)
        elif arguments == ["setup"]:
            setup()
        else:
            raise SetupFailed("the command is not known; use setup or ready")
    except CommandFailed as failure:
        return _stop(f"{failure}.\nsetup: the full log is .cache/setup/setup.log; `make setup` starts again.")
    except SetupFailed as failure:
        return _stop(f"{failure}.")
    except BrokenPipeError:  # whoever read our output has gone (make setup | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _stop(f"{error.filename or 'a file'}: {error.strerror}; check the disk, and who owns the file.")
    except KeyboardInterrupt:
        return _stop("interrupted; the next `make setup` starts again cleanly.", code=130)
    return 0


def _stop(message: str, code: int = 1) -> int:
    print(f"\nsetup: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
