"""How many exchanges are streamed at a time in one process: each holds a thread for as long as it lasts.

Used on one event loop only, so nothing is locked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from anyio import CapacityLimiter

from broker_core.errors import RateLimited, Unavailable

#: seconds after which it is worth trying again
_AGAIN = 5


class Places:
    """So many places; one workspace gets half of them at most, so that it cannot shut the others out."""

    def __init__(self, total: int) -> None:
        self.threads = CapacityLimiter(total)
        self._total = total
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, workspace_id: str) -> Iterator[None]:
        """Hold a place for the block. Raises RateLimited, Unavailable (all are taken)."""
        if self._held[workspace_id] >= self._total // 2:
            raise RateLimited("this workspace streams as much at a time as it may", _AGAIN)
        if self._held.total() >= self._total:
            raise Unavailable("as much is streamed at a time as this process may; try again")
        self._held[workspace_id] += 1
        try:
            yield
        finally:
            self._held[workspace_id] -= 1
            self._held += Counter()  # forgets those at zero
