"""Program inside the sandbox: it receives one job, calls one function, sends one answer, and ends.

It is mounted into the sandbox as a single file and run by a bare interpreter, so it imports the standard library only.
It is trusted until it loads the tool; after that the host treats its answer as hostile bytes. Therefore everything that
protects the host is done before the load: limits, user id, path.

The channel is a socket inherited under a number given at start. Lines of JSON, in this order::

    runner -> host   {"ready": true}       with descriptors of /proc and /tmp, for the host's watchdog
    host -> runner   {"tool", "function", "arguments", "context", "allowed_tools", "output_bytes"}
    runner -> host   {"started": true}     the tool's code has not run before this line
    runner -> host   {"ending", "output" | "error", "retryable", "nothing_happened", "retry_after"}
"""

# The functions of os are used because importing pathlib would delay every cold start:
# ruff: noqa: PTH101, PTH102, PTH113, PTH115, PTH123, PTH211
from __future__ import annotations

import importlib.util
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import types
from collections.abc import Callable, Mapping
from typing import NoReturn, TypedDict

TOOL_DIRECTORY = "/tool"
BUNDLE_COPY_SOURCE = "/interlock/bundle"
EGRESS_SOCKET = "/interlock/egress.sock"
UNPRIVILEGED = 65534  # user and group id that own no files
OPEN_FILES = 256
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h
TRACEBACK_FRAMES = 20
TRACEBACK_CHARACTERS = 4000
CHAINED_ERRORS = 4
# Slow to import and common in tools: imported while a warm sandbox waits, so that they do not delay a job.
PRELOAD = (
    "ctypes",
    "inspect",
    "asyncio",
    "datetime",
    "urllib.request",
    "dataclasses",
    "hashlib",
    "decimal",
    "tempfile",
    "subprocess",
    "uuid",
    "csv",
    "sqlite3",
)


class SentJob(TypedDict):
    """A job as the host sends it."""

    tool: str
    function: str
    arguments: Mapping[str, object]
    context: Mapping[str, object]
    allowed_tools: list[str]
    output_bytes: int


class Retry(Exception):
    """Raised by a tool for a transient failure; `retry_after` requests a pause in seconds."""

    retryable = True

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Fail(Exception):
    """Raised by a tool for a permanent failure in which it changed nothing."""

    retryable = False
    nothing_happened = True


class Refusal(Exception):
    """The job cannot be executed; the text is the sentence of the answer."""

    def __init__(self, sentence: str, ending: str = "raised") -> None:
        super().__init__(sentence)
        self.ending = ending


def main() -> NoReturn:
    setup = json.loads(sys.argv[1])
    channel: int = setup["channel"]
    os.set_inheritable(channel, False)  # programs started by the tool must not inherit the channel
    sys.path += [
        TOOL_DIRECTORY,
        *setup["sites"],
    ]  # after the standard library, so that warm and cold sandboxes import the same modules
    offer_tool_module()
    if setup["egress"]:
        start_relay(channel)
    send_ready(channel)
    line = wait_for_job(channel)
    if os.getuid() == 0:
        copy_tree(BUNDLE_COPY_SOURCE, TOOL_DIRECTORY)
        drop_identity()
    limit(setup)
    send(channel, b'{"started":true}\n')
    answer = answer_to(line)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - the tool may have replaced the stream by anything
            continue
    send(channel, answer)
    while (
        True
    ):  # wait to be killed; an exit would run the tool's hooks, and the host's init would have to reap process 1
        signal.pause()


def limit(setup: Mapping[str, int]) -> None:
    """Hard limits: without capabilities no process inside can raise them again."""
    for kind, value in (
        (resource.RLIMIT_AS, setup["memory_bytes"]),
        (resource.RLIMIT_FSIZE, setup["disk_bytes"]),
        (resource.RLIMIT_NPROC, setup["processes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime) + setup["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # SIGXCPU first, to distinguish this end from another kill


def drop_identity() -> None:
    """Switches to the user that owns no files on the host; needed if root started the sandbox, which then maps two users."""
    os.setgroups([])
    os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    drop_inheritable_capabilities()


def drop_inheritable_capabilities() -> None:
    """Clears the one set of capabilities that the change of the user id leaves as it is."""
    import ctypes  # noqa: PLC0415 - needed only if root started the sandbox

    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)  # 0: this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "the inheritable capabilities cannot be dropped")


def copy_tree(source: str, target: str) -> None:
    """Copies the bundle, readable by uid 65534, because root's files are often unreadable for others (0700, 0600)."""
    with os.scandir(source) as entries:
        for entry in entries:
            copy = f"{target}/{entry.name}"
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), copy)
            elif entry.is_dir():
                os.mkdir(copy, 0o755)
                copy_tree(entry.path, copy)
            elif entry.is_file():
                with open(entry.path, "rb") as original, open(copy, "wb") as file:
                    while chunk := original.read(1 << 20):
                        file.write(chunk)
                os.chmod(copy, 0o755 if entry.stat().st_mode & 0o100 else 0o644)


def offer_tool_module() -> None:
    module = types.ModuleType("interlock_tool", "Exceptions with which a tool reports how it failed.")
    for exception in (Retry, Fail):
        exception.__module__ = module.__name__
        setattr(module, exception.__name__, exception)
    sys.modules[module.__name__] = module


def start_relay(channel: int) -> None:
    """Fork a process that carries connections from this sandbox's loopback to the host's proxy.

    A process, not a thread: a tool that holds the interpreter lock would stall its own downloads.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy"):
        os.environ[name] = os.environ[name.upper()] = proxy
    # The relay ends when the last copy of `held` is closed, so a killed runner leaves no relay behind.
    alive, held = os.pipe()
    if os.fork():
        listener.close()
        os.close(alive)
        return
    try:
        os.close(channel)
        os.close(held)
        if os.getuid() == 0:
            drop_identity()
        serve_relay(listener, alive)
    except BaseException:  # noqa: BLE001 - continuing would execute the job a second time
        sys.excepthook(*sys.exc_info())
    os._exit(1)


def serve_relay(listener: socket.socket, alive: int) -> None:
    import asyncio  # noqa: PLC0415 - takes tens of milliseconds, which must not delay the job

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            proxy_reader, proxy_writer = await asyncio.open_unix_connection(EGRESS_SOCKET)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, proxy_writer), pump(proxy_reader, writer))
        proxy_writer.close()
        writer.close()

    async def serve() -> None:
        asyncio.get_running_loop().add_reader(alive, os._exit, 0)
        server = await asyncio.start_server(carry, sock=listener)
        await server.serve_forever()

    asyncio.run(serve())


def send_ready(channel: int) -> None:
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in ("/proc", "/tmp")]  # noqa: S108
    with socket.socket(fileno=os.dup(channel)) as sender:
        socket.send_fds(sender, [b'{"ready":true}\n'], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def wait_for_job(channel: int) -> bytes:
    waiting = select.poll()  # not select(), which takes no descriptor above 1023, and the host may have thousands open
    waiting.register(channel, select.POLLIN)
    for name in PRELOAD:
        if waiting.poll(0):
            break
        try:
            __import__(name)
        except ImportError:  # some interpreters are built without sqlite3 or ssl
            continue
    parts: list[bytes] = []
    while not (parts and parts[-1].endswith(b"\n")):
        chunk = os.read(channel, 1 << 16)
        if not chunk:
            os._exit(0)  # the host closed the channel: this warm sandbox is not needed
        parts.append(chunk)
    return b"".join(parts)


def answer_to(line: bytes) -> bytes:
    try:
        job = json.loads(line)
        # The host has checked this already; a bug there must not suffice to run a tool that is not allowed.
        if job["tool"] not in job["allowed_tools"]:
            raise Refusal(f'tool "{job["tool"]}" is not in the allowed tools of this job', "denied")
        return encode(call(load(job), job), job["output_bytes"])
    except Refusal as error:
        return pack({"ending": error.ending, "error": str(error)})
    except MemoryError:
        return b'{"ending":"out_of_memory"}\n'
    except SystemExit as error:
        return pack({"ending": "crashed", "error": f"the tool called sys.exit({error.code!r})"})
    except BaseException as error:  # noqa: BLE001 - every exception of the tool is its answer
        return pack(raised(error))


def load(job: SentJob) -> Callable[..., object]:
    path = f"{TOOL_DIRECTORY}/main.py"
    if not os.path.isfile(path):
        raise Refusal(f'the bundle of tool "{job["tool"]}" has no main.py')
    spec = importlib.util.spec_from_file_location("main", path)
    if spec is None or spec.loader is None:
        raise Refusal(f'main.py of tool "{job["tool"]}" cannot be loaded')
    module = importlib.util.module_from_spec(spec)
    sys.modules["main"] = module
    spec.loader.exec_module(module)
    function: object = getattr(module, job["function"], None)
    if not callable(function):
        raise Refusal(f'main.py of tool "{job["tool"]}" has no function "{job["function"]}"; define it')
    return function


def call(function: Callable[..., object], job: SentJob) -> object:
    import inspect  # noqa: PLC0415 - preloaded in a warm sandbox; a cold one needs it only here

    arguments = dict(job["arguments"])
    if "context" in arguments:
        # Arguments come from a model. An argument of this name could replace Interlock's own idempotency key.
        raise Refusal('"context" is reserved and cannot be an argument; rename it in the tool\'s schema')
    signature = inspect.signature(function)
    if any(p.name == "context" or p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        arguments["context"] = job["context"]
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise Refusal(f"{job['function']}() does not accept these arguments: {error}") from None
    value = function(**arguments)
    if inspect.isawaitable(value):
        import asyncio  # noqa: PLC0415 - only for tools that need it

        async def settle() -> object:
            return await value

        return asyncio.run(settle())
    return value


def encode(value: object, output_bytes: int) -> bytes:
    try:
        output = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Refusal(f"the tool returned something that is not JSON: {error}", "garbage") from None
    if len(output) > output_bytes:
        raise Refusal(f"the tool returned {len(output)} bytes; at most {output_bytes} are allowed", "too_large")
    return b'{"ending":"ok","output":' + output + b"}\n"


def raised(error: BaseException) -> dict[str, object]:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the tool's own exception class may be broken
        text = ""
    name = type(error).__name__
    pause = getattr(error, "retry_after", None)
    return {
        "ending": "raised",
        "error": whole(f"{name}: {text[:2000]}" if text else name),
        "traceback": whole(traceback_of(error)),
        "retryable": getattr(error, "retryable", False) is True,
        "nothing_happened": getattr(error, "nothing_happened", False) is True,
        "retry_after": pause if isinstance(pause, int | float) and math.isfinite(pause) else None,
    }


def whole(text: str) -> str:
    """The text with "?" for each half of a surrogate pair, which the host would refuse as no JSON."""
    return text.encode("utf-8", "replace").decode()


def traceback_of(error: BaseException) -> str:
    """The calls within the tool's own files, outermost first, of the error and of those that it came from.

    The frames before them are Interlock's, and those of libraries below the tool's last call stand in its message.
    """
    import traceback  # noqa: PLC0415 - takes milliseconds, which must not delay a job that succeeds

    parts: list[str] = []
    try:
        current: BaseException | None = error
        while current is not None and len(parts) < CHAINED_ERRORS:
            frames = [
                one for one in traceback.extract_tb(current.__traceback__) if one.filename.startswith(TOOL_DIRECTORY)
            ]
            said = "".join(traceback.format_exception_only(current))[:1000]
            parts.append("".join(traceback.format_list(frames[-TRACEBACK_FRAMES:])) + said)
            current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    except Exception:  # noqa: BLE001, S110 - the tool's own exception class may be broken
        pass
    return "\nduring which, or because of which, came:\n\n".join(reversed(parts))[-TRACEBACK_CHARACTERS:]


def pack(answer: dict[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def send(channel: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(channel, view) :]


if __name__ == "__main__":
    main()
