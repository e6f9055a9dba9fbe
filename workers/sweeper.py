"""The actors that look for failing secrets: a round of probes, of checks, of refusals; and those that go on with
lockout proofs and re-encryptions. They translate; ``sweep``, ``proof`` and ``reencrypt`` decide."""

from __future__ import annotations

from typing import Protocol

from dramatiq import Broker

from broker_core.queues import SWEEP
from workers.queue import register

PROBES, CHECKS, REFUSALS = "sweep_probes", "sweep_checks", "sweep_refusals"
PROOFS, MOVES = "sweep_proofs", "sweep_moves"


class Sweep(Protocol):
    """The use case; each call is one bounded round, claimed in the database."""

    def probes(self) -> object:
        """Probe the connections that are due. Raises BrokerError."""

    def checks(self) -> object:
        """Check the secrets that are due. Raises BrokerError."""

    def refusals(self) -> object:
        """Have the roles that are due show that they refuse others. Raises BrokerError."""


class Proofs(Protocol):
    """The use case of lockout proofs; each call is one bounded round."""

    def tick(self) -> object:
        """Go on with each that runs. Raises BrokerError."""


class Reencrypt(Protocol):
    """The use case of re-encryptions; each call is one bounded round."""

    def tick(self) -> object:
        """Go on with each that runs. Raises BrokerError."""


class SweepApp(Protocol):
    """What these actors need of the App."""

    @property
    def sweep(self) -> Sweep:
        """Find what has started to fail."""

    @property
    def proofs(self) -> Proofs:
        """Show what is locked out."""

    @property
    def reencrypt(self) -> Reencrypt:
        """Move secrets to the current key."""


def register_sweeper(broker: Broker, app: SweepApp) -> None:
    """Register ``sweep_probes``, ``sweep_checks``, ``sweep_refusals``, ``sweep_proofs`` and ``sweep_moves``."""

    def probes() -> None:
        app.sweep.probes()

    def checks() -> None:
        app.sweep.checks()

    def refusals() -> None:
        app.sweep.refusals()

    def proofs() -> None:
        app.proofs.tick()

    def moves() -> None:
        app.reencrypt.tick()

    register(broker, PROBES, SWEEP, probes)
    register(broker, CHECKS, SWEEP, checks)
    register(broker, REFUSALS, SWEEP, refusals)
    register(broker, PROOFS, SWEEP, proofs)
    register(broker, MOVES, SWEEP, moves)
