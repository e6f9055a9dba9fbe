"""Taking a value in: open its claim, encrypt under the workspace's current setting, store.

The worker's message is a doorbell; the row decides. Each attempt is counted before it works, so that an event that
kills its worker ends too. With BYOK on there is one cipher only, the customer's key: there is no branch here that
falls back (INV-3). The setting that was encrypted under must still be the setting when the blob is stored, or the
attempt starts over. Imports no database, Redis or AWS library.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from broker_core import context, envelope, telemetry
from broker_core.audit import Outcome, Result
from broker_core.errors import (
    BrokerError,
    Busy,
    Denied,
    Integrity,
    KeyServiceError,
    Misconfigured,
    Receipt,
    Transient,
    Unavailable,
)
from broker_core.intake import claim_binding
from broker_core.model import Blob, EventState, Purpose
from broker_core.ports import Attempt, ClaimBox, CustodyStore, KeyService, KeyUse, PlatformCipher, Queue, ReconcileStore
from broker_core.secret import Plaintext

#: attempts that began and never reported back (a crash each) before an event ends ``unreadable``
MOST_CRASHES = 5
#: times that a setting may change under one attempt before it waits for the reconciler
MOST_RESTARTS = 5


@dataclass(frozen=True)
class CustodyLimits:
    """Seconds."""

    key_seconds: float = 10.0  # for the key service, its own retries included
    retry_transient: float = 15.0
    retry_busy: float = 6.0  # on average: half as much at least, half as much again at most
    retry_refused: float = 60.0


class Custody:
    """Use case: encrypt and store an accepted event."""

    def __init__(
        self,
        store: CustodyStore,
        claims: ClaimBox,
        keys: KeyService,
        platform: PlatformCipher,
        *,
        new_id: Callable[[], UUID],
        limits: CustodyLimits | None = None,
        brakes: Callable[[], bool] = lambda: False,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """``brakes``: see ``ports.FailureLog.brakes``."""
        self._store = store
        self._claims = claims
        self._keys = keys
        self._platform = platform
        self._new_id = new_id
        self._limits = limits or CustodyLimits()
        self._brakes = brakes
        self._uniform = uniform

    def run(self, event_id: UUID) -> EventState | None:
        """Bring one event on; returns the state it is in now, None when it had ended before.

        Raises Transient or Unavailable where a later attempt may work. A refusal of the customer's is no error here:
        it is the state ``refused``.
        """
        for _ in range(MOST_RESTARTS):
            attempt = self._store.begin(event_id, self._new_id())
            if attempt is None:
                return None
            with telemetry.span(
                "custody",
                broker__workspace=attempt.event.workspace_id,
                broker__event=str(event_id),
                broker__version=attempt.event.version,
                broker__audit=str(attempt.audit_id),
            ) as span:
                state = self._attempt(attempt)
                span.set_attribute("broker.event_state", state.value if state else "setting_changed")
            if state is not None:
                return state
        raise Transient("the setting kept changing")

    def _attempt(self, attempt: Attempt) -> EventState | None:
        if attempt.attempts > MOST_CRASHES:
            return self._end(attempt, EventState.UNREADABLE, "attempts_spent")
        if attempt.secret_version >= attempt.event.version:
            return self._end(attempt, EventState.SUPERSEDED, "higher_version")
        try:
            value = self._open(attempt)
            if isinstance(value, str):
                return self._lost(attempt, value)
            blob, receipt = self._encrypt(attempt, value)
        except KeyServiceError as error:
            return self._hold(attempt, error)
        except Unavailable as error:
            self._release(attempt, Result(Outcome.FAILED, error.reason), self._limits.retry_transient)
            raise
        return self._keep(attempt, blob, receipt)

    def _open(self, attempt: Attempt) -> Plaintext | str:
        """The value, or the reason why it is lost."""
        event = attempt.event
        if event.claim_id is None or attempt.claim_key is None:
            return "claim_missing"
        sealed = self._claims.get(event.claim_id)
        if sealed is None:
            return "claim_gone"
        try:
            binding = claim_binding(event.workspace_id, event.name, event.claim_id)
            return Plaintext(envelope.open_into(attempt.claim_key, sealed, binding))
        except Integrity:
            return "claim_does_not_open"

    def _encrypt(self, attempt: Attempt, value: Plaintext) -> tuple[Blob, Receipt]:
        """Under the customer's key if there is one, under the platform cipher only if there is none (INV-3)."""
        event = attempt.event
        encryption_context = context.for_secret(event.workspace_id, event.name, event.version)
        connection = attempt.setting.connection
        if connection is None:
            return self._platform.encrypt(encryption_context, value), Receipt()
        use = KeyUse(connection, Purpose.ENCRYPT, attempt.audit_id, encryption_context)
        sealed = self._keys.encrypt(use, value, self._limits.key_seconds)
        return sealed.blob, sealed.receipt

    def _keep(self, attempt: Attempt, blob: Blob, receipt: Receipt) -> EventState | None:
        try:
            state = self._store.keep(attempt, blob, Result(Outcome.OK, receipt=receipt))
        except Unavailable as error:
            # it reported back, so it is no crash; should it have been stored after all, this changes nothing
            self._release(attempt, Result(Outcome.FAILED, error.reason, receipt=receipt), self._limits.retry_transient)
            raise
        if state is not None:
            self._forget(attempt)
        return state

    def _lost(self, attempt: Attempt, reason: str) -> EventState:
        """The claim is gone (time, or its Redis restarted): expired. One that does not open is an alarm."""
        state = EventState.UNREADABLE if reason == "claim_does_not_open" else EventState.EXPIRED
        return self._end(attempt, state, reason)

    def _end(self, attempt: Attempt, state: EventState, reason: str) -> EventState:
        if state is EventState.UNREADABLE:
            telemetry.log().error("custody.unreadable", event_id=str(attempt.event.id), reason=reason)
        self._store.end(attempt, state, reason, Result(Outcome.REFUSED, reason))
        self._forget(attempt)
        return state

    def _hold(self, attempt: Attempt, error: KeyServiceError) -> EventState:
        """The key said no, or nothing: the old blob stays in use, the value waits while its claim lives."""
        if isinstance(error, Integrity):
            telemetry.log().error("custody.integrity", event_id=str(attempt.event.id), aws_code=error.aws_code)
        result = Result(Outcome.REFUSED, error.state.value, error.aws_code, error.receipt)
        if isinstance(error, Misconfigured | Integrity) or (isinstance(error, Denied) and not self._brakes()):
            self._store.hold(attempt, EventState.REFUSED, result, self._limits.retry_refused)
            return EventState.REFUSED
        self._release(
            attempt,
            Result(Outcome.FAILED, error.state.value, error.aws_code, error.receipt),
            self._soon() if isinstance(error, Busy) else self._limits.retry_transient,
        )
        # a denial that the brake takes for a fault of ours blames nobody: it is as good as no answer (INV-8)
        raise error if isinstance(error, Transient) else Transient("taken for a fault of ours", aws_code=error.aws_code)

    def _soon(self) -> float:
        """Seconds until an event of a busy connection is rung again: its others must not come back all at once, and
        the worker's own tries within seconds are over by then."""
        return self._uniform(0.5, 1.5) * self._limits.retry_busy

    def _release(self, attempt: Attempt, result: Result, retry_seconds: float) -> None:
        self._store.hold(attempt, EventState.ACCEPTED, result, retry_seconds)

    def _forget(self, attempt: Attempt) -> None:
        """The one-time key is gone already; what is left of the claim is noise that expires."""
        try:
            if attempt.event.claim_id:
                self._claims.delete(attempt.event.claim_id)
        except BrokerError:
            telemetry.log().warning("custody.claim_left_to_expire", event_id=str(attempt.event.id))


class Reconciler:
    """Use case: nothing that was accepted stays where it is (INV-9), and no use stays without an outcome."""

    def __init__(self, store: ReconcileStore, queue: Queue, *, grace_seconds: float, batch: int = 500) -> None:
        """``grace_seconds``: after this long without an outcome a use is closed as ``unknown``; longer than any use."""
        self._store = store
        self._queue = queue
        self._grace_seconds = grace_seconds
        self._batch = batch

    def run(self) -> None:
        """Expire, close, ring. Raises Unavailable where the database or the queue is away; the next run goes on."""
        with telemetry.span("reconcile") as span:
            done = self._store.reconcile(self._batch, self._grace_seconds)
            span.set_attribute("broker.count", len(done.to_ring))
            if done.expired or done.closed_unknown or done.to_ring:
                telemetry.log().info(
                    "reconcile.done", rung=len(done.to_ring), expired=done.expired, closed_unknown=done.closed_unknown
                )
        for ring in done.to_ring:
            with telemetry.continued(ring.traceparent):
                self._queue.ring(ring.type, ring.event_id)
