"""The consumer's side of the queue: how a use case becomes an actor.

Actors are registered by a function call on a given broker, so that importing a module has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import dramatiq
from dramatiq import Broker

from broker_core.errors import BrokerError
from broker_core.queues import CUSTODY, MAINTENANCE, SWEEP
from workers.middleware import payload_free

#: of what one process has fetched, ticks go first (a lower number is earlier): they end what is over its time
PRIORITIES: Mapping[str, int] = {MAINTENANCE: 0, CUSTODY: 10, SWEEP: 10}


def register(broker: Broker, name: str, queue: str, run: Callable[..., None]) -> None:
    """Make ``run`` the actor ``name`` on ``queue``. Errors of ours are expected: they are not printed as tracebacks."""
    declare = dramatiq.actor(
        actor_name=name, queue_name=queue, priority=PRIORITIES[queue], broker=broker, throws=BrokerError
    )
    declare(payload_free(run))
