"""The outbox of notices, and the platform's endpoint for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from broker_core.events import Notice


@dataclass(frozen=True)
class DueNotice:
    """A notice of the outbox. ``attempts``: this one included, and the number is what puts it off, so that whoever lost
    the claim puts nothing off."""

    notice: Notice
    attempts: int


class NoticeStore(Protocol):
    """The outbox. Notices are written by the statements that make what they tell of (``open_failure``,
    ``close_failure``, ``end``, ``reconcile``), but for the one below. Raises Unavailable when the database is away."""

    def tell_due_rotations(self, limit: int) -> int:
        """Write a notice for each of up to ``limit`` secrets whose rotation is due and whose owner was not told of this
        due date; returns how many."""

    def claim_notice(self, lease_seconds: float) -> DueNotice | None:
        """Claim the notice that is due longest, of all workspaces, for so long; None when none is due."""

    def end_notice(self, due: DueNotice) -> None:
        """It was taken."""

    def put_off_notice(self, due: DueNotice, retry_seconds: float) -> None:
        """It was not: let it be claimed again after so long."""

    def give_up_notices(self, after_seconds: float, limit: int) -> Sequence[DueNotice]:
        """Give up to ``limit`` notices up that are older and not claimed; returns them."""

    def forget_notices(self, after_seconds: float, limit: int) -> int:
        """Delete those of the oldest ``limit`` notices that are older, and were taken or given up; returns how many."""


class Answer(StrEnum):
    """What became of sending a notice."""

    TAKEN = "taken"
    REFUSED = "refused"  # the receiver answered, and did not take it
    AWAY = "away"  # the receiver cannot take any now: no answer, or one that says so


@dataclass(frozen=True)
class Delivery:
    """What the receiver said. ``code`` says why it was not taken, ``status`` is the HTTP status, where there is one."""

    answer: Answer
    code: str = ""
    status: int | None = None


class Notifier(Protocol):
    """The platform's endpoint for notices."""

    def send(self, notice: Notice, seconds: float) -> Delivery:
        """Send it once, signed, within ``seconds``. Never raises for what the receiver does or does not do."""
