"""Finding what has started to fail, and what works again, without reading a value.

A probe opens a connection's canary in one session and seals a fresh one in another: only both together show that the
key works. A check asks KMS by dry run whether one secret would decrypt. What they find, and what injections find, goes
into one record, in which a failing connection is one row that all its secrets inherit. Once a day each role shows again
that it refuses who does not bring its external id; one that lets others in is flagged, which makes nothing "affected".

Only the customer's own refusals are called failing (INV-8). When many connections turn at once the fault is more likely
ours (a role lost, a bad deploy) than theirs: then nothing is recorded and the operator is told. Imports no AWS or
database library.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar
from uuid import UUID

from broker_core import context, telemetry
from broker_core.audit import Intent, Outcome, Result
from broker_core.canary import CANARY_BYTES, Canaries, result_of
from broker_core.errors import CUSTOMER_SIDE, BrokerError, KeyServiceError, KeyState, Unavailable
from broker_core.model import Connection, FoundBy, Purpose
from broker_core.ports import AuditStore, Clock, DueCheck, DueProbe, Failure, KeyService, KeyUse, SweepStore
from broker_core.secret import Plaintext
from broker_core.verification import Verifier

#: states that say something of the role or the key, and so of every secret under it
CONNECTION_WIDE = frozenset(CUSTOMER_SIDE) - {KeyState.ACCESS_DENIED}
#: no answer this many times in a row: the rest of a connection's batch waits, so that a dead KMS costs little time
_MOST_SILENCES = 2
#: a check that was begun with its batch, and then not asked
_NOT_ASKED = Result(Outcome.FAILED, "not_asked")

_Work = TypeVar("_Work")


@dataclass(frozen=True)
class SweepLimits:
    """Seconds, unless said otherwise."""

    probe_seconds: float = 300.0
    unhealthy: float = 60.0  # between probes of a connection that fails
    check_round: float = 86_400.0  # in which every secret is checked once
    refusals: float = 86_400.0  # between two looks whether a role refuses others
    refusals_retry: float = 3600.0  # the same, where AWS did not say
    check_rps: float = 5.0  # calls a second, for each connection: they are on the customer's bill and in their quota
    announce_after: float = 120.0  # between the first denial and one that confirms it: AWS spreads changes in minutes
    brake_share: float = 0.20  # of the verified connections; more than this turning ...
    brake_within: float = 600.0  # ... within this time ...
    brake_minimum: int = 5  # ... and at least so many: then it is taken for a fault of ours
    key_seconds: float = 10.0  # for one use of a key, its retries included
    workers: int = 8  # connections asked at the same time


class Sweep:
    """Use case: probe, check, and keep the record of failures."""

    def __init__(
        self,
        store: SweepStore,
        audit: AuditStore,
        keys: KeyService,
        clock: Clock,
        new_id: Callable[[], UUID],
        limits: SweepLimits | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._keys = keys
        self._new_id = new_id
        self._limits = limits or SweepLimits()
        self._random = random
        self._canaries = Canaries(audit, keys, new_id)
        self._verifier = Verifier(self._canaries, clock, random)
        self._record = _Record(store, clock, self._limits)

    def probes(self, limit: int = 50) -> int:
        """Probe up to ``limit`` due connections; returns how many. Raises Unavailable when none could be claimed."""
        due = self._store.due_probes(limit, self._limits.probe_seconds, self._limits.unhealthy)
        self._for_each(due, self._probe)
        return len(due)

    def checks(self, limit: int = 100) -> int:
        """Check up to ``limit`` due secrets; returns how many were claimed.

        Raises AuditUnavailable (nothing was asked) or Unavailable; what was claimed comes again when its lease is over.
        """
        due = self._store.due_checks(limit, self._limits.check_round, self._limits.check_rps)
        if due:
            batch = [(check, self._intent(check)) for check in due]
            self._store.begin_checks([intent for _, intent in batch])
            self._for_each(_by_connection(batch), self._check_connection)
        return len(due)

    def refusals(self, limit: int = 20) -> int:
        """Have up to ``limit`` due roles show that they refuse others; returns how many. Raises Unavailable when none
        could be claimed."""
        due = self._store.due_refusals(limit, self._limits.refusals_retry)
        self._for_each(due, self._look_at_refusals)
        return len(due)

    def seen(self, failure: Failure) -> bool:
        """See ``ports.FailureLog``."""
        try:
            return self._record.add(failure)
        except Exception:  # noqa: BLE001 - whatever it is, the injector's own error matters more
            telemetry.log().error(
                "sweep.record_failed", workspace_id=failure.workspace_id, connection_id=str(failure.connection_id)
            )
            return True

    def brakes(self) -> bool:
        """See ``ports.FailureLog``."""
        try:
            return self._record.brakes()
        except Unavailable:
            return False

    # ------------------------------------------------------------ probes

    def _probe(self, due: DueProbe) -> None:
        connection = due.connection
        try:
            with _span("sweep.probe", connection):
                self._open_and_seal(due)
        except KeyServiceError as error:
            self._record.add(_failure(connection, None, error, FoundBy.PROBE))
        else:
            self._store.close_failure(connection.workspace_id, connection.id, None)

    def _open_and_seal(self, due: DueProbe) -> None:
        self._canaries.open(due.connection, Purpose.PROBE, due.canary, self._limits.key_seconds).value.wipe()
        fresh = Plaintext(self._random(CANARY_BYTES))
        self._canaries.seal(due.connection, Purpose.PROBE, fresh, self._limits.key_seconds)

    # ------------------------------------------------------------ refusals

    def _look_at_refusals(self, connection: Connection) -> None:
        with _span("sweep.refusals", connection):
            found = self._verifier.refusals(connection)
        if found.lets_others_in is None:
            return  # it comes again when its claim is over
        if found.lets_others_in:
            telemetry.log().error(
                "sweep.role_lets_others_in", workspace_id=connection.workspace_id, connection_id=str(connection.id)
            )
        self._store.end_refusals(connection, found.steps, found.lets_others_in, self._limits.refusals)

    # ------------------------------------------------------------ checks

    def _intent(self, check: DueCheck) -> Intent:
        return Intent(
            id=self._new_id(),
            workspace_id=check.connection.workspace_id,
            purpose=Purpose.CHECK,
            cipher=check.blob.cipher,
            connection_id=check.connection.id,
            secret_id=check.secret_id,
            secret_name=check.name,
            version=check.version,
        )

    def _check_connection(self, batch: Sequence[tuple[DueCheck, Intent]]) -> None:
        """One connection's part of a batch, one after the other."""
        results: list[tuple[Intent, Result]] = []
        failures: list[Failure] = []
        silences = 0
        for check, intent in batch:
            if silences == _MOST_SILENCES or any(failure.state in CONNECTION_WIDE for failure in failures):
                results.append((intent, _NOT_ASKED))
                continue
            result, error = self._check(check, intent)
            results.append((intent, result))
            silences = silences + 1 if result.outcome is Outcome.FAILED else 0
            if error is not None:
                failures.append(_failure(check.connection, check.secret_id, error, FoundBy.CHECK))
        self._store.end_checks(results)
        for failure in failures:
            self._record.add(failure)

    def _check(self, check: DueCheck, intent: Intent) -> tuple[Result, KeyServiceError | None]:
        workspace_id = check.connection.workspace_id
        use = KeyUse(
            check.connection, Purpose.CHECK, intent.id, context.for_secret(workspace_id, check.name, check.version)
        )
        try:
            with _span("sweep.check", check.connection, check.secret_id):
                receipt = self._keys.check(use, check.blob, self._limits.key_seconds)
        except KeyServiceError as error:
            return result_of(error), error
        return Result(Outcome.OK, receipt=receipt), None

    # ------------------------------------------------------------ running

    def _for_each(self, items: Sequence[_Work], step: Callable[[_Work], None]) -> None:
        """Run the step on every item, a few at a time; what goes wrong with one stops none of the others."""
        if self._limits.workers == 1 or len(items) < 2:
            for item in items:
                _guarded(step, item)
            return
        with ThreadPoolExecutor(min(self._limits.workers, len(items)), "sweep") as pool:
            for item in items:  # each with the caller's trace
                pool.submit(copy_context().run, _guarded, step, item)


class _Record:
    """The record of failures: whose a failure is, and the brake on many at once."""

    def __init__(self, store: SweepStore, clock: Clock, limits: SweepLimits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._alarmed_at: float | None = None

    def add(self, failure: Failure) -> bool:
        """Open or see again, by state; nothing for what may work in a moment. False where the brake takes it for a
        fault of ours. Raises Unavailable."""
        if failure.state is KeyState.TRANSIENT:
            return True
        if failure.state not in CUSTOMER_SIDE:
            self._tell_operator(f"sweep.{failure.state.value}", failure)
        elif failure.state in CONNECTION_WIDE and failure.connection_id is not None:
            failure = replace(failure, secret_id=None)
        if failure.secret_id is None and failure.state in CUSTOMER_SIDE and self.brakes():
            return False
        self._store.open_failure(failure, self._limits.announce_after)
        return True

    def brakes(self) -> bool:
        """Whether so many turned at once that the fault is taken for ours (INV-8). The alarm rings once a minute or so,
        however many turn."""
        turned, verified = self._store.turned_share(self._limits.brake_within)
        if turned < self._limits.brake_minimum or turned <= self._limits.brake_share * verified:
            return False
        now = self._clock.monotonic()
        if self._alarmed_at is None or now - self._alarmed_at >= self._limits.unhealthy:
            self._alarmed_at = now
            telemetry.log().error("sweep.brake", turned=turned, verified=verified)
        return True

    def _tell_operator(self, event: str, failure: Failure) -> None:
        telemetry.log().error(
            event,
            workspace_id=failure.workspace_id,
            connection_id=str(failure.connection_id),
            secret_id=str(failure.secret_id),
            aws_code=failure.aws_code,
            request_id=failure.request_id,
        )


def _guarded(step: Callable[[_Work], None], item: _Work) -> None:
    try:
        step(item)
    except BrokerError as error:
        telemetry.log().warning("sweep.skipped", code=error.reason)
    except Exception as error:  # noqa: BLE001 - a fault with one connection; its text may hold anything, so it is not shown
        telemetry.log().error("sweep.failed", fault=telemetry.shape_of(error))


def _by_connection(batch: Iterable[tuple[DueCheck, Intent]]) -> list[list[tuple[DueCheck, Intent]]]:
    def connection(item: tuple[DueCheck, Intent]) -> UUID:
        return item[0].connection.id

    return [list(group) for _, group in groupby(sorted(batch, key=connection), key=connection)]


def _failure(connection: Connection, secret_id: UUID | None, error: KeyServiceError, found_by: FoundBy) -> Failure:
    return Failure(
        workspace_id=connection.workspace_id,
        connection_id=connection.id,
        secret_id=secret_id,
        state=error.state,
        aws_code=error.aws_code,
        request_id=error.receipt.request_id,
        found_by=found_by,
    )


def _span(name: str, connection: Connection, secret_id: UUID | None = None) -> AbstractContextManager[object]:
    return telemetry.span(
        name,
        broker__workspace=connection.workspace_id,
        broker__connection=str(connection.id),
        broker__secret=str(secret_id) if secret_id else None,
        aws__region=connection.region,
    )
