"""CustodyStore and ReconcileStore: compare-and-set, ends, the doorbell rung again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from broker_core.audit import Intent, Outcome, Result
from broker_core.model import TRANSITIONS, WAITING, Blob, CipherName, EventState, Purpose
from broker_core.ports import Attempt, Housekeeping, Ring
from tests.fakes_store_parts.rows import EventRow, Rows, SecretRow


class CustodyRoom(Rows):
    """See ``broker_core.ports.CustodyStore`` and ``ReconcileStore``."""

    def begin(self, event_id: UUID, audit_id: UUID) -> Attempt | None:
        with self._transaction(audits=True) as now:
            row = self._events.get(event_id)
            if row is None or row.state.is_end or row.claim_expires_at is None or row.claim_expires_at <= now:
                return None
            secret = self._secrets[row.secret_id]
            setting = self._setting(self._workspace(row.workspace_id))
            self._begin_use(_intent(audit_id, row, setting.connection.id if setting.connection else None), now)
            lease = timedelta(seconds=self._lease_seconds)
            if row.attempts == 0 or row.begun_at is None or row.begun_at <= now - lease:
                row.attempts, row.begun_at = row.attempts + 1, now
            row.ring_at = now + timedelta(seconds=self._lease_seconds)
            return Attempt(
                audit_id=audit_id,
                event=row.snapshot(),
                claim_key=row.claim_key,
                attempts=row.attempts,
                setting=setting,
                secret_version=secret.version,
            )

    def keep(self, attempt: Attempt, blob: Blob, result: Result) -> EventState | None:
        with self._transaction() as now:
            use, row = self._uses[attempt.audit_id], self._events[attempt.event.id]
            use.intent = replace(use.intent, cipher=blob.cipher)
            if row.state.is_end:
                self._end_use(attempt.audit_id, replace(result, code=row.state.value))
                return row.state
            if self._workspace(row.workspace_id).setting_version != attempt.setting.version:
                self._end_use(attempt.audit_id, replace(result, code="setting_changed"))
                row.attempts = 0
                return None
            self._end_use(attempt.audit_id, result)
            secret = self._secrets[row.secret_id]
            state = EventState.SUPERSEDED
            if secret.version < row.version:
                self._put_blob(secret, row.version, blob, attempt, now)
                if row.version > secret.policy_version:
                    secret.rotation_policy = row.rotation_policy or secret.rotation_policy
                state = EventState.STORED
            _fill_fields(secret, row)
            row.finish(state, None, now)
            return state

    def end(self, attempt: Attempt, state: EventState, reason: str, result: Result) -> None:
        with self._transaction() as now:
            if not state.is_end or state is EventState.STORED:
                raise ValueError("end() is for an end without a blob")
            self._end_use(attempt.audit_id, result)
            row = self._events[attempt.event.id]
            if row.state.is_end:
                return
            if state is EventState.SUPERSEDED:
                _fill_fields(self._secrets[row.secret_id], row)
            row.finish(state, reason, now)
            self._tell_lost([row], now)

    def hold(self, attempt: Attempt, state: EventState, result: Result, retry_seconds: float) -> None:
        with self._transaction() as now:
            if state not in WAITING:
                raise ValueError("hold() leaves an event waiting")
            self._end_use(attempt.audit_id, result)
            use, row = self._uses[attempt.audit_id], self._events[attempt.event.id]
            if row.state.is_end:
                return
            if state in TRANSITIONS[row.state]:
                row.state = state
            row.reason, row.attempts = result.code or None, 0
            row.ring_at = now + timedelta(seconds=retry_seconds)
            connection = self._connection(row.workspace_id, use.intent.connection_id)
            if state is EventState.REFUSED and connection is not None:  # ask with the canary whether it is the key
                connection.next_probe_at = min(connection.next_probe_at, now)

    def reconcile(self, limit: int, grace_seconds: float) -> Housekeeping:
        with self._transaction() as now:
            expired = [row for row in self._events.values() if not row.state.is_end and _is_over(row, now)]
            for row in expired:
                row.finish(EventState.EXPIRED, "claim_time_over", now)
            self._tell_lost(expired, now)
            unknown = [
                use
                for use in self._uses.values()
                if use.result is None and use.started_at + timedelta(seconds=grace_seconds) < now
            ]
            for use in unknown:
                use.result, use.ended_at = Result(Outcome.UNKNOWN), now
            due = [row for row in self._events.values() if not row.state.is_end and row.ring_at <= now]
            rung = sorted(due, key=lambda row: row.ring_at)[:limit]
            for row in rung:
                row.ring_at = now + timedelta(seconds=self._lease_seconds)
            return Housekeeping([Ring(row.type, row.id, row.traceparent) for row in rung], len(expired), len(unknown))

    def _put_blob(self, secret: SecretRow, version: int, blob: Blob, attempt: Attempt, now: datetime) -> None:
        connection = attempt.setting.connection
        if (blob.cipher is CipherName.PLATFORM) != (connection is None):
            raise ValueError("the blob was not encrypted under the setting that it is kept under")  # INV-3
        self._close_own(secret, now)
        secret.version, secret.blob = version, blob
        secret.connection_id = connection.id if connection else None
        secret.rotated_at, secret.checked_at, secret.check_lease_until = now, now, None


def _is_over(row: EventRow, now: datetime) -> bool:
    return row.claim_expires_at is not None and row.claim_expires_at <= now


def _fill_fields(secret: SecretRow, row: EventRow) -> None:
    """Set what no later event has set; a tombstone counts as one that set them."""
    if row.injection is None or row.version <= secret.fields_version or secret.deleted_at is not None:
        return
    secret.injection, secret.fields_version = row.injection, row.version
    if row.version > secret.policy_version:
        secret.rotation_policy = secret.rotation_policy or row.rotation_policy


def _intent(audit_id: UUID, row: EventRow, connection_id: UUID | None) -> Intent:
    return Intent(
        id=audit_id,
        workspace_id=row.workspace_id,
        purpose=Purpose.ENCRYPT,
        cipher=CipherName.KMS if connection_id else CipherName.PLATFORM,
        connection_id=connection_id,
        secret_id=row.secret_id,
        secret_name=row.name,
        version=row.version,
        event_id=row.id,
    )
