"""Start workers: what a worker process is told, and dramatiq's master in this process.

dramatiq reads some of its settings when it is imported, so it is imported here only when they are set. Its processes
are, on Linux, forked from this one, which has imported everything and keeps nothing else: no thread, no connection, no
drawn random number. (An import takes longer than the rest of a start.)
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from broker_core.queues import CUSTODY, MAINTENANCE, QUEUES, SWEEP

#: how many messages one process holds, for each thread. An event is worth a spare one, since a fetch takes as long as
#: the idle time; a sweep's round is long, and whoever is free should take the next
PREFETCH_PER_THREAD: Mapping[str, int] = {CUSTODY: 2, MAINTENANCE: 2, SWEEP: 1}

#: dramatiq's own
DEFAULT_THREADS = 8

#: an idle worker looks for messages this often: p50 31 ms instead of 306 ms until an event is picked up
IDLE_MS = 100

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
    """How many threads this process was given; dramatiq's own default where it was not started by ``run``."""
    given = environ.get(THREADS_VARIABLE, "")
    return int(given) if given.isdecimal() else DEFAULT_THREADS


def run(queues: Sequence[str], processes: int, threads: int, setup: str = "workers.main:setup") -> NoReturn:
    """Be dramatiq's master for these queues, until SIGTERM. Raises ConfigurationError or Unavailable before any process
    is started.

    What each of them will do first is done here, too: here an operator reads why it cannot work, there it would be a
    traceback between those of dramatiq. Each actor ends within its deadlines, so a minute to shut down is ample. The
    empty ``--path`` keeps the working directory off the import path: a file that lies there must not stand in for a
    module of ours.
    """
    os.environ.update(worker_environment(queues, threads))
    from dramatiq import cli

    from workers.main import check

    check(os.environ)
    # the collector goes through what was imported in none of the processes: they would each get a copy of it
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":  # the default until 3.13; elsewhere forking is not safe, and each process imports anew
        multiprocessing.set_start_method("fork", force=True)
    # what dramatiq executes to start again (SIGHUP)
    sys.argv = [sys.executable, *sys.orig_argv[1:]]
    line = [
        *(setup, "--skip-logging", "--worker-shutdown-timeout", "60000"),
        *("--processes", str(processes), "--threads", str(threads), "--queues", *queues, "--path"),
    ]
    arguments = cli.make_argument_parser().parse_args(line)  # type: ignore[no-untyped-call]
    sys.exit(cli.main(arguments))  # type: ignore[no-untyped-call]
