"""What requests and answers of the admins' and producers' endpoints hold: the contract's field names, and nothing else.

A field of an answer that may be missing has the default None and is left out then (``exclude_defaults``); one without a
default is always there. What a request's fields mean is checked by the use cases: here stands what a document can say.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, WithJsonSchema

from broker_core.administer import Fields
from broker_core.advice import what_to_do
from broker_core.api.bodies import Document, Wrong
from broker_core.audit import Outcome
from broker_core.errors import KeyState
from broker_core.injection import LARGEST_VALUE, Injection, Kind
from broker_core.intake import Receipt
from broker_core.model import (
    CipherName,
    Event,
    EventState,
    EventType,
    FoundBy,
    Plan,
    Purpose,
    SecretStatus,
    rotation_due,
)
from broker_core.ports import FailureView, SecretView, Use

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _rfc3339(given: object) -> datetime:
    """Raises Wrong."""
    if isinstance(given, str) and _TIME.fullmatch(given):
        try:
            return datetime.fromisoformat(given)
        except ValueError:
            pass
    raise Wrong("give a time as 2026-01-31T12:00:00Z")


#: RFC 3339; answers are in UTC
Moment = Annotated[
    datetime, PlainSerializer(_utc, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"})
]
GivenMoment = Annotated[datetime, BeforeValidator(_rfc3339)]

#: of an agent, or of an MCP server
SubjectId = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
_Policy = Annotated[str, Field(pattern="^[1-9][0-9]{0,3}d$", description="Days after which a new value is due.")]
_Name = Annotated[
    str,
    Field(pattern="^[A-Za-z0-9._:/@+=-]([A-Za-z0-9 ._:/@+=-]{0,126}[A-Za-z0-9._:/@+=-])?$", max_length=128),
]
_Value = Annotated[
    SecretStr,
    Field(min_length=1, max_length=LARGEST_VALUE, description="The credential itself, 1 byte to 64 KiB in UTF-8."),
]


# ---------------------------------------------------------------- requests


class WorkspaceRequest(Document):
    """A workspace as the platform knows it."""

    plan: Plan


class _FieldsRequest(Document):
    """Where a value may be put, and for whom. They change only all together, and only with a new value."""

    injection_kind: Kind | None = None
    binding_key: Annotated[str, Field(max_length=128)] | None = None
    target_host: Annotated[str, Field(max_length=261, description="host or host:port")] | None = None
    mcp_server_id: SubjectId | None = None
    agent_id: SubjectId | None = None

    def fields(self) -> Fields:
        """As the use case takes them."""
        return Fields(self.injection_kind, self.binding_key, self.target_host, self.mcp_server_id, self.agent_id)


class CreateRequest(_FieldsRequest):
    """A new secret."""

    name: _Name
    secret: _Value
    injection_kind: Kind
    rotation_policy: _Policy | None = None


class RotateRequest(_FieldsRequest):
    """A new value; without injection fields those in place stay."""

    secret: _Value


class PolicyRequest(Document):
    """When a new value is due; null takes the policy away."""

    rotation_policy: _Policy | None


# ---------------------------------------------------------------- answers


class WorkspaceAnswer(Document):
    """A workspace."""

    id: str
    plan: Plan


class AcceptedEventAnswer(Document):
    """An event was accepted; ``id`` is ours, and says where it is at ``GET /events/{id}``."""

    id: UUID
    status: EventState
    name: str
    version: int
    warnings: list[str]

    @classmethod
    def of(cls, receipt: Receipt) -> AcceptedEventAnswer:
        """From intake's receipt."""
        return cls(
            id=receipt.id,
            status=EventState(receipt.status),
            name=receipt.name,
            version=receipt.version,
            warnings=list(receipt.warnings),
        )


class AcceptedSecretAnswer(Document):
    """A change of a secret was accepted: ``eventId`` is the event that brings it."""

    id: UUID
    name: str
    version: int
    event_id: UUID
    warnings: list[str]

    @classmethod
    def of(cls, receipt: Receipt) -> AcceptedSecretAnswer:
        """From intake's receipt."""
        return cls(
            id=receipt.secret_id,
            name=receipt.name,
            version=receipt.version,
            event_id=receipt.id,
            warnings=list(receipt.warnings),
        )


class EventAnswer(Document):
    """Where an event is. ``heldUntil``: a value that still waits is kept until then, not yet under the key."""

    id: UUID
    type: EventType
    source: str
    name: str
    version: int
    status: EventState
    reason: str | None = None
    held_until: Moment | None = None
    accepted_at: Moment
    ended_at: Moment | None = None

    @classmethod
    def of(cls, event: Event) -> EventAnswer:
        """From the noun."""
        return cls(
            id=event.id,
            type=event.type,
            source=event.source,
            name=event.name,
            version=event.version,
            status=event.state,
            reason=event.reason,
            held_until=event.held_until,
            accepted_at=event.accepted_at,
            ended_at=event.ended_at,
        )


class FailureAnswer(Document):
    """Why a secret cannot be decrypted now."""

    state: KeyState
    aws_code: str
    since: Moment
    found_by: FoundBy
    what_to_do: str

    @classmethod
    def of(cls, failure: FailureView) -> FailureAnswer:
        """From the view."""
        return cls(
            state=failure.state,
            aws_code=failure.aws_code,
            since=failure.since,
            found_by=failure.found_by,
            what_to_do=what_to_do(failure.state),
        )


class SecretAnswer(Document):
    """A secret's metadata; never its value. ``version`` 0: no value was stored yet."""

    id: UUID
    name: str
    version: int
    status: SecretStatus
    cipher: CipherName | None
    connection_id: UUID | None = None
    injection_kind: Kind | None
    binding_key: str | None = None
    target_host: str | None = None
    mcp_server_id: str | None = None
    agent_id: str | None = None
    rotation_policy: str | None = None
    rotation_due_at: Moment | None = None
    last_used_at: Moment | None = None
    last_checked_at: Moment | None = None
    created_at: Moment
    rotated_at: Moment | None
    failure: FailureAnswer | None = None

    @classmethod
    def of(cls, view: SecretView) -> SecretAnswer:
        """From the view."""
        return cls(
            id=view.id,
            name=view.name,
            version=view.version,
            status=view.status,
            cipher=view.cipher,
            connection_id=view.connection_id,
            **_injection(view.injection),
            rotation_policy=view.rotation_policy,
            rotation_due_at=rotation_due(view.rotation_policy, view.created_at, view.rotated_at),
            last_used_at=view.last_used_at,
            last_checked_at=view.last_checked_at,
            created_at=view.created_at,
            rotated_at=view.rotated_at,
            failure=FailureAnswer.of(view.failure) if view.failure else None,
        )


class SecretsAnswer(Document):
    """A page of secrets, oldest id first. ``nextCursor`` is null at the end."""

    items: list[SecretAnswer]
    next_cursor: UUID | None


class UseAnswer(Document):
    """One line of the audit log: what was meant, and what came of it. Without ``outcome``: still under way."""

    id: UUID
    purpose: Purpose
    cipher: CipherName
    connection_id: UUID | None = None
    secret_id: UUID | None = None
    secret_name: str | None = None
    version: int | None = None
    event_id: UUID | None = None
    agent_id: str | None = None
    mcp_server_id: str | None = None
    method: str | None = None
    target: str | None = None
    started_at: Moment
    outcome: Outcome | None = None
    code: str | None = None
    aws_code: str | None = None
    session_name: str | None = None
    assume_request_id: str | None = None
    kms_request_id: str | None = None
    upstream_status: int | None = None
    redactions: int | None = None
    ended_at: Moment | None = None

    @classmethod
    def of(cls, use: Use) -> UseAnswer:
        """From the audit row."""
        intent = {name: value for name, value in vars(use.intent).items() if name != "workspace_id"}
        return cls(**intent, **_result(use), started_at=use.started_at, ended_at=use.ended_at)


def _injection(injection: Injection | None) -> dict[str, Any]:
    if injection is None:
        return {"injection_kind": None}
    return {
        "injection_kind": injection.kind,
        "binding_key": injection.binding_key,
        "target_host": injection.target_host,
        "mcp_server_id": injection.mcp_server_id,
        "agent_id": injection.agent_id,
    }


def _result(use: Use) -> dict[str, Any]:
    if use.result is None:
        return {}
    return {
        "outcome": use.result.outcome,
        "code": use.result.code or None,
        "aws_code": use.result.aws_code or None,
        **vars(use.result.receipt),
        "upstream_status": use.result.upstream_status,
        "redactions": use.result.redactions,
    }
