"""What requests and answers hold about what goes on by itself once it was asked for: lockout proofs, re-encryptions."""

from __future__ import annotations

from uuid import UUID

from broker_core.advice import what_to_do
from broker_core.api.bodies import Document
from broker_core.api.schemas import Moment
from broker_core.errors import KeyState
from broker_core.ports import MoveOutcome, Proof, Reencryption, Stuck

# ---------------------------------------------------------------- lockout proof


class ProofRequest(Document):
    """The connection that was revoked; without it the current one, or else the newest that secrets still need."""

    connection_id: UUID | None = None


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
