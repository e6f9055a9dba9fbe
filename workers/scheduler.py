"""The process that rings for work that nobody sent: reconciling, probes, checks, proofs, moves, notices.

Each tick has one slot per period, counted on the wall clock, and whoever claims the slot rings. So any number of
schedulers ring once per period, and when one dies the others go on without a gap. A slot that was missed is not made
up: each round looks at everything that is due. The scheduler holds no state that matters and never gives up: with
Redis away it waits, with a growing pause, and says so.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from broker_core import telemetry
from broker_core.errors import Unavailable
from broker_core.ports import Clock
from broker_core.queues import MAINTENANCE, SWEEP
from broker_core.signals import Stop
from workers.custody import RECONCILE
from workers.notify import DELIVERIES, ROTATIONS
from workers.sweeper import CHECKS, MOVES, PROBES, PROOFS, REFUSALS


@dataclass(frozen=True)
class Tick:
    """An actor to be rung once in every period."""

    actor: str
    queue: str
    seconds: int


TICKS = (
    Tick(RECONCILE, MAINTENANCE, 5),
    Tick(PROBES, SWEEP, 5),
    Tick(CHECKS, SWEEP, 2),
    Tick(REFUSALS, SWEEP, 60),
    Tick(PROOFS, SWEEP, 2),
    Tick(MOVES, SWEEP, 2),
    Tick(DELIVERIES, MAINTENANCE, 5),
    Tick(ROTATIONS, MAINTENANCE, 60),
)

#: a claimed slot is remembered for its period and this long: two schedulers' clocks may differ by as much
SKEW_SECONDS = 300
#: with so many messages unfetched no worker is there: more of the same would only fill Redis
MOST_WAITING = 16
LONGEST_PAUSE_SECONDS = 10.0


class TickQueue(Protocol):
    """What the scheduler needs of the queue; each method raises Unavailable."""

    def claim_slot(self, name: str, slot: int, seconds: int) -> bool:
        """True for exactly one caller."""

    def waiting(self, queue: str) -> int:
        """How many messages no worker has fetched yet."""

    def tick(self, queue: str, actor: str) -> None:
        """Ring for one round."""


class Scheduler:
    """Rings each tick once in each of its periods, together with any other scheduler on the same queue."""

    def __init__(self, queue: TickQueue, clock: Clock, ticks: Sequence[Tick] = TICKS) -> None:
        self._queue = queue
        self._clock = clock
        self._ticks = ticks
        self._seen: dict[str, int] = {}  # the last slot that was settled, by actor: spares questions, decides nothing
        self._failures = 0

    def step(self) -> float:
        """Ring what is due; returns for how many seconds there is nothing to do."""
        try:
            for tick in self._ticks:
                self._settle(tick)
        except Unavailable as error:
            self._failures += 1
            pause = min(LONGEST_PAUSE_SECONDS, 0.5 * (1 << min(self._failures, 8)))
            telemetry.log().warning("scheduler.waiting", code=error.reason, failures=self._failures, seconds=pause)
            return pause
        self._failures = 0
        now = self._clock.now().timestamp()
        return min(tick.seconds - now % tick.seconds for tick in self._ticks)

    def _settle(self, tick: Tick) -> None:
        slot = int(self._clock.now().timestamp() // tick.seconds)
        if self._seen.get(tick.actor) == slot:
            return
        if self._queue.waiting(tick.queue) >= MOST_WAITING:
            telemetry.log().warning("scheduler.backlog", actor=tick.actor)
        elif self._queue.claim_slot(tick.actor, slot, tick.seconds + SKEW_SECONDS):
            self._queue.tick(tick.queue, tick.actor)
        self._seen[tick.actor] = slot


def run(scheduler: Scheduler, is_over: Callable[[], bool], wait: Callable[[float], object]) -> None:
    """Step until it is over. ``wait`` takes seconds and may return early."""
    telemetry.log().info("scheduler.started")
    while not is_over():
        wait(scheduler.step())
    telemetry.log().info("scheduler.stopped")


def run_until_signalled(queue: TickQueue, clock: Clock, *closing: Callable[[], None]) -> None:
    """Run in this process's main thread until SIGTERM or SIGINT; then close, and no second signal cuts that short."""
    with Stop(signal.SIGTERM, signal.SIGINT) as stop, ExitStack() as ending:
        for close in reversed(closing):
            ending.callback(close)
        run(Scheduler(queue, clock), stop.is_set, stop.wait)
