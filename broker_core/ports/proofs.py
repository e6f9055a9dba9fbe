"""The store, for lockout proofs; and who signs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from broker_core.errors import KeyState, Receipt
from broker_core.model import Blob, Connection


class ProofOutcome(StrEnum):
    """What a lockout proof showed of one secret. Only the first says that the vault is closed to us."""

    LOCKED_OUT = "locked_out"  # the customer's side denied the dry run, and then a real Decrypt
    STILL_DECRYPTS = "still_decrypts"
    NOT_SHOWN = "not_shown"  # no answer that says either, however often it was asked
    MOVED = "moved"  # meanwhile under another key, or none
    DELETED = "deleted"  # meanwhile


class AskKind(StrEnum):
    """How KMS was asked."""

    DRY_RUN = "dry_run"
    DECRYPT = "decrypt"


@dataclass(frozen=True)
class Ask:
    """One call of a lockout proof, and what came of it. ``state`` is empty where KMS would serve it, or did."""

    kind: AskKind
    audit_id: UUID
    at: datetime
    state: KeyState | None
    aws_code: str
    receipt: Receipt


@dataclass(frozen=True)
class ProofItem:
    """One secret of a proof. ``version`` is the one that was asked last, or stood there at the start; ``outcome`` is
    None while it is not settled."""

    secret_id: UUID
    name: str
    version: int
    outcome: ProofOutcome | None
    note: str
    settled_at: datetime | None
    asks: Sequence[Ask]


@dataclass(frozen=True)
class DueItem:
    """The next secret of a proof, claimed. ``blob`` is what stands there now; None where it is under this proof's
    connection no more, and then ``is_deleted`` says why. ``attempts``: this one included, and the number is what
    settles it, so that whoever lost the claim settles nothing."""

    secret_id: UUID
    name: str
    version: int
    blob: Blob | None
    is_deleted: bool
    attempts: int


@dataclass(frozen=True)
class Proof:
    """A lockout proof: running until ``ended_at``. ``asked_by`` is who started it. ``document`` is the signed one."""

    id: UUID
    connection: Connection
    asked_by: str
    started_at: datetime
    ended_at: datetime | None
    is_locked_out: bool | None
    total: int
    done: int
    document: str | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Beside:
    """What a lockout proof does not cover, counted."""

    stored_meanwhile: int  # under its connection and not asked: stored after it began
    on_their_way: int  # events that wait with a value: accepted, not yet under any key for good ...
    held: int  # ... and those of them that the customer's side refused
    platform_secrets: int
    other_connections: Sequence[tuple[UUID, str, int]]  # (id, key ARN, secrets) of connections that blobs still need


class ProofStore(Protocol):
    """What lockout proofs need. Secrets are claimed in the database, one of a proof at a time, so that two processes
    never ask for one twice. Every method raises Unavailable when the database is away."""

    def start_proof(self, workspace_id: str, proof_id: UUID, connection_id: UUID | None, asked_by: str) -> Proof:
        """Begin one over every secret that is under a connection now: the current one, or else the newest that blobs
        still need, unless it is named. Raises NotFound (workspace, connection), Conflict (one is running, or nothing is
        under the connection)."""

    def proof(self, workspace_id: str, proof_id: UUID | None = None) -> Proof:
        """One by its id, or the newest. Raises NotFound."""

    def running_proofs(self, limit: int) -> Sequence[Proof]:
        """Of all workspaces, each as likely as any other: so none waits for those that take long."""

    def claim_item(self, proof: Proof, per_second: float, lease_seconds: float) -> DueItem | None:
        """Claim the next due secret of a running proof within the connection's budget of calls (two for each); None
        when none is due, another one of this proof is claimed, or the budget is spent."""

    def settle_item(self, proof: Proof, item: DueItem, outcome: ProofOutcome, note: str, asks: Sequence[Ask]) -> None:
        """Write what came of it; does nothing when it was claimed again meanwhile."""

    def put_back(
        self, proof: Proof, item: DueItem, asks: Sequence[Ask], retry_seconds: float, *, counts: bool = True
    ) -> None:
        """Let it be claimed again after so long; what was asked stays with it. ``counts`` False: that was no try."""

    def proof_items(self, proof: Proof, *, after: str | None = None, limit: int = 500) -> Sequence[ProofItem]:
        """Its secrets by name, after ``after``."""

    def beside(self, proof: Proof) -> Beside:
        """What it does not cover, as of now."""

    def finish_proof(self, proof: Proof, document: str, is_locked_out: bool, ended_at: datetime) -> Proof:
        """Write the signed document, once: the first stands. Returns the proof as it is then."""


class Signer(Protocol):
    """Signs what others are to rely on."""

    @property
    def key_id(self) -> str:
        """The RFC 7638 thumbprint of the public key."""

    def sign(self, payload: bytes, content_type: str) -> str:
        """A JWS in the compact form, with that ``typ``."""
