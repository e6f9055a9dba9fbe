"""Use case: move secrets from an older key of the customer's to the current one, where the older key still decrypts.

One secret at a time: Decrypt under the connection that it is under, Encrypt under the current one, and one transaction
that stores the new blob if nothing changed meanwhile: a rotation wins, and so does a change of the setting. Its version
and its context stay. There is one cipher for what is stored, the current key (INV-3): where that says no, or BYOK was
disconnected, or the plan is no longer Enterprise, the secret stays where it is, and so it does where the older key says
no. The value is in a ``Plaintext`` of this step alone, wiped however it ends (INV-4); rows and messages hold ids.

Both calls are uses of their own, each with its intent committed first and a session that may do this one thing (INV-5).
Both are for ``encrypt``, since that is what the value is read for: not for a request (``inject``), nor to learn
something (``check``, ``probe``, ``verify``, ``proof``). In the customer's CloudTrail a re-encryption is an ``encrypt``
session that decrypts under the older key, and no other use is; in our audit log its rows have no event and the code
``reencrypt``.

Imports no AWS or database library.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from broker_core import context, telemetry
from broker_core.audit import Intent, Outcome, Result
from broker_core.canary import result_of
from broker_core.errors import BrokerError, Busy, Denied, Forbidden, KeyServiceError, NotFound, Transient
from broker_core.model import Blob, CipherName, Connection, FoundBy, Plan, Purpose
from broker_core.pages import Page, page_of
from broker_core.ports import (
    AuditStore,
    Clock,
    DueMove,
    Failure,
    FailureLog,
    KeyService,
    KeyUse,
    MoveOutcome,
    MoveStore,
    Opened,
    Reencryption,
    Sealed,
    Stuck,
)

#: what audit rows of a re-encryption say, beside their outcome
CODE = "reencrypt"


@dataclass(frozen=True)
class MoveLimits:
    """Seconds, unless said otherwise."""

    calls_per_second: float = 5.0  # of each connection, whoever asks: they are on the customer's bill
    key_seconds: float = 10.0  # for one use of a key, its retries included
    lease: float = 60.0  # for one secret: two uses of a key, and their rows
    attempts: int = 4  # at one secret, where no answer says either
    retry: float = 5.0  # until the second attempt; twice as long until each next
    retry_current: float = 60.0  # the same, where the current key says no
    most_running: int = 20  # re-encryptions in one tick


class MoveStores(MoveStore, AuditStore, Protocol):
    """Both, as one store."""


class Reencrypt:
    """Use case: start, step, and say how far it is."""

    def __init__(
        self,
        store: MoveStores,
        keys: KeyService,
        failures: FailureLog,
        clock: Clock,
        new_id: Callable[[], UUID],
        limits: MoveLimits | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._failures = failures
        self._clock = clock
        self._new_id = new_id
        self._limits = limits or MoveLimits()

    def start(self, workspace_id: str, from_connection_id: UUID | None = None) -> Reencryption:
        """Begin to move every secret that is under an older connection, or under this one, to the current one; or go on
        with what runs from the same. One that finds nothing to move has ended.

        Raises NotFound, Forbidden (``plan_required``), Conflict (nothing is connected, this one is current or pending,
        another re-encryption runs) or Unavailable.
        """
        if self._store.plan_of(workspace_id) != Plan.ENTERPRISE:
            raise Forbidden("moving secrets to a key of your own is part of the Enterprise plan", code="plan_required")
        return self._store.end_move(self._store.start_move(workspace_id, self._new_id(), from_connection_id))

    def progress(self, workspace_id: str, move_id: UUID | None = None) -> Reencryption:
        """How far one is, or the newest. Raises NotFound or Unavailable."""
        return self._store.move(workspace_id, move_id)

    def stuck(
        self, workspace_id: str, move_id: UUID | None = None, *, after: UUID | None = None, limit: int = 50
    ) -> Page[Stuck]:
        """What it left where it is, and why: a page, oldest secret id first. Raises NotFound or Unavailable."""
        found = self._store.stuck(self._store.move(workspace_id, move_id), after=after, limit=limit + 1)
        return page_of(found, limit, lambda stuck: stuck.secret_id)

    def step(self, workspace_id: str, move_id: UUID, limit: int = 20, seconds: float = 5.0) -> Reencryption:
        """Move up to ``limit`` secrets that are due, for so long at most (the last may take longer). Safe to call from
        many processes, and again after any end. Where the workspace is not connected or not Enterprise any more, the
        re-encryption ends, and ``stopped_by`` says so.

        Raises NotFound, AuditUnavailable or Unavailable.
        """
        move = self._store.move(workspace_id, move_id)
        if move.ended_at is not None:
            return move
        stopped_by = self._stopped_by(workspace_id)
        if stopped_by is None:
            self._some(move, limit, self._clock.monotonic() + seconds)
        after = self._store.end_move(move, stopped_by)
        if after.ended_at is not None:
            self._tell(after)
        return after

    def tick(self) -> int:
        """One step of each that runs; returns how many. What goes wrong with one stops no other. Raises Unavailable
        when none could be listed."""
        running = self._store.running_moves(self._limits.most_running)
        for move in running:
            self._guarded_step(move)
        return len(running)

    # ------------------------------------------------------------ one secret

    def _stopped_by(self, workspace_id: str) -> str | None:
        """Why nothing of this workspace may be moved any more."""
        try:
            if self._store.plan_of(workspace_id) != Plan.ENTERPRISE:
                return "plan_required"
            return "disconnected" if self._store.setting(workspace_id).connection is None else None
        except NotFound:
            return "workspace_deleted"

    def _some(self, move: Reencryption, limit: int, over: float) -> None:
        for _ in range(limit):
            due = self._store.claim_move(move, self._limits.calls_per_second, self._limits.lease)
            if due is None or not self._look_at(move, due) or self._clock.monotonic() >= over:
                return

    def _look_at(self, move: Reencryption, due: DueMove) -> bool:
        """Move one; False where the others had better wait."""
        try:
            with _span(due):
                return self._move(move, due)
        except BaseException:
            # whatever ends this process, the next one need not wait for the lease
            with suppress(BrokerError):
                self._store.put_back_move(move, due, 0.0)
            raise

    def _move(self, move: Reencryption, due: DueMove) -> bool:
        if due.blob is None:
            self._store.settle_move(move, due, MoveOutcome.OVERTAKEN)
            return True
        if due.attempts > self._limits.attempts:
            self._store.settle_move(move, due, MoveOutcome.FAILED)
            return True
        try:
            opened = self._open(due, due.blob)
        except KeyServiceError as error:
            return self._older_said(move, due, error)
        try:
            intent, sealed = self._seal(due, opened)
        except KeyServiceError as error:
            return self._current_said(move, due, error)
        result = Result(Outcome.OK, CODE, receipt=sealed.receipt)
        if self._store.keep_move(move, due, sealed.blob, intent, result) is None:
            self._store.put_back_move(move, due, 0.0, counts=False)
        return True

    def _open(self, due: DueMove, blob: Blob) -> Opened:
        """Decrypt under the older connection."""
        intent = self._begun(due, due.source, blob.cipher)
        try:
            opened = self._keys.decrypt(self._use(due, due.source, intent), blob, self._limits.key_seconds)
        except KeyServiceError as error:
            self._store.end_use(intent, result_of(error))
            raise
        try:
            self._store.end_use(intent, Result(Outcome.OK, CODE, receipt=opened.receipt))
        except BaseException:
            opened.value.wipe()
            raise
        return opened

    def _seal(self, due: DueMove, opened: Opened) -> tuple[Intent, Sealed]:
        """Encrypt under the current connection; the value is wiped in any case."""
        try:
            connection = due.setting.connection
            if connection is None:  # INV-3: there is nothing else to go under
                raise RuntimeError("a claim without a key to move to")
            intent = self._begun(due, connection, CipherName.KMS)
            try:
                use = self._use(due, connection, intent)
                return intent, self._keys.encrypt(use, opened.value, self._limits.key_seconds)
            except KeyServiceError as error:
                self._store.end_use(intent, result_of(error))
                raise
        finally:
            opened.value.wipe()

    def _begun(self, due: DueMove, connection: Connection, cipher: CipherName) -> Intent:
        intent = Intent(
            id=self._new_id(),
            workspace_id=connection.workspace_id,
            purpose=Purpose.ENCRYPT,
            cipher=cipher,
            connection_id=connection.id,
            secret_id=due.secret_id,
            secret_name=due.name,
            version=due.version,
        )
        self._store.begin_use(intent)
        return intent

    def _use(self, due: DueMove, connection: Connection, intent: Intent) -> KeyUse:
        bound = context.for_secret(connection.workspace_id, due.name, due.version)
        return KeyUse(connection, Purpose.ENCRYPT, intent.id, bound)

    # ------------------------------------------------------------ refusals

    def _older_said(self, move: Reencryption, due: DueMove, error: KeyServiceError) -> bool:
        """The older key's no is the answer: it is recorded like any other, and the secret stays. One that the brake
        takes for a fault of ours blames nobody, and comes again (INV-8)."""
        if isinstance(error, Transient) or not self._failures.seen(_failure(due, error)):
            self._try_again(move, due, error, self._limits.retry)
            return False
        outcome = MoveOutcome.DENIED if isinstance(error, Denied) else MoveOutcome.FAILED
        self._store.settle_move(move, due, outcome, error.state, error.aws_code)
        return True

    def _current_said(self, move: Reencryption, due: DueMove, error: KeyServiceError) -> bool:
        """Nothing can be moved while the current key says no: whether it is the key is for its probe to say. Tries are
        counted, so that no value is read over and over for nothing."""
        is_silence = isinstance(error, Transient)
        retry = self._limits.retry if is_silence else self._limits.retry_current
        self._try_again(move, due, error, retry, current_fails=not is_silence)
        return False

    def _try_again(
        self, move: Reencryption, due: DueMove, error: KeyServiceError, retry: float, *, current_fails: bool = False
    ) -> None:
        is_busy = isinstance(error, Busy)
        if not is_busy and due.attempts >= self._limits.attempts:
            self._store.settle_move(move, due, MoveOutcome.FAILED, error.state, error.aws_code)
            return
        wait = retry * (1 if is_busy else 2 ** (due.attempts - 1))
        self._store.put_back_move(move, due, wait, counts=not is_busy, current_fails=current_fails)

    # ------------------------------------------------------------ running

    def _tell(self, move: Reencryption) -> None:
        telemetry.log().info(
            "reencrypt.done",
            workspace_id=move.workspace_id,
            reencryption_id=str(move.id),
            stopped_by=move.stopped_by,
            moved=move.moved,
            denied=move.denied,
            failed=move.failed,
            left=move.left,
        )

    def _guarded_step(self, move: Reencryption) -> None:
        ids = {"workspace_id": move.workspace_id, "reencryption_id": str(move.id)}
        try:
            self.step(move.workspace_id, move.id)
        except BrokerError as error:
            telemetry.log().warning("reencrypt.skipped", code=error.reason, **ids)
        except Exception as error:  # noqa: BLE001 - a fault with one; its text may hold anything, so it is not shown
            telemetry.log().error("reencrypt.failed", fault=telemetry.shape_of(error), **ids)


def _failure(due: DueMove, error: KeyServiceError) -> Failure:
    """As a check would have found it."""
    return Failure(
        workspace_id=due.source.workspace_id,
        connection_id=due.source.id,
        secret_id=due.secret_id,
        state=error.state,
        aws_code=error.aws_code,
        request_id=error.receipt.request_id,
        found_by=FoundBy.CHECK,
    )


def _span(due: DueMove) -> AbstractContextManager[object]:
    return telemetry.span(
        "reencrypt.secret",
        broker__workspace=due.source.workspace_id,
        broker__connection=str(due.source.id),
        broker__secret=str(due.secret_id),
        broker__version=due.version,
        broker__attempt=due.attempts,
        aws__region=due.source.region,
    )
