"""``FakeStore``: every store port in memory, held to the same contract suite as the SQL store.

Thread-safe by one lock. Time comes from ``now``; nothing else happens by itself. Beside the ports it has questions that
only tests ask: ``status``, ``secret_row``, ``failures``, ``notices``, ``audit_rows``, ``claim_key``; ``age``, which
moves a row back in time; and ``is_away``, which makes every call fail as if the database were down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from broker_core.audit import Intent, Result
from broker_core.errors import NotFound
from broker_core.model import SecretStatus
from tests.fakes_store_parts.byok import ByokRoom
from tests.fakes_store_parts.custody import CustodyRoom
from tests.fakes_store_parts.intake import IntakeRoom
from tests.fakes_store_parts.moves import MoveRoom
from tests.fakes_store_parts.notices import NoticeRoom
from tests.fakes_store_parts.owner import OwnerRoom
from tests.fakes_store_parts.proof import ProofRoom
from tests.fakes_store_parts.rows import FailureRow, NoticeRow, SecretRow
from tests.fakes_store_parts.sweep import SweepRoom
from tests.fakes_store_parts.use import UseRoom

if TYPE_CHECKING:
    from broker_core import ports


class FakeStore(IntakeRoom, CustodyRoom, UseRoom, SweepRoom, ByokRoom, OwnerRoom, ProofRoom, NoticeRoom, MoveRoom):
    """See the module's docstring."""

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        jitter: Callable[[], float] = lambda: 1.0,
        new_id: Callable[[], UUID] = uuid4,
        ring_after_seconds: float = 10.0,
        lease_seconds: float = 60.0,
    ) -> None:
        """``jitter`` multiplies the pause to the next probe; an event is due for the doorbell ``ring_after_seconds``
        after its acceptance; what is claimed is not claimed again within ``lease_seconds``."""
        super().__init__(
            now, jitter=jitter, new_id=new_id, ring_after_seconds=ring_after_seconds, lease_seconds=lease_seconds
        )

    def secret_row(self, workspace_id: str, name: str) -> SecretRow:
        """The row itself. Raises NotFound."""
        with self._lock:
            row = self._secret_named(workspace_id, name)
            if row is None:
                raise NotFound("no such secret")
            return row

    def status(self, workspace_id: str, name: str) -> SecretStatus:
        """What an owner sees. Raises NotFound."""
        with self._lock:
            return self._status(self.secret_row(workspace_id, name))

    def failures(self, *, open_only: bool = True) -> Sequence[FailureRow]:
        """The rows of the failure record, oldest first."""
        with self._lock:
            return [row for row in self._failures if row.ended_at is None or not open_only]

    def audit_rows(self) -> Sequence[tuple[Intent, Result | None]]:
        """The audit log, oldest first; None where the outcome is missing."""
        with self._lock:
            return [(row.intent, row.result) for row in self._uses.values()]

    def notices(self) -> Sequence[NoticeRow]:
        """The outbox, oldest first."""
        with self._lock:
            return list(self._notices.values())

    def age(self, row_id: UUID, column: str, seconds: float) -> None:
        """Set a time of a connection, an event, a secret, a notice or a failure to so many seconds ago."""
        with self._lock:
            failures = {row.id: row for row in self._failures}
            tables: Sequence[dict[UUID, Any]] = (self._connections, self._events, self._secrets, failures)
            row = next((table[row_id] for table in tables if row_id in table), None) or self._notices[row_id]
            moment = self._now() - timedelta(seconds=seconds)
            if column == "created_at" and isinstance(row, NoticeRow):
                row.notice = replace(row.notice, time=moment)
            else:
                setattr(row, column, moment)

    def claim_key(self, event_id: UUID) -> bytes | None:
        """The half of a value that waits in an event's row."""
        with self._lock:
            return self._events[event_id].claim_key


if TYPE_CHECKING:

    def _meets_every_port(store: FakeStore) -> None:
        """mypy compares the signatures here."""
        ports_met: tuple[
            ports.IntakeStore,
            ports.CustodyStore,
            ports.ReconcileStore,
            ports.InjectStore,
            ports.SweepStore,
            ports.ByokStore,
            ports.OwnerStore,
            ports.AuditStore,
            ports.ProofStore,
            ports.NoticeStore,
            ports.MoveStore,
        ] = (store, store, store, store, store, store, store, store, store, store, store)
        del ports_met
