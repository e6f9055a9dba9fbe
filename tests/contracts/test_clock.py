"""``ports.Clock``: what the machine's clock and the tests' both promise."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.ports import Clock
from tests.fakes_queue import FixedClock


@pytest.fixture(params=[FixedClock, SystemClock], ids=["fake", "system"])
def clock(request: pytest.FixtureRequest) -> Clock:
    """Each clock."""
    made: Clock = request.param()
    return made


def test_now_is_utc(clock: Clock) -> None:
    """The wall clock has a zone, and it is UTC."""
    assert clock.now().utcoffset() == timedelta(0)


def test_monotonic_never_goes_back(clock: Clock) -> None:
    """Later readings are never smaller."""
    readings = [clock.monotonic() for _ in range(100)]
    assert readings == sorted(readings)
