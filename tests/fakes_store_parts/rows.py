"""The fake's tables: mutable rows in dictionaries, one lock over all of them.

Every port method runs whole inside ``_transaction``: the lock makes it as atomic as the SQL store's transaction.
Methods check first and change rows last, so that a refusal leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from threading import RLock
from typing import Any
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from broker_core.audit import Intent, Result
from broker_core.errors import AuditUnavailable, KeyState, NotFound, Unavailable
from broker_core.events import Notice, NoticeType
from broker_core.injection import Injection
from broker_core.model import (
    Blob,
    Connection,
    ConnectionStatus,
    Event,
    EventState,
    EventType,
    FoundBy,
    Plan,
    SecretFacts,
    SecretStatus,
    Setting,
    StepResult,
    status_of,
)
from broker_core.ports import Ask, MoveOutcome, Proof, ProofOutcome

#: INV-8: these states blame the customer's side; the others make nothing "affected"
BLAMES_NOBODY = frozenset({KeyState.INTEGRITY, KeyState.MISCONFIGURED, KeyState.TRANSIENT})

LOST = frozenset({EventState.EXPIRED, EventState.UNREADABLE})


@dataclass
class WorkspaceRow:
    id: str
    plan: Plan
    setting_version: int = 0
    connection_id: UUID | None = None
    deleted_at: datetime | None = None


@dataclass
class ConnectionRow:
    connection: Connection
    created_at: datetime
    next_probe_at: datetime
    check_ready_at: datetime
    status: ConnectionStatus = ConnectionStatus.PENDING
    canary: Blob | None = None
    verified_at: datetime | None = None
    healed_at: datetime | None = None
    steps: Sequence[StepResult] = ()
    flagged_at: datetime | None = None
    next_refusals_at: datetime | None = None  # None until it is verified
    retired_at: datetime | None = None


@dataclass
class SecretRow:
    id: UUID
    workspace_id: str
    name: str
    created_at: datetime  # or when the name began anew
    version: int = 0  # of the blob in place, or of the tombstone
    highest_version: int = 0  # of every accepted event; never goes down
    fields_version: int = 0  # of the event that last set the injection fields
    blob: Blob | None = None
    connection_id: UUID | None = None
    injection: Injection | None = None
    rotation_policy: str | None = None
    policy_version: int = 0  # the highest when the owner last set the policy
    rotated_at: datetime | None = None
    last_used_at: datetime | None = None
    checked_at: datetime | None = None
    check_lease_until: datetime | None = None
    deleted_at: datetime | None = None
    due_noticed: datetime | None = None  # the due date of its rotation that the owner was told of


@dataclass
class EventRow:
    id: UUID
    workspace_id: str
    secret_id: UUID
    source: str
    event_id: str
    type: EventType
    name: str
    version: int
    injection: Injection | None
    rotation_policy: str | None
    claim_id: str | None
    accepted_at: datetime
    ring_at: datetime
    claim_key: bytes | None = field(default=None, repr=False)
    claim_expires_at: datetime | None = None
    traceparent: str | None = None
    state: EventState = EventState.ACCEPTED
    attempts: int = 0
    begun_at: datetime | None = None
    reason: str | None = None
    ended_at: datetime | None = None

    def finish(self, state: EventState, reason: str | None, now: datetime) -> None:
        """An end is final, and the one-time key goes with it."""
        self.state, self.reason, self.ended_at, self.claim_key = state, reason, now, None

    def snapshot(self) -> Event:
        return Event(
            id=self.id,
            workspace_id=self.workspace_id,
            secret_id=self.secret_id,
            source=self.source,
            event_id=self.event_id,
            type=self.type,
            name=self.name,
            version=self.version,
            state=self.state,
            injection=self.injection,
            rotation_policy=self.rotation_policy,
            claim_id=self.claim_id,
            reason=self.reason,
            accepted_at=self.accepted_at,
            held_until=None if self.state.is_end else self.claim_expires_at,
            ended_at=self.ended_at,
        )


@dataclass
class FailureRow:
    workspace_id: str
    connection_id: UUID | None
    secret_id: UUID | None
    state: KeyState
    aws_code: str
    request_id: str | None
    found_by: FoundBy
    first_seen: datetime
    last_seen: datetime
    ended_at: datetime | None = None
    id: UUID = field(default_factory=uuid4)
    announced_at: datetime | None = None

    @property
    def blames_customer(self) -> bool:
        return self.state not in BLAMES_NOBODY


@dataclass
class NoticeRow:
    notice: Notice
    cause: str
    next_try_at: datetime
    attempts: int = 0
    lease_until: datetime | None = None
    delivered_at: datetime | None = None
    given_up_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.delivered_at is None and self.given_up_at is None


@dataclass
class UseRow:
    intent: Intent
    started_at: datetime
    result: Result | None = None
    ended_at: datetime | None = None


@dataclass
class ProofItemRow:
    secret_id: UUID
    name: str
    version: int
    due_at: datetime
    outcome: ProofOutcome | None = None
    note: str = ""
    settled_at: datetime | None = None
    attempts: int = 0
    lease_until: datetime | None = None
    asks: list[Ask] = field(default_factory=list)


@dataclass
class ProofRow:
    id: UUID
    connection: Connection
    asked_by: str
    started_at: datetime
    items: dict[UUID, ProofItemRow]
    ended_at: datetime | None = None
    is_locked_out: bool | None = None
    document: str | None = None

    def snapshot(self) -> Proof:
        return Proof(
            id=self.id,
            connection=self.connection,
            asked_by=self.asked_by,
            started_at=self.started_at,
            ended_at=self.ended_at,
            is_locked_out=self.is_locked_out,
            total=len(self.items),
            done=sum(item.outcome is not None for item in self.items.values()),
            document=self.document,
        )


@dataclass
class MoveItemRow:
    secret_id: UUID
    connection_id: UUID
    due_at: datetime
    outcome: MoveOutcome | None = None
    state: KeyState | None = None
    aws_code: str = ""
    attempts: int = 0


@dataclass
class MoveRow:
    id: UUID
    workspace_id: str
    from_connection_id: UUID | None
    started_at: datetime
    items: dict[UUID, MoveItemRow]
    ended_at: datetime | None = None
    stopped_by: str | None = None


class Rows:
    """The tables and the small questions that several rooms ask of them."""

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        jitter: Callable[[], float],
        new_id: Callable[[], UUID],
        ring_after_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._now, self._jitter, self._new_id = now, jitter, new_id
        self._ring_after_seconds, self._lease_seconds = ring_after_seconds, lease_seconds
        self._lock = RLock()
        self._workspaces: dict[str, WorkspaceRow] = {}
        self._connections: dict[UUID, ConnectionRow] = {}
        self._external_ids: dict[str, str] = {}
        self._secrets: dict[UUID, SecretRow] = {}
        self._events: dict[UUID, EventRow] = {}
        self._failures: list[FailureRow] = []
        self._uses: dict[UUID, UseRow] = {}
        self._proofs: dict[UUID, ProofRow] = {}
        self._moves: dict[UUID, MoveRow] = {}
        self._notices: dict[UUID, NoticeRow] = {}
        #: True: every call fails as if PostgreSQL were away
        self.is_away = False

    @contextmanager
    def _transaction(self, *, audits: bool = False) -> Iterator[datetime]:
        """One atomic step; gives its time, which stands still inside it as ``now()`` does in PostgreSQL."""
        with self._lock:
            if self.is_away:
                raise AuditUnavailable("fake") if audits else Unavailable("fake")
            yield self._now()

    # ------------------------------------------------------------ finding rows

    def _workspace(self, workspace_id: str) -> WorkspaceRow:
        row = self._workspaces.get(workspace_id)
        if row is None or row.deleted_at is not None:
            raise NotFound("no such workspace")
        return row

    def _setting(self, workspace: WorkspaceRow) -> Setting:
        connection = self._connections[workspace.connection_id].connection if workspace.connection_id else None
        return Setting(workspace.id, workspace.setting_version, connection)

    def _connection(self, workspace_id: str, connection_id: UUID | None) -> ConnectionRow | None:
        row = self._connections.get(connection_id) if connection_id else None
        return row if row is not None and row.connection.workspace_id == workspace_id else None

    def _secret_named(self, workspace_id: str, name: str) -> SecretRow | None:
        found = (row for row in self._secrets.values() if (row.workspace_id, row.name) == (workspace_id, name))
        return next(found, None)

    def _secret(self, workspace_id: str, secret_id: UUID | None) -> SecretRow | None:
        row = self._secrets.get(secret_id) if secret_id else None
        return row if row is not None and row.workspace_id == workspace_id else None

    def _waiting(self, workspace_id: str, secret_id: UUID | None = None) -> list[EventRow]:
        return [
            row
            for row in self._events.values()
            if row.workspace_id == workspace_id
            and not row.state.is_end
            and (secret_id is None or row.secret_id == secret_id)
        ]

    def _is_live(self, row: ConnectionRow) -> bool:
        """Verified, and still of use: current, or under some blob. A replaced key that protects nothing is not asked
        any more."""
        if row.verified_at is None:
            return False
        return row.status is ConnectionStatus.CURRENT or any(
            secret.connection_id == row.connection.id for secret in self._secrets.values()
        )

    # ------------------------------------------------------------ failures

    def _open_row(self, workspace_id: str, connection_id: UUID | None, secret_id: UUID | None) -> FailureRow | None:
        wanted = (workspace_id, connection_id, secret_id)
        rows = (row for row in self._failures if row.ended_at is None)
        return next((row for row in rows if (row.workspace_id, row.connection_id, row.secret_id) == wanted), None)

    def _own_failure(self, secret: SecretRow) -> FailureRow | None:
        """A secret's own open row, under the connection that its blob uses now; an older blob's row says nothing."""
        return self._open_row(secret.workspace_id, secret.connection_id, secret.id)

    def _blamed(self, workspace_id: str, connection_id: UUID | None) -> FailureRow | None:
        """The open row of a connection that the customer's side denies."""
        row = self._open_row(workspace_id, connection_id, None) if connection_id else None
        return row if row is not None and row.blames_customer else None

    def _close_own(self, secret: SecretRow, now: datetime) -> None:
        for row in self._failures:
            if row.ended_at is None and row.secret_id == secret.id:
                row.ended_at = now

    # ------------------------------------------------------------ notices

    def _tell(self, kind: NoticeType, workspace_id: str, cause: str, now: datetime, data: dict[str, Any]) -> None:
        """Once for each cause."""
        told = ((row.notice.type, row.notice.workspace_id, row.cause) for row in self._notices.values())
        if (kind, workspace_id, cause) not in told:
            notice = Notice(uuid7(), kind, now, workspace_id, data)
            self._notices[notice.id] = NoticeRow(notice, cause, now)

    def _tell_lost(self, ended: Sequence[EventRow], now: datetime) -> None:
        """Of events that ended in this step, all of them: only the last one of a secret is told of."""
        for row in ended:
            secret = self._secrets[row.secret_id]
            later = any(
                other.version > row.version and other.state is not EventState.DELETED
                for other in self._events.values()
                if other.secret_id == row.secret_id
            )
            if row.state in LOST and secret.deleted_at is None and secret.version < row.version and not later:
                data = {
                    "secretId": str(secret.id),
                    "name": secret.name,
                    "version": row.version,
                    "eventId": str(row.id),
                    "state": row.state.value,
                    "reason": row.reason,
                }
                self._tell(NoticeType.NEEDS_REPROVISION, row.workspace_id, str(row.id), now, data)

    # ------------------------------------------------------------ audit

    def _begin_use(self, intent: Intent, now: datetime) -> None:
        if intent.id in self._uses:
            raise ValueError("an audit id is written once")
        self._uses[intent.id] = UseRow(intent, now)

    def _end_use(self, audit_id: UUID, result: Result) -> None:
        """Write an outcome; the first stands."""
        row = self._uses[audit_id]
        if row.result is None:
            row.result, row.ended_at = result, self._now()

    # ------------------------------------------------------------ status

    def _healed_unchecked(self, secret: SecretRow) -> bool:
        row = self._connection(secret.workspace_id, secret.connection_id)
        if row is None or row.healed_at is None:
            return False
        proofs = [moment for moment in (secret.checked_at, secret.last_used_at, secret.rotated_at) if moment]
        return not proofs or max(proofs) < row.healed_at

    def _status(self, secret: SecretRow) -> SecretStatus:
        own = self._own_failure(secret)
        events = [row for row in self._events.values() if row.secret_id == secret.id]
        # what an owner discarded says nothing about the value before it
        newer = [row for row in events if row.version > secret.version and row.state is not EventState.DELETED]
        highest = max(newer, key=lambda row: row.version, default=None)
        return status_of(
            SecretFacts(
                has_blob=secret.blob is not None,
                is_bound=secret.injection is not None,
                is_waiting=any(not row.state.is_end for row in events),
                lost_its_value=highest is not None and highest.state in LOST,
                failing=(own is not None and own.blames_customer)
                or self._blamed(secret.workspace_id, secret.connection_id) is not None,
                healed_unchecked=self._healed_unchecked(secret),
            )
        )
