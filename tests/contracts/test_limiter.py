"""What every limiter keeps to: the fake, Redis, and what a process counts for itself while Redis is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from types import SimpleNamespace

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from limits.storage import memory
from structlog.testing import capture_logs

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.limiter import PAUSE_SECONDS, SharedLimiter, seconds_until
from broker_core.dev.valkey import Valkey
from broker_core.errors import RateLimited
from broker_core.ports import Limit, Limiter
from tests.fakes_limiter import FakeLimiter
from tests.fakes_queue import FixedClock
from tests.waiting import wait_until

#: an hour: no window ends while a test runs
THREE = Limit("three", 3, 3600)
NOWHERE = "redis://127.0.0.1:1/0"
#: seconds: who gives Redis up counts by itself, and begins anew
PATIENT = 20


def is_free(limiter: Limiter, limit: Limit = THREE, *subject: str) -> bool:
    """Whether there is anything left."""
    with suppress(RateLimited):
        limiter.look(limit, *subject)
        return True
    return False


class LimiterContract:
    """The facts; a subclass says which limiter, and how a second passes."""

    def test_refuses_what_is_above(self, limiter: Limiter) -> None:
        """As many as the limit says are let through, the next one is not."""
        for _ in range(3):
            limiter.take(THREE, "ws_1")
        with pytest.raises(RateLimited):
            limiter.take(THREE, "ws_1")

    def test_says_how_long_to_wait(self, limiter: Limiter) -> None:
        """A refusal names whole seconds: at least one, and never more than two windows."""
        limiter.take(THREE, "ws_1", cost=3)
        with pytest.raises(RateLimited) as caught:
            limiter.take(THREE, "ws_1")
        assert 1 <= caught.value.retry_after <= 7200

    def test_cost(self, limiter: Limiter) -> None:
        """A refused cost is not counted: a smaller one still fits."""
        limiter.take(THREE, "ws_1", cost=2)
        with pytest.raises(RateLimited):
            limiter.take(THREE, "ws_1", cost=2)
        limiter.take(THREE, "ws_1")

    def test_looking_counts_nothing(self, limiter: Limiter) -> None:
        """However often one looks, as many are left."""
        for _ in range(10):
            limiter.look(THREE, "ws_1")
        limiter.take(THREE, "ws_1", cost=3)
        assert not is_free(limiter, THREE, "ws_1")

    def test_adding_goes_above(self, limiter: Limiter) -> None:
        """What has happened counts even above the limit."""
        limiter.add(THREE, "ws_1", cost=50)
        assert not is_free(limiter, THREE, "ws_1")

    def test_subjects_are_apart(self, limiter: Limiter) -> None:
        """One subject's count is not another's, whichever part of it differs."""
        limiter.take(THREE, "ws_1", "a", cost=3)
        limiter.take(THREE, "ws_1", "b", cost=3)
        limiter.take(THREE, "ws_2", "a", cost=3)

    def test_limits_are_apart(self, limiter: Limiter) -> None:
        """One limit's count is not another's."""
        limiter.take(THREE, "ws_1", cost=3)
        limiter.take(Limit("other", 3, 3600), "ws_1", cost=3)

    def test_comes_back(self, limiter: Limiter, until: Callable[[Callable[[], bool]], None]) -> None:
        """When the time is over there is room again."""
        short = Limit("short", 1, 1)
        limiter.take(short, "ws_1")
        until(lambda: is_free(limiter, short, "ws_1"))
        limiter.take(short, "ws_1")

    def test_threads(self, limiter: Limiter) -> None:
        """Threads that ask at once get as many as there are, never more."""

        def took(_: int) -> bool:
            with suppress(RateLimited):
                limiter.take(Limit("ten", 10, 3600), "ws_1")
                return True
            return False

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(took, range(40))) <= 10


class TestFake(LimiterContract):
    @pytest.fixture
    def clock(self) -> FixedClock:
        return FixedClock()

    @pytest.fixture
    def limiter(self, clock: FixedClock) -> Limiter:
        return FakeLimiter(clock)

    @pytest.fixture
    def until(self, clock: FixedClock) -> Callable[[Callable[[], bool]], None]:
        return lambda condition: clock.advance(1)


class _Waiting:
    @pytest.fixture
    def until(self) -> Callable[[Callable[[], bool]], bool]:
        return wait_until


class TestRedis(_Waiting, LimiterContract):
    @pytest.fixture
    def limiter(self, queue_valkey: str) -> Iterator[Limiter]:
        limiter = SharedLimiter(queue_valkey, SystemClock(), seconds=PATIENT)
        yield limiter
        limiter.close()

    def test_shared(self, limiter: Limiter, queue_valkey: str) -> None:
        """Two processes count together."""
        other = SharedLimiter(queue_valkey, SystemClock(), seconds=PATIENT)
        limiter.take(THREE, "ws_1", cost=3)
        assert not is_free(other, THREE, "ws_1")
        other.close()

    def test_keys(self, limiter: Limiter, queue_valkey: str) -> None:
        """Keys hold the limit's name and the subject, values a number, and both are gone after two windows."""
        limiter.take(THREE, "ws_1", cost=2)
        client = redis.Redis.from_url(queue_valkey, decode_responses=True)
        (key,) = client.keys("*")
        assert key == "axiorank:rate:{three/ws_1/3/3600/second}"
        assert client.get(key) == "2"
        assert 0 < client.ttl(key) <= 7200
        client.close()


class TestAway(_Waiting, LimiterContract):
    @pytest.fixture(autouse=True)
    def an_hour_has_begun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is counted here is counted by the clock's own hours: no such hour ends while a test runs."""
        begun = time.time()
        monkeypatch.setattr(memory, "time", SimpleNamespace(time=lambda: time.time() - begun + 3600 * 480_000))

    @pytest.fixture
    def limiter(self) -> Iterator[Limiter]:
        limiter = SharedLimiter(NOWHERE, SystemClock())
        yield limiter
        limiter.close()

    def test_said_once(self, limiter: Limiter) -> None:
        """An outage is one line in the log, however many ask; it names no address."""
        with capture_logs() as logs:
            for _ in range(3):
                limiter.take(THREE, "ws_1")
        assert logs == [{"event": "rates.local", "log_level": "warning"}]

    def test_not_asked_again_at_once(self) -> None:
        """Who found Redis away does not make the next ones wait for it; later it is asked again."""
        clock = FixedClock()
        with Valkey.start(persistent=True) as server:
            limiter = SharedLimiter(server.url, clock, seconds=PATIENT)
            server.kill()
            limiter.take(THREE, "ws_1", cost=3)
            server.restart()
            assert not is_free(limiter, THREE, "ws_1")  # still counted here
            clock.advance(PAUSE_SECONDS)
            assert is_free(limiter, THREE, "ws_1")  # and now over there
            limiter.close()


class TestSecondsUntil:
    @pytest.mark.parametrize(
        ("room", "window", "seconds"),
        [
            (9, (0, 0.0, 0, 0.0), 0.0),
            (9, (0, 0.0, 9, 80.0), 0.0),
            (9, (0, 0.0, 10, 80.0), 20.0),  # at the window's end (in 20 s) it counts in full: 10; a moment later less
            (9, (0, 0.0, 20, 80.0), 50.0),  # the half of it is over
            (9, (60, 30.0, 0, 90.0), 20.0),  # 60 · 10 s / 60 s
            (0, (60, 30.0, 0, 90.0), 29.0),
            (-5, (0, 0.0, 60, 90.0), 89.0),  # more than there ever is: as good as never, but a number
        ],
    )
    def test_window(self, room: int, window: tuple[int, float, int, float], seconds: float) -> None:
        """The wait is what it takes until the window's weighted count is down."""
        assert seconds_until(room, 60, *window) == pytest.approx(seconds, abs=0.0011)  # the windows' resolution

    @given(
        limit=st.integers(1, 200),
        seconds=st.integers(1, 100),
        counts=st.tuples(st.integers(0, 400), st.integers(0, 400)),
        share=st.fractions(0, 1),
    )
    def test_free_is_what_can_be_taken(
        self, limit: int, seconds: int, counts: tuple[int, int], share: Fraction
    ) -> None:
        """There is no wait exactly where the store (its script counts so, in milliseconds) lets one more in."""
        previous, current = counts
        ends = round(share * seconds * 1000)
        lets_in = previous * ends // (seconds * 1000) + current + 1 <= limit
        wait = seconds_until(limit - 1, seconds, previous, ends / 1000, current, (ends + seconds * 1000) / 1000)
        assert (wait <= 0) == lets_in
