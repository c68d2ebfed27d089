"""Guardian: a small process beside a worker, which ends the sandboxes whose start a killed worker leaves unfinished.

Until bubblewrap has set up its namespaces, its child waits for it without end, and only bubblewrap is ended by the death of
the worker. The child is process 1 of a PID namespace, which no signal reaches that a dying process causes. So the worker
reports each start before bubblewrap gets its options, and again when it is complete; the guardian reads the reports from its
standard input, and when that ends, it kills the processes of the starts under way. A complete sandbox ends without it.

The program is run by a bare interpreter, so this file imports the standard library only.
"""

# The functions of os are used because importing pathlib would delay the start:
# ruff: noqa: PTH123, PTH208
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

_PAUSE = 0.01  # seconds between two searches
_PATIENCE = 30.0  # seconds; longer than any start takes


class Guardian:
    """The worker's side: starts the process at the first report, and again if it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: set[int] = set()

    def begun(self, group: int) -> None:
        """To be called when bubblewrap, the leader of a session of its own, waits for its options.

        Raises:
            OSError: the process cannot be started.
        """
        self._starts.add(group)
        if not self._report(b"+%d\n" % group):
            self._begin()

    def complete(self, group: int) -> None:
        """To be called when the sandbox is ready or has ended."""
        self._starts.discard(group)
        self._report(b"-%d\n" % group)

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
        for group in self._starts:
            self._report(b"+%d\n" % group)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its worker, and not before
    starts: set[int] = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        (starts.add if line[:1] == b"+" else starts.discard)(group)
    deadline = time.monotonic() + _PATIENCE
    while starts and time.monotonic() < deadline:
        # Repeated, because bubblewrap may still be about to make its child.
        starts = {group for group in starts if _kill(group)}
        time.sleep(_PAUSE)


def _kill(session: int) -> bool:
    """Kill bubblewrap and its child in a session. False if there is none."""
    found = False
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_bubblewrap(name, session):
            found = True
            with contextlib.suppress(OSError):
                os.kill(int(name), signal.SIGKILL)
    return found


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
