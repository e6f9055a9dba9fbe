"""Counters that all processes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True)
class Limit:
    """At most ``amount`` in any ``seconds``, for each subject. ``name`` is part of the counter's key."""

    name: str
    amount: int
    seconds: int


class Limiter(Protocol):
    """Counts shared by all processes. Where the shared counters are away each process counts for itself: a limit never
    fails a request, and is never off."""

    def take(self, limit: Limit, *subject: str, cost: int = 1) -> None:
        """Count ``cost`` for a subject. Raises RateLimited, with the seconds to wait, and counts nothing then."""

    def look(self, limit: Limit, *subject: str) -> None:
        """Raise RateLimited if nothing is left for a subject; count nothing."""

    def add(self, limit: Limit, *subject: str, cost: int) -> None:
        """Count what has happened already, whether it is more than the limit or not."""


class GuessLog(Protocol):
    """Requests that already held the value: each is somebody's guess that was right, or a mistake. ``caller`` is the
    agent's and the MCP server's id that the secret is bound to, as ``AGENT,SERVER``."""

    def look(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        """Raise RateLimited when this caller had as many of one secret as it may."""

    def count(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        """Count one. Never raises."""
