"""What every claim box keeps to: the fake, and Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from broker_core.adapters.claims import RedisClaimBox
from broker_core.errors import BrokerError, Unavailable
from broker_core.ports import ClaimBox
from tests.fakes_queue import FakeClaimBox, FixedClock
from tests.waiting import wait_until


class ClaimBoxContract:
    """The facts; a subclass says which box, how a second passes, and what a box that is away is."""

    def test_kept(self, box: ClaimBox) -> None:
        """What was put is got, byte for byte, as often as one asks."""
        box.put("a", bytes(range(256)), 60)
        assert (box.get("a"), box.get("a")) == (bytes(range(256)), bytes(range(256)))

    def test_large(self, box: ClaimBox) -> None:
        """The largest value and its tag are kept whole."""
        box.put("a", b"\x00" * 65_564, 60)
        assert box.get("a") == b"\x00" * 65_564

    def test_unknown(self, box: ClaimBox) -> None:
        """An id that was never put has no claim."""
        assert box.get("a") is None

    def test_written_once(self, box: ClaimBox) -> None:
        """A second claim under the same id is refused, and the first stays."""
        box.put("a", b"first", 60)
        with pytest.raises(BrokerError):
            box.put("a", b"second", 60)
        assert box.get("a") == b"first"

    def test_deleted(self, box: ClaimBox) -> None:
        """A deleted claim is gone; its neighbour is not."""
        box.put("a", b"1", 60)
        box.put("b", b"2", 60)
        box.delete("a")
        assert (box.get("a"), box.get("b")) == (None, b"2")

    def test_deleting_nothing(self, box: ClaimBox) -> None:
        """Deleting what is not there is no error."""
        box.delete("a")

    def test_expires(self, box: ClaimBox, second_passes: Callable[[], None]) -> None:
        """A claim is gone when its time is over, and another's time is its own."""
        box.put("a", b"1", 1)
        box.put("b", b"2", 60)
        second_passes()
        assert (box.get("a"), box.get("b")) == (None, b"2")

    @pytest.mark.parametrize("call", ["put", "get", "delete"])
    def test_away(self, away: ClaimBox, call: str) -> None:
        """Every call on a box that is away raises Unavailable, with nothing behind it."""
        arguments = ("a", b"value", 60) if call == "put" else ("a",)
        with pytest.raises(Unavailable) as caught:
            getattr(away, call)(*arguments)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


class TestFake(ClaimBoxContract):
    @pytest.fixture
    def clock(self) -> FixedClock:
        return FixedClock()

    @pytest.fixture
    def box(self, clock: FixedClock) -> ClaimBox:
        return FakeClaimBox(clock)

    @pytest.fixture
    def second_passes(self, clock: FixedClock) -> Callable[[], None]:
        return lambda: clock.advance(1)

    @pytest.fixture
    def away(self) -> ClaimBox:
        box = FakeClaimBox()
        box.is_away = True
        return box


class TestRedis(ClaimBoxContract):
    @pytest.fixture
    def box(self, claims_valkey: str) -> Iterator[ClaimBox]:
        box = RedisClaimBox(claims_valkey)
        yield box
        box.close()

    @pytest.fixture
    def second_passes(self, box: ClaimBox) -> Callable[[], None]:
        def passes() -> None:
            wait_until(lambda: box.get("a") is None, what="the claim's end")

        return passes

    @pytest.fixture
    def away(self, claims_valkey: str) -> Iterator[ClaimBox]:
        box = RedisClaimBox("redis://127.0.0.1:1/0")  # nothing listens there
        yield box
        box.close()
