"""Starts `interlock` commands by fork: each a process of its own, without the second that importing everything takes.

    python zygote.py SOCKET

One connection a command: {argv, cwd, env} and three descriptors come in; the pid goes out, and the exit status after it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

from interlock.cli import installation  # noqa: F401  imported before the forks, like every command
from interlock.cli.commands import COMMANDS, load
from interlock.cli.main import main

_running: dict[int, socket.socket] = {}
_CHILD = {signal.SIGCHLD}


def run(request: dict[str, Any], descriptors: list[int]) -> None:
    """What `execve` of the console script would do; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # As a shell does in the foreground and, in a script, in the background; whichever way these tests were started themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN if request["background"] else signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CHILD)
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["interlock", *request["argv"]]
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


def start(connection: socket.socket) -> None:
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD)  # it may end before we have noted whose it is
    child = os.fork()
    if child == 0:
        run(json.loads(message), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    _running[child] = connection
    connection.sendall(b"%d\n" % child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CHILD)


def reap(*_: object) -> None:
    """Tells how the commands ended that have."""
    with contextlib.suppress(ChildProcessError):
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                return
            with contextlib.suppress(OSError), _running.pop(child) as connection:
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def listen(path: str) -> None:
    for name in COMMANDS:
        load(name)
    assert threading.active_count() == 1, "a fork takes one thread with it and leaves the others' locks"
    gc.freeze()  # or every collection in a child would copy all of our memory
    signal.signal(signal.SIGCHLD, reap)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            start(server.accept()[0])


if __name__ == "__main__":
    listen(sys.argv[1])
