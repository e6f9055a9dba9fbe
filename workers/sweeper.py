"""The actors that look for failing secrets: one round of probes, one round of checks. They translate; ``sweep``
decides."""

from __future__ import annotations

from typing import Protocol

from dramatiq import Broker

from broker_core.adapters.queue import SWEEP
from workers.queue import register

PROBES, CHECKS = "sweep_probes", "sweep_checks"


class Sweep(Protocol):
    """The use case; each call is one bounded round, claimed in the database."""

    def probes(self) -> object:
        """Probe the connections that are due. Raises BrokerError."""

    def checks(self) -> object:
        """Check the secrets that are due. Raises BrokerError."""


class SweepApp(Protocol):
    """What these actors need of the App."""

    @property
    def sweep(self) -> Sweep:
        """Find what has started to fail."""


def register_sweeper(broker: Broker, app: SweepApp) -> None:
    """Register ``sweep_probes`` and ``sweep_checks``."""

    def probes() -> None:
        app.sweep.probes()

    def checks() -> None:
        app.sweep.checks()

    register(broker, PROBES, SWEEP, probes)
    register(broker, CHECKS, SWEEP, checks)
