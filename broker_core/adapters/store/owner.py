"""What owners read of their secrets, and the rotation policy that they set: ``ports.OwnerStore``.

The status is derived from rows in SQL, so that a page of one status is one round trip; it says what ``model.status_of``
says (a contract test holds the two together), and is stored nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from broker_core.adapters.store.database import Database
from broker_core.adapters.store.inject import INTENT_COLUMNS
from broker_core.adapters.store.rows import CONNECTION_COLUMNS, CUSTOMER_SIDE, connection_from, injection_from
from broker_core.adapters.store.shared import check_workspace
from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import KeyState, NotFound, Receipt
from broker_core.model import Blob, CipherName, FoundBy, Purpose, SecretStatus
from broker_core.ports import FailureView, SecretView, StoredBlob, Use

#: ``model.status_of`` in SQL, over columns named as the fields of ``SecretFacts``
STATUS = """
    CASE WHEN failing AND has_blob THEN 'affected'
        WHEN lost_its_value THEN 'needs_reprovision'
        WHEN NOT has_blob THEN CASE WHEN is_waiting THEN 'pending' ELSE 'needs_reprovision' END
        WHEN NOT is_bound THEN 'unbound'
        WHEN healed_unchecked THEN 'rechecking'
        ELSE 'active' END"""

# ``newest`` is the event with the highest version above the blob's: what became of it says whether the value is on its
# way or lost. ``failure``: what blames the customer before what does not, the connection's before the secret's own.
_FACTS = f"""
    SELECT s.id, s.name, s.version, s.cipher, s.connection_id, s.injection_kind, s.binding_key, s.target_host,
        s.mcp_server_id, s.agent_id, s.rotation_policy, s.created_at, s.rotated_at, s.last_used_at, s.checked_at,
        failure.state AS failure_state, failure.aws_code AS failure_aws_code, failure.first_seen AS failing_since,
        failure.found_by AS failure_found_by,
        s.blob IS NOT NULL AS has_blob,
        s.injection_kind IS NOT NULL AS is_bound,
        EXISTS (
            SELECT FROM secret_events e
            WHERE e.workspace_id = s.workspace_id AND e.secret_id = s.id AND e.ended_at IS NULL) AS is_waiting,
        coalesce(newest.state IN ('expired', 'unreadable'), false) AS lost_its_value,
        coalesce(failure.blames_customer, false) AS failing,
        coalesce(s.checked_at < c.healed_at, c.healed_at IS NOT NULL) AS healed_unchecked
    FROM broker_secrets s
    LEFT JOIN byok_connections c ON c.workspace_id = s.workspace_id AND c.id = s.connection_id
    LEFT JOIN LATERAL (
        SELECT e.state FROM secret_events e
        WHERE e.workspace_id = s.workspace_id AND e.secret_id = s.id AND e.version > s.version
            AND e.state <> 'deleted'
        ORDER BY e.version DESC LIMIT 1) newest ON true
    LEFT JOIN LATERAL (
        SELECT f.state, f.aws_code, f.first_seen, f.found_by, f.state IN {CUSTOMER_SIDE} AS blames_customer,
            false AS is_own
        FROM decrypt_failures f
        WHERE f.workspace_id = s.workspace_id AND f.connection_id = s.connection_id AND f.secret_id IS NULL
            AND f.ended_at IS NULL
        UNION ALL
        SELECT f.state, f.aws_code, f.first_seen, f.found_by, f.state IN {CUSTOMER_SIDE}, true
        FROM decrypt_failures f
        WHERE f.workspace_id = s.workspace_id AND f.secret_id = s.id AND f.ended_at IS NULL
            AND f.connection_id IS NOT DISTINCT FROM s.connection_id
        ORDER BY blames_customer DESC, is_own LIMIT 1) failure ON true
    WHERE s.workspace_id = %(workspace_id)s AND s.deleted_at IS NULL"""
# OFFSET 0 keeps the planner from writing each subquery out once more for every mention of it in the status.
_SECRETS = f"""
    SELECT * FROM (
        SELECT v.*, {STATUS} AS status FROM (
            {_FACTS} AND (%(after)s::uuid IS NULL OR s.id > %(after)s) ORDER BY s.id OFFSET 0) v) v
    WHERE %(status)s::text IS NULL OR status = %(status)s
    ORDER BY id LIMIT %(limit)s"""
_SECRET = f"SELECT v.*, {STATUS} AS status FROM ({_FACTS} AND s.id = %(id)s) v"
_BLOB = f"""
    SELECT s.name, s.version, s.cipher, s.blob, {CONNECTION_COLUMNS}
    FROM broker_secrets s
    LEFT JOIN byok_connections c ON c.workspace_id = s.workspace_id AND c.id = s.connection_id
    WHERE s.workspace_id = %(workspace_id)s AND s.id = %(id)s AND s.blob IS NOT NULL"""
_SET_POLICY = """
    UPDATE broker_secrets SET rotation_policy = %(policy)s, policy_version = highest_version
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s AND deleted_at IS NULL
    RETURNING id"""

#: how far the clocks of our machines, which give audit rows their ids, may be from the database's
_CLOCKS_APART = timedelta(hours=1)
# Ids are UUIDv7, which begin with their time: bounds on them keep a narrow period from reading the whole log.
_USES = f"""
    SELECT {INTENT_COLUMNS}, outcome, code, aws_code, session_name, assume_request_id, kms_request_id, upstream_status,
        redactions, started_at, ended_at
    FROM audit_log
    WHERE workspace_id = %(workspace_id)s
        AND id > greatest(%(after)s::uuid, %(first_id)s) AND id <= %(last_id)s
        AND (%(since)s::timestamptz IS NULL OR started_at >= %(since)s)
        AND (%(until)s::timestamptz IS NULL OR started_at < %(until)s)
    ORDER BY id LIMIT %(limit)s"""
_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)


class OwnerSql:
    """``ports.OwnerStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def secrets(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        status: SecretStatus | None = None,
    ) -> Sequence[SecretView]:
        """See ``ports.OwnerStore``."""
        check_workspace(self._database, workspace_id)
        values = {"workspace_id": workspace_id, "after": after, "limit": limit, "status": status and status.value}
        return [_view_from(row) for row in self._database.run("secrets", _SECRETS, values)]

    def secret(self, workspace_id: str, secret_id: UUID) -> SecretView:
        """See ``ports.OwnerStore``."""
        rows = self._database.run("secret", _SECRET, {"workspace_id": workspace_id, "id": secret_id})
        if not rows:
            raise _no_secret()
        return _view_from(rows[0])

    def blob(self, workspace_id: str, secret_id: UUID) -> StoredBlob:
        """See ``ports.OwnerStore``."""
        rows = self._database.run("blob", _BLOB, {"workspace_id": workspace_id, "id": secret_id})
        if not rows:
            raise NotFound("no such secret, or no value of it is stored yet")
        row = rows[0]
        return StoredBlob(row.name, row.version, Blob(CipherName(row.cipher), row.blob), connection_from(row))

    def set_rotation_policy(self, workspace_id: str, secret_id: UUID, policy: str | None) -> None:
        """See ``ports.OwnerStore``."""
        values = {"workspace_id": workspace_id, "id": secret_id, "policy": policy}
        if not self._database.run("set_rotation_policy", _SET_POLICY, values):
            raise _no_secret()

    def uses(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[Use]:
        """See ``ports.OwnerStore``."""
        values = {
            "workspace_id": workspace_id,
            "after": after,
            "limit": limit,
            "since": since,
            "until": until,
            "first_id": _first_id(since) if since else _FIRST,
            "last_id": _last_id(until) if until else _LAST,
        }
        return [_use_from(row) for row in self._database.run("uses", _USES, values)]


def _no_secret() -> NotFound:
    return NotFound("no such secret")


def _first_id(since: datetime) -> UUID:
    """Below the id of whatever began then or later."""
    return UUID(int=_milliseconds(since.timestamp() - _CLOCKS_APART.total_seconds()) << 80)


def _last_id(until: datetime) -> UUID:
    """Above the id of whatever began before."""
    return UUID(int=(_milliseconds(until.timestamp() + _CLOCKS_APART.total_seconds()) + 1 << 80) - 1)


def _milliseconds(seconds: float) -> int:
    """Of a UUIDv7, which has 48 bits for them (RFC 9562, 5.7)."""
    return min(max(int(seconds * 1000), 0), 2**48 - 1)


def _use_from(row: Any) -> Use:
    fields = row._asdict()
    intent = {name: fields[name] for name in Intent.__dataclass_fields__}
    intent |= {"purpose": Purpose(row.purpose), "cipher": CipherName(row.cipher)}
    return Use(Intent(**intent), _result_from(row), row.started_at, row.ended_at)


def _result_from(row: Any) -> Result | None:
    if row.outcome is None:
        return None
    return Result(
        outcome=Outcome(row.outcome),
        code=row.code or "",
        aws_code=row.aws_code or "",
        receipt=Receipt(row.session_name, row.assume_request_id, row.kms_request_id),
        upstream_status=row.upstream_status,
        redactions=row.redactions,
    )


def _view_from(row: Any) -> SecretView:
    return SecretView(
        id=row.id,
        name=row.name,
        version=row.version,
        status=SecretStatus(row.status),
        cipher=CipherName(row.cipher) if row.cipher else None,
        connection_id=row.connection_id,
        injection=injection_from(row),
        rotation_policy=row.rotation_policy,
        created_at=row.created_at,
        rotated_at=row.rotated_at,
        last_used_at=row.last_used_at,
        last_checked_at=row.checked_at,
        failure=_failure_from(row),
    )


def _failure_from(row: Any) -> FailureView | None:
    if row.failure_state is None:
        return None
    return FailureView(
        KeyState(row.failure_state), row.failure_aws_code, row.failing_since, FoundBy(row.failure_found_by)
    )
