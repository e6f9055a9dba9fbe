"""Use case: the lockout proof. For every secret under a connection, ask KMS whether we can still read it, and put the
answers into one signed document.

The proof can fail, and never reads the vault: a dry run comes first, and where that would work the secret is listed as
still decrypting and nothing else is asked. Only where the customer's side denied it a real Decrypt is tried, under the
session policy that an injection has; what it should give back all the same is wiped at once. Each call is one use with
its intent committed first (INV-5). Secrets are claimed one at a time in the database, within the connection's budget of
calls: any process goes on where another one stopped. Imports no AWS, database or signing library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from broker_core import context, policies, proof_document, proof_page, telemetry
from broker_core.audit import Intent, Outcome, Result
from broker_core.canary import result_of
from broker_core.errors import (
    BrokerError,
    Busy,
    ConfigurationError,
    Conflict,
    Denied,
    KeyServiceError,
    KeyState,
    Receipt,
    Transient,
)
from broker_core.model import Blob, Connection, Purpose
from broker_core.ports import (
    Ask,
    AskKind,
    AuditStore,
    Clock,
    DueItem,
    KeyService,
    KeyUse,
    Proof,
    ProofItem,
    ProofOutcome,
    ProofStore,
    Signer,
)
from broker_core.proof_document import ProofDocument

#: a page of secrets, for the document
_PAGE = 500


@dataclass(frozen=True)
class ProofLimits:
    """Seconds, unless said otherwise."""

    calls_per_second: float = 5.0  # of one connection, whoever asks: they are on the customer's bill
    key_seconds: float = 10.0  # for one use of a key, its retries included
    lease: float = 60.0  # for one secret: two uses of the key, and their rows
    attempts: int = 4  # at one secret, where no answer says either
    retry: float = 5.0  # until the second attempt; twice as long until each next
    most_running: int = 20  # proofs in one tick


class ProofStores(ProofStore, AuditStore, Protocol):
    """Both, as one store."""


@dataclass(frozen=True)
class _Finding:
    """What came of one secret. ``outcome`` None: to be tried again."""

    outcome: ProofOutcome | None
    note: str = ""
    asks: Sequence[Ask] = field(default=())
    is_busy: bool = False


class LockoutProof:
    """Use case: start, step, and give the document."""

    def __init__(
        self,
        store: ProofStores,
        keys: KeyService,
        clock: Clock,
        new_id: Callable[[], UUID],
        signer: Callable[[], Signer],
        brakes: Callable[[], bool] = lambda: False,
        limits: ProofLimits | None = None,
        *,
        shares_sessions: bool = False,
        has_control_role: bool = False,
    ) -> None:
        """``signer`` raises ConfigurationError where this process cannot sign. ``brakes``: see ``ports.FailureLog``.
        ``shares_sessions``: whether sessions are bound to the workspace, and not to each secret. ``has_control_role``:
        whether a role of ours shows that a refusal of AssumeRole is no fault of ours."""
        self._store = store
        self._keys = keys
        self._clock = clock
        self._new_id = new_id
        self._signer = signer
        self._brakes = brakes
        self._limits = limits or ProofLimits()
        self._has_control_role = has_control_role
        self._policy = policies.shared_session_policy if shares_sessions else policies.session_policy

    def start(self, workspace_id: str, connection_id: UUID | None = None, *, asked_by: str = "operator") -> Proof:
        """Begin a proof over every secret under a connection: the current one, or else the newest that blobs still
        need, unless it is named. ``asked_by`` (at most 256 characters) stands in the document.

        Raises NotFound, Conflict (one is running, or nothing is under the connection), ConfigurationError (there is no
        signing key) or Unavailable.
        """
        self._signer()
        return self._store.start_proof(workspace_id, self._new_id(), connection_id, asked_by[:256])

    def progress(self, workspace_id: str, proof_id: UUID | None = None) -> Proof:
        """How far a proof is, or the newest one. Raises NotFound or Unavailable."""
        return self._store.proof(workspace_id, proof_id)

    def step(self, workspace_id: str, proof_id: UUID, limit: int = 20, seconds: float = 5.0) -> Proof:
        """Ask about up to ``limit`` secrets that are due, for so long at most (the last may take longer); sign the
        document when none is left. Safe to call from many processes, and again after any end.

        Raises NotFound, AuditUnavailable, Unavailable, or ConfigurationError where all is asked and this process cannot
        sign.
        """
        proof = self._store.proof(workspace_id, proof_id)
        over = self._clock.monotonic() + seconds
        for _ in range(limit if proof.ended_at is None else 0):
            item = self._store.claim_item(proof, self._limits.calls_per_second, self._limits.lease)
            if item is None:
                break
            self._look_at(proof, item)
            if self._clock.monotonic() >= over:
                break
        proof = self._store.proof(workspace_id, proof_id)
        return self._finish(proof) if proof.ended_at is None and proof.done == proof.total else proof

    def tick(self) -> int:
        """One step of each running proof; returns how many were running. What goes wrong with one stops no other.
        Raises Unavailable when none could be listed."""
        running = self._store.running_proofs(self._limits.most_running)
        for proof in running:
            self._guarded_step(proof)
        return len(running)

    def signed(self, workspace_id: str, proof_id: UUID) -> str:
        """The finished document as a JWS. Raises NotFound, Conflict (it is not finished), or as ``step``, since it may
        only be left to be signed."""
        proof = self._store.proof(workspace_id, proof_id)
        if proof.ended_at is None and proof.done == proof.total:
            proof = self._finish(proof)
        if proof.document is None:
            raise Conflict(f"the proof is running: {proof.done} of {proof.total} secrets are done")
        return proof.document

    def page(self, workspace_id: str, proof_id: UUID) -> str:
        """The same as an HTML page. Raises as ``signed``."""
        jws = self.signed(workspace_id, proof_id)
        return proof_page.page(proof_document.read(proof_document.payload_of(jws)), jws)

    # ------------------------------------------------------------ one secret

    def _look_at(self, proof: Proof, item: DueItem) -> None:
        try:
            with _span(proof.connection, item):
                found = self._found(proof.connection, item)
        except BaseException:
            # whatever ends this process, the next one need not wait for the lease
            with suppress(BrokerError):
                self._store.put_back(proof, item, (), 0.0)
            raise
        if found.outcome is None:
            self._try_again(proof, item, found)
        else:
            self._store.settle_item(proof, item, found.outcome, found.note, found.asks)

    def _try_again(self, proof: Proof, item: DueItem, found: _Finding) -> None:
        if not found.is_busy and item.attempts >= self._limits.attempts:
            note = f"AWS gave no answer that says either, in {item.attempts} attempts"
            self._store.settle_item(proof, item, ProofOutcome.NOT_SHOWN, note, found.asks)
            return
        wait = self._limits.retry * (1 if found.is_busy else 2 ** (item.attempts - 1))
        self._store.put_back(proof, item, found.asks, wait, counts=not found.is_busy)

    def _found(self, connection: Connection, item: DueItem) -> _Finding:
        if item.blob is None:
            return _Finding(*_GONE[item.is_deleted])
        if item.attempts > self._limits.attempts:
            return _Finding(ProofOutcome.NOT_SHOWN, "what asked AWS about it ended each time before an answer was kept")
        asks: list[Ask] = []
        for kind in AskKind:
            ask, error = self._ask(kind, connection, item, item.blob)
            if not isinstance(error, Busy):
                asks.append(ask)
            if not isinstance(error, Denied) or self._is_ours(error):
                return _judged(kind, error, asks)
        return _Finding(ProofOutcome.LOCKED_OUT, "", asks)

    def _is_ours(self, error: Denied) -> bool:
        """A role that refuses us while many others do, too, is taken for a fault of ours (INV-8): nothing is shown."""
        return error.state is KeyState.ROLE_REFUSED and self._brakes()

    def _ask(
        self, kind: AskKind, connection: Connection, item: DueItem, blob: Blob
    ) -> tuple[Ask, KeyServiceError | None]:
        """One call, with its audit row."""
        intent = self._intent(connection, item, blob)
        self._store.begin_use(intent)
        bound = context.for_secret(connection.workspace_id, item.name, item.version)
        use = KeyUse(connection, Purpose.PROOF, intent.id, bound)
        at = self._clock.now()
        error: KeyServiceError | None = None
        try:
            result = Result(Outcome.OK, receipt=self._call(kind, use, blob))
        except KeyServiceError as caught:
            error, result = caught, result_of(caught)
        self._store.end_use(intent, result)
        ask = Ask(kind, intent.id, at, error.state if error else None, result.aws_code, result.receipt)
        return ask, error

    def _call(self, kind: AskKind, use: KeyUse, blob: Blob) -> Receipt:
        if kind is AskKind.DRY_RUN:
            return self._keys.check(use, blob, self._limits.key_seconds)
        opened = self._keys.decrypt(use, blob, self._limits.key_seconds)
        opened.value.wipe()
        return opened.receipt

    def _intent(self, connection: Connection, item: DueItem, blob: Blob) -> Intent:
        return Intent(
            id=self._new_id(),
            workspace_id=connection.workspace_id,
            purpose=Purpose.PROOF,
            cipher=blob.cipher,
            connection_id=connection.id,
            secret_id=item.secret_id,
            secret_name=item.name,
            version=item.version,
        )

    # ------------------------------------------------------------ the document

    def _finish(self, proof: Proof) -> Proof:
        signer = self._signer()
        document = self._document(proof)
        jws = signer.sign(document.to_json(), proof_document.CONTENT_TYPE)
        finished = self._store.finish_proof(proof, jws, document.is_locked_out, document.ended_at)
        telemetry.log().info(
            "proof.done",
            workspace_id=proof.connection.workspace_id,
            proof_id=str(proof.id),
            locked_out=finished.is_locked_out,
            secrets=proof.total,
        )
        return finished

    def _document(self, proof: Proof) -> ProofDocument:
        connection, secrets = proof.connection, list(self._items(proof))
        shown = secrets[0]
        bound = context.for_secret(connection.workspace_id, shown.name, shown.version)
        return ProofDocument(
            id=proof.id,
            asked_by=proof.asked_by,
            connection=connection,
            started_at=proof.started_at,
            ended_at=self._clock.now(),
            policy_of=shown.name,
            session_policy=self._policy(policies.Action.DECRYPT, connection.key_arn, bound),
            secrets=secrets,
            beside=self._store.beside(proof),
            has_control_role=self._has_control_role,
        )

    def _items(self, proof: Proof) -> Iterator[ProofItem]:
        after: str | None = None
        while page := self._store.proof_items(proof, after=after, limit=_PAGE):
            yield from page
            after = page[-1].name

    def _guarded_step(self, proof: Proof) -> None:
        ids = {"workspace_id": proof.connection.workspace_id, "proof_id": str(proof.id)}
        try:
            self.step(proof.connection.workspace_id, proof.id)
        except ConfigurationError:
            telemetry.log().warning("proof.unsigned", **ids)
        except BrokerError as error:
            telemetry.log().warning("proof.skipped", code=error.reason, **ids)
        except Exception as error:  # noqa: BLE001 - a fault with one proof; its text may hold anything, so it is not shown
            telemetry.log().error("proof.failed", fault=telemetry.shape_of(error), **ids)


_GONE = {
    True: (ProofOutcome.DELETED, "deleted after the proof began"),
    False: (ProofOutcome.MOVED, "no longer under this connection: rotated, or moved to another key, meanwhile"),
}
_OPEN_AFTER_ALL = (
    "the dry run was denied, and then a real Decrypt worked: AWS may still have been spreading a change. What it gave"
    " back was wiped at once"
)


def _judged(kind: AskKind, error: KeyServiceError | None, asks: Sequence[Ask]) -> _Finding:
    """What an answer means that is not the customer's no."""
    if error is None:
        return _Finding(ProofOutcome.STILL_DECRYPTS, _OPEN_AFTER_ALL if kind is AskKind.DECRYPT else "", asks)
    if isinstance(error, Transient | Denied):
        return _Finding(None, "", asks, is_busy=isinstance(error, Busy))
    return _Finding(ProofOutcome.NOT_SHOWN, f"not a denial by your side, but {error.state.value}", asks)


def _span(connection: Connection, item: DueItem) -> AbstractContextManager[object]:
    return telemetry.span(
        "proof.secret",
        broker__workspace=connection.workspace_id,
        broker__connection=str(connection.id),
        broker__secret=str(item.secret_id),
        broker__attempt=item.attempts,
        aws__region=connection.region,
    )
