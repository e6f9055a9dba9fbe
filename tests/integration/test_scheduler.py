"""The scheduler: one ring for each tick in each period, whoever rings; and it never gives up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from dramatiq import Message
from structlog.testing import capture_logs

from broker_core.adapters.queue import DramatiqQueue, connect_queue
from broker_core.errors import Unavailable
from broker_core.queues import MAINTENANCE, SWEEP
from tests.fakes_queue import FakeQueue, FixedClock
from tests.waiting import wait_until
from workers.scheduler import MOST_WAITING, SKEW_SECONDS, TICKS, Scheduler, run

MINUTE = {
    "reconcile": 12,
    "sweep_probes": 12,
    "sweep_checks": 30,
    "sweep_refusals": 1,
    "sweep_proofs": 30,
    "sweep_moves": 30,
    "notify_deliveries": 12,
    "notify_rotations": 1,
}


def rung(queue: FakeQueue) -> dict[str, int]:
    """How often each actor was rung."""
    return Counter(actor for _, actor in queue.ticks)


class Flickering(FakeQueue):
    """A queue that is away for the next ``failures`` calls."""

    failures = 0

    def _answer(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("the queue is away")


class TestSlots:
    def test_alone(self) -> None:
        """One scheduler rings each tick once in each of its periods, however often it looks."""
        queue, clock = FakeQueue(), FixedClock()
        scheduler = Scheduler(queue, clock)
        for _ in range(240):
            scheduler.step()
            clock.advance(0.25)
        assert rung(queue) == MINUTE

    def test_two_and_then_one(self) -> None:
        """Two schedulers double nothing, and when one dies nothing is missed."""
        queue, clock = FakeQueue(), FixedClock()
        first, second = Scheduler(queue, clock), Scheduler(queue, clock)
        for tenth in range(600):
            if tenth < 300:
                first.step()
            second.step()
            clock.advance(0.1)
        assert rung(queue) == MINUTE

    def test_clocks_that_differ(self) -> None:
        """A scheduler whose clock is a minute behind doubles nothing: its slots were claimed before."""
        queue, ahead, behind = FakeQueue(), FixedClock(), FixedClock()
        ahead.advance(60)
        first, second = Scheduler(queue, ahead), Scheduler(queue, behind)
        for _ in range(120):
            first.step()
            second.step()
            ahead.advance(1)
            behind.advance(1)
        assert rung(queue) == {actor: 3 * count for actor, count in MINUTE.items()}  # three minutes' slots, once each

    def test_a_missed_slot_is_not_made_up(self) -> None:
        """After a long stop each tick is rung once, not once for every period that passed."""
        queue, clock = FakeQueue(), FixedClock()
        scheduler = Scheduler(queue, clock)
        scheduler.step()
        clock.advance(3600)
        scheduler.step()
        assert rung(queue) == dict.fromkeys(MINUTE, 2)

    def test_says_when_to_look_again(self) -> None:
        """Between slots there is nothing to do until the next one begins."""
        clock = FixedClock()
        scheduler = Scheduler(FakeQueue(), clock)
        assert scheduler.step() == pytest.approx(2.0)
        clock.advance(1.5)
        assert scheduler.step() == pytest.approx(0.5)


class TestTrouble:
    def test_queue_away(self) -> None:
        """With the queue away it waits, longer each time up to a bound, says so, and goes on when it is back."""
        queue = FakeQueue()
        scheduler = Scheduler(queue, FixedClock())
        queue.is_away = True
        with capture_logs() as logged:
            pauses = [scheduler.step() for _ in range(12)]
        assert pauses[:5] == [1.0, 2.0, 4.0, 8.0, 10.0]
        assert max(pauses) == 10.0
        assert {line["event"] for line in logged} == {"scheduler.waiting"}
        queue.is_away = False
        scheduler.step()
        assert rung(queue) == dict.fromkeys(MINUTE, 1)

    def test_short_absence_misses_nothing(self) -> None:
        """A slot that could not be asked for is asked for again while it lasts."""
        queue, clock = Flickering(), FixedClock()
        scheduler = Scheduler(queue, clock)
        queue.failures = 1
        scheduler.step()
        clock.advance(1)
        scheduler.step()
        assert rung(queue) == dict.fromkeys(MINUTE, 1)

    def test_nobody_works(self) -> None:
        """With no worker there, ticks do not pile up; when one is back they go on."""
        queue, clock = FakeQueue(), FixedClock()
        scheduler = Scheduler(queue, clock)
        queue.backlog[SWEEP] = MOST_WAITING
        scheduler.step()
        assert rung(queue) == {"reconcile": 1, "notify_deliveries": 1, "notify_rotations": 1}
        queue.backlog[SWEEP] = 0
        clock.advance(5)
        scheduler.step()
        swept = dict.fromkeys(("sweep_probes", "sweep_checks", "sweep_proofs", "sweep_moves"), 1)
        assert rung(queue) == {"reconcile": 2, "notify_deliveries": 2, "notify_rotations": 1, **swept}

    def test_ends(self) -> None:
        """The loop ends when it is told to, and waits as long as each step says."""
        waits: list[float] = []
        run(Scheduler(FakeQueue(), FixedClock()), lambda: len(waits) == 3, waits.append)
        assert waits == [2.0, 2.0, 2.0]


@pytest.fixture
def queue(queue_valkey: str) -> Iterator[DramatiqQueue]:
    queue = DramatiqQueue(connect_queue(queue_valkey))
    yield queue
    queue.close()


def sent(url: str) -> dict[str, int]:
    """How many messages wait for each actor."""
    broker = connect_queue(url)
    bodies: list[Any] = [body for name in (SWEEP, MAINTENANCE) for body in broker.client.hvals(f"axiorank:{name}.msgs")]
    broker.client.close()
    return Counter(Message.decode(body).actor_name for body in bodies)


class TestOnRedis:
    def test_two_and_then_one(self, queue_valkey: str, queue: DramatiqQueue) -> None:
        """The same on a real server, each with connections of its own."""
        other, clock = DramatiqQueue(connect_queue(queue_valkey)), FixedClock()
        first, second = Scheduler(queue, clock), Scheduler(other, clock)
        for second_passed in range(8):  # nobody works here: more would be a backlog
            if second_passed < 4:
                first.step()
            second.step()
            clock.advance(1)
        other.close()
        often = dict.fromkeys(("sweep_checks", "sweep_proofs", "sweep_moves"), 4)
        twice = dict.fromkeys(("reconcile", "notify_deliveries", "sweep_probes"), 2)
        assert sent(queue_valkey) == {"sweep_refusals": 1, "notify_rotations": 1, **often, **twice}

    def test_claims_expire(self, queue_valkey: str, queue: DramatiqQueue) -> None:
        """Claimed slots do not stay in Redis for ever."""
        Scheduler(queue, FixedClock()).step()
        client = connect_queue(queue_valkey).client
        lives = [client.ttl(key) for key in client.scan_iter("axiorank:tick:*")]
        client.close()
        assert len(lives) == len(TICKS)
        assert all(0 < life <= max(tick.seconds for tick in TICKS) + SKEW_SECONDS for life in lives)

    def test_process(self, queue_valkey: str) -> None:
        """The process rings on the machine's clock, and ends in order at SIGTERM."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROCESS], env={**os.environ, "TEST_QUEUE_URL": queue_valkey}, cwd="/"
        )
        try:
            wait_until(lambda: len(sent(queue_valkey)) == len(TICKS), deadline_seconds=60, what="a ring of each")
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


_PROCESS = """
import io, os
from broker_core.adapters.clock import SystemClock
from broker_core.adapters.queue import DramatiqQueue, connect_queue
from broker_core.observability import configure_logging
from workers.scheduler import run_until_signalled
configure_logging(io.StringIO())
run_until_signalled(DramatiqQueue(connect_queue(os.environ["TEST_QUEUE_URL"])), SystemClock())
"""
