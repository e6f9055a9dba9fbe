"""The store, for what owners set up and see: connections, secrets, the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from broker_core.audit import Intent, Result
from broker_core.errors import KeyState
from broker_core.injection import Injection
from broker_core.model import Blob, CipherName, Connection, ConnectionStatus, FoundBy, SecretStatus, Setting, StepResult


@dataclass(frozen=True)
class AffectedSecret:
    """One affected secret."""

    secret_id: UUID
    name: str
    state: KeyState
    aws_code: str
    since: datetime
    found_by: FoundBy


@dataclass(frozen=True)
class AffectedConnection:
    """A failing connection, and the secrets that inherit its failure."""

    connection_id: UUID
    state: KeyState
    aws_code: str
    since: datetime
    found_by: FoundBy
    secrets: Sequence[tuple[UUID, str]]


@dataclass(frozen=True)
class Affected:
    """What owners see after a revocation."""

    connections: Sequence[AffectedConnection]
    secrets: Sequence[AffectedSecret]


@dataclass(frozen=True)
class ConnectionView:
    """A connection as its owner sees it. ``health``: ``unverified``, ``healthy``, the state of its open failure, or
    ``flagged`` (the role lets in who must not get in); since when, where there is something to mend.

    ``verified_at`` is when all steps were last passed, ``steps`` are the last verification's, passed or not.

    ``needed_by``: how many secrets are under it. ``waiting``: values on their way in, held ones among them, which go
    under it as things are; so only of the current one. ``status`` retired means replaced: it may still be needed.
    ``retired_at`` is when its owner retired it for good.
    """

    id: UUID
    status: ConnectionStatus
    role_arn: str
    key_arn: str
    region: str
    external_id: str = field(repr=False)
    created_at: datetime
    verified_at: datetime | None
    health: str
    health_since: datetime | None
    steps: Sequence[StepResult]
    needed_by: int = 0
    waiting: int = 0
    retired_at: datetime | None = None


class ByokStore(Protocol):
    """What setting BYOK up needs."""

    def setting(self, workspace_id: str) -> Setting:
        """The current setting. Raises NotFound."""

    def plan_of(self, workspace_id: str) -> str:
        """The workspace's plan. Raises NotFound."""

    def put_workspace(self, workspace_id: str, plan: str) -> None:
        """Create or change a workspace; a deleted one is refused with Conflict."""

    def delete_workspace(self, workspace_id: str) -> Sequence[str]:
        """Tombstone a workspace: every waiting event ends ``deleted``, every blob goes. Returns open claim ids."""

    def add_pending(self, connection: Connection) -> None:
        """Write a pending connection, in place of one that is pending already. Raises Conflict where the external id
        was ever another workspace's (one generic refusal, which says nothing of whose)."""

    def make_current(
        self, connection: Connection, canary: Blob, setting_version: int, steps: Sequence[StepResult] = ()
    ) -> bool:
        """Make it current under the setting's version (which then counts up), with the steps that it passed; retires
        the old one. False when the setting changed, Enterprise was lost, or another one became the pending one,
        meanwhile."""

    def note_verification(
        self, connection: Connection, steps: Sequence[StepResult], *, passed: bool, flag: bool | None
    ) -> None:
        """Keep a verification's steps with its connection, and the time if it passed. ``flag``: whether the role lets
        in who must not get in; None where it did not come to that, which leaves the flag as it is. Does nothing where
        the connection is gone."""

    def connections(self, workspace_id: str) -> Sequence[ConnectionView]:
        """The current one first, then the pending one, then retired ones, newest first. Raises NotFound."""

    def disconnect(self, workspace_id: str) -> None:
        """Back to the platform cipher for what comes; old blobs keep their connection. Counts the version up."""

    def retire(self, workspace_id: str, connection_id: UUID) -> None:
        """Retire an older connection for good, once: its open failure ends, and nothing asks for it again. Raises
        NotFound; Conflict when it is current or pending, or blobs need it (saying how many)."""

    def affected(self, workspace_id: str) -> Affected:
        """Failing connections with the secrets under them, and secrets that fail on their own."""


@dataclass(frozen=True)
class FailureView:
    """Why a secret cannot be decrypted now. It blames the customer's side only where the status is ``affected``."""

    state: KeyState
    aws_code: str
    since: datetime
    found_by: FoundBy


@dataclass(frozen=True)
class SecretView:
    """A secret as its owner sees it: never a value, never a blob."""

    id: UUID
    name: str
    version: int
    status: SecretStatus
    cipher: CipherName | None
    connection_id: UUID | None
    injection: Injection | None
    rotation_policy: str | None
    created_at: datetime
    rotated_at: datetime | None
    last_used_at: datetime | None
    last_checked_at: datetime | None
    failure: FailureView | None = None  # open now: the connection's, or else its own


@dataclass(frozen=True)
class Use:
    """One row of the audit log: what was meant, and what came of it (None: still running, or not yet closed)."""

    intent: Intent
    result: Result | None
    started_at: datetime
    ended_at: datetime | None


class StoredBlob(NamedTuple):
    """A secret's ciphertext and what it is under: what ``export.export`` takes. No connection: the platform cipher."""

    name: str
    version: int
    blob: Blob
    connection: Connection | None


class OwnerStore(Protocol):
    """What owners read, and the one thing that they change without giving a value."""

    def uses(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[Use]:
        """The workspace's audit rows, oldest id first, after ``after``, begun at ``since`` or later and before
        ``until``. A deleted workspace's rows stay."""

    def secrets(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        status: SecretStatus | None = None,
    ) -> Sequence[SecretView]:
        """The workspace's secrets, oldest id first, after ``after``; those of one status only, if it is given. Raises
        NotFound (workspace)."""

    def secret(self, workspace_id: str, secret_id: UUID) -> SecretView:
        """One secret by its id. Raises NotFound, also for a deleted one."""

    def blob(self, workspace_id: str, secret_id: UUID) -> StoredBlob:
        """What is stored of one secret. Raises NotFound, also where no value is stored yet."""

    def set_rotation_policy(self, workspace_id: str, secret_id: UUID, policy: str | None) -> None:
        """Change it, or take it away. It stands until an event that is accepted later brings another. Raises
        NotFound."""
