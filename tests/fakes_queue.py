"""A claim box, a queue and a clock in memory, held to the same contract suites as the real ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from broker_core.errors import BrokerError, Unavailable
from broker_core.model import EventType


class FixedClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, at: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._at = at
        self._monotonic = 0.0

    def now(self) -> datetime:
        """The moment that was set."""
        return self._at

    def monotonic(self) -> float:
        """Seconds that the clock was moved on."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move on."""
        self._at += timedelta(seconds=seconds)
        self._monotonic += seconds


class FakeClaimBox:
    """The port ``ClaimBox``. ``is_away`` makes every call fail as a stopped Redis does; ``restart`` loses all."""

    def __init__(self, clock: FixedClock | None = None) -> None:
        self._clock = clock or FixedClock()
        self._claims: dict[str, tuple[bytes, float]] = {}
        self.is_away = False

    def put(self, claim_id: str, ciphertext: bytes, ttl_seconds: int) -> None:
        """Keep a claim; an id is written once."""
        if self.get(claim_id) is not None:
            raise BrokerError("a claim id came twice; nothing was overwritten")
        self._claims[claim_id] = (bytes(ciphertext), self._clock.monotonic() + ttl_seconds)

    def get(self, claim_id: str) -> bytes | None:
        """The claim, or None when it is gone."""
        self._answer()
        ciphertext, until = self._claims.get(claim_id, (b"", 0.0))
        return ciphertext if until > self._clock.monotonic() else None

    def delete(self, claim_id: str) -> None:
        """Forget a claim."""
        self._answer()
        self._claims.pop(claim_id, None)

    def ids(self) -> list[str]:
        """The ids of the claims that are kept."""
        return sorted(each for each, (_, until) in self._claims.items() if until > self._clock.monotonic())

    def restart(self) -> None:
        """Lose everything, as a memory-only server does."""
        self._claims.clear()

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("the claim store is away")


class FakeQueue:
    """The port ``Queue``, and the scheduler's part of the queue. ``is_away`` as above."""

    def __init__(self) -> None:
        self.rung: list[tuple[EventType, UUID]] = []
        self.ticks: list[tuple[str, str]] = []
        self.backlog: dict[str, int] = {}
        self.is_away = False
        self._slots: set[tuple[str, int]] = set()

    def ring(self, event_type: EventType, event_id: UUID) -> None:
        """Note the ring."""
        if event_type is EventType.DELETED:
            raise ValueError("no worker looks at secret.deleted")
        self._answer()
        self.rung.append((event_type, event_id))

    def claim_slot(self, name: str, slot: int, seconds: int) -> bool:
        """True for the first caller."""
        self._answer()
        is_first = (name, slot) not in self._slots
        self._slots.add((name, slot))
        return is_first

    def waiting(self, queue: str) -> int:
        """What ``backlog`` says."""
        self._answer()
        return self.backlog.get(queue, 0)

    def tick(self, queue: str, actor: str) -> None:
        """Note the tick."""
        self._answer()
        self.ticks.append((queue, actor))

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("the queue is away")
