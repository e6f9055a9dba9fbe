"""The store, for taking a value in: intake, custody, and the reconciler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from broker_core.audit import Result
from broker_core.injection import Injection
from broker_core.model import Blob, Event, EventState, EventType, Setting


@dataclass(frozen=True)
class Draft:
    """An event about to be accepted. ``version`` None: the next one, counted in the accepting transaction.

    ``must_be_new`` refuses a name that is in use (``name_taken``), ``must_exist`` one that is not. ``is_exclusive``:
    while the same event (source and id) is being accepted elsewhere this is a ``conflict``, where others wait for its
    end. ``most_waiting``: how many events with a value may wait in the workspace. ``claim_key`` is one half of the
    value: not shown.
    """

    id: UUID
    workspace_id: str
    source: str
    event_id: str
    type: EventType
    name: str
    version: int | None
    injection: Injection | None
    rotation_policy: str | None
    claim_id: str | None
    claim_key: bytes | None = field(repr=False)
    ttl_seconds: int = 3600
    traceparent: str | None = None
    must_be_new: bool = False
    must_exist: bool = False
    is_exclusive: bool = False
    most_waiting: int = 1000


@dataclass(frozen=True)
class Accepted:
    """What became of a draft. ``is_new`` False: this event was accepted before; ``event`` and ``claim_key`` are the
    first one's (the key is None once it ended). ``released_claims``: claims of events that a deletion ended."""

    event: Event
    is_new: bool
    claim_key: bytes | None = field(repr=False, default=None)
    released_claims: Sequence[str] = ()


class IntakeStore(Protocol):
    """What intake needs. Every method raises Unavailable when the database is away."""

    def injection_of(self, workspace_id: str, name: str) -> Injection | None:
        """The injection fields that a rotation without its own would inherit. Raises NotFound for an unknown or deleted
        workspace."""

    def accept(self, draft: Draft) -> Accepted:
        """Write the row and commit. Raises NotFound (workspace; secret, if it must exist), Conflict (``version_taken``,
        ``name_taken``, ``conflict``), RateLimited (too many wait; a repeat or a deletion is never refused for that).
        Those who accept at the same moment may overstep ``most_waiting`` by as many as they are."""

    def event(self, workspace_id: str, event_id: UUID) -> Event:
        """One event by our id. Raises NotFound."""

    def discard(self, workspace_id: str, event_id: UUID) -> str | None:
        """End a waiting event as ``deleted``; returns its claim id. Raises NotFound, Conflict when it has ended."""


@dataclass(frozen=True)
class Attempt:
    """One try at custody, begun: the counter is raised and the intent committed."""

    audit_id: UUID
    event: Event
    claim_key: bytes | None = field(repr=False)
    attempts: int
    setting: Setting
    secret_version: int  # of the blob now in place; 0 for none


class CustodyStore(Protocol):
    """What custody needs. Every method raises Unavailable when the database is away."""

    def begin(self, event_id: UUID, audit_id: UUID) -> Attempt | None:
        """Load a waiting event, raise its counter and commit the intent, in one round trip; None when it has ended, or
        its time is over."""

    def keep(self, attempt: Attempt, blob: Blob, result: Result) -> EventState | None:
        """Store the blob if the setting's version is still ``attempt.setting.version`` and the secret's version is
        lower than the event's; closes the audit row and forgets the one-time key, in one transaction (workspace,
        secret, event locked in this order). Returns ``stored`` or ``superseded`` (also ``deleted`` or ``expired`` when
        the event ended meanwhile), None when the setting changed: start over."""

    def end(self, attempt: Attempt, state: EventState, reason: str, result: Result) -> None:
        """Bring the event to an end without a blob; does nothing to an event that has ended meanwhile. One that ends
        ``expired`` or ``unreadable`` while no later version is there is told of, in the same transaction."""

    def hold(self, attempt: Attempt, state: EventState, result: Result, retry_seconds: float) -> None:
        """Leave the event waiting (``accepted`` or ``refused``), to be tried again after ``retry_seconds``; the attempt
        reported back, so its counter goes back to zero."""


@dataclass(frozen=True)
class Ring:
    """An event to be rung for, and the trace that it was accepted in, which the ring continues."""

    type: EventType
    event_id: UUID
    traceparent: str | None


@dataclass(frozen=True)
class Housekeeping:
    """What one run of the reconciler did."""

    to_ring: Sequence[Ring]
    expired: int
    closed_unknown: int


class ReconcileStore(Protocol):
    """What the reconciler needs."""

    def reconcile(self, limit: int, grace_seconds: float) -> Housekeeping:
        """Expire what is over its time (by the database's clock; told of as ``end`` does it), close uses without an
        outcome as ``unknown`` after ``grace_seconds``, and claim up to ``limit`` waiting events whose time to be
        tried has come."""
