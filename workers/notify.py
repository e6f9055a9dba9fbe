"""The actors of notices: a round of deliveries, and one of rotations that have come due and of notices that are old.
They translate; ``notifications`` decides."""

from __future__ import annotations

from typing import Protocol

from dramatiq import Broker

from broker_core.queues import MAINTENANCE
from workers.queue import register

DELIVERIES, ROTATIONS = "notify_deliveries", "notify_rotations"


class Notifications(Protocol):
    """The use case; each call is one bounded round, claimed in the database."""

    def deliver(self) -> object:
        """Send what is due. Raises BrokerError."""

    def tell_due_rotations(self) -> object:
        """Write what has come due. Raises BrokerError."""

    def forget_old(self) -> object:
        """Delete what is old. Raises BrokerError."""


class NotifyApp(Protocol):
    """What these actors need of the App."""

    @property
    def notifications(self) -> Notifications:
        """Tell owners."""


def register_notify(broker: Broker, app: NotifyApp) -> None:
    """Register ``notify_deliveries`` and ``notify_rotations``."""

    def deliver() -> None:
        app.notifications.deliver()

    def tell_due_rotations() -> None:
        app.notifications.tell_due_rotations()
        app.notifications.forget_old()

    register(broker, DELIVERIES, MAINTENANCE, deliver)
    register(broker, ROTATIONS, MAINTENANCE, tell_due_rotations)
