"""What owners read of their secrets: ``ports.OwnerStore``. The status is derived here from rows, and stored nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from broker_core.adapters.store.database import Database
from broker_core.adapters.store.inject import INTENT_COLUMNS
from broker_core.adapters.store.rows import CUSTOMER_SIDE, injection_from
from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import NotFound, Receipt
from broker_core.model import CipherName, Purpose, SecretFacts, status_of
from broker_core.ports import SecretView, Use

_WORKSPACE = "SELECT id FROM workspaces WHERE id = %(workspace_id)s AND deleted_at IS NULL"
# ``newest`` is the event with the highest version above the blob's: what became of it says whether the value is on its
# way or lost.
_SECRETS = f"""
    SELECT s.id, s.name, s.version, s.cipher, s.connection_id, s.injection_kind, s.binding_key, s.target_host,
        s.mcp_server_id, s.agent_id, s.rotation_policy, s.created_at, s.rotated_at, s.last_used_at, s.checked_at,
        s.blob IS NOT NULL AS has_blob,
        EXISTS (
            SELECT FROM secret_events e
            WHERE e.workspace_id = s.workspace_id AND e.secret_id = s.id AND e.ended_at IS NULL) AS is_waiting,
        coalesce(newest.state IN ('expired', 'unreadable'), false) AS lost_its_value,
        EXISTS (
            SELECT FROM decrypt_failures f
            WHERE f.workspace_id = s.workspace_id AND f.connection_id = s.connection_id AND f.ended_at IS NULL
                AND (f.secret_id IS NULL OR f.secret_id = s.id)
                AND f.state IN {CUSTOMER_SIDE}) AS failing,
        coalesce(s.checked_at < c.healed_at, c.healed_at IS NOT NULL) AS healed_unchecked
    FROM broker_secrets s
    LEFT JOIN byok_connections c ON c.workspace_id = s.workspace_id AND c.id = s.connection_id
    LEFT JOIN LATERAL (
        SELECT e.state FROM secret_events e
        WHERE e.workspace_id = s.workspace_id AND e.secret_id = s.id AND e.version > s.version
            AND e.state <> 'deleted'
        ORDER BY e.version DESC LIMIT 1) newest ON true
    WHERE s.workspace_id = %(workspace_id)s AND s.deleted_at IS NULL AND (%(after)s::uuid IS NULL OR s.id > %(after)s)
    ORDER BY s.id LIMIT %(limit)s"""


_USES = f"""
    SELECT {INTENT_COLUMNS}, outcome, code, aws_code, session_name, assume_request_id, kms_request_id, upstream_status,
        redactions, started_at, ended_at
    FROM audit_log
    WHERE workspace_id = %(workspace_id)s AND (%(after)s::uuid IS NULL OR id > %(after)s)
    ORDER BY id LIMIT %(limit)s"""


class OwnerSql:
    """``ports.OwnerStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def secrets(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[SecretView]:
        """See ``ports.OwnerStore``."""
        if not self._database.run("workspace", _WORKSPACE, {"workspace_id": workspace_id}):
            raise NotFound("no such workspace; the platform creates workspaces")
        values = {"workspace_id": workspace_id, "after": after, "limit": limit}
        return [_view_from(row) for row in self._database.run("secrets", _SECRETS, values)]

    def uses(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[Use]:
        """See ``ports.OwnerStore``."""
        values = {"workspace_id": workspace_id, "after": after, "limit": limit}
        return [_use_from(row) for row in self._database.run("uses", _USES, values)]


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
    injection = injection_from(row)
    facts = SecretFacts(
        has_blob=row.has_blob,
        is_bound=injection is not None,
        is_waiting=row.is_waiting,
        lost_its_value=row.lost_its_value,
        failing=row.failing,
        healed_unchecked=row.healed_unchecked,
    )
    return SecretView(
        id=row.id,
        name=row.name,
        version=row.version,
        status=status_of(facts),
        cipher=CipherName(row.cipher) if row.cipher else None,
        connection_id=row.connection_id,
        injection=injection,
        rotation_policy=row.rotation_policy,
        created_at=row.created_at,
        rotated_at=row.rotated_at,
        last_used_at=row.last_used_at,
        last_checked_at=row.checked_at,
    )
