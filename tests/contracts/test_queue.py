"""What every queue keeps to: the fake, and dramatiq on Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from broker_core.adapters.queue import DramatiqQueue, connect_queue
from broker_core.errors import Unavailable
from broker_core.model import EventType
from broker_core.queues import CUSTODY, SWEEP
from tests.fakes_queue import FakeQueue

EVENT = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
Either = FakeQueue | DramatiqQueue


class QueueContract:
    """The facts; a subclass says which queue, how to look into it, and what a queue that is away is."""

    @pytest.mark.parametrize("event_type", [EventType.CREATED, EventType.ROTATED])
    def test_ring(self, queue: Either, rung: Callable[[], list[tuple[EventType, UUID]]], event_type: EventType) -> None:
        """A ring says which event, and of which type."""
        queue.ring(event_type, EVENT)
        assert rung() == [(event_type, EVENT)]

    def test_no_worker_looks_at_deletions(self, queue: Either) -> None:
        """A deletion takes effect when it is accepted: ringing for it is a mistake of ours."""
        with pytest.raises(ValueError, match=r"secret\.deleted"):
            queue.ring(EventType.DELETED, EVENT)

    def test_a_slot_has_one_claimant(self, queue: Either) -> None:
        """The same slot is claimed once; another slot, and the same slot of another tick, are others."""
        asked = [("probes", 7), ("probes", 7), ("probes", 8), ("checks", 7)]
        assert [queue.claim_slot(name, slot, 60) for name, slot in asked] == [True, False, True, True]

    def test_nothing_waits_at_first(self, queue: Either) -> None:
        """An empty queue has nothing waiting."""
        assert queue.waiting(SWEEP) == 0

    def test_away(self, away: Either) -> None:
        """Every call on a queue that is away raises Unavailable, with nothing behind it."""
        for call in (
            lambda: away.ring(EventType.CREATED, EVENT),
            lambda: away.tick(SWEEP, "sweep_probes"),
            lambda: away.claim_slot("probes", 1, 60),
            lambda: away.waiting(SWEEP),
        ):
            with pytest.raises(Unavailable) as caught:
                call()
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)


class TestFake(QueueContract):
    @pytest.fixture
    def queue(self) -> FakeQueue:
        return FakeQueue()

    @pytest.fixture
    def rung(self, queue: FakeQueue) -> Callable[[], list[tuple[EventType, UUID]]]:
        return lambda: queue.rung

    @pytest.fixture
    def away(self) -> FakeQueue:
        queue = FakeQueue()
        queue.is_away = True
        return queue


class TestDramatiq(QueueContract):
    @pytest.fixture
    def broker(self, queue_valkey: str) -> RedisBroker:
        return connect_queue(queue_valkey)

    @pytest.fixture
    def queue(self, broker: RedisBroker) -> Iterator[DramatiqQueue]:
        queue = DramatiqQueue(broker)
        yield queue
        queue.close()

    @pytest.fixture
    def rung(self, broker: RedisBroker) -> Callable[[], list[tuple[EventType, UUID]]]:
        def read() -> list[tuple[EventType, UUID]]:
            bodies: Any = broker.client.hvals(f"axiorank:{CUSTODY}.msgs")
            messages = [Message.decode(body) for body in bodies]
            assert len(messages) == broker.client.llen(f"axiorank:{CUSTODY}")
            return [(EventType(each.actor_name.replace("_", ".")), UUID(each.args[0])) for each in messages]

        return read

    @pytest.fixture
    def away(self, queue_valkey: str) -> Iterator[DramatiqQueue]:
        queue = DramatiqQueue(connect_queue("redis://127.0.0.1:1/0"))  # nothing listens there
        yield queue
        queue.close()

    def test_waiting_counts_ticks(self, queue: DramatiqQueue) -> None:
        """What nobody has fetched is counted, by queue."""
        queue.tick(SWEEP, "sweep_probes")
        assert (queue.waiting(SWEEP), queue.waiting(CUSTODY)) == (1, 0)
