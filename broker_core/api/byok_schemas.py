"""What requests and answers of ``/byok`` hold: the contract's field names, as ``schemas`` has them for the rest.

A field of an answer that may be missing has the default None and is left out then; one without a default is always
there. What the sentences in ``why`` and ``whatToDo`` say stands with the use cases.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import Field

from broker_core.advice import what_to_do
from broker_core.api.bodies import Document
from broker_core.api.schemas import Moment
from broker_core.errors import KeyState
from broker_core.export import Export
from broker_core.injection import Injection, Kind
from broker_core.model import CipherName, ConnectionStatus, FoundBy, StepOutcome, StepResult
from broker_core.ports import (
    Affected,
    AffectedConnection,
    AffectedSecret,
    ConnectionView,
    Cover,
    Drilled,
    DrilledSecret,
    MoveOutcome,
    OverdueSecret,
    Proof,
    Reencryption,
    Stuck,
)
from broker_core.reports import WHAT_TO_DO, WHY, CoveragePage, PlacedSecret
from broker_core.revocation import Revocation, not_stopped, ways
from broker_core.verification import STEPS

_Arn = Annotated[str, Field(min_length=20, max_length=2048)]
_ExternalId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_+=,.@:/-]{16,1224}$",
        description="Yours to choose; once a workspace has used it, it is never another's.",
    ),
]

# ---------------------------------------------------------------- requests


class ConnectRequest(Document):
    """A role that we may assume with the external id, and a key in the same account that it may use."""

    role_arn: _Arn
    external_id: _ExternalId
    key_arn: Annotated[_Arn, Field(description="The key's own ARN, not an alias.")]


class DrillRequest(Document):
    """What is revoked in thought: everything under one connection, or without one everything under any."""

    connection_id: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=1000, description="How many secrets are listed; totals are of all.")] = 200


class ProofRequest(Document):
    """The connection that was revoked; without it the current one, or else the newest that secrets still need."""

    connection_id: UUID | None = None


# ---------------------------------------------------------------- connections


class StepAnswer(Document):
    """One step of a verification. ``whatToDo``: where something is to be done."""

    name: str
    outcome: StepOutcome
    aws_code: str | None = None
    request_id: str | None = None
    what_to_do: str | None = None

    @classmethod
    def of(cls, step: StepResult) -> StepAnswer:
        """From the step."""
        return cls(
            name=step.name,
            outcome=step.outcome,
            aws_code=step.aws_code or None,
            request_id=step.request_id,
            what_to_do=step.what_to_do or None,
        )


class ConnectionAnswer(Document):
    """A connection. ``health``: ``unverified``, ``healthy``, ``flagged`` (the role lets in who must not get in) or the
    state of an open failure, since ``healthSince``. ``steps`` are the last verification's; ``notRun`` are those that a
    failed one kept from being taken, if any. ``verifiedAt``: when all were last passed."""

    id: UUID
    status: ConnectionStatus
    role_arn: str
    key_arn: str
    region: str
    external_id: str
    created_at: Moment
    verified_at: Moment | None = None
    health: str
    health_since: Moment | None = None
    steps: list[StepAnswer]
    not_run: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, view: ConnectionView) -> Self:
        """From the view."""
        return cls(**_connection(view))


class ListedConnectionAnswer(ConnectionAnswer):
    """One of a workspace's connections. ``neededBy``: how many secrets are under it; ``waiting``: how many values on
    their way in go under it as things are. ``retired`` means replaced, and it may still be needed; ``retiredAt``: when
    its owner retired it for good."""

    needed_by: int
    waiting: int
    retired_at: Moment | None = None

    @classmethod
    def of(cls, view: ConnectionView) -> Self:
        """From the view."""
        return cls(**_connection(view), needed_by=view.needed_by, waiting=view.waiting, retired_at=view.retired_at)


class ConnectionsAnswer(Document):
    """The current one first, then a pending one, then those that were replaced, newest first."""

    items: list[ListedConnectionAnswer]


def _connection(view: ConnectionView) -> dict[str, Any]:
    return {
        "id": view.id,
        "status": view.status,
        "role_arn": view.role_arn,
        "key_arn": view.key_arn,
        "region": view.region,
        "external_id": view.external_id,
        "created_at": view.created_at,
        "verified_at": view.verified_at,
        "health": view.health,
        "health_since": view.health_since,
        "steps": [StepAnswer.of(step) for step in view.steps],
        # steps are taken in their order, until one fails that the others build on
        "not_run": [step.name for step in STEPS[len(view.steps) :]] if view.steps else [],
    }


# ---------------------------------------------------------------- set-up


class WayAnswer(Document):
    """One way of revoking: what it stops, when, how it is undone, and how we then report the connection."""

    way: str
    stops: str
    when: str
    undo: str
    seen_as: KeyState

    @classmethod
    def of(cls, way: Revocation) -> WayAnswer:
        """From the way."""
        return cls(**vars(way))


class SetupAnswer(Document):
    """What to apply, and what to know before. ``keyArn`` null: a key is to be made. Where the account is not known,
    ARNs hold ``${ACCOUNT_ID}``: put yours."""

    workspace_id: str
    external_id: str
    role_name: str
    role_arn: str
    key_arn: str | None
    region: str | None
    strict: bool
    trust_policy: dict[str, Any]
    key_policy: dict[str, Any]
    how_to_apply: list[str]
    warnings: list[str]
    revocation: list[WayAnswer]
    not_stopped: list[str]


# ---------------------------------------------------------------- reports


class CoveredAnswer(Document):
    """A secret and what protects it. ``heldUntil``: of a value that waits."""

    id: UUID
    name: str
    version: int
    cover: Cover
    connection_id: UUID | None = None
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


# ---------------------------------------------------------------- lockout proof


class ProofAnswer(Document):
    """How far a lockout proof is. It runs until ``endedAt``; ``isLockedOut`` then says whether AWS denied us every
    secret. ``askedBy``: the subject of the token that started it."""

    id: UUID
    connection_id: UUID
    asked_by: str
    started_at: Moment
    ended_at: Moment | None = None
    is_locked_out: bool | None = None
    total: int
    done: int

    @classmethod
    def of(cls, proof: Proof) -> ProofAnswer:
        """From the use case."""
        return cls(
            id=proof.id,
            connection_id=proof.connection.id,
            asked_by=proof.asked_by,
            started_at=proof.started_at,
            ended_at=proof.ended_at,
            is_locked_out=proof.is_locked_out,
            total=proof.total,
            done=proof.done,
        )


# ---------------------------------------------------------------- re-encryption


class ReencryptRequest(Document):
    """The older connection whose secrets are to be moved; without it every older one."""

    connection_id: UUID | None = None


class ReencryptionAnswer(Document):
    """How far a re-encryption is; it runs until ``endedAt``. ``moved``: under the current key now. ``denied``: the
    older key says no, and ``failed``: no answer, or a fault; both are left where they are. ``overtaken``: rotated or
    deleted meanwhile. ``left``: not looked at yet, or at all, where ``stoppedBy`` says why it ended early."""

    id: UUID
    connection_id: UUID | None = None
    started_at: Moment
    ended_at: Moment | None = None
    stopped_by: str | None = None
    total: int
    moved: int
    denied: int
    overtaken: int
    failed: int
    left: int

    @classmethod
    def of(cls, move: Reencryption) -> ReencryptionAnswer:
        """From the use case."""
        return cls(
            id=move.id,
            connection_id=move.from_connection_id,
            started_at=move.started_at,
            ended_at=move.ended_at,
            stopped_by=move.stopped_by,
            total=move.total,
            moved=move.moved,
            denied=move.denied,
            overtaken=move.overtaken,
            failed=move.failed,
            left=move.left,
        )


class StuckAnswer(Document):
    """A secret that was left where it is, and why. Where AWS gave no answer there is no ``state``."""

    id: UUID
    name: str
    connection_id: UUID
    outcome: MoveOutcome
    state: KeyState | None = None
    aws_code: str | None = None
    what_to_do: str | None = None

    @classmethod
    def of(cls, stuck: Stuck) -> StuckAnswer:
        """From the use case."""
        return cls(
            id=stuck.secret_id,
            name=stuck.name,
            connection_id=stuck.connection_id,
            outcome=stuck.outcome,
            state=stuck.state,
            aws_code=stuck.aws_code or None,
            what_to_do=what_to_do(stuck.state) if stuck.state else None,
        )


class StuckPageAnswer(Document):
    """A page of them, oldest id first. ``nextCursor`` is null at the end."""

    items: list[StuckAnswer]
    next_cursor: UUID | None
