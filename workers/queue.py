"""The consumer's side of the queue: how a use case becomes an actor, and what a worker process is told.

Actors are registered by a function call on a given broker, so that importing a module has no effect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import dramatiq
from dramatiq import Broker

from broker_core.adapters.queue import CUSTODY, MAINTENANCE, QUEUES, SWEEP
from broker_core.errors import BrokerError
from workers.middleware import payload_free

#: of what one process has fetched, ticks go first (a lower number is earlier): they end what is over its time
PRIORITIES: Mapping[str, int] = {MAINTENANCE: 0, CUSTODY: 10, SWEEP: 10}

#: how many messages one process holds, for each thread. An event is worth a spare one, since a fetch takes as long as
#: the idle time; a sweep's round is long, and whoever is free should take the next
PREFETCH_PER_THREAD: Mapping[str, int] = {CUSTODY: 2, MAINTENANCE: 2, SWEEP: 1}

#: dramatiq's own
DEFAULT_THREADS = 8

#: an idle worker looks for messages this often: p50 31 ms instead of 306 ms until an event is picked up
IDLE_MS = 100


def register(broker: Broker, name: str, queue: str, run: Callable[..., None]) -> None:
    """Make ``run`` the actor ``name`` on ``queue``. Errors of ours are expected: they are not printed as tracebacks."""
    declare = dramatiq.actor(
        actor_name=name, queue_name=queue, priority=PRIORITIES[queue], broker=broker, throws=BrokerError
    )
    declare(payload_free(run))


#: tells each of dramatiq's processes how many threads it was given, which dramatiq itself does not say
THREADS_VARIABLE = "AXIORANK_WORKER_THREADS"


def worker_environment(queues: Sequence[str], threads: int) -> dict[str, str]:
    """What dramatiq reads from the environment when it is imported, and what ``workers.main.setup`` reads.

    Raises ValueError for an unknown queue.
    """
    if not queues or not set(queues) <= set(QUEUES):
        raise ValueError(f"queues are {', '.join(QUEUES)}")
    prefetch = threads * min(PREFETCH_PER_THREAD[queue] for queue in queues)
    return {
        "dramatiq_worker_timeout": str(IDLE_MS),
        "dramatiq_queue_prefetch": str(prefetch),
        THREADS_VARIABLE: str(threads),
    }


def threads_in(environ: Mapping[str, str]) -> int:
    """How many threads this process was given; dramatiq's own default where it was started without ``command``."""
    given = environ.get(THREADS_VARIABLE, "")
    return int(given) if given.isdecimal() else DEFAULT_THREADS


def command(queues: Sequence[str], processes: int, threads: int, setup: str = "workers.main:setup") -> list[str]:
    """The command line of dramatiq's master.

    ``-P`` and the empty ``--path`` keep the working directory off the import path: a file that lies there must not
    stand in for a module of ours. Each actor ends within its deadlines, so a minute to shut down is ample.
    """
    return [
        *(sys.executable, "-P", "-m", "dramatiq", setup, "--skip-logging", "--worker-shutdown-timeout", "60000"),
        *("--processes", str(processes), "--threads", str(threads), "--queues", *queues, "--path"),
    ]
