"""Running a command with variables in its environment only, its output masked: what ``broker exec`` does at the end.

The promise: the values are in the new process's environment and nowhere else of its; what it prints passes through
the redaction byte for byte otherwise, each stream for itself, at once but for the hold-back; its end is our end (exit
code, or 128 and the signal's number), and signals that are sent to us reach it.

Output is let go at line ends, also of values that have several lines: there a line end lets go unless the text before
it ends with whole first lines of such a value. So a program that talks in lines never waits for its own answer.
Imports the redaction, no adapter.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import IO, Any

from broker_core.errors import Refused
from broker_core.inject.redact import Redactor, forms
from broker_core.signals import Bell

#: what a shell answers for a command that it cannot run, or cannot find
NOT_STARTED, NOT_FOUND = 126, 127
#: settings of ours, which hold our own credentials: never the command's
OURS = ("BROKER_", "AWS_", "OTEL_")
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM")
_CHUNK = 65_536


class NotStarted(Refused):
    """The command cannot be run. ``exit_code``: 127 where there is none of that name, else 126."""

    code = "not_started"

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def environment_for(ours: Mapping[bytes, bytes], variables: Mapping[str, str]) -> dict[bytes, bytes]:
    """The command's environment: ours without our own settings, and the variables, which win."""
    kept = {name: value for name, value in ours.items() if not name.startswith(tuple(map(os.fsencode, OURS)))}
    return kept | {name.encode("ascii"): value.encode("utf-8") for name, value in variables.items()}


def run(command: Sequence[str], variables: Mapping[str, str], *, masking: bool = True) -> int:
    """Run the command to its end, and return what to exit with. Call it from the main thread. Raises NotStarted."""
    pumps = _Pumps(variables) if masking else None
    with _Signals() as signals:
        piped = subprocess.PIPE if masking else None
        try:
            child = subprocess.Popen(  # noqa: S603 - running the caller's command is the purpose; there is no shell
                command, env=environment_for(os.environb, variables), stdout=piped, stderr=piped, bufsize=0
            )
        except (OSError, ValueError) as problem:
            raise _not_started(problem) from None
        signals.send_to(child)
        with pumps.of(child) if pumps else nullcontext():
            code = signals.wait_for(child)
            signals.restore()  # there is nobody left to send them to: they are for us again
    return code if code >= 0 else 128 - code


def _not_started(problem: Exception) -> NotStarted:
    """Only the kind of the problem: its text could quote a variable."""
    if isinstance(problem, OSError) and problem.errno == errno.ENOENT:
        return NotStarted("there is no such command (or no interpreter that it names)", NOT_FOUND)
    if isinstance(problem, OSError) and problem.errno == errno.E2BIG:
        return NotStarted("arguments and environment together are larger than the system allows", NOT_STARTED)
    return NotStarted("the command cannot be run: not executable, or an argument that no program can take", NOT_STARTED)


# ---------------------------------------------------------------- signals


class _Signals:
    """Hands the signals that we get to the child; one that comes before it is there waits for it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}
        self._bell = Bell()

    def __enter__(self) -> _Signals:
        self._bell.__enter__()
        # it rings; and inherited as ignored, it would let the kernel throw the child's exit code away
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})  # inherited as blocked, it would ring for nobody
        for number in (getattr(signal, name) for name in _FORWARDED):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it, for the child too
                self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        self._bell.__exit__()

    def restore(self) -> None:
        """As it was before. Safe more than once."""
        while self._before:
            signal.signal(*self._before.popitem())

    def send_to(self, child: subprocess.Popen[bytes]) -> None:
        """From now on, and what came before."""
        self._child = child
        for number in self._early:
            child.send_signal(number)

    def wait_for(self, child: subprocess.Popen[bytes]) -> int:
        """The child's exit code, or the signal that ended it, negative. A bare wait() would now and then miss a signal
        (``signals``), and the command would never get it."""
        while (code := child.poll()) is None:
            self._bell.wait()
        return code

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._child is None:
            self._early.append(number)
        elif number not in (signal.SIGINT, signal.SIGQUIT) or not _is_at_the_terminal(self._child.pid):
            self._child.send_signal(number)


def _is_at_the_terminal(pid: int) -> bool:
    """Whether a ^C has reached it already: it goes to the whole foreground group, ours. A child that left the group for
    one of its own gets its signals from us."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp() == os.getpgid(pid)
    except OSError:
        return False
    finally:
        os.close(terminal)


# ---------------------------------------------------------------- output


class Mask:
    """One stream's masking: ``feed`` gives what may be shown, ``finish`` the rest."""

    def __init__(self, redactor: Redactor, values: Iterable[bytes]) -> None:
        self._redactor = redactor
        self._masking = redactor.stream()
        #: whole first lines of values: text that ends so may be going on as the value
        self._beginnings = tuple({part for value in values for form in forms(value) for part in _first_lines(form)})
        self._keep = max(map(len, self._beginnings), default=0)
        self._tail = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take what the command printed."""
        end = chunk.rfind(b"\n") + 1
        if not end or not self._beginnings:  # without values of several lines, the redaction lets go by itself
            return self._fed(chunk)
        return self._fed(chunk[:end]) + self._at_line_end() + self._fed(chunk[end:])

    def finish(self) -> bytes:
        """It prints no more."""
        return self._masking.finish()

    def _fed(self, chunk: bytes) -> bytes:
        if self._keep:
            self._tail = (self._tail + chunk)[-self._keep :]
        return self._masking.feed(chunk)

    def _at_line_end(self) -> bytes:
        if self._tail.endswith(self._beginnings):
            return b""
        rest, self._masking = self._masking.finish(), self._redactor.stream()
        return rest


def _first_lines(form: bytes) -> Iterator[bytes]:
    end = form.find(b"\n") + 1
    while 0 < end < len(form):
        yield form[:end]
        end = form.find(b"\n", end) + 1


class _Pumps:
    """Both streams of a child, each in a thread of its own, so that a slow reader of one does not stop the other."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        values = {name: value.encode("utf-8") for name, value in variables.items()}
        self._redactor = Redactor(values.items())
        self._masks = [Mask(self._redactor, values.values()) for _ in range(2)]

    @contextmanager
    def of(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Pump while the child lives. At the end it waits for all that the child printed, and not for processes that
        it left behind: those may live on."""
        assert child.stdout is not None and child.stderr is not None  # noqa: S101, PT018 - both are pipes here
        has_ended, say_ended = os.pipe()
        threads = [
            # daemons: a signal that ends us must not wait for a reader who does not read
            threading.Thread(target=_pump, args=(pipe, sink, mask, has_ended), name="pump", daemon=True)
            for pipe, sink, mask in zip((child.stdout, child.stderr), (1, 2), self._masks, strict=True)
        ]
        for thread in threads:
            thread.start()
        yield
        os.close(say_ended)
        for thread in threads:
            thread.join()
        os.close(has_ended)
        self._redactor.close()


def _pump(pipe: IO[bytes], sink: int, mask: Mask, has_ended: int) -> None:
    # an OSError: our reader is gone. Closing the pipe tells the command, as it would without us
    with pipe, suppress(OSError):
        for chunk in _chunks(pipe.fileno(), has_ended):
            _write(sink, mask.feed(chunk))
        _write(sink, mask.finish())


def _chunks(source: int, has_ended: int) -> Iterator[bytes]:
    """What the command prints, as it comes; once it has ended, what is still in the pipe, and no more."""
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    waiting.register(has_ended, select.POLLIN)
    while has_ended not in (descriptor for descriptor, _ in waiting.poll()):
        chunk = os.read(source, _CHUNK)
        if not chunk:
            return
        yield chunk
    left = int.from_bytes(fcntl.ioctl(source, termios.FIONREAD, bytes(4)), sys.byteorder)
    while left > 0 and (chunk := os.read(source, min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def _write(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:  # whoever started us made it so
            writable = select.poll()
            writable.register(sink, select.POLLOUT)
            writable.poll()
