"""The breaker as a state machine, and the lanes that keep one customer's key from holding everyone up."""

from __future__ import annotations

import threading
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from broker_core.adapters.limits import Breaker, Lanes
from broker_core.errors import Transient
from tests.fakes_keys import ManualClock

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
        """One use more than the width is refused as transient when its time is up."""
        lanes = Lanes(ManualClock(), width=2)
        with lanes.use(A, 0), lanes.use(A, 0):
            with pytest.raises(Transient), lanes.use(A, 0):
                pytest.fail("a third use got in")
            with lanes.use(B, 0):
                pass  # another connection has slots of its own

    def test_a_slot_is_given_back_whatever_happens(self) -> None:
        """An error in the block frees the slot."""
        lanes = Lanes(ManualClock(), width=1)
        for _ in range(3):
            with pytest.raises(RuntimeError), lanes.use(A, 0):
                raise RuntimeError

    def test_a_use_waits_for_a_slot(self) -> None:
        """Within its seconds, a use gets the slot that another gives back."""
        lanes = Lanes(ManualClock(), width=1)
        got_in = threading.Event()

        def wait() -> None:
            with lanes.use(A, 10):
                got_in.set()

        waiter = threading.Thread(target=wait)
        with lanes.use(A, 0):
            waiter.start()
        waiter.join(10)
        assert got_in.is_set()

    def test_an_open_breaker_refuses_at_once_and_one_connection_alone(self) -> None:
        """After timeouts in a row a connection fails fast; the others do not notice."""
        lanes = Lanes(ManualClock(), width=2)
        for _ in range(5):
            with lanes.use(A, 0) as breaker:
                breaker.timed_out()
        with pytest.raises(Transient), lanes.use(A, 0):
            pytest.fail("the breaker is open")
        with lanes.use(B, 0):
            pass

    def test_memory_is_bounded_and_a_lane_in_use_is_kept(self) -> None:
        """Idle lanes are forgotten, oldest first; one in use never, since its successor would be wider."""
        lanes = Lanes(ManualClock(), width=1, remembered=3)
        with lanes.use(A, 0):
            for number in range(10, 30):
                with lanes.use(UUID(int=number), 0):
                    pass
            assert len(lanes._lanes) == 3
            with pytest.raises(Transient), lanes.use(A, 0):
                pytest.fail("the lane was forgotten while in use")
