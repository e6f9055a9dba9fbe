"""A server process that cannot outlive us: it stops when we close it, when we exit and when we are killed (-9).

How: a small ``sh`` stands between. It holds the reading end of a pipe of which only we hold the writing end; the kernel
closes our end whatever way we die, ``sh`` then stops its child, removes the child's temporary directory and ends what
is left of its group. That works on Linux and macOS alike and, other than a parent-death signal, does not depend on
which thread started the server. ``sh`` also sends every signal: only the parent of a process can be sure whom a process
id means.

The server's output is kept in memory (the last lines of it) and never in a file: the server of the claims must leave
nothing on disk, and an error needs its reason.

Imports nothing of the project.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import IO, cast

#: $1: the signal that stops the server when we are gone; $2: a directory to remove then, or nothing; then the command
_SCRIPT = """
last=$1; directory=$2; shift 2
ulimit -c 0
"$@" </dev/null >&2 &
server=$!
exec 2>/dev/null
echo "$server"
exec >/dev/null
while read -r order; do
  case $order in
    leave) wait "$server"; exit 0 ;;
    *) kill -s "$order" "$server" ;;
  esac
done
kill -s "$last" "$server"
wait "$server"
[ -z "$directory" ] || rm -rf -- "$directory"
kill -s KILL 0
"""

_LINES_KEPT = 2000
#: seconds until what was killed is gone, on a machine that may be busy
_KILLED_SECONDS = 30.0


class StartFailed(RuntimeError):
    """A server did not come up. Carries its last lines: it is a server of a developer's machine with made-up data."""


class StopFailed(RuntimeError):
    """A server did not end within its time."""


class Child:
    """One running server. ``pid`` is the server's own process id; its descendants are watched through their output."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: bytes,
        last_signal: str,
        remove: Path | None = None,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        account: tuple[int, int] | None = None,
    ) -> None:
        """Start ``command``. ``ready``: what its output says once it serves; ``account``: a (uid, gid) to run as."""
        self._ready = ready
        self._said_ready = False
        self._spoke = threading.Event()
        self._lines: deque[bytes] = deque(maxlen=_LINES_KEPT)
        uid, gid = account or (None, None)
        self._shell = subprocess.Popen(  # noqa: S603 - a fixed command; nothing of it comes from outside
            ["/bin/sh", "-c", _SCRIPT, "sh", last_signal, str(remove or ""), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # a ^C in the terminal is for us; we then stop the servers in the right order
            start_new_session=True,
            cwd=directory,
            env=environment,
            user=uid,
            group=gid,
            extra_groups=[] if account else None,
        )
        _close_in_forks(self)
        self._reader = threading.Thread(target=self._read, name="server-output", daemon=True)
        self._reader.start()
        self.pid = int(cast(IO[bytes], self._shell.stdout).readline())

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Return once the server says that it serves. Raises StartFailed, with its last lines, and ends it."""
        self._spoke.wait(seconds)
        if self._said_ready:
            return
        self.stop("KILL")
        raise StartFailed(f"the server did not start:\n{self.output}")

    @property
    def alive(self) -> bool:
        """Whether the server, or any process it started, still runs."""
        return self._reader.is_alive()

    @property
    def output(self) -> str:
        """The last lines of what the server printed."""
        return b"".join(self._lines.copy()).decode(errors="replace")

    def signal(self, name: str) -> None:
        """Send a signal, by its short name (``KILL``, ``TERM``, …), to the server."""
        self._order(name)

    def end(self, name: str, seconds: float = 30.0) -> None:
        """Send a signal and return when the server and all its descendants are gone; ``sh`` stays on guard for the
        directory. Raises StopFailed after ``seconds``."""
        self._order(name)
        self._reader.join(seconds)
        if self._reader.is_alive():
            raise StopFailed(f"process {self.pid} did not end within {seconds:g} s of {name}")

    def stop(self, name: str, seconds: float = 30.0) -> None:
        """As ``end``, but what is left after ``seconds`` is killed; then let ``sh`` go, too, without removing anything.
        May be called again."""
        self._order(name)
        self._leave(seconds)

    @staticmethod
    def stop_together(children: Sequence[Child], name: str, seconds: float = 30.0) -> None:
        """As ``stop``, but all are told before the first is waited for: it takes as long as the slowest."""
        deadline = monotonic() + seconds
        with ExitStack() as leaving:  # one that does not end keeps nobody from waiting for the others
            for child in children:
                child.signal(name)
                leaving.callback(child._leave_until, deadline)

    def _leave_until(self, deadline: float) -> None:
        self._leave(max(0.0, deadline - monotonic()))

    def _leave(self, seconds: float) -> None:
        self._reader.join(seconds)
        if self._reader.is_alive():
            self._end_the_group()
        self._order("leave")
        self.let_go()
        self._shell.wait(_KILLED_SECONDS)
        for stream in (self._shell.stdout, self._shell.stderr):
            if stream is not None:
                stream.close()

    def _end_the_group(self) -> None:
        # a first process that is killed can leave others behind; with ``sh`` they are one group, which is ours alone
        if self._shell.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._shell.pid, signal.SIGKILL)
        self._reader.join(_KILLED_SECONDS)
        if self._reader.is_alive():
            raise StopFailed(f"what process {self.pid} started did not end within {_KILLED_SECONDS:g} s")

    def let_go(self) -> None:
        """Close our end of the pipe."""
        if self._shell.stdin is not None and not self._shell.stdin.closed:
            with suppress(BrokenPipeError):  # an order that could not be written is still in the buffer
                self._shell.stdin.close()

    def _order(self, text: str) -> None:
        stdin = self._shell.stdin
        if stdin is None or stdin.closed:
            return
        with suppress(BrokenPipeError):  # sh has gone, and the server with it
            stdin.write(text.encode() + b"\n")
            stdin.flush()

    def _read(self) -> None:
        # ends when the last process that holds the other end is gone: the server and whatever it started
        for line in cast(IO[bytes], self._shell.stderr):
            self._lines.append(line)
            if self._ready in line:
                self._said_ready = True
                self._spoke.set()
        self._spoke.set()  # its last word: nobody need wait any longer


_running: weakref.WeakSet[Child] = weakref.WeakSet()
_registered = threading.Event()


def _close_in_forks(child: Child) -> None:
    """A process that we fork without exec gets a copy of our end of the pipe, and would keep the server: close it."""
    _running.add(child)
    if not _registered.is_set():
        _registered.set()
        os.register_at_fork(after_in_child=_let_all_go)


def _let_all_go() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    for child in _running:
        stdin = child._shell.stdin
        if stdin is not None and not stdin.closed:
            # replaced, not closed: its number must not come to mean another file while the object lives
            os.dup2(nothing, stdin.fileno(), inheritable=False)
    os.close(nothing)
