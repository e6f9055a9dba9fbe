"""The store, for re-encryption: moving secrets to another key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from broker_core.audit import Intent, Result
from broker_core.errors import KeyState
from broker_core.model import Blob, Connection, Setting


class MoveOutcome(StrEnum):
    """What became of one secret of a re-encryption. Only the first changed it."""

    MOVED = "moved"
    DENIED = "denied"  # the older key's side said no: the blob is left where it is
    OVERTAKEN = "overtaken"  # rotated, deleted or moved meanwhile: nothing was left to move
    FAILED = "failed"  # no answer, however often it was asked, or a fault that is not the customer's no


@dataclass(frozen=True)
class Reencryption:
    """One run, from one older connection or from all (``from_connection_id`` None); running until ``ended_at``.

    ``left`` is what has no outcome yet, or never got one, where ``stopped_by`` says why it ended early.
    """

    id: UUID
    workspace_id: str
    from_connection_id: UUID | None
    started_at: datetime
    ended_at: datetime | None
    stopped_by: str | None
    total: int
    moved: int
    denied: int
    overtaken: int
    failed: int
    left: int


@dataclass(frozen=True)
class DueMove:
    """The next secret of a re-encryption, claimed. ``blob`` is what stands there now, None where it is no longer under
    ``source``. ``setting`` is what to move it to, and always has a connection. ``attempts``: this one included, and the
    number is what settles it, so that whoever lost the claim settles nothing."""

    secret_id: UUID
    name: str
    version: int
    blob: Blob | None
    source: Connection
    setting: Setting
    attempts: int


@dataclass(frozen=True)
class Stuck:
    """A secret that a re-encryption left where it is, and why."""

    secret_id: UUID
    name: str
    connection_id: UUID
    outcome: MoveOutcome
    state: KeyState | None
    aws_code: str


class MoveStore(Protocol):
    """What re-encryption needs. Secrets are claimed in the database, so that two processes never move one twice. Every
    method raises Unavailable when the database is away."""

    def setting(self, workspace_id: str) -> Setting:
        """See ``ByokStore``."""

    def plan_of(self, workspace_id: str) -> str:
        """See ``ByokStore``."""

    def start_move(self, workspace_id: str, move_id: UUID, from_connection_id: UUID | None) -> Reencryption:
        """Begin one over every secret that is under an older connection now, or under this one. The one that runs
        already is returned instead, if it is from the same. Raises NotFound (workspace, connection), Conflict (nothing
        is connected, this one is current or pending, another re-encryption runs)."""

    def move(self, workspace_id: str, move_id: UUID | None = None) -> Reencryption:
        """One by its id, or the newest. Raises NotFound."""

    def running_moves(self, limit: int) -> Sequence[Reencryption]:
        """Of all workspaces, each as likely as any other: so none waits for those that cannot go on."""

    def claim_move(self, move: Reencryption, per_second: float, lease_seconds: float) -> DueMove | None:
        """Claim the next due secret of a running one, within both connections' budgets of calls (one for each). None
        when none is due, a budget is spent, the current key is known to fail, or the workspace is not Enterprise or
        not connected any more."""

    def keep_move(self, move: Reencryption, due: DueMove, blob: Blob, intent: Intent, result: Result) -> bool | None:
        """Store the blob under ``due.setting``, if that is still the setting, the claim still ours, and the secret
        still as it was claimed; settles it, closes the audit row and the secret's own failure, in one transaction
        (workspace, secret, item locked in this order). True: moved. False: overtaken, and settled so. None: the setting
        changed, or the claim is lost, and nothing but the audit row was written."""

    def settle_move(
        self, move: Reencryption, due: DueMove, outcome: MoveOutcome, state: KeyState | None = None, aws_code: str = ""
    ) -> None:
        """Write what came of it; does nothing when it was claimed again meanwhile."""

    def put_back_move(
        self,
        move: Reencryption,
        due: DueMove,
        retry_seconds: float,
        *,
        counts: bool = True,
        current_fails: bool = False,
    ) -> None:
        """Let it be claimed again after so long. ``counts`` False: that was no try. ``current_fails``: the key that it
        was to go under said no, so its probe is brought forward."""

    def end_move(self, move: Reencryption, stopped_by: str | None = None) -> Reencryption:
        """End it, if nothing is left or for this reason; returns it as it is then."""

    def stuck(self, move: Reencryption, *, after: UUID | None = None, limit: int = 50) -> Sequence[Stuck]:
        """What it left where it is (denied, failed), oldest secret id first, after ``after``."""
