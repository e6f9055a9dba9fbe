"""``FakeStore``: every store port in memory, held to the same contract suite as the SQL store.

Thread-safe by one lock. Time comes from ``now``; nothing else happens by itself. Beside the ports it has questions that
only tests ask: ``status``, ``secret``, ``failures``, ``audit_rows``, ``claim_key``; ``age``, which moves a row back in
time; and ``is_away``, which makes every call fail as if the database were down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from broker_core.audit import Intent, Result
from broker_core.errors import NotFound
from broker_core.model import SecretStatus
from tests.fakes_store_parts.byok import ByokRoom
from tests.fakes_store_parts.custody import CustodyRoom
from tests.fakes_store_parts.intake import IntakeRoom
from tests.fakes_store_parts.owner import OwnerRoom
from tests.fakes_store_parts.rows import FailureRow, SecretRow
from tests.fakes_store_parts.sweep import SweepRoom
from tests.fakes_store_parts.use import UseRoom

if TYPE_CHECKING:
    from broker_core import ports


class FakeStore(IntakeRoom, CustodyRoom, UseRoom, SweepRoom, ByokRoom, OwnerRoom):
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

    def secret(self, workspace_id: str, name: str) -> SecretRow:
        """The row itself. Raises NotFound."""
        with self._lock:
            row = self._secret_named(workspace_id, name)
            if row is None:
                raise NotFound("no such secret")
            return row

    def status(self, workspace_id: str, name: str) -> SecretStatus:
        """What an owner sees. Raises NotFound."""
        with self._lock:
            return self._status(self.secret(workspace_id, name))

    def failures(self, *, open_only: bool = True) -> Sequence[FailureRow]:
        """The rows of the failure record, oldest first."""
        with self._lock:
            return [row for row in self._failures if row.ended_at is None or not open_only]

    def audit_rows(self) -> Sequence[tuple[Intent, Result | None]]:
        """The audit log, oldest first; None where the outcome is missing."""
        with self._lock:
            return [(row.intent, row.result) for row in self._uses.values()]

    def age(self, row_id: UUID, column: str, seconds: float) -> None:
        """Set a time of a connection, an event or a secret to so many seconds ago."""
        with self._lock:
            row = self._connections.get(row_id) or self._events.get(row_id) or self._secrets[row_id]
            setattr(row, column, self._now() - timedelta(seconds=seconds))

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
        ] = (store, store, store, store, store, store, store, store)
        del ports_met
