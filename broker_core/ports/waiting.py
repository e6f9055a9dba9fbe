"""Where a value waits on its way in, and the doorbell."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from broker_core.model import EventType


class ClaimBox(Protocol):
    """Memory-only storage for values on their way in. Raises Unavailable when it is away."""

    def put(self, claim_id: str, ciphertext: bytes, ttl_seconds: int) -> None:
        """Keep a claim for ``ttl_seconds``. Claim ids are random: an id is written once."""

    def get(self, claim_id: str) -> bytes | None:
        """The claim, or None when it is gone."""

    def delete(self, claim_id: str) -> None:
        """Forget a claim; no error when it is gone."""


class Queue(Protocol):
    """The doorbell. A message may be lost or come twice; the event's row is the truth. Raises Unavailable."""

    def ring(self, event_type: EventType, event_id: UUID) -> None:
        """Ask a worker to look at an event. The message carries the id and the trace context, nothing else."""
