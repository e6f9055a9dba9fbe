"""The store, for every use of a key: audit rows, injections, and the record of failures that the sweep keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from broker_core.audit import Intent, Result
from broker_core.errors import KeyState
from broker_core.injection import Injection
from broker_core.model import Blob, Connection, FoundBy, StepResult


class AuditStore(Protocol):
    """Intents and results of uses that belong to no event and no injection (probes, verification)."""

    def begin_use(self, intent: Intent) -> None:
        """Commit one intent. Raises AuditUnavailable."""

    def end_use(self, intent: Intent, result: Result) -> None:
        """Write its outcome."""


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
