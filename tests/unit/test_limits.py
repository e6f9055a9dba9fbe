"""The breaker as a state machine, and the lanes that keep one customer's key from holding everyone up."""

from __future__ import annotations

import threading
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from broker_core.adapters.limits import Breaker, Lanes, NotAnswering
from broker_core.errors import Busy
from tests.fakes_keys import ManualClock
from tests.waiting import wait_until

A, B = UUID(int=1), UUID(int=2)
LIMIT, OPEN = 3, 5.0


class BreakerMachine(RuleBasedStateMachine):
    """Random timeouts, answers, waits and questions, against what the docstring says."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = Breaker(self.clock, LIMIT, OPEN)
        self.in_a_row = 0
        self.shut_until = 0.0

    @rule()
    def answered(self) -> None:
        self.breaker.answered()
        self.in_a_row = 0

    @rule()
    def timed_out(self) -> None:
        self.breaker.timed_out()
        self.in_a_row += 1
        if self.in_a_row >= LIMIT:
            self.shut_until = self.clock.seconds + OPEN

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.9, 5.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds

    @rule()
    def ask(self) -> None:
        is_shut = self.in_a_row >= LIMIT and self.clock.seconds < self.shut_until
        assert self.breaker.permits() is not is_shut
        if self.in_a_row >= LIMIT and not is_shut:
            self.shut_until = self.clock.seconds + OPEN  # the one trial of this period
            assert not self.breaker.permits()


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBreaker = BreakerMachine.TestCase


class TestLanes:
    def test_a_lane_has_so_many_slots(self) -> None:
        """One use more than the width is refused at once, by name."""
        lanes = Lanes(ManualClock(), width=2)
        with lanes.use(A), lanes.use(A):
            with pytest.raises(Busy), lanes.use(A):
                pytest.fail("a third use got in")
            with lanes.use(B):
                pass  # another connection has slots of its own

    def test_a_slot_is_given_back_whatever_happens(self) -> None:
        """An error in the block frees the slot."""
        lanes = Lanes(ManualClock(), width=1)
        for _ in range(3):
            with pytest.raises(RuntimeError), lanes.use(A):
                raise RuntimeError

    def test_a_use_waits_for_a_slot(self) -> None:
        """Within its seconds, a use gets the slot that another gives back."""
        lanes = Lanes(ManualClock(), width=2)
        got_in = threading.Event()

        def wait() -> None:
            with lanes.use(A, 10):
                got_in.set()

        waiter = threading.Thread(target=wait)
        with lanes.use(A), lanes.use(A):
            waiter.start()
            wait_until(lambda: lanes._lanes[A].waiting == 1, what="the one that waits")
        waiter.join(10)
        assert got_in.is_set()

    def test_few_wait(self) -> None:
        """Half as many as there are slots; whoever comes then is refused at once, whatever time it has."""
        lanes = Lanes(ManualClock(), width=4)
        released = threading.Event()
        outcomes: list[bool] = []

        def use(seconds: float) -> None:
            try:
                with lanes.use(A, seconds):
                    released.wait(10)
                outcomes.append(True)
            except Busy:
                outcomes.append(False)

        holding = [threading.Thread(target=use, args=(0.0,)) for _ in range(4)]
        for thread in holding:
            thread.start()
        wait_until(lambda: lanes._lanes[A].slots._value == 0, what="four uses")
        waiting = [threading.Thread(target=use, args=(10.0,)) for _ in range(2)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: lanes._lanes[A].waiting == 2, what="two that wait")
        for _ in range(8):
            with pytest.raises(Busy), lanes.use(A, 3600):
                pytest.fail("a seventh use got in")
        released.set()
        for thread in holding + waiting:
            thread.join(10)
        assert outcomes == [True] * 6

    def test_with_one_slot_nobody_waits(self) -> None:
        """A process with one or two threads has none to spare."""
        lanes = Lanes(ManualClock(), width=1)
        with lanes.use(A), pytest.raises(Busy), lanes.use(A, 3600):
            pytest.fail("a second use got in")

    def test_an_open_breaker_refuses_at_once_and_one_connection_alone(self) -> None:
        """After timeouts in a row a connection's attempts do not start; the others do not notice."""
        lanes = Lanes(ManualClock(), width=2)
        for _ in range(5):
            with lanes.use(A) as breaker:
                breaker.timed_out()
        with lanes.use(A) as breaker, pytest.raises(NotAnswering):
            breaker.ask()
        with lanes.use(B) as breaker:
            breaker.ask()

    def test_memory_is_bounded_and_a_lane_in_use_is_kept(self) -> None:
        """Idle lanes are forgotten, oldest first; one in use never, since its successor would be wider."""
        lanes = Lanes(ManualClock(), width=1, remembered=3)
        with lanes.use(A):
            for number in range(10, 30):
                with lanes.use(UUID(int=number)):
                    pass
            assert len(lanes._lanes) == 3
            with pytest.raises(Busy), lanes.use(A):
                pytest.fail("the lane was forgotten while in use")
