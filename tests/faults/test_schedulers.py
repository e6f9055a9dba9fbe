"""Two scheduler processes on one queue."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import redis
from dramatiq import Message

from broker_core.dev.stack import LocalStack
from broker_core.queues import MAINTENANCE, SWEEP
from tests.waiting import wait_until
from workers.scheduler import TICKS
from workers.sweeper import CHECKS

SLOTS = 2


def slots(client: redis.Redis) -> dict[str, set[int]]:
    """The periods that were claimed, by actor."""
    found = defaultdict(set)
    for key in client.scan_iter("axiorank:tick:*"):
        _, _, actor, slot = key.decode().split(":")
        found[actor].add(int(slot))
    return found


def checks(client: redis.Redis) -> int:
    """How many periods of one actor were claimed. Takes the messages off the queues, as workers that fetch them do: at
    16 that nobody fetched a scheduler rings no more."""
    client.delete(*(f"axiorank:{queue}" for queue in (SWEEP, MAINTENANCE)))
    return len(slots(client)[CHECKS])


def messages(client: redis.Redis) -> Counter[str]:
    """How many messages were rung, by actor: nobody works them off here."""
    bodies: list[Any] = [body for queue in (SWEEP, MAINTENANCE) for body in client.hvals(f"axiorank:{queue}.msgs")]
    return Counter(Message.decode(body).actor_name for body in bodies)


def test_two_and_then_one(stack: LocalStack) -> None:
    """Two schedulers ring at most once in each period; when one is killed the other goes on."""
    killed, other = stack.run("scheduler", "scheduler")
    client = redis.Redis.from_url(stack.queue.url)
    wait_until(lambda: checks(client) >= SLOTS, what="periods of both")
    killed.signal("KILL")
    wait_until(lambda: not killed.alive, what="one scheduler's end")
    before = checks(client)
    wait_until(lambda: checks(client) >= before + SLOTS, deadline_seconds=60, what="periods of the other")
    other.stop("TERM")
    claimed, rung = slots(client), messages(client)
    client.close()
    assert claimed.keys() == {tick.actor for tick in TICKS}
    for actor, periods in claimed.items():
        # one that is killed between claiming and ringing takes at most one ring with it
        assert len(periods) - 1 <= rung[actor] <= len(periods)
