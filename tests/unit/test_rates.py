"""Rates: what is counted together, what apart, and what a refusal costs."""

from __future__ import annotations

from uuid import uuid4

import pytest

from broker_core.errors import RateLimited
from broker_core.rates import COUNTED_AT_ONCE, HELD_SECONDS, MOST_GUESSES, Allowance, Guesses, Meter, Rates
from tests.fakes_limiter import FakeLimiter
from tests.fakes_queue import FixedClock

SECRET = uuid4()


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def limiter(clock: FixedClock) -> FakeLimiter:
    return FakeLimiter(clock)


@pytest.fixture
def rates(limiter: FakeLimiter) -> Rates:
    return Rates(limiter, Allowance(inject=2, events=2, other=2, bytes=1000))


class TestRequests:
    @pytest.mark.parametrize(
        "kind", ["broker:inject", "broker:events", "broker:environment", "broker:platform", "people"]
    )
    def test_counted(self, rates: Rates, kind: str) -> None:
        """Every kind has a limit."""
        rates.request("ws_1", kind)
        rates.request("ws_1", kind)
        with pytest.raises(RateLimited):
            rates.request("ws_1", kind)

    def test_injections_are_apart(self, rates: Rates) -> None:
        """Neither people nor producers take from what agents may."""
        for kind in ("people", "people", "broker:events", "broker:events"):
            rates.request("ws_1", kind)
        rates.request("ws_1", "broker:inject")

    def test_the_rest_is_together(self, rates: Rates) -> None:
        """What has no counter of its own shares one."""
        rates.request("ws_1", "people")
        rates.request("ws_1", "broker:environment")
        with pytest.raises(RateLimited):
            rates.request("ws_1", "broker:platform")

    def test_by_workspace(self, rates: Rates) -> None:
        """One workspace's requests are not another's."""
        rates.request("ws_1", "people")
        rates.request("ws_1", "people")
        rates.request("ws_2", "people")

    def test_a_minute(self, rates: Rates, clock: FixedClock) -> None:
        """A minute later there is room again."""
        rates.request("ws_1", "people")
        rates.request("ws_1", "people")
        clock.advance(60)
        rates.request("ws_1", "people")


class TestBytes:
    def test_counted_even_above(self, rates: Rates, limiter: FakeLimiter) -> None:
        """Bytes that passed are counted, more than the limit too."""
        rates.passed("ws_1", 1500)
        rates.passed("ws_1", 0)
        assert limiter.counted("bytes", "ws_1") == 1500

    def test_nothing_begins_above(self, rates: Rates) -> None:
        """A workspace that had its bytes is refused, its neighbour is not; asking counts nothing."""
        rates.passed("ws_1", 999)
        rates.room("ws_1")
        rates.room("ws_1")
        rates.passed("ws_1", 1)
        with pytest.raises(RateLimited):
            rates.room("ws_1")
        rates.room("ws_2")


class TestMeter:
    def test_counts_by_the_megabyte(self, rates: Rates, limiter: FakeLimiter) -> None:
        """A stream is counted when much of it has passed, and the rest when it ends."""
        meter = Meter(rates, "ws_1", lambda seconds: True)
        meter.passed(COUNTED_AT_ONCE - 1)
        assert limiter.counted("bytes", "ws_1") == 0
        meter.passed(2)
        assert limiter.counted("bytes", "ws_1") == COUNTED_AT_ONCE + 1
        meter.passed(5)
        meter.close()
        assert limiter.counted("bytes", "ws_1") == COUNTED_AT_ONCE + 6

    def test_waits_for_room(self, rates: Rates, clock: FixedClock) -> None:
        """Above the limit a stream waits, a few seconds at a time, until there is room again."""
        waits: list[float] = []

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            clock.advance(seconds)
            return False

        Meter(rates, "ws_1", wait).passed(COUNTED_AT_ONCE)
        assert (sum(waits), max(waits)) == (60, HELD_SECONDS)
        rates.room("ws_1")

    def test_does_not_wait_when_it_is_to_stop(self, rates: Rates) -> None:
        """A stream whose caller went does not wait on."""
        waits: list[float] = []
        Meter(rates, "ws_1", lambda seconds: not waits.append(seconds)).passed(COUNTED_AT_ONCE)  # type: ignore[func-returns-value]  # append gives None
        assert len(waits) == 1

    def test_pieces(self, rates: Rates, limiter: FakeLimiter) -> None:
        """A body's pieces pass as they are, and are counted."""
        meter = Meter(rates, "ws_1", lambda seconds: False)
        assert list(meter.counted([b"one", b"three"])) == [b"one", b"three"]
        meter.close()
        assert limiter.counted("bytes", "ws_1") == 8


class TestGuesses:
    def test_used_up(self, limiter: FakeLimiter) -> None:
        """After five hits the caller is refused for that secret, before anything is decrypted."""
        guesses = Guesses(limiter)
        for _ in range(MOST_GUESSES):
            guesses.look("ws_1", "a,b", SECRET)
            guesses.count("ws_1", "a,b", SECRET)
        with pytest.raises(RateLimited):
            guesses.look("ws_1", "a,b", SECRET)

    def test_counting_never_refuses(self, limiter: FakeLimiter) -> None:
        """A hit above the limit (two came at once) is no error."""
        guesses = Guesses(limiter)
        for _ in range(MOST_GUESSES + 3):
            guesses.count("ws_1", "a,b", SECRET)
        assert limiter.counted("guess", "ws_1", "a,b", str(SECRET)) == MOST_GUESSES

    def test_by_caller_and_secret(self, limiter: FakeLimiter) -> None:
        """Another caller, another secret and another workspace are not held up."""
        guesses = Guesses(limiter)
        for _ in range(MOST_GUESSES):
            guesses.count("ws_1", "a,b", SECRET)
        guesses.look("ws_1", "a,c", SECRET)
        guesses.look("ws_1", "a,b", uuid4())
        guesses.look("ws_2", "a,b", SECRET)

    def test_an_hour(self, limiter: FakeLimiter, clock: FixedClock) -> None:
        """An hour later the caller may err again."""
        guesses = Guesses(limiter)
        for _ in range(MOST_GUESSES):
            guesses.count("ws_1", "a,b", SECRET)
        clock.advance(3600)
        guesses.look("ws_1", "a,b", SECRET)
