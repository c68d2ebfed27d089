"""Starts `interlock` commands by fork: each a process of its own, without the second that importing everything takes.

    python zygote.py SOCKET

One connection a command: {argv, cwd, env} and three descriptors come in; the pid goes out, and the exit status after it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading

from interlock.cli.main import main


def run(request: dict[str, object], descriptors: list[int]) -> None:
    """What `execve` of the console script would do; does not return."""
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    os.chdir(str(request["cwd"]))
    sys.argv = ["interlock", *(argument for argument in request["argv"])]  # type: ignore[attr-defined]
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  what the interpreter would print; the tests look for it
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120  # as the interpreter does
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def serve(connection: socket.socket) -> None:
    """Forks the command, tells its pid, waits, tells how it ended; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    child = os.fork()
    if child == 0:
        run(json.loads(message), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    try:
        connection.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        os._exit(0)


def listen(path: str) -> None:
    assert threading.active_count() == 1, "a fork takes one thread with it and leaves the others' locks"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                serve(connection)
            connection.close()


if __name__ == "__main__":
    listen(sys.argv[1])
