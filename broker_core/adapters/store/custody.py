"""The store's part in custody and in reconciling: ``ports.CustodyStore`` and ``ports.ReconcileStore``.

Custody costs three round trips: ``begin`` (one statement), then the transaction's two batches: lock and read, write and
commit. The lock order is workspace, secret, event, here as everywhere.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from broker_core.adapters.store.database import Database, Row, Statement
from broker_core.adapters.store.notices import TELL_LOST
from broker_core.adapters.store.rows import (
    CONNECTION_COLUMNS,
    EVENT_COLUMNS,
    event_from,
    injection_values,
    result_values,
    setting_from,
)
from broker_core.adapters.store.shared import CLOSE_SECRET_FAILURES
from broker_core.audit import Outcome, Result
from broker_core.model import Blob, EventState, EventType
from broker_core.ports import Attempt, Housekeeping, Ring

#: seconds after which the reconciler rings again for an attempt that did not report back
ATTEMPT_SECONDS = 60
#: rows that one run of the reconciler expires, and closes; the next run comes in seconds
MOST_AT_ONCE = 5000

# One crash is counted in ATTEMPT_SECONDS, however many messages come: who can write to the queue can ring a hundred
# times while an attempt is under way, and must not end the event as one that kills its workers.
_COUNTS = f"""(attempts = 0 OR begun_at IS NULL OR begun_at <= now() - make_interval(secs => {ATTEMPT_SECONDS}))"""
# The message carries an id and no workspace; from here on, each part is reached through the event's own.
_BEGIN = f"""
    WITH e AS (
        UPDATE secret_events
        SET attempts = attempts + {_COUNTS}::int, begun_at = CASE WHEN {_COUNTS} THEN now() ELSE begun_at END,
            ring_at = now() + make_interval(secs => {ATTEMPT_SECONDS})
        WHERE id = %(event_id)s AND ended_at IS NULL AND claim_expires_at > now()
        RETURNING *),
    intent AS (
        INSERT INTO audit_log
            (id, workspace_id, purpose, cipher, connection_id, secret_id, secret_name, version, event_id)
        SELECT %(audit_id)s, e.workspace_id, 'encrypt',
            CASE WHEN w.connection_id IS NULL THEN 'platform' ELSE 'kms' END, w.connection_id, e.secret_id, e.name,
            e.version, e.id
        FROM e JOIN workspaces w ON w.id = e.workspace_id)
    SELECT {EVENT_COLUMNS}, e.claim_key, e.attempts, w.setting_version, {CONNECTION_COLUMNS},
        s.version AS secret_version
    FROM e
    JOIN workspaces w ON w.id = e.workspace_id
    JOIN broker_secrets s ON s.workspace_id = e.workspace_id AND s.id = e.secret_id
    LEFT JOIN byok_connections c ON c.workspace_id = w.id AND c.id = w.connection_id"""

_LOCK_SETTING = "SELECT setting_version FROM workspaces WHERE id = %(workspace_id)s FOR SHARE"
# NO KEY: a proof or a re-encryption that begins holds the key of every secret, for seconds.
_LOCK_SECRET = """
    SELECT version FROM broker_secrets
    WHERE workspace_id = %(workspace_id)s AND id = %(secret_id)s FOR NO KEY UPDATE"""
_LOCK_EVENT = "SELECT state FROM secret_events WHERE workspace_id = %(workspace_id)s AND id = %(event_id)s FOR UPDATE"

_STORE_BLOB = """
    UPDATE broker_secrets
    SET version = %(version)s, blob = %(blob)s, cipher = %(cipher)s, connection_id = %(connection_id)s,
        rotation_policy = CASE WHEN policy_version < %(version)s THEN coalesce(%(rotation_policy)s, rotation_policy)
            ELSE rotation_policy END, rotated_at = now(), checked_at = now(),
        check_lease_until = NULL
    WHERE workspace_id = %(workspace_id)s AND id = %(secret_id)s"""
# Fields follow the highest event that set them, whatever the order of arrival: a superseded event may still fill them.
_FILL_FIELDS = """
    UPDATE broker_secrets
    SET injection_kind = %(injection_kind)s, binding_key = %(binding_key)s, target_host = %(target_host)s,
        mcp_server_id = %(mcp_server_id)s, agent_id = %(agent_id)s, fields_version = %(version)s,
        rotation_policy = CASE WHEN policy_version < %(version)s THEN coalesce(rotation_policy, %(rotation_policy)s)
            ELSE rotation_policy END
    WHERE workspace_id = %(workspace_id)s AND id = %(secret_id)s AND fields_version < %(version)s
        AND deleted_at IS NULL"""
_END_EVENT = f"""
    WITH ended AS (
        UPDATE secret_events SET state = %(state)s, reason = %(reason)s, aws_code = %(aws_code)s, claim_key = NULL,
            ended_at = now()
        WHERE workspace_id = %(workspace_id)s AND id = %(event_id)s AND ended_at IS NULL
        RETURNING *),
    {TELL_LOST}
    SELECT id FROM ended"""
_END_AUDIT = """
    UPDATE audit_log SET outcome = %(outcome)s, code = %(code)s, aws_code = %(aws_code)s,
        cipher = coalesce(%(cipher)s, cipher), session_name = %(session_name)s,
        assume_request_id = %(assume_request_id)s, kms_request_id = %(kms_request_id)s, ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND id = %(audit_id)s AND outcome IS NULL"""
# An attempt that starts over has reported back: only crashes count.
_NO_CRASH = """
    UPDATE secret_events SET attempts = 0
    WHERE workspace_id = %(workspace_id)s AND id = %(event_id)s AND ended_at IS NULL"""
_HOLD_EVENT = """
    WITH e AS (
        UPDATE secret_events
        SET state = CASE WHEN state = 'refused' THEN state ELSE %(state)s END, reason = %(code)s,
            aws_code = %(aws_code)s, attempts = 0, ring_at = now() + make_interval(secs => %(retry_seconds)s)
        WHERE workspace_id = %(workspace_id)s AND id = %(event_id)s AND ended_at IS NULL),
    probe AS (
        UPDATE byok_connections SET next_probe_at = least(next_probe_at, now())
        WHERE workspace_id = %(workspace_id)s AND id = %(connection_id)s AND %(state)s = 'refused')
    UPDATE audit_log SET outcome = %(outcome)s, code = %(code)s, aws_code = %(aws_code)s,
        session_name = %(session_name)s, assume_request_id = %(assume_request_id)s,
        kms_request_id = %(kms_request_id)s, ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND id = %(audit_id)s AND outcome IS NULL"""

# These serve every workspace: they skip what is locked, and take no more than a statement has time for. ARRAY(…) is
# evaluated once; with IN (…) a plan may run the subquery for each row, and then SKIP LOCKED goes past the limit.
_EXPIRE = f"""
    WITH ended AS (
        UPDATE secret_events SET state = 'expired', reason = 'claim_time_over', claim_key = NULL, ended_at = now()
        WHERE id = ANY(ARRAY(
            SELECT id FROM secret_events WHERE ended_at IS NULL AND claim_expires_at <= now()
            ORDER BY claim_expires_at LIMIT {MOST_AT_ONCE} FOR UPDATE SKIP LOCKED))
        RETURNING *),
    {TELL_LOST}
    SELECT id FROM ended"""
_CLOSE_UNKNOWN = f"""
    UPDATE audit_log SET outcome = 'unknown', ended_at = now()
    WHERE id = ANY(ARRAY(
        SELECT id FROM audit_log WHERE outcome IS NULL AND started_at < now() - make_interval(secs => %(grace_seconds)s)
        ORDER BY started_at LIMIT {MOST_AT_ONCE} FOR UPDATE SKIP LOCKED))
    RETURNING id"""
_TO_RING = f"""
    UPDATE secret_events SET ring_at = now() + make_interval(secs => {ATTEMPT_SECONDS})
    WHERE id = ANY(ARRAY(
        SELECT id FROM secret_events WHERE ended_at IS NULL AND ring_at <= now()
        ORDER BY ring_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    RETURNING type, id, traceparent"""


class CustodySql:
    """``ports.CustodyStore`` and ``ports.ReconcileStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, event_id: UUID, audit_id: UUID) -> Attempt | None:
        """See ``ports.CustodyStore``."""
        rows = self._database.run("begin_custody", _BEGIN, {"event_id": event_id, "audit_id": audit_id})
        return _attempt_from(rows[0], audit_id) if rows else None

    def keep(self, attempt: Attempt, blob: Blob, result: Result) -> EventState | None:
        """See ``ports.CustodyStore``."""
        values = _values(attempt) | result_values(result) | {"cipher": blob.cipher.value, "blob": blob.ciphertext}
        with self._database.transaction("keep") as transaction:
            (setting,), (secret,), (event,) = transaction.batch(
                (_LOCK_SETTING, values), (_LOCK_SECRET, values), (_LOCK_EVENT, values)
            )
            if EventState(event.state).is_end:
                transaction.commit((_END_AUDIT, values | {"outcome": Outcome.OK.value, "code": event.state}))
                return EventState(event.state)
            if setting.setting_version != attempt.setting.version:
                transaction.commit((_NO_CRASH, values), (_END_AUDIT, values | {"code": "setting_changed"}))
                return None
            state = EventState.STORED if secret.version < attempt.event.version else EventState.SUPERSEDED
            transaction.commit(*_writes(attempt, values, state))
            return state

    def end(self, attempt: Attempt, state: EventState, reason: str, result: Result) -> None:
        """See ``ports.CustodyStore``."""
        values = _values(attempt) | result_values(result) | {"cipher": None, "state": state.value, "reason": reason}
        with self._database.transaction("end_custody") as transaction:
            transaction.batch((_LOCK_SETTING, values), (_LOCK_SECRET, values), (_LOCK_EVENT, values))
            fields = _fields(attempt, values) if state is EventState.SUPERSEDED else ()
            transaction.commit(*fields, (_END_EVENT, values), (_END_AUDIT, values))

    def hold(self, attempt: Attempt, state: EventState, result: Result, retry_seconds: float) -> None:
        """See ``ports.CustodyStore``."""
        values = _values(attempt) | result_values(result)
        self._database.run("hold", _HOLD_EVENT, values | {"state": state.value, "retry_seconds": retry_seconds})

    def reconcile(self, limit: int, grace_seconds: float) -> Housekeeping:
        """See ``ports.ReconcileStore``."""
        expired = self._database.run("expire", _EXPIRE, {})
        unknown = self._database.run("close_unknown", _CLOSE_UNKNOWN, {"grace_seconds": grace_seconds})
        ring = self._database.run("to_ring", _TO_RING, {"limit": limit})
        return Housekeeping(
            [Ring(EventType(row.type), row.id, row.traceparent) for row in ring], len(expired), len(unknown)
        )


def _writes(attempt: Attempt, values: dict[str, Any], state: EventState) -> list[Statement]:
    ended = values | {"state": state.value, "reason": None}
    writes: list[Statement] = []
    if state is EventState.STORED:
        writes += [(_STORE_BLOB, values), (CLOSE_SECRET_FAILURES, values)]
    return [*writes, *_fields(attempt, values), (_END_EVENT, ended), (_END_AUDIT, values)]


def _fields(attempt: Attempt, values: dict[str, Any]) -> tuple[Statement, ...]:
    return ((_FILL_FIELDS, values),) if attempt.event.injection else ()


def _values(attempt: Attempt) -> dict[str, Any]:
    event, connection = attempt.event, attempt.setting.connection
    return {
        "workspace_id": event.workspace_id,
        "event_id": event.id,
        "secret_id": event.secret_id,
        "audit_id": attempt.audit_id,
        "version": event.version,
        "rotation_policy": event.rotation_policy,
        "connection_id": connection.id if connection else None,
        **injection_values(event.injection),
    }


def _attempt_from(row: Row, audit_id: UUID) -> Attempt:
    return Attempt(
        audit_id=audit_id,
        event=event_from(row),
        claim_key=row.claim_key,
        attempts=row.attempts,
        setting=setting_from(row),
        secret_version=row.secret_version,
    )
