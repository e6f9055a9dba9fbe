"""Waiting in tests: by looking again and again, under a deadline. Never by sleeping for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_until(
    condition: Callable[[], Answer], *, deadline_seconds: float = 20.0, every_seconds: float = 0.01, what: str = ""
) -> Answer:
    """The first true answer of ``condition``. Raises AssertionError, naming ``what``, once the deadline has passed."""
    end = time.monotonic() + deadline_seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= end:
            raise AssertionError(f"not within {deadline_seconds:g} s: {what or condition}")
        time.sleep(every_seconds)
