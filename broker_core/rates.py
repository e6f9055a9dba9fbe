"""How much one workspace may ask for: requests and bytes by the minute, and guesses at a value.

The promise: no workspace takes the broker away from the others, and nobody finds a value out by asking. The counters
are shared by all processes (the port ``Limiter``); they hold ids and numbers. Imports the ports only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from broker_core.errors import RateLimited
from broker_core.ports import Limit, Limiter

MINUTE, HOUR = 60, 3600

#: what asks → which of the counters it takes from; whatever is not named takes from ``other``
_KINDS: Mapping[str, str] = {"broker:inject": "inject", "broker:events": "events"}
#: hits on one secret in an hour: a gateway that sends a value by mistake stops at the first or second refusal. Guesses
#: that miss are ordinary requests: they are bounded by the requests and bytes of a minute, and by a value's own length
MOST_GUESSES = 5
#: bytes of a stream that are counted at a time
COUNTED_AT_ONCE = 1 << 20
#: seconds after which a stream that is held up asks again
HELD_SECONDS = 5.0


@dataclass(frozen=True)
class Allowance:
    """What each workspace may have in a minute."""

    inject: int = 6000
    events: int = 6000
    other: int = 600
    bytes: int = 1 << 30


class Rates:
    """Counts what workspaces ask for."""

    def __init__(self, limiter: Limiter, allowance: Allowance | None = None) -> None:
        allowance = allowance or Allowance()
        self._limiter = limiter
        self._requests = {name: Limit(name, getattr(allowance, name), MINUTE) for name in ("inject", "events", "other")}
        self._bytes = Limit("bytes", allowance.bytes, MINUTE)

    def request(self, workspace_id: str, kind: str) -> None:
        """Count one request; ``kind`` is the scope that it is made with, or ``people``. Raises RateLimited, and counts
        nothing then."""
        self._limiter.take(self._requests[_KINDS.get(kind, "other")], workspace_id)

    def room(self, workspace_id: str) -> None:
        """Raise RateLimited once the workspace has had its bytes: what has not begun does not begin, a stream waits."""
        self._limiter.look(self._bytes, workspace_id)

    def passed(self, workspace_id: str, size: int) -> None:
        """Count bytes of bodies that passed, either way, even above what the workspace may have. Never raises."""
        if size > 0:
            self._limiter.add(self._bytes, workspace_id, cost=size)


class Meter:
    """Counts a stream's bytes, both ways, and holds it up while its workspace has had more than it may."""

    def __init__(self, rates: Rates, workspace_id: str, wait: Callable[[float], bool]) -> None:
        """``wait`` waits so many seconds, and says whether the stream is to stop."""
        self._rates = rates
        self._workspace_id = workspace_id
        self._wait = wait
        self._uncounted = 0

    def counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces, counted."""
        for piece in pieces:
            yield piece
            self.passed(len(piece))

    def passed(self, size: int) -> None:
        """So many bytes passed. Returns when the next ones may."""
        self._uncounted += size
        if self._uncounted < COUNTED_AT_ONCE:
            return
        self.close()
        while (seconds := self._seconds_to_wait()) > 0:
            if self._wait(seconds):
                return

    def close(self) -> None:
        """Count what is not counted yet."""
        size, self._uncounted = self._uncounted, 0
        self._rates.passed(self._workspace_id, size)

    def _seconds_to_wait(self) -> float:
        try:
            self._rates.room(self._workspace_id)
        except RateLimited as refusal:
            return min(refusal.retry_after, HELD_SECONDS)
        return 0.0


class Guesses:
    """The port ``GuessLog``."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._limit = Limit("guess", MOST_GUESSES, HOUR)

    def look(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        """Raise RateLimited when this caller had as many of one secret as it may."""
        self._limiter.look(self._limit, workspace_id, caller, str(secret_id))

    def count(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        """Count one. Never raises."""
        with suppress(RateLimited):  # used up already: then it need not be counted
            self._limiter.take(self._limit, workspace_id, caller, str(secret_id))
