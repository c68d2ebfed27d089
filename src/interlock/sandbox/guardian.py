"""Guardian: a small process beside a worker, which ends the sandboxes whose start a killed worker leaves unfinished.

Until bubblewrap has set up its namespaces, its child waits for it without end, and only bubblewrap is ended by the death of
the worker. The child is process 1 of a PID namespace, which no signal reaches that a dying process causes. So the worker
reports each start before bubblewrap gets its options, and again when it is complete; the guardian reads the reports from its
standard input, and when that ends, it kills the processes of the starts under way: bubblewrap's by their session, and all that
hold the sandbox's end of the channel, also after they have executed another program. A complete sandbox ends without it.

The program is run by a bare interpreter, so this file imports the standard library only.
"""

# The functions of os are used because importing pathlib would delay the start:
# ruff: noqa: PTH115, PTH123, PTH208
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

_PAUSE = 0.01  # seconds between two searches
_SEARCHES = 3  # without a find, after which a start counts as ended: a process may be made during a search
_PATIENCE = 30.0  # seconds; longer than any start takes


class Guardian:
    """The worker's side: starts the process at the first report, and again if it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: dict[int, int] = {}

    def begun(self, group: int, channel: int) -> None:
        """To be called when bubblewrap, the leader of a session of its own, waits for its options.

        Args:
            channel: inode of the sandbox's end of the channel.

        Raises:
            OSError: the process cannot be started.
        """
        self._starts[group] = channel
        if not self._report(b"+%d %d\n" % (group, channel)):
            self._begin()

    def complete(self, group: int) -> None:
        """To be called when the sandbox is ready or has ended."""
        self._starts.pop(group, None)
        self._report(b"-%d 0\n" % group)

    def close(self) -> None:
        """Ends the process and waits for that."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _report(self, line: bytes) -> bool:
        if self._process is None or self._process.stdin is None:
            return False
        try:
            os.write(self._process.stdin.fileno(), line)
        except BrokenPipeError:
            return False
        return True

    def _begin(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,  # Ctrl-C at a terminal goes to the whole group
        )
        for start in self._starts.items():
            self._report(b"+%d %d\n" % start)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its worker, and not before
    starts: dict[int, int] = {}
    for line in sys.stdin.buffer:
        group, channel = map(int, line[1:].split())
        if line[:1] == b"+":
            starts[group] = channel
        else:
            starts.pop(group, None)
    deadline = time.monotonic() + _PATIENCE
    for start in starts.items():
        searches = 0
        while searches < _SEARCHES and time.monotonic() < deadline:
            searches = 0 if _kill(*start) else searches + 1
            time.sleep(_PAUSE)


def _kill(session: int, channel: int) -> bool:
    """Kill bubblewrap and its child in a session, and the processes that hold a channel. False if there is none."""
    found = False
    for name in os.listdir("/proc"):
        if name.isdigit() and (_is_bubblewrap(name, session) or _holds(name, channel)):
            found = True
            with contextlib.suppress(OSError):
                os.kill(int(name), signal.SIGKILL)
    return found


def _holds(process: str, channel: int) -> bool:
    wanted = f"socket:[{channel}]"
    try:
        return any(os.readlink(f"/proc/{process}/fd/{one}") == wanted for one in os.listdir(f"/proc/{process}/fd"))
    except OSError:  # it has ended, or belongs to another user
        return False


def _is_bubblewrap(process: str, session: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
    except OSError:
        return False
    fields = after.split()
    # A session's number is not given to another process while a process of the session exists.
    return before.partition(b"(")[2] == b"bwrap" and fields[0] not in b"ZX" and int(fields[3]) == session


if __name__ == "__main__":
    main()
