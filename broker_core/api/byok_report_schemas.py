"""What requests and answers of owners' reports hold: coverage, what is affected or overdue, a drill, a blob.

What the sentences in ``why`` and ``whatToDo`` say stands with the use cases.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from broker_core.advice import what_to_do
from broker_core.api.bodies import Document
from broker_core.api.byok_schemas import WayAnswer
from broker_core.api.schemas import Moment
from broker_core.errors import KeyState
from broker_core.export import Export
from broker_core.injection import Injection, Kind
from broker_core.model import CipherName, FoundBy
from broker_core.ports import (
    Affected,
    AffectedConnection,
    AffectedSecret,
    Cover,
    Drilled,
    DrilledSecret,
    OverdueSecret,
)
from broker_core.reports import WHAT_TO_DO, WHY, CoveragePage, PlacedSecret
from broker_core.revocation import not_stopped, ways


class CoveredAnswer(Document):
    """A secret and what protects it. ``eventId`` and ``heldUntil``: of a value that waits."""

    id: UUID
    name: str
    version: int
    cover: Cover
    connection_id: UUID | None = None
    event_id: UUID | None = None
    held_until: Moment | None = None
    why: str
    what_to_do: str

    @classmethod
    def of(cls, placed: PlacedSecret) -> CoveredAnswer:
        """From the report."""
        secret = placed.secret
        return cls(
            id=secret.secret_id,
            name=secret.name,
            version=secret.version,
            cover=placed.cover,
            connection_id=secret.connection_id,
            event_id=secret.event_id,
            held_until=secret.held_until,
            why=WHY[placed.cover],
            what_to_do=WHAT_TO_DO[placed.cover],
        )


class CoverageAnswer(Document):
    """How many secrets each cover has, and a page of them: first what asks for something to be done, oldest id first
    within a cover. A secret whose newer value is held counts twice. ``nextCursor`` is null at the end."""

    current_key: int
    older_connections: int
    platform: int
    held: int
    items: list[CoveredAnswer]
    next_cursor: str | None

    @classmethod
    def of(cls, page: CoveragePage) -> CoverageAnswer:
        """From the report."""
        return cls(
            current_key=page.counts[Cover.CURRENT_KEY],
            older_connections=page.counts[Cover.OLDER_CONNECTION],
            platform=page.counts[Cover.PLATFORM],
            held=page.counts[Cover.HELD],
            items=[CoveredAnswer.of(each) for each in page.items],
            next_cursor=page.next,
        )


class NamedSecret(Document):
    """A secret, by name."""

    id: UUID
    name: str


class _FailingAnswer(Document):
    """Why it cannot be decrypted now, and what to do."""

    state: KeyState
    aws_code: str
    since: Moment
    found_by: FoundBy
    what_to_do: str


class AffectedSecretAnswer(_FailingAnswer):
    """A secret that fails on its own."""

    id: UUID
    name: str


class AffectedConnectionAnswer(_FailingAnswer):
    """A failing connection, and the secrets under it."""

    connection_id: UUID
    secrets: list[NamedSecret]


class AffectedAnswer(Document):
    """What cannot be decrypted now for a reason on your side. A new value takes a secret off the list once it is stored
    under a key that works; letting the role use the key again empties it by itself."""

    connections: list[AffectedConnectionAnswer]
    secrets: list[AffectedSecretAnswer]

    @classmethod
    def of(cls, found: Affected) -> AffectedAnswer:
        """From the use case."""
        return cls(
            connections=[
                AffectedConnectionAnswer(
                    connection_id=each.connection_id,
                    secrets=[NamedSecret(id=secret_id, name=name) for secret_id, name in each.secrets],
                    **_failing(each),
                )
                for each in found.connections
            ],
            secrets=[
                AffectedSecretAnswer(id=each.secret_id, name=each.name, **_failing(each)) for each in found.secrets
            ],
        )


def _failing(each: AffectedConnection | AffectedSecret) -> dict[str, Any]:
    return {
        "state": each.state,
        "aws_code": each.aws_code,
        "since": each.since,
        "found_by": each.found_by,
        "what_to_do": what_to_do(each.state),
    }


class DrillRequest(Document):
    """What is revoked in thought: everything under one connection, or without one everything under any."""

    connection_id: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=1000, description="How many secrets are listed; totals are of all.")] = 200


class CallerAnswer(Document):
    """Who was given a value."""

    agent_id: str | None = None
    mcp_server_id: str | None = None


class BindingAnswer(Document):
    """Where a value may be put, and for whom."""

    injection_kind: Kind
    binding_key: str | None = None
    target_host: str | None = None
    mcp_server_id: str | None = None
    agent_id: str | None = None

    @classmethod
    def of(cls, injection: Injection) -> BindingAnswer:
        """From the noun."""
        return cls(
            injection_kind=injection.kind,
            binding_key=injection.binding_key,
            target_host=injection.target_host,
            mcp_server_id=injection.mcp_server_id,
            agent_id=injection.agent_id,
        )


class DrilledAnswer(Document):
    """A secret that a revocation would take away. ``uses`` and ``callers`` are those of the period."""

    id: UUID
    name: str
    connection_id: UUID
    binding: BindingAnswer | None = None
    uses: int
    callers: list[CallerAnswer]
    last_used_at: Moment | None = None

    @classmethod
    def of(cls, secret: DrilledSecret) -> DrilledAnswer:
        """From the report."""
        return cls(
            id=secret.secret_id,
            name=secret.name,
            connection_id=secret.connection_id,
            binding=BindingAnswer.of(secret.injection) if secret.injection else None,
            uses=secret.uses,
            callers=[CallerAnswer(agent_id=agent, mcp_server_id=server) for agent, server in secret.callers],
            last_used_at=secret.last_used_at,
        )


class DrillAnswer(Document):
    """What a revocation now would take away: totals of all, and the secrets, the most used first. AWS was not asked.
    ``usedSecrets``: how many were used since ``since``."""

    since: Moment
    connection_id: UUID | None = None
    secrets: int
    used_secrets: int
    uses: int
    items: list[DrilledAnswer]
    revocation: list[WayAnswer]
    not_stopped: list[str]

    @classmethod
    def of(cls, asked: DrillRequest, since: datetime, drilled: Drilled, reuse_seconds: int) -> DrillAnswer:
        """From the report; ``reuse_seconds`` as ``revocation.ways`` takes it."""
        return cls(
            since=since,
            connection_id=asked.connection_id,
            secrets=drilled.secrets,
            used_secrets=drilled.used_secrets,
            uses=drilled.uses,
            items=[DrilledAnswer.of(each) for each in drilled.most_used],
            revocation=[WayAnswer.of(way) for way in ways(reuse_seconds)],
            not_stopped=list(not_stopped()),
        )


class OverdueSecretAnswer(Document):
    """A secret whose new value was due. ``rotatedAt`` null: never rotated."""

    id: UUID
    name: str
    version: int
    rotation_policy: str
    rotation_due_at: Moment
    created_at: Moment
    rotated_at: Moment | None

    @classmethod
    def of(cls, secret: OverdueSecret) -> OverdueSecretAnswer:
        """From the report."""
        return cls(
            id=secret.secret_id,
            name=secret.name,
            version=secret.version,
            rotation_policy=secret.rotation_policy,
            rotation_due_at=secret.due_at,
            created_at=secret.created_at,
            rotated_at=secret.rotated_at,
        )


class OverdueAnswer(Document):
    """A page of them, oldest id first. ``nextCursor`` is null at the end."""

    items: list[OverdueSecretAnswer]
    next_cursor: UUID | None


class BlobAnswer(Document):
    """A secret's ciphertext, useless without your key, and how you decrypt it in your own account: ``commands`` are for
    a POSIX shell with the AWS CLI."""

    id: UUID
    name: str
    version: int
    cipher: CipherName
    ciphertext: Annotated[str, Field(description="base64")]
    encryption_context: dict[str, str]
    key_arn: str
    region: str
    commands: list[str]

    @classmethod
    def of(cls, secret_id: UUID, export: Export) -> BlobAnswer:
        """From the export."""
        return cls(id=secret_id, **{**vars(export), "commands": list(export.commands)})
