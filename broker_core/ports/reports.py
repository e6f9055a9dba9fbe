"""The store, for owners' reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from broker_core.injection import Injection


class Cover(StrEnum):
    """What protects a value, or will. A secret whose newer value is held counts in two of these."""

    CURRENT_KEY = "currentKey"
    OLDER_CONNECTION = "olderConnections"
    PLATFORM = "platform"
    HELD = "held"  # on its way, not yet under any key for good


@dataclass(frozen=True)
class CoveredSecret:
    """One secret of one cover. ``event_id``, ``held_until``: of a value on its way, its event and when it expires."""

    secret_id: UUID
    name: str
    version: int
    connection_id: UUID | None
    event_id: UUID | None = None
    held_until: datetime | None = None


@dataclass(frozen=True)
class DrilledSecret:
    """What a revocation would take away with one secret: its binding, and how much it is used."""

    secret_id: UUID
    name: str
    connection_id: UUID
    injection: Injection | None
    uses: int  # values released in the period
    callers: Sequence[tuple[str | None, str | None]]  # (agent, MCP server) that it was released to in the period
    last_used_at: datetime | None


@dataclass(frozen=True)
class Drilled:
    """All of a revocation: totals over everything, and the most used secrets."""

    secrets: int
    uses: int
    used_secrets: int
    most_used: Sequence[DrilledSecret]


@dataclass(frozen=True)
class OverdueSecret:
    """A secret whose rotation policy says that it should have been rotated. ``rotated_at``: None for never."""

    secret_id: UUID
    name: str
    version: int
    rotation_policy: str
    due_at: datetime
    created_at: datetime
    rotated_at: datetime | None


class ReportStore(Protocol):
    """What owners' reports are made of; reads only."""

    def coverage(self, workspace_id: str) -> Mapping[Cover, int]:
        """How many secrets each cover has, every cover named. Raises NotFound."""

    def covered(
        self, workspace_id: str, cover: Cover, *, after: UUID | None = None, limit: int = 50
    ) -> Sequence[CoveredSecret]:
        """The secrets of one cover, oldest id first. Raises NotFound."""

    def drill(self, workspace_id: str, connection_id: UUID | None, since: datetime, limit: int) -> Drilled:
        """What is under one connection, or under any (None), and was used since. Raises NotFound
        (workspace, connection)."""

    def overdue(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[OverdueSecret]:
        """The secrets whose rotation is due, oldest id first. Raises NotFound."""
