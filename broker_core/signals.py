"""Waiting for signals in the main thread without missing one.

The promise: a signal that came ends the wait, whenever it came. Python runs a handler once a blocking call of the main
thread returns; but the kernel may give the signal to another thread, or to this one just before the call begins, and
then nothing interrupts the call. So each signal also writes into a pipe (``signal.set_wakeup_fd``), and the wait is for
the pipe. Imports nothing of ours.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
from contextlib import suppress
from typing import Any


class Bell:
    """Rung by every signal that has a handler, and by ``ring``. A context manager of the main thread."""

    def __init__(self) -> None:
        self._is_there = False
        self._lock = threading.RLock()  # a handler may ring while its thread does

    def __enter__(self) -> Bell:
        self._rung, self._rope = os.pipe()
        for end in (self._rung, self._rope):
            os.set_blocking(end, False)
        try:
            self._before = signal.set_wakeup_fd(self._rope, warn_on_full_buffer=False)
        except ValueError:  # not the main thread
            self._close()
            raise
        self._is_there = True
        self._waiting = select.poll()
        self._waiting.register(self._rung, select.POLLIN)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        with self._lock:
            self._is_there = False
            self._close()

    def _close(self) -> None:
        os.close(self._rung)
        os.close(self._rope)

    def ring(self) -> None:
        """End the wait, from any thread; nothing before and after the bell is there."""
        with self._lock, suppress(BlockingIOError):  # full: it is ringing
            if self._is_there:
                os.write(self._rope, b"\0")

    def wait(self, seconds: float | None = None) -> None:
        """Until it rang since the last wait, or for so many seconds. Handlers have run when it returns."""
        self._waiting.poll(None if seconds is None else math.ceil(max(seconds, 0) * 1000))
        with suppress(BlockingIOError):
            os.read(self._rung, 4096)


class Stop:
    """Set by the first of its signals, or by ``set``; for the main thread. At its end handlers are as before."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers
        self._bell = Bell()
        self._before: dict[int, Any] = {}
        self._is_set = False

    def __enter__(self) -> Stop:
        self._bell.__enter__()
        for number in self._numbers:
            self._before[number] = signal.signal(number, lambda *_: self.set())
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
        self._bell.__exit__()

    def is_set(self) -> bool:
        """Whether it is time to stop."""
        return self._is_set

    def set(self) -> None:
        """It is, from any thread."""
        self._is_set = True
        self._bell.ring()

    def wait(self, seconds: float | None = None) -> None:
        """Until it is set. With ``seconds``, no longer than these, and it may return early."""
        while not self._is_set:
            self._bell.wait(seconds)
            if seconds is not None:
                return
