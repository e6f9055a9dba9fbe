"""What one customer's key may cost the others: a bounded number of uses at a time, and a breaker for timeouts.

A blackholed KMS holds each caller for seconds. Promise: of the threads that serve many customers, one connection holds
at most ``width`` with uses and half as many (rounded down) with waiting, so that, with a width of half the threads, a
quarter stays free whatever one customer's KMS does; and with the breaker it soon holds none. ``Breaker`` is pure: a
clock comes in, nothing else. Imports the ports and errors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from broker_core.errors import Busy, Transient
from broker_core.ports import Clock


class NotAnswering(Transient):
    """The breaker is open. Callers see a Transient; within one use it is not worth another attempt."""


class Breaker:
    """Opens after ``limit`` timeouts in a row; lets one attempt through every ``open_seconds``; closes at any
    answer.

    There is no half-open state to be stuck in: letting one attempt through is the same as staying open for the next
    ``open_seconds``, whether that attempt ever reports back or not.
    """

    def __init__(self, clock: Clock, limit: int = 5, open_seconds: float = 5.0) -> None:
        self._clock = clock
        self._limit = limit
        self._open_seconds = open_seconds
        self._timeouts = 0
        self._open_until = 0.0
        self._lock = threading.Lock()

    def permits(self) -> bool:
        """May an attempt start now? True may be the one trial of this period, so ask once for each attempt."""
        with self._lock:
            if self._timeouts < self._limit:
                return True
            now = self._clock.monotonic()
            if now < self._open_until:
                return False
            self._open_until = now + self._open_seconds
            return True

    def ask(self) -> None:
        """Raises NotAnswering where no attempt may start now."""
        if not self.permits():
            raise NotAnswering("this key's service has not answered lately; try again in some seconds")

    def answered(self) -> None:
        """Something came back, good or bad."""
        with self._lock:
            self._timeouts = 0

    def timed_out(self) -> None:
        """Nothing came back in time."""
        with self._lock:
            self._timeouts += 1
            if self._timeouts >= self._limit:
                self._open_until = self._clock.monotonic() + self._open_seconds


class _Lane:
    def __init__(self, breaker: Breaker, width: int) -> None:
        self.breaker = breaker
        self.slots = threading.BoundedSemaphore(width)
        # both are changed under the Lanes' lock only
        self.users = 0  # running or waiting
        self.waiting = 0


class Lanes:
    """One lane per connection, bounded in width; at most ``remembered`` idle lanes are kept, the latest used."""

    def __init__(self, clock: Clock, width: int, remembered: int = 4096) -> None:
        self._clock = clock
        self._width = width
        self._most_waiting = width // 2
        self._remembered = remembered
        self._lanes: OrderedDict[UUID, _Lane] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, connection_id: UUID, seconds: float = 0.0) -> Iterator[Breaker]:
        """Hold one of the connection's slots for the block, and ask its breaker before each attempt.

        Whoever may wait (``seconds`` above 0) does so for that long, and only while few others of the connection do.
        Raises Busy when no slot is, or came, free.
        """
        lane = self._enter(connection_id)
        try:
            if not self._takes_slot(lane, seconds):
                raise Busy("this connection is busy; try again")
            try:
                yield lane.breaker
            finally:
                lane.slots.release()
        finally:
            with self._lock:
                lane.users -= 1

    def _takes_slot(self, lane: _Lane, seconds: float) -> bool:
        if lane.slots.acquire(blocking=False):
            return True
        with self._lock:
            if seconds <= 0 or lane.waiting >= self._most_waiting:
                return False
            lane.waiting += 1
        try:
            return lane.slots.acquire(timeout=seconds)
        finally:
            with self._lock:
                lane.waiting -= 1

    def _enter(self, connection_id: UUID) -> _Lane:
        with self._lock:
            lane = self._lanes.get(connection_id)
            if lane is None:
                lane = self._lanes[connection_id] = _Lane(Breaker(self._clock), self._width)
                self._forget_idle()
            self._lanes.move_to_end(connection_id)
            lane.users += 1
            return lane

    def _forget_idle(self) -> None:
        # a lane in use is never forgotten: its successor would allow `width` more uses beside it
        excess = len(self._lanes) - self._remembered
        if excess > 0:
            newest = next(reversed(self._lanes))
            idle = [key for key, lane in self._lanes.items() if lane.users == 0 and key != newest]
            for key in idle[:excess]:
                del self._lanes[key]
