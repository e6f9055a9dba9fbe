"""The limiter on Redis: counters that all processes share, as a sliding window (the library ``limits``).

The promise: a limit never fails a request and is never off. While Redis is away each process counts for itself, with
the same limits, and asks Redis again every few seconds. Keys hold workspace ids and names of limits, values are
numbers; Redis's own error text is never passed on. Imports no other adapter.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TypeVar

import redis
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_core import telemetry
from broker_core.errors import RateLimited
from broker_core.ports import Clock, Limit

R = TypeVar("R")
_Storage = RedisStorage | MemoryStorage

_PREFIX = "axiorank:rate"
#: seconds in which Redis is not asked again after it did not answer: else each request would wait for it
PAUSE_SECONDS = 5.0
#: counts whatever there is: the number that the library compares with
_NO_LIMIT = 2**53
#: seconds: the windows' resolution. What ends in a moment has not ended: the store, asked then, still refuses
_TICK = 0.001
#: the store multiplies before it divides
_ROUNDING = 1e-9


class SharedLimiter:
    """The port ``Limiter``. Safe to share between threads."""

    def __init__(self, url: str, clock: Clock, *, seconds: float = 0.25) -> None:
        """Each connect and answer may take ``seconds``. Nothing is opened before the first use."""
        self._clock = clock
        self._shared = RedisStorage(
            url,
            key_prefix=_PREFIX,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # handed to redis-py as it is
        )
        self._lock = threading.Lock()
        self._away_until: float | None = None
        self._counted_here: MemoryStorage | None = None

    def take(self, limit: Limit, *subject: str, cost: int = 1) -> None:
        """Count ``cost`` for a subject. Raises RateLimited, with the seconds to wait, and counts nothing then."""
        key = _key(limit, subject)
        if not self._asked(lambda store: store.acquire_sliding_window_entry(key, limit.amount, limit.seconds, cost)):
            raise self._refusal(limit, key, cost)

    def look(self, limit: Limit, *subject: str) -> None:
        """Raise RateLimited if nothing is left for a subject; count nothing."""
        key = _key(limit, subject)
        if self._seconds(limit, key, 1) > 0:
            raise self._refusal(limit, key, 1)

    def add(self, limit: Limit, *subject: str, cost: int) -> None:
        """Count what has happened already, whether it is more than the limit or not."""
        key = _key(limit, subject)
        self._asked(lambda store: store.acquire_sliding_window_entry(key, _NO_LIMIT, limit.seconds, cost))

    def close(self) -> None:
        """Close the connections."""
        self._shared.storage.close()

    def _refusal(self, limit: Limit, key: str, cost: int) -> RateLimited:
        return RateLimited(
            f"more than {limit.amount} ({limit.name}) in {limit.seconds} s", math.ceil(self._seconds(limit, key, cost))
        )

    def _seconds(self, limit: Limit, key: str, cost: int) -> float:
        window = self._asked(lambda store: store.get_sliding_window(key, limit.seconds))
        return seconds_until(limit.amount - cost, limit.seconds, *window)

    def _asked(self, question: Callable[[_Storage], R]) -> R:
        if not self._is_away():
            try:
                answer = question(self._shared)
            except redis.RedisError:
                self._failed()
            else:
                self._away_until = None
                return answer
        return question(self._local)

    def _is_away(self) -> bool:
        until = self._away_until
        return until is not None and self._clock.monotonic() < until

    def _failed(self) -> None:
        with self._lock:
            is_news = self._away_until is None
            self._away_until = self._clock.monotonic() + PAUSE_SECONDS
        if is_news:
            telemetry.log().warning("rates.local")

    @property
    def _local(self) -> MemoryStorage:
        with self._lock:  # one for all threads: else each would count for itself
            if self._counted_here is None:
                self._counted_here = MemoryStorage()
            return self._counted_here


def seconds_until(
    room: int, seconds: int, previous: int, previous_ends: float, current: int, current_ends: float
) -> float:
    """When a sliding window will hold ``room`` or less, in seconds from now; 0 or less: it does.

    The window before this one counts by the part of it that is still within ``seconds``: it goes in ``previous_ends``,
    and this one, which then counts by its part, in ``current_ends``.
    """
    if current > room:
        return current_ends - (max(room, 0) + 1) * seconds / current + _TICK
    if previous * previous_ends / seconds + current < room + 1 - _ROUNDING:  # parts of one are not counted
        return 0.0
    return previous_ends - (room + 1 - current) * seconds / previous + _TICK


def _key(limit: Limit, subject: tuple[str, ...]) -> str:
    # the amount is part of it: after a change of the setting counting starts anew
    return RateLimitItemPerSecond(limit.amount, limit.seconds, namespace=limit.name).key_for(*subject)
