"""The machine's clock. Imports nothing of ours."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class SystemClock:
    """The port ``Clock``, as the machine has it."""

    def now(self) -> datetime:
        """The wall clock, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()
