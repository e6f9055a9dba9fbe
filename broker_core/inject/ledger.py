"""Step 12 of an injection: every way out of it closes the audit rows, once (INV-5). Imports no library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from broker_core import telemetry
from broker_core.audit import Outcome, Result
from broker_core.errors import BrokerError, KeyServiceError
from broker_core.inject.uses import OneUse, failure_of, taken_for_ours
from broker_core.ports import FailureLog, InjectStore

_Done = TypeVar("_Done")


class Ledger:
    """Writes how uses ended: to the audit log, the record of failures, and the log."""

    def __init__(self, store: InjectStore, failures: FailureLog) -> None:
        self._store = store
        self._failures = failures

    def closing(self, uses: Sequence[OneUse], work: Callable[[], _Done], *, goes_on: bool = False) -> _Done:
        """Do it, and close the rows whatever happens. A foreign exception can hold the value in its text: it is let go
        before ours is raised. ``goes_on``: the uses are not over when the work is done."""
        try:
            done = work()
        except Exception as error:
            fault = self.failed(uses, error)
            if fault is error:
                raise
        else:
            if not goes_on:
                self.done(uses)
            return done
        raise fault

    def done(self, uses: Sequence[OneUse]) -> None:
        """They ended well."""
        self._end([(use, use.result(Outcome.OK)) for use in uses])

    def failed(self, uses: Sequence[OneUse], error: Exception) -> BrokerError:
        """Something ended them; returns what the caller may be told.

        The last one that was begun is the one that failed; what was decrypted before it is dropped, what would have
        come after it was never asked. What is taken for a fault of ours blames nobody (INV-8)."""
        told = error if isinstance(error, BrokerError) else BrokerError("a fault of ours; its audit row says how far")
        failed = next((use for use in reversed(uses) if use.is_begun), uses[0])
        self._end([(use, use.failed(told) if use is failed else use.abandoned()) for use in uses])
        if isinstance(told, KeyServiceError) and not self._failures.seen(failure_of(failed, told)):
            told = taken_for_ours(told)
        told.audit_id = failed.intent.id
        return told

    def _end(self, results: Sequence[tuple[OneUse, Result]]) -> None:
        """Write the outcomes. What is done is done: where they cannot be written the answer stands, and the reconciler
        closes the rows as ``unknown``, so that the log never claims less than what happened."""
        try:
            self._store.end_uses([(use.intent, result) for use, result in results])
        except Exception:  # noqa: BLE001 - whatever it is, it must not take the answer away
            telemetry.log().error("inject.outcome_lost", audit_ids=[str(use.intent.id) for use, _ in results])
        for use, result in results:
            telemetry.log().info(
                "inject.done",
                audit_id=str(use.intent.id),
                workspace_id=use.intent.workspace_id,
                secret_id=str(use.intent.secret_id),
                version=use.intent.version,
                kind=use.secret.injection.kind.value,
                outcome=result.outcome.value,
                code=result.code,
                status=result.upstream_status,
            )
