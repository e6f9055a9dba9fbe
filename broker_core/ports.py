"""What the use cases need of the outside, as Protocols. Each has a real adapter and a fake, held to one contract suite.

Promises stand in the docstrings here and nowhere else. Imports only what is below (model, injection, context, audit,
secret, errors); no library.

Time limits: every call that can wait takes ``seconds``, the most that it may take in all, its own retries included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

from broker_core.audit import Intent, Result
from broker_core.context import EncryptionContext
from broker_core.errors import KeyState, Receipt
from broker_core.injection import Injection
from broker_core.model import (
    Blob,
    CipherName,
    Connection,
    Event,
    EventState,
    EventType,
    FoundBy,
    Purpose,
    SecretStatus,
    Setting,
)
from broker_core.secret import Plaintext

# ---------------------------------------------------------------- clock


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def now(self) -> datetime:
        """The wall clock, UTC."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""


# ---------------------------------------------------------------- keys


@dataclass(frozen=True)
class KeyUse:
    """One use of a customer's key: who, what for, on which audit row, under which context."""

    connection: Connection
    purpose: Purpose
    audit_id: UUID
    context: EncryptionContext


@dataclass(frozen=True)
class Sealed:
    """The result of an encryption."""

    blob: Blob
    receipt: Receipt


@dataclass(frozen=True)
class Opened:
    """The result of a decryption. The value is the caller's to reveal once."""

    value: Plaintext
    receipt: Receipt


class KeyService(Protocol):
    """The customer's key, reached through their role. Strict: one AssumeRole for each call, never shared.

    Every method raises Denied, Misconfigured, Integrity or Transient, each with the receipt so far. Callers have
    committed the intent row before they call (INV-5).
    """

    def encrypt(self, use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
        """Encrypt under the customer's key: up to 4096 bytes directly (``kms``), above that by ``kms-envelope``. The
        value is revealed, and so wiped, whether it works or not."""

    def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
        """Decrypt a ``kms`` or ``kms-envelope`` blob under the stored key ARN and the use's context."""

    def check(self, use: KeyUse, blob: Blob, seconds: float) -> Receipt:
        """Ask by dry run whether ``decrypt`` would work; no plaintext leaves KMS."""


class PlatformCipher(Protocol):
    """What encrypts when BYOK is off."""

    def encrypt(self, context: EncryptionContext, value: Plaintext) -> Blob:
        """Encrypt under the first platform key; the value is revealed. Raises Transient where a remote key is away."""

    def decrypt(self, context: EncryptionContext, blob: Blob) -> Plaintext:
        """Decrypt under whichever platform key made the blob. Raises Integrity, or Transient as above."""


# ---------------------------------------------------------------- claims and queue


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


# ---------------------------------------------------------------- upstream


@dataclass(frozen=True)
class Destination:
    """Where one request goes. ``host`` is in normal form; ``tls`` is False only for an allowed literal loopback."""

    host: str
    port: int
    tls: bool = True

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class WireRequest:
    """One request as it goes on the wire. Holds the value: never shown (``repr`` is off), never logged."""

    method: str
    target: str = field(repr=False)  # path and query
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False, default=b"")


class UpstreamAnswer(Protocol):
    """An upstream's answer, not yet redacted."""

    status: int
    reason: str
    headers: Sequence[tuple[str, str]]

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, decoded of its transfer coding. Raises UpstreamError (also when over time or size)."""

    def close(self) -> None:
        """End the exchange. A connection is never used again after anything but a complete, clean answer."""


class UpstreamLine(Protocol):
    """A connection to a pinned address, its certificate checked for the name."""

    def send(self, request: WireRequest) -> UpstreamAnswer:
        """Send once: no redirects, retries, proxies, netrc or cookies. Raises UpstreamError."""

    def close(self) -> None:
        """Close it. Safe more than once."""


class Upstream(Protocol):
    """The way out."""

    def connect(self, destination: Destination, seconds: float) -> UpstreamLine:
        """Resolve, check every address against the egress table, pin one, finish TLS and check the certificate.

        Raises InjectionRefused (``destination_blocked``) or UpstreamError. ``seconds`` bounds the whole exchange that
        follows on this line, not only the connecting."""


# ---------------------------------------------------------------- store


@dataclass(frozen=True)
class Draft:
    """An event about to be accepted. ``version`` None: the next one, counted in the accepting transaction.

    ``must_be_new`` refuses a name that is in use (``name_taken``). ``claim_key`` is one half of the value: not shown.
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
        """Write the row and commit. Raises NotFound (workspace), Conflict (``version_taken``, ``name_taken``)."""

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
        """Bring the event to an end without a blob; does nothing to an event that has ended meanwhile."""

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
        """Expire what is over its time (by the database's clock), close uses without an outcome as ``unknown`` after
        ``grace_seconds``, and claim up to ``limit`` waiting events whose time to be tried has come."""


@dataclass(frozen=True)
class Candidate:
    """A bound secret that a call might use."""

    secret_id: UUID
    workspace_id: str
    name: str
    version: int
    injection: Injection
    blob: Blob
    connection: Connection | None


class InjectStore(Protocol):
    """What inject needs. A success costs three round trips: ``candidates``, ``begin_uses``, ``end_uses``."""

    def candidates(self, workspace_id: str, agent_id: str | None, mcp_server_id: str | None) -> Sequence[Candidate]:
        """The secrets with a blob that are bound to this agent, this server, or both: a secret's ids must each equal
        the caller's or be unset."""

    def begin_uses(self, intents: Sequence[Intent]) -> bool:
        """Commit the intents, all or none, if each secret still has this very version; False: select again. Raises
        AuditUnavailable."""

    def end_uses(self, results: Sequence[tuple[Intent, Result]]) -> None:
        """Write the outcomes. A success sets ``last_used_at`` and closes the secret's own failure."""


@dataclass(frozen=True)
class Failure:
    """A key failure to record. ``secret_id`` None: the connection's own, which all its secrets inherit."""

    workspace_id: str
    connection_id: UUID | None
    secret_id: UUID | None
    state: KeyState
    aws_code: str
    request_id: str | None
    found_by: FoundBy


class FailureLog(Protocol):
    """Where key failures are recorded that others than the sweep meet, so that a busy secret does not wait for it."""

    def seen(self, failure: Failure) -> bool:
        """Record it. Never raises. False: so many connections turned at once that it is taken for a fault of ours, and
        nobody is to be blamed (INV-8)."""

    def brakes(self) -> bool:
        """Whether a refusal would be taken for a fault of ours now. Never raises."""


@dataclass(frozen=True)
class DueProbe:
    """A connection whose canary is due, claimed until its next time."""

    connection: Connection
    canary: Blob


@dataclass(frozen=True)
class DueCheck:
    """A secret whose dry run is due."""

    secret_id: UUID
    name: str
    version: int
    blob: Blob
    connection: Connection


class SweepStore(Protocol):
    """What the sweep needs. Claims are taken in the database, so two sweepers never do one thing twice."""

    def due_probes(self, limit: int, every_seconds: float, unhealthy_seconds: float) -> Sequence[DueProbe]:
        """Claim up to ``limit`` due connections and set their next time, with jitter."""

    def due_checks(self, limit: int, round_seconds: float, per_second: float) -> Sequence[DueCheck]:
        """Claim up to ``limit`` secrets, oldest check first, within each connection's budget; those of healed
        connections and those with an open failure of their own first."""

    def begin_checks(self, intents: Sequence[Intent]) -> None:
        """Commit the intents of a batch, in one statement. Raises AuditUnavailable."""

    def end_checks(self, results: Sequence[tuple[Intent, Result]]) -> None:
        """Write the outcomes; a success closes the secret's own failure and notes the check."""

    def turned_share(self, within_seconds: float) -> tuple[int, int]:
        """(current connections whose customer-side failure opened within the time, all current connections)."""

    def open_failure(self, failure: Failure) -> None:
        """Open the one row for (connection, secret or none), or see it again; a new one brings the connection's next
        probe forward."""

    def close_failure(self, workspace_id: str, connection_id: UUID, secret_id: UUID | None) -> None:
        """Close the open row, if any; a connection's healing marks its secrets ``rechecking``."""


@dataclass(frozen=True)
class AffectedSecret:
    """One affected secret."""

    secret_id: UUID
    name: str
    state: KeyState
    aws_code: str
    since: datetime
    found_by: FoundBy


@dataclass(frozen=True)
class AffectedConnection:
    """A failing connection, and the secrets that inherit its failure."""

    connection_id: UUID
    state: KeyState
    aws_code: str
    since: datetime
    found_by: FoundBy
    secrets: Sequence[tuple[UUID, str]]


@dataclass(frozen=True)
class Affected:
    """What owners see after a revocation."""

    connections: Sequence[AffectedConnection]
    secrets: Sequence[AffectedSecret]


class ByokStore(Protocol):
    """What setting BYOK up needs."""

    def setting(self, workspace_id: str) -> Setting:
        """The current setting. Raises NotFound."""

    def plan_of(self, workspace_id: str) -> str:
        """The workspace's plan. Raises NotFound."""

    def put_workspace(self, workspace_id: str, plan: str) -> None:
        """Create or change a workspace; a deleted one is refused with Conflict."""

    def delete_workspace(self, workspace_id: str) -> Sequence[str]:
        """Tombstone a workspace: every waiting event ends ``deleted``, every blob goes. Returns open claim ids."""

    def add_pending(self, connection: Connection) -> None:
        """Write a pending connection. Raises Conflict where the external id was ever another workspace's (one generic
        refusal, which says nothing of whose)."""

    def make_current(self, connection: Connection, canary: Blob, setting_version: int) -> bool:
        """Make it current under the setting's version (which then counts up); retires the old one. False when the
        setting changed meanwhile."""

    def disconnect(self, workspace_id: str) -> None:
        """Back to the platform cipher for what comes; old blobs keep their connection. Counts the version up."""

    def affected(self, workspace_id: str) -> Affected:
        """Failing connections with the secrets under them, and secrets that fail on their own."""


@dataclass(frozen=True)
class SecretView:
    """A secret as its owner sees it: never a value, never a blob."""

    id: UUID
    name: str
    version: int
    status: SecretStatus
    cipher: CipherName | None
    connection_id: UUID | None
    injection: Injection | None
    rotation_policy: str | None
    created_at: datetime
    rotated_at: datetime | None
    last_used_at: datetime | None
    last_checked_at: datetime | None


@dataclass(frozen=True)
class Use:
    """One row of the audit log: what was meant, and what came of it (None: still running, or not yet closed)."""

    intent: Intent
    result: Result | None
    started_at: datetime
    ended_at: datetime | None


class OwnerStore(Protocol):
    """What owners read."""

    def uses(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[Use]:
        """The workspace's audit rows, oldest id first, after ``after``. A deleted workspace's rows stay."""

    def secrets(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[SecretView]:
        """The workspace's secrets, oldest id first, after ``after``. Raises NotFound (workspace)."""


class AuditStore(Protocol):
    """Intents and results of uses that belong to no event and no injection (probes, verification)."""

    def begin_use(self, intent: Intent) -> None:
        """Commit one intent. Raises AuditUnavailable."""

    def end_use(self, intent: Intent, result: Result) -> None:
        """Write its outcome."""
