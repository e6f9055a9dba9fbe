"""What owners' reports read: ``ports.ReportStore``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from broker_core.adapters.store.database import Database
from broker_core.adapters.store.rows import ROTATION_DUE, injection_from
from broker_core.adapters.store.shared import check_workspace, no_workspace
from broker_core.errors import NotFound
from broker_core.ports import Cover, CoveredSecret, Drilled, DrilledSecret, OverdueSecret

# Every live secret once for each cover that it has; of several values that wait, the newest. A deleted workspace has
# none, and is told apart from an empty one by the outer join.
_COVERS = """
    SELECT c.cover, c.id, c.name, c.version, c.connection_id, c.event_id, c.held_until
    FROM workspaces w LEFT JOIN LATERAL (
        SELECT CASE WHEN s.cipher = 'platform' THEN 'platform' WHEN s.connection_id = w.connection_id THEN 'currentKey'
                ELSE 'olderConnections' END AS cover,
            s.id, s.name, s.version, s.connection_id, NULL::uuid AS event_id,
            NULL::timestamptz AS held_until
        FROM broker_secrets s
        WHERE s.workspace_id = w.id AND s.deleted_at IS NULL AND s.blob IS NOT NULL
        UNION ALL
        (SELECT DISTINCT ON (e.secret_id) 'held', e.secret_id, e.name, e.version, NULL::uuid, e.id, e.claim_expires_at
        FROM secret_events e
        WHERE e.workspace_id = w.id AND e.ended_at IS NULL
        ORDER BY e.secret_id, e.version DESC)) c ON true
    WHERE w.id = %(workspace_id)s AND w.deleted_at IS NULL"""
_COUNTS = f"SELECT cover, count(id) AS secrets FROM ({_COVERS}) covers GROUP BY cover"
_ITEMS = f"""
    SELECT * FROM ({_COVERS}) covers
    WHERE cover = %(cover)s AND (%(after)s::uuid IS NULL OR id > %(after)s) ORDER BY id LIMIT %(limit)s"""

_CONNECTION = "SELECT id FROM byok_connections WHERE workspace_id = %(workspace_id)s AND id = %(connection_id)s"
# Ids of the audit log are in order of time, so its index by workspace finds the period's rows at its end.
_DRILL = """
    WITH chosen AS (
        SELECT s.workspace_id, s.id, s.name, s.connection_id, s.injection_kind, s.binding_key, s.target_host,
            s.mcp_server_id, s.agent_id, s.last_used_at
        FROM broker_secrets s
        WHERE s.workspace_id = %(workspace_id)s AND s.connection_id IS NOT NULL AND s.deleted_at IS NULL
            AND (%(connection_id)s::uuid IS NULL OR s.connection_id = %(connection_id)s)),
    used AS (
        SELECT a.workspace_id, a.secret_id, count(*) AS uses,
            array_agg(DISTINCT array[a.agent_id, a.mcp_server_id]) AS callers
        FROM audit_log a
        WHERE a.workspace_id = %(workspace_id)s AND a.id >= %(first_id)s AND a.started_at >= %(since)s
            AND a.purpose = 'inject' AND a.outcome IN ('ok', 'upstream_failed', 'withheld')
        GROUP BY a.workspace_id, a.secret_id)
    SELECT c.*, coalesce(u.uses, 0) AS uses, u.callers, count(*) OVER () AS all_secrets,
        sum(u.uses) OVER () AS all_uses, count(u.uses) OVER () AS used_secrets
    FROM chosen c LEFT JOIN used u ON u.workspace_id = c.workspace_id AND u.secret_id = c.id
    ORDER BY coalesce(u.uses, 0) DESC, c.id LIMIT %(limit)s"""

_OVERDUE = f"""
    SELECT id, name, version, rotation_policy, {ROTATION_DUE} AS due_at, created_at, rotated_at FROM broker_secrets
    WHERE workspace_id = %(workspace_id)s AND deleted_at IS NULL AND {ROTATION_DUE} <= now()
        AND (%(after)s::uuid IS NULL OR id > %(after)s)
    ORDER BY id LIMIT %(limit)s"""


class ReportSql:
    """``ports.ReportStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def coverage(self, workspace_id: str) -> Mapping[Cover, int]:
        """See ``ports.ReportStore``."""
        rows = self._database.run("coverage", _COUNTS, {"workspace_id": workspace_id})
        if not rows:
            raise no_workspace()
        return dict.fromkeys(Cover, 0) | {Cover(row.cover): row.secrets for row in rows if row.cover}

    def covered(
        self, workspace_id: str, cover: Cover, *, after: UUID | None = None, limit: int = 50
    ) -> Sequence[CoveredSecret]:
        """See ``ports.ReportStore``."""
        check_workspace(self._database, workspace_id)
        values = {"workspace_id": workspace_id, "cover": cover.value, "after": after, "limit": limit}
        return [
            CoveredSecret(row.id, row.name, row.version, row.connection_id, row.event_id, row.held_until)
            for row in self._database.run("covered", _ITEMS, values)
        ]

    def drill(self, workspace_id: str, connection_id: UUID | None, since: datetime, limit: int) -> Drilled:
        """See ``ports.ReportStore``."""
        check_workspace(self._database, workspace_id)
        values = {
            "workspace_id": workspace_id,
            "connection_id": connection_id,
            "since": since,
            "first_id": _first_id(since),
            "limit": limit,
        }
        if connection_id is not None and not self._database.run("connection", _CONNECTION, values):
            raise NotFound("no such connection")
        rows = self._database.run("drill", _DRILL, values)
        if not rows:
            return Drilled(0, 0, 0, ())
        first = rows[0]
        return Drilled(first.all_secrets, int(first.all_uses or 0), first.used_secrets, [_drilled(row) for row in rows])

    def overdue(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[OverdueSecret]:
        """See ``ports.ReportStore``."""
        check_workspace(self._database, workspace_id)
        rows = self._database.run("overdue", _OVERDUE, {"workspace_id": workspace_id, "after": after, "limit": limit})
        return [
            OverdueSecret(
                secret_id=row.id,
                name=row.name,
                version=row.version,
                rotation_policy=row.rotation_policy,
                due_at=row.due_at,
                created_at=row.created_at,
                rotated_at=row.rotated_at,
            )
            for row in rows
        ]


def _first_id(moment: datetime) -> UUID:
    """Below every UUIDv7 that was made from this moment on (RFC 9562 §5.7: milliseconds in the first 48 bits); a minute
    earlier, since it is our processes' clocks that make ids and the database's that the time is of."""
    return UUID(int=(int(moment.timestamp() * 1000) - 60_000) << 80)


def _drilled(row: Any) -> DrilledSecret:
    return DrilledSecret(
        secret_id=row.id,
        name=row.name,
        connection_id=row.connection_id,
        injection=injection_from(row),
        uses=row.uses,
        callers=[(agent, server) for agent, server in row.callers or ()],
        last_used_at=row.last_used_at,
    )
