"""A limiter in memory, held to the same contract suite as the real one."""

from __future__ import annotations

import math
from collections import defaultdict

from broker_core.errors import RateLimited
from broker_core.ports import Limit
from tests.fakes_queue import FixedClock


class FakeLimiter:
    """The port ``Limiter``: remembers when each unit was counted. ``counted`` tells what was, by limit and subject."""

    def __init__(self, clock: FixedClock | None = None) -> None:
        self._clock = clock or FixedClock()
        self._counts: defaultdict[tuple[str, ...], list[tuple[float, int]]] = defaultdict(list)

    def take(self, limit: Limit, *subject: str, cost: int = 1) -> None:
        """Count ``cost``, or raise RateLimited."""
        self._check(limit, subject, cost)
        self.add(limit, *subject, cost=cost)

    def look(self, limit: Limit, *subject: str) -> None:
        """Raise RateLimited if nothing is left."""
        self._check(limit, subject, 1)

    def add(self, limit: Limit, *subject: str, cost: int) -> None:
        """Count what has happened already."""
        self._counts[limit.name, *subject].append((self._clock.monotonic(), cost))

    def counted(self, name: str, *subject: str) -> int:
        """How much was counted in all, however long ago."""
        return sum(cost for _, cost in self._counts[name, *subject])

    def _check(self, limit: Limit, subject: tuple[str, ...], cost: int) -> None:
        now = self._clock.monotonic()
        within = [(at, cost) for at, cost in self._counts[limit.name, *subject] if at > now - limit.seconds]
        if sum(cost for _, cost in within) + cost > limit.amount:
            oldest = within[0][0] if within else now
            raise RateLimited(f"more than {limit.amount} in {limit.seconds} s", math.ceil(oldest + limit.seconds - now))
