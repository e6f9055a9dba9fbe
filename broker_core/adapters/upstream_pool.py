"""Connections that are kept for a next exchange: of one workspace, to one address, under one name, for seconds.

What is put in was left clean by a complete exchange; what is taken out is looked at first (readable means closed, or an
answer that nobody asked for). A connection is kept for ``IDLE_SECONDS`` at most, less than the five seconds after which
common servers close theirs (Node, Apache, uvicorn; nginx, IIS and the AWS balancers wait longer), so that the one that
closes is nearly always us, and a request hardly ever meets a connection that is being closed: it could not be sent
again. It is used for ``AGE_SECONDS`` at most, so that a certificate that expires or a trust that is taken away counts
within a minute even where calls never pause. Imports no other adapter but the wire.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker_core.adapters.upstream_wire import Wire

IDLE_SECONDS = 4.0
AGE_SECONDS = 60.0
#: of one process
MOST = 64
#: of one workspace: nobody pushes the others out
MOST_EACH = 8


@dataclass(frozen=True)
class Place:
    """Whose connection it is and where it leads. What is equal here may share one, nothing else."""

    pool: str
    address: str
    port: int
    name: str
    tls: bool


@dataclass(frozen=True)
class _Idle:
    place: Place
    wire: Wire
    until: float


class Pool:
    """See the module. Any thread may call it."""

    def __init__(self, monotonic: Callable[[], float], most: int = MOST, most_each: int = MOST_EACH) -> None:
        self._monotonic = monotonic
        self._most = most
        self._most_each = most_each
        self._idle: list[_Idle] = []  # oldest first
        self._lock = threading.Lock()
        self._is_closed = False

    def take(self, places: Sequence[Place]) -> tuple[Place, Wire] | None:
        """The connection to one of these places that was used last and is still quiet, or None."""
        while (found := self._pop(places)) is not None:
            if found.wire.is_quiet():
                return found.place, found.wire
            found.wire.close()
        return None

    def put(self, place: Place, wire: Wire) -> None:
        """Keep it, or close it where it is too old. The oldest of the workspace, or of all, makes room."""
        now = self._monotonic()
        until = min(now + IDLE_SECONDS, wire.since + AGE_SECONDS)
        with self._lock:
            self._drop_expired(now)
            if self._is_closed or until <= now:
                wire.close()
                return
            self._idle.append(_Idle(place, wire, until))
            own = [kept for kept in self._idle if kept.place.pool == place.pool]
            if len(own) > self._most_each or len(self._idle) > self._most:
                self._drop(own[0] if len(own) > self._most_each else self._idle[0])

    def close(self) -> None:
        """Close all, and whatever is put in later."""
        with self._lock:
            self._is_closed = True
            for kept in list(self._idle):
                self._drop(kept)

    def _pop(self, places: Sequence[Place]) -> _Idle | None:
        with self._lock:
            self._drop_expired(self._monotonic())
            found = next((kept for kept in reversed(self._idle) if kept.place in places), None)
            if found is not None:
                self._idle.remove(found)
            return found

    def _drop_expired(self, now: float) -> None:
        for kept in [kept for kept in self._idle if kept.until <= now]:
            self._drop(kept)

    def _drop(self, kept: _Idle) -> None:
        self._idle.remove(kept)
        kept.wire.close()
