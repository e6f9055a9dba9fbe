"""What the use cases need of the outside, as Protocols. Each has a real adapter and a fake, held to one contract suite.

Promises stand in the docstrings here and nowhere else. Imports only what is below (model, injection, context, audit,
secret, errors); no library.

Time limits: every call that can wait takes ``seconds``, the most that it may take in all, its own retries included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol
from uuid import UUID

from broker_core.audit import Intent, Result
from broker_core.context import EncryptionContext
from broker_core.errors import KeyState, Receipt
from broker_core.events import Notice
from broker_core.injection import Injection
from broker_core.model import (
    Blob,
    CipherName,
    Connection,
    ConnectionStatus,
    Event,
    EventState,
    EventType,
    FoundBy,
    Purpose,
    SecretStatus,
    Setting,
    StepResult,
)
from broker_core.policies import Extra
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


@dataclass(frozen=True)
class Permit:
    """Whether the customer's side would let us; a no comes with AWS's code."""

    is_allowed: bool
    receipt: Receipt
    aws_code: str = ""


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

    def may_assume(self, use: KeyUse, external_id: str | None, seconds: float) -> Permit:
        """Whether the role can be assumed with this external id, or without one; never by a shared session. What comes
        back may do nothing (its policy denies all) and is dropped at once. A refusal is no error here."""

    def permits(self, use: KeyUse, extra: Extra, seconds: float) -> Permit:
        """Ask by dry run whether the role could use the key for something beyond the two, under the use's context.
        ``access_denied`` is no error here."""


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
    """One request as it goes on the wire. Holds the value: never shown (``repr`` is off), never logged.

    ``headers`` hold the framing too. A ``body`` that comes in pieces is sent as they come: chunked where the headers
    say so, else as it is; what its iterator raises ends the exchange, and is raised by ``send``.
    """

    method: str
    target: str = field(repr=False)  # path and query
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes | Iterable[bytes] = field(repr=False, default=b"")


@dataclass(frozen=True)
class Patience:
    """Time limits of one exchange, in seconds; what comes first ends it."""

    total: float  # from the connecting to the last byte
    answer: float  # for connecting, and again from the end of the request to the answer's head
    idle: float  # between two bytes, either way


class UpstreamAnswer(Protocol):
    """An upstream's answer, not yet redacted."""

    status: int
    reason: str
    headers: Sequence[tuple[str, str]]

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, decoded of its transfer coding. Raises UpstreamError (also when over time or size)."""

    def close(self) -> None:
        """End the exchange. A connection is never used again after anything but a complete, clean answer. Safe more
        than once."""


class UpstreamLine(Protocol):
    """A connection to a pinned address, its certificate checked for the name."""

    def send(self, request: WireRequest) -> UpstreamAnswer:
        """Send once: no redirects, retries, proxies, netrc or cookies. Raises UpstreamError."""

    def abort(self) -> None:
        """End the exchange from another thread, now: what waits in ``send`` or ``chunks`` raises UpstreamError."""

    def close(self) -> None:
        """Done with it: it is closed, or kept for the pool's next exchange. Safe more than once."""


class Upstream(Protocol):
    """The way out."""

    def connect(self, destination: Destination, patience: Patience, pool: str) -> UpstreamLine:
        """Resolve, check every address against the egress table, pin one, finish TLS and check the certificate; or take
        a connection that an exchange of the same ``pool`` (a workspace) with this address and name left clean.

        Raises InjectionRefused (``destination_blocked``) or UpstreamError. ``patience`` bounds the whole exchange that
        follows on this line, not only the connecting."""


# ---------------------------------------------------------------- limits


@dataclass(frozen=True)
class Limit:
    """At most ``amount`` in any ``seconds``, for each subject. ``name`` is part of the counter's key."""

    name: str
    amount: int
    seconds: int


class Limiter(Protocol):
    """Counts shared by all processes. Where the shared counters are away each process counts for itself: a limit never
    fails a request, and is never off."""

    def take(self, limit: Limit, *subject: str, cost: int = 1) -> None:
        """Count ``cost`` for a subject. Raises RateLimited, with the seconds to wait, and counts nothing then."""

    def look(self, limit: Limit, *subject: str) -> None:
        """Raise RateLimited if nothing is left for a subject; count nothing."""

    def add(self, limit: Limit, *subject: str, cost: int) -> None:
        """Count what has happened already, whether it is more than the limit or not."""


class GuessLog(Protocol):
    """Requests that already held the value: each is somebody's guess that was right, or a mistake. ``caller`` is the
    agent's and the MCP server's id that the secret is bound to, as ``AGENT,SERVER``."""

    def look(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        """Raise RateLimited when this caller had as many of one secret as it may."""

    def count(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        """Count one. Never raises."""


# ---------------------------------------------------------------- store


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

    def due_refusals(self, limit: int, retry_seconds: float) -> Sequence[Connection]:
        """Claim up to ``limit`` connections whose roles are due to show again that they refuse others; without a result
        they come again after ``retry_seconds``."""

    def end_refusals(
        self, connection: Connection, steps: Sequence[StepResult], is_flagged: bool, every_seconds: float
    ) -> None:
        """Keep these steps' results in place of the last ones', raise or lower the flag (its time is that of the first
        raising), and set the next time, with jitter."""

    def begin_checks(self, intents: Sequence[Intent]) -> None:
        """Commit the intents of a batch, in one statement. Raises AuditUnavailable."""

    def end_checks(self, results: Sequence[tuple[Intent, Result]]) -> None:
        """Write the outcomes; a success closes the secret's own failure and notes the check."""

    def turned_share(self, within_seconds: float) -> tuple[int, int]:
        """(current connections whose customer-side failure opened within the time, all current connections)."""

    def open_failure(self, failure: Failure, announce_after: float = 120.0) -> None:
        """Open the one row for (connection, secret or none), or see it again; a new one brings the connection's next
        probe forward.

        A connection's denial by the customer's side is announced, once for each row and in the same transaction, by the
        second denial: at least ``announce_after`` seconds after the first, of the connection itself or, not more than
        ten minutes ago, of a secret under it whose failure is open."""

    def close_failure(self, workspace_id: str, connection_id: UUID, secret_id: UUID | None) -> None:
        """Close the open row, if any; a connection's healing marks its secrets ``rechecking``, and is announced, in the
        same transaction, if its failure was."""


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


@dataclass(frozen=True)
class ConnectionView:
    """A connection as its owner sees it. ``health``: ``unverified``, ``healthy``, the state of its open failure, or
    ``flagged`` (the role lets in who must not get in); since when, where there is something to mend.

    ``verified_at`` is when all steps were last passed, ``steps`` are the last verification's, passed or not.

    ``needed_by``: how many secrets are under it. ``waiting``: values on their way in, held ones among them, which go
    under it as things are; so only of the current one. ``status`` retired means replaced: it may still be needed.
    ``retired_at`` is when its owner retired it for good.
    """

    id: UUID
    status: ConnectionStatus
    role_arn: str
    key_arn: str
    region: str
    external_id: str = field(repr=False)
    created_at: datetime
    verified_at: datetime | None
    health: str
    health_since: datetime | None
    steps: Sequence[StepResult]
    needed_by: int = 0
    waiting: int = 0
    retired_at: datetime | None = None


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
        """Write a pending connection, in place of one that is pending already. Raises Conflict where the external id
        was ever another workspace's (one generic refusal, which says nothing of whose)."""

    def make_current(
        self, connection: Connection, canary: Blob, setting_version: int, steps: Sequence[StepResult] = ()
    ) -> bool:
        """Make it current under the setting's version (which then counts up), with the steps that it passed; retires
        the old one. False when the setting changed, Enterprise was lost, or another one became the pending one,
        meanwhile."""

    def note_verification(
        self, connection: Connection, steps: Sequence[StepResult], *, passed: bool, flag: bool | None
    ) -> None:
        """Keep a verification's steps with its connection, and the time if it passed. ``flag``: whether the role lets
        in who must not get in; None where it did not come to that, which leaves the flag as it is. Does nothing where
        the connection is gone."""

    def connections(self, workspace_id: str) -> Sequence[ConnectionView]:
        """The current one first, then the pending one, then retired ones, newest first. Raises NotFound."""

    def disconnect(self, workspace_id: str) -> None:
        """Back to the platform cipher for what comes; old blobs keep their connection. Counts the version up."""

    def retire(self, workspace_id: str, connection_id: UUID) -> None:
        """Retire an older connection for good, once: its open failure ends, and nothing asks for it again. Raises
        NotFound; Conflict when it is current or pending, or blobs need it (saying how many)."""

    def affected(self, workspace_id: str) -> Affected:
        """Failing connections with the secrets under them, and secrets that fail on their own."""


@dataclass(frozen=True)
class FailureView:
    """Why a secret cannot be decrypted now. It blames the customer's side only where the status is ``affected``."""

    state: KeyState
    aws_code: str
    since: datetime
    found_by: FoundBy


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
    failure: FailureView | None = None  # open now: the connection's, or else its own


@dataclass(frozen=True)
class Use:
    """One row of the audit log: what was meant, and what came of it (None: still running, or not yet closed)."""

    intent: Intent
    result: Result | None
    started_at: datetime
    ended_at: datetime | None


class StoredBlob(NamedTuple):
    """A secret's ciphertext and what it is under: what ``export.export`` takes. No connection: the platform cipher."""

    name: str
    version: int
    blob: Blob
    connection: Connection | None


class OwnerStore(Protocol):
    """What owners read, and the one thing that they change without giving a value."""

    def uses(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[Use]:
        """The workspace's audit rows, oldest id first, after ``after``, begun at ``since`` or later and before
        ``until``. A deleted workspace's rows stay."""

    def secrets(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        status: SecretStatus | None = None,
    ) -> Sequence[SecretView]:
        """The workspace's secrets, oldest id first, after ``after``; those of one status only, if it is given. Raises
        NotFound (workspace)."""

    def secret(self, workspace_id: str, secret_id: UUID) -> SecretView:
        """One secret by its id. Raises NotFound, also for a deleted one."""

    def blob(self, workspace_id: str, secret_id: UUID) -> StoredBlob:
        """What is stored of one secret. Raises NotFound, also where no value is stored yet."""

    def set_rotation_policy(self, workspace_id: str, secret_id: UUID, policy: str | None) -> None:
        """Change it, or take it away. It stands until an event that is accepted later brings another. Raises
        NotFound."""


class AuditStore(Protocol):
    """Intents and results of uses that belong to no event and no injection (probes, verification)."""

    def begin_use(self, intent: Intent) -> None:
        """Commit one intent. Raises AuditUnavailable."""

    def end_use(self, intent: Intent, result: Result) -> None:
        """Write its outcome."""


# ---------------------------------------------------------------- reports


class Cover(StrEnum):
    """What protects a value, or will. A secret whose newer value is held counts in two of these."""

    CURRENT_KEY = "currentKey"
    OLDER_CONNECTION = "olderConnections"
    PLATFORM = "platform"
    HELD = "held"  # on its way, not yet under any key for good


@dataclass(frozen=True)
class CoveredSecret:
    """One secret of one cover. ``held_until``: of a value on its way, when it expires."""

    secret_id: UUID
    name: str
    version: int
    connection_id: UUID | None
    held_until: datetime | None = None


@dataclass(frozen=True)
class DrilledSecret:
    """What a revocation would take away with one secret: its binding, and how much it is used."""

    secret_id: UUID
    name: str
    connection_id: UUID
    injection: Injection | None
    uses: int  # values released in the period
    callers: Sequence[tuple[str | None, str | None]]  # (agent, MCP server) that it was released to in the period
    last_used_at: datetime | None


@dataclass(frozen=True)
class Drilled:
    """All of a revocation: totals over everything, and the most used secrets."""

    secrets: int
    uses: int
    used_secrets: int
    most_used: Sequence[DrilledSecret]


@dataclass(frozen=True)
class OverdueSecret:
    """A secret whose rotation policy says that it should have been rotated. ``rotated_at``: None for never."""

    secret_id: UUID
    name: str
    version: int
    rotation_policy: str
    due_at: datetime
    created_at: datetime
    rotated_at: datetime | None


class ReportStore(Protocol):
    """What owners' reports are made of; reads only."""

    def coverage(self, workspace_id: str) -> Mapping[Cover, int]:
        """How many secrets each cover has, every cover named. Raises NotFound."""

    def covered(
        self, workspace_id: str, cover: Cover, *, after: UUID | None = None, limit: int = 50
    ) -> Sequence[CoveredSecret]:
        """The secrets of one cover, oldest id first. Raises NotFound."""

    def drill(self, workspace_id: str, connection_id: UUID | None, since: datetime, limit: int) -> Drilled:
        """What is under one connection, or under any (None), and was used since. Raises NotFound."""

    def overdue(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[OverdueSecret]:
        """The secrets whose rotation is due, oldest id first. Raises NotFound."""


# ---------------------------------------------------------------- lockout proof


class ProofOutcome(StrEnum):
    """What a lockout proof showed of one secret. Only the first says that the vault is closed to us."""

    LOCKED_OUT = "locked_out"  # the customer's side denied the dry run, and then a real Decrypt
    STILL_DECRYPTS = "still_decrypts"
    NOT_SHOWN = "not_shown"  # no answer that says either, however often it was asked
    MOVED = "moved"  # meanwhile under another key, or none
    DELETED = "deleted"  # meanwhile


class AskKind(StrEnum):
    """How KMS was asked."""

    DRY_RUN = "dry_run"
    DECRYPT = "decrypt"


@dataclass(frozen=True)
class Ask:
    """One call of a lockout proof, and what came of it. ``state`` is empty where KMS would serve it, or did."""

    kind: AskKind
    audit_id: UUID
    at: datetime
    state: KeyState | None
    aws_code: str
    receipt: Receipt


@dataclass(frozen=True)
class ProofItem:
    """One secret of a proof. ``version`` is the one that was asked last, or stood there at the start; ``outcome`` is
    None while it is not settled."""

    secret_id: UUID
    name: str
    version: int
    outcome: ProofOutcome | None
    note: str
    settled_at: datetime | None
    asks: Sequence[Ask]


@dataclass(frozen=True)
class DueItem:
    """The next secret of a proof, claimed. ``blob`` is what stands there now; None where it is under this proof's
    connection no more, and then ``is_deleted`` says why. ``attempts``: this one included, and the number is what
    settles it, so that whoever lost the claim settles nothing."""

    secret_id: UUID
    name: str
    version: int
    blob: Blob | None
    is_deleted: bool
    attempts: int


@dataclass(frozen=True)
class Proof:
    """A lockout proof: running until ``ended_at``. ``asked_by`` is who started it. ``document`` is the signed one."""

    id: UUID
    connection: Connection
    asked_by: str
    started_at: datetime
    ended_at: datetime | None
    is_locked_out: bool | None
    total: int
    done: int
    document: str | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Beside:
    """What a lockout proof does not cover, counted."""

    stored_meanwhile: int  # under its connection and not asked: stored after it began
    on_their_way: int  # events that wait with a value: accepted, not yet under any key for good ...
    held: int  # ... and those of them that the customer's side refused
    platform_secrets: int
    other_connections: Sequence[tuple[UUID, str, int]]  # (id, key ARN, secrets) of connections that blobs still need


class ProofStore(Protocol):
    """What lockout proofs need. Secrets are claimed in the database, one of a proof at a time, so that two processes
    never ask for one twice. Every method raises Unavailable when the database is away."""

    def start_proof(self, workspace_id: str, proof_id: UUID, connection_id: UUID | None, asked_by: str) -> Proof:
        """Begin one over every secret that is under a connection now: the current one, or else the newest that blobs
        still need, unless it is named. Raises NotFound (workspace, connection), Conflict (one is running, or nothing is
        under the connection)."""

    def proof(self, workspace_id: str, proof_id: UUID | None = None) -> Proof:
        """One by its id, or the newest. Raises NotFound."""

    def running_proofs(self, limit: int) -> Sequence[Proof]:
        """Of all workspaces, each as likely as any other: so none waits for those that take long."""

    def claim_item(self, proof: Proof, per_second: float, lease_seconds: float) -> DueItem | None:
        """Claim the next due secret of a running proof within the connection's budget of calls (two for each); None
        when none is due, another one of this proof is claimed, or the budget is spent."""

    def settle_item(self, proof: Proof, item: DueItem, outcome: ProofOutcome, note: str, asks: Sequence[Ask]) -> None:
        """Write what came of it; does nothing when it was claimed again meanwhile."""

    def put_back(
        self, proof: Proof, item: DueItem, asks: Sequence[Ask], retry_seconds: float, *, counts: bool = True
    ) -> None:
        """Let it be claimed again after so long; what was asked stays with it. ``counts`` False: that was no try."""

    def proof_items(self, proof: Proof, *, after: str | None = None, limit: int = 500) -> Sequence[ProofItem]:
        """Its secrets by name, after ``after``."""

    def beside(self, proof: Proof) -> Beside:
        """What it does not cover, as of now."""

    def finish_proof(self, proof: Proof, document: str, is_locked_out: bool, ended_at: datetime) -> Proof:
        """Write the signed document, once: the first stands. Returns the proof as it is then."""


class Signer(Protocol):
    """Signs what others are to rely on."""

    @property
    def key_id(self) -> str:
        """The RFC 7638 thumbprint of the public key."""

    def sign(self, payload: bytes, content_type: str) -> str:
        """A JWS in the compact form, with that ``typ``."""


# ---------------------------------------------------------------- notifications


@dataclass(frozen=True)
class DueNotice:
    """A notice of the outbox. ``attempts``: this one included, and the number is what puts it off, so that whoever lost
    the claim puts nothing off."""

    notice: Notice
    attempts: int


class NoticeStore(Protocol):
    """The outbox. Notices are written by the statements that make what they tell of (``open_failure``,
    ``close_failure``, ``end``, ``reconcile``), but for the one below. Raises Unavailable when the database is away."""

    def tell_due_rotations(self, limit: int) -> int:
        """Write a notice for each of up to ``limit`` secrets whose rotation is due and whose owner was not told of this
        due date; returns how many."""

    def claim_notice(self, lease_seconds: float) -> DueNotice | None:
        """Claim the notice that is due longest, of all workspaces, for so long; None when none is due."""

    def end_notice(self, due: DueNotice) -> None:
        """It was taken."""

    def put_off_notice(self, due: DueNotice, retry_seconds: float) -> None:
        """It was not: let it be claimed again after so long."""

    def give_up_notices(self, after_seconds: float, limit: int) -> Sequence[DueNotice]:
        """Give up to ``limit`` notices up that are older and not claimed; returns them."""

    def forget_notices(self, after_seconds: float, limit: int) -> int:
        """Delete those of the oldest ``limit`` notices that are older, and were taken or given up; returns how many."""


class Answer(StrEnum):
    """What became of sending a notice."""

    TAKEN = "taken"
    REFUSED = "refused"  # the receiver answered, and did not take it
    AWAY = "away"  # the receiver cannot take any now: no answer, or one that says so


@dataclass(frozen=True)
class Delivery:
    """What the receiver said. ``code`` says why it was not taken, ``status`` is the HTTP status, where there is one."""

    answer: Answer
    code: str = ""
    status: int | None = None


class Notifier(Protocol):
    """The platform's endpoint for notices."""

    def send(self, notice: Notice, seconds: float) -> Delivery:
        """Send it once, signed, within ``seconds``. Never raises for what the receiver does or does not do."""


# ---------------------------------------------------------------- moving to another key


class MoveOutcome(StrEnum):
    """What became of one secret of a re-encryption. Only the first changed it."""

    MOVED = "moved"
    DENIED = "denied"  # the older key's side said no: the blob is left where it is
    OVERTAKEN = "overtaken"  # rotated, deleted or moved meanwhile: nothing was left to move
    FAILED = "failed"  # no answer, however often it was asked, or a fault that is not the customer's no


@dataclass(frozen=True)
class Reencryption:
    """One run, from one older connection or from all (``from_connection_id`` None); running until ``ended_at``.

    ``left`` is what has no outcome yet, or never got one, where ``stopped_by`` says why it ended early.
    """

    id: UUID
    workspace_id: str
    from_connection_id: UUID | None
    started_at: datetime
    ended_at: datetime | None
    stopped_by: str | None
    total: int
    moved: int
    denied: int
    overtaken: int
    failed: int
    left: int


@dataclass(frozen=True)
class DueMove:
    """The next secret of a re-encryption, claimed. ``blob`` is what stands there now, None where it is no longer under
    ``source``. ``setting`` is what to move it to, and always has a connection. ``attempts``: this one included, and the
    number is what settles it, so that whoever lost the claim settles nothing."""

    secret_id: UUID
    name: str
    version: int
    blob: Blob | None
    source: Connection
    setting: Setting
    attempts: int


@dataclass(frozen=True)
class Stuck:
    """A secret that a re-encryption left where it is, and why."""

    secret_id: UUID
    name: str
    connection_id: UUID
    outcome: MoveOutcome
    state: KeyState | None
    aws_code: str


class MoveStore(Protocol):
    """What re-encryption needs. Secrets are claimed in the database, so that two processes never move one twice. Every
    method raises Unavailable when the database is away."""

    def setting(self, workspace_id: str) -> Setting:
        """See ``ByokStore``."""

    def plan_of(self, workspace_id: str) -> str:
        """See ``ByokStore``."""

    def start_move(self, workspace_id: str, move_id: UUID, from_connection_id: UUID | None) -> Reencryption:
        """Begin one over every secret that is under an older connection now, or under this one. The one that runs
        already is returned instead, if it is from the same. Raises NotFound (workspace, connection), Conflict (nothing
        is connected, this one is current or pending, another re-encryption runs)."""

    def move(self, workspace_id: str, move_id: UUID | None = None) -> Reencryption:
        """One by its id, or the newest. Raises NotFound."""

    def running_moves(self, limit: int) -> Sequence[Reencryption]:
        """Of all workspaces, each as likely as any other: so none waits for those that cannot go on."""

    def claim_move(self, move: Reencryption, per_second: float, lease_seconds: float) -> DueMove | None:
        """Claim the next due secret of a running one, within both connections' budgets of calls (one for each). None
        when none is due, a budget is spent, the current key is known to fail, or the workspace is not Enterprise or
        not connected any more."""

    def keep_move(self, move: Reencryption, due: DueMove, blob: Blob, intent: Intent, result: Result) -> bool | None:
        """Store the blob under ``due.setting``, if that is still the setting, the claim still ours, and the secret
        still as it was claimed; settles it, closes the audit row and the secret's own failure, in one transaction
        (workspace, secret, item locked in this order). True: moved. False: overtaken, and settled so. None: the setting
        changed, or the claim is lost, and nothing but the audit row was written."""

    def settle_move(
        self, move: Reencryption, due: DueMove, outcome: MoveOutcome, state: KeyState | None = None, aws_code: str = ""
    ) -> None:
        """Write what came of it; does nothing when it was claimed again meanwhile."""

    def put_back_move(
        self,
        move: Reencryption,
        due: DueMove,
        retry_seconds: float,
        *,
        counts: bool = True,
        current_fails: bool = False,
    ) -> None:
        """Let it be claimed again after so long. ``counts`` False: that was no try. ``current_fails``: the key that it
        was to go under said no, so its probe is brought forward."""

    def end_move(self, move: Reencryption, stopped_by: str | None = None) -> Reencryption:
        """End it, if nothing is left or for this reason; returns it as it is then."""

    def stuck(self, move: Reencryption, *, after: UUID | None = None, limit: int = 50) -> Sequence[Stuck]:
        """What it left where it is (denied, failed), oldest secret id first, after ``after``."""
