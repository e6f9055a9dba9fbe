"""Wiping when the time is up, although nobody asks for the next chunk any more (INV-4).

A caller may stop reading a stream and keep it. One thread for all streams of an Injector looks at them every second; it
is there only while there are any, and what goes wrong with one ends it for none. Of ours it imports telemetry only.
"""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakSet

from broker_core import telemetry


class Watched(Protocol):
    """What is looked at."""

    def expire(self) -> None:
        """Drop what may be held no longer, if the time is up. Never blocks, never raises."""


class Watch:
    """Holds nobody: what is forgotten elsewhere is forgotten here."""

    def __init__(self, seconds: float = 1.0) -> None:
        """``seconds`` between two looks."""
        self._seconds = seconds
        self._watched: WeakSet[Watched] = WeakSet()
        self._lock = threading.Lock()
        self._never = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, watched: Watched) -> None:
        """Look at it from now on."""
        with self._lock:
            self._watched.add(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="inject-watch", daemon=True)
                self._thread.start()

    def remove(self, watched: Watched) -> None:
        """Look at it no more."""
        with self._lock:
            self._watched.discard(watched)

    def look(self) -> None:
        """Look at each once."""
        with self._lock:
            watched = list(self._watched)
        for one in watched:
            _expire(one)

    def _run(self) -> None:
        while self._is_needed():
            self._never.wait(self._seconds)
            self.look()

    def _is_needed(self) -> bool:
        with self._lock:
            if not self._watched:
                self._thread = None
            return self._thread is not None


def _expire(one: Watched) -> None:
    try:
        one.expire()
    except Exception as error:  # noqa: BLE001 - of any kind: the next stream's time is up too
        telemetry.log().error("inject.watch_failed", exception=telemetry.shape_of(error))
