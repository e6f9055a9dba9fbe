"""The actors that take values in, and the reconciler that rings for what still waits. They translate; ``custody`` and
``reconcile`` decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from dramatiq import Broker

from broker_core.adapters.queue import ACTORS
from broker_core.model import EventState
from broker_core.queues import CUSTODY, MAINTENANCE
from workers.queue import register

RECONCILE = "reconcile"


class Custody(Protocol):
    """The use case: one try at one event."""

    def run(self, event_id: UUID, /) -> EventState | None:
        """Bring the event to its next state; None when there was nothing to do. Raises BrokerError."""


class CustodyApp(Protocol):
    """What these actors need of the App."""

    @property
    def custody(self) -> Custody:
        """Take a value in."""

    @property
    def reconcile(self) -> Callable[[], object]:
        """End what is over its time, ring for what waits."""


def register_custody(broker: Broker, app: CustodyApp) -> None:
    """Register ``secret_created``, ``secret_rotated`` and ``reconcile``."""

    def take_in(event_id: str) -> None:
        app.custody.run(UUID(event_id))

    def reconcile() -> None:
        app.reconcile()

    for name in ACTORS.values():
        register(broker, name, CUSTODY, take_in)
    register(broker, RECONCILE, MAINTENANCE, reconcile)
