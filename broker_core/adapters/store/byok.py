"""The store's part in setting BYOK up and in what owners see: ``ports.ByokStore``.

Enabling, changing and disabling take the workspace's row ``FOR UPDATE`` and count its setting's version up: custody,
which holds it ``FOR SHARE`` while it stores, sees either the old setting or the new one, never half of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker_core.adapters.store.database import Database
from broker_core.adapters.store.rows import CONNECTION_COLUMNS, CUSTOMER_SIDE, setting_from, steps_from, steps_json
from broker_core.adapters.store.shared import WORKSPACE, no_workspace
from broker_core.errors import Conflict, KeyState
from broker_core.model import (
    Blob,
    Connection,
    ConnectionStatus,
    FoundBy,
    Plan,
    Setting,
    StepResult,
    parse_key_arn,
)
from broker_core.ports import Affected, AffectedConnection, AffectedSecret, ConnectionView

_SETTING = f"""
    SELECT w.id AS workspace_id, w.plan, w.setting_version, {CONNECTION_COLUMNS}
    FROM workspaces w LEFT JOIN byok_connections c ON c.workspace_id = w.id AND c.id = w.connection_id
    WHERE w.id = %(workspace_id)s AND w.deleted_at IS NULL"""
_PUT_WORKSPACE = """
    INSERT INTO workspaces (id, plan) VALUES (%(workspace_id)s, %(plan)s)
    ON CONFLICT (id) DO UPDATE SET plan = EXCLUDED.plan WHERE workspaces.deleted_at IS NULL
    RETURNING id"""
_LOCK = """
    SELECT plan, setting_version, connection_id FROM workspaces
    WHERE id = %(workspace_id)s AND deleted_at IS NULL FOR UPDATE"""
# In the order that locks are taken everywhere: workspace, secret, event, then failures and connections.
_DELETE_WORKSPACE = (
    """UPDATE workspaces SET deleted_at = now(), connection_id = NULL, setting_version = setting_version + 1
    WHERE id = %(workspace_id)s""",
    """UPDATE broker_secrets SET deleted_at = coalesce(deleted_at, now()), blob = NULL, cipher = NULL,
        connection_id = NULL, version = highest_version
    WHERE workspace_id = %(workspace_id)s""",
    """UPDATE secret_events SET state = 'deleted', reason = 'workspace_deleted', claim_key = NULL, ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND ended_at IS NULL RETURNING claim_id""",
    """UPDATE decrypt_failures SET ended_at = now() WHERE workspace_id = %(workspace_id)s AND ended_at IS NULL""",
    """UPDATE byok_connections SET status = 'retired' WHERE workspace_id = %(workspace_id)s AND status = 'current'""",
)
_OWN_EXTERNAL_ID = """
    INSERT INTO external_ids (external_id, workspace_id) VALUES (%(external_id)s, %(workspace_id)s)
    ON CONFLICT (external_id) DO UPDATE SET workspace_id = EXCLUDED.workspace_id
        WHERE external_ids.workspace_id = EXCLUDED.workspace_id
    RETURNING external_id"""
# At most one is pending: what an attempt that was not enabled has left goes with the next. Nothing points at it.
_DROP_PENDING = "DELETE FROM byok_connections WHERE workspace_id = %(workspace_id)s AND status = 'pending'"
_ADD_PENDING = """
    INSERT INTO byok_connections (id, workspace_id, role_arn, external_id, key_arn, status)
    VALUES (%(id)s, %(workspace_id)s, %(role_arn)s, %(external_id)s, %(key_arn)s, 'pending')"""
_RETIRE = "UPDATE byok_connections SET status = 'retired' WHERE workspace_id = %(workspace_id)s AND status = 'current'"
_IS_PENDING = """
    SELECT id FROM byok_connections
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s AND status = 'pending'"""
_VERIFIED = """
    UPDATE byok_connections SET status = 'current', verified_at = now(), canary = %(canary)s, steps = %(steps)s,
        next_probe_at = now() + interval '1 minute', next_refusals_at = now() + interval '1 day'
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s"""
_NOTE = """
    UPDATE byok_connections SET steps = %(steps)s,
        verified_at = CASE WHEN %(passed)s THEN now() ELSE verified_at END,
        flagged_at = CASE WHEN %(flag)s::boolean THEN coalesce(flagged_at, now())
            WHEN NOT %(flag)s::boolean THEN NULL ELSE flagged_at END
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s"""
_POINT = """
    UPDATE workspaces SET connection_id = %(id)s, setting_version = setting_version + 1 WHERE id = %(workspace_id)s"""

# The flag counts only where nothing worse is open: what fails is to be mended first.
_CONNECTIONS = f"""
    SELECT {CONNECTION_COLUMNS}, c.status, c.created_at, c.verified_at, c.steps,
        CASE WHEN c.status = 'pending' THEN 'unverified' WHEN f.id IS NOT NULL THEN f.state
            WHEN c.flagged_at IS NOT NULL THEN 'flagged' ELSE 'healthy' END AS health,
        CASE WHEN c.status = 'pending' THEN NULL ELSE coalesce(f.first_seen, c.flagged_at) END AS health_since,
        (SELECT count(*) FROM broker_secrets s
            WHERE s.workspace_id = c.workspace_id AND s.connection_id = c.id) AS needed_by,
        CASE WHEN c.status = 'current' THEN (SELECT count(*) FROM secret_events e
            WHERE e.workspace_id = c.workspace_id AND e.ended_at IS NULL) ELSE 0 END AS waiting,
        c.retired_at
    FROM byok_connections c
    LEFT JOIN decrypt_failures f ON f.workspace_id = c.workspace_id AND f.connection_id = c.id
        AND f.secret_id IS NULL AND f.ended_at IS NULL
    WHERE c.workspace_id = %(workspace_id)s
    ORDER BY array_position(ARRAY['current', 'pending', 'retired'], c.status), c.created_at DESC, c.id DESC"""

# A connection that began to fail between the two statements would hide the secrets that failed on their own before.
_ONE_MOMENT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
# A retired connection that no blob needs is nobody's trouble any more, and is not probed either.
_AFFECTED_CONNECTIONS = f"""
    SELECT f.connection_id, f.state, f.aws_code, f.first_seen, f.found_by, s.id AS secret_id, s.name
    FROM decrypt_failures f
    JOIN byok_connections c ON c.workspace_id = f.workspace_id AND c.id = f.connection_id
    LEFT JOIN broker_secrets s ON s.workspace_id = f.workspace_id AND s.connection_id = f.connection_id
    WHERE f.workspace_id = %(workspace_id)s AND f.secret_id IS NULL AND f.ended_at IS NULL
        AND f.state IN {CUSTOMER_SIDE} AND (c.status = 'current' OR s.id IS NOT NULL)
    ORDER BY f.first_seen, f.connection_id, s.name"""
_AFFECTED_SECRETS = f"""
    SELECT s.id AS secret_id, s.name, f.state, f.aws_code, f.first_seen, f.found_by
    FROM decrypt_failures f
    JOIN broker_secrets s
        ON s.workspace_id = f.workspace_id AND s.id = f.secret_id AND s.connection_id = f.connection_id
    WHERE f.workspace_id = %(workspace_id)s AND f.ended_at IS NULL AND f.state IN {CUSTOMER_SIDE}
        AND NOT EXISTS (
            SELECT FROM decrypt_failures g WHERE g.workspace_id = f.workspace_id AND g.connection_id = f.connection_id
                AND g.secret_id IS NULL AND g.ended_at IS NULL AND g.state IN {CUSTOMER_SIDE})
    ORDER BY s.name"""


class ByokSql:
    """``ports.ByokStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def setting(self, workspace_id: str) -> Setting:
        """See ``ports.ByokStore``."""
        return setting_from(self._workspace(workspace_id))

    def plan_of(self, workspace_id: str) -> str:
        """See ``ports.ByokStore``."""
        plan: str = self._workspace(workspace_id).plan
        return plan

    def put_workspace(self, workspace_id: str, plan: str) -> None:
        """See ``ports.ByokStore``."""
        if not self._database.run("put_workspace", _PUT_WORKSPACE, {"workspace_id": workspace_id, "plan": plan}):
            raise Conflict("this workspace was deleted; its id is never used again")

    def delete_workspace(self, workspace_id: str) -> Sequence[str]:
        """See ``ports.ByokStore``."""
        values = {"workspace_id": workspace_id}
        with self._database.transaction("delete_workspace") as transaction:
            (found,) = transaction.batch((_LOCK, values))
            if not found:
                raise no_workspace()
            _, _, ended, _, _ = transaction.commit(*((sql, values) for sql in _DELETE_WORKSPACE))
        return [row.claim_id for row in ended]

    def add_pending(self, connection: Connection) -> None:
        """See ``ports.ByokStore``."""
        values = _values(connection)
        with self._database.transaction("add_pending") as transaction:
            (found,) = transaction.batch((_LOCK, values))
            if not found:
                raise no_workspace()
            (owned,) = transaction.batch((_OWN_EXTERNAL_ID, values))
            if not owned:
                raise Conflict("this external id cannot be used; choose another")
            transaction.commit((_DROP_PENDING, values), (_ADD_PENDING, values))

    def make_current(
        self, connection: Connection, canary: Blob, setting_version: int, steps: Sequence[StepResult] = ()
    ) -> bool:
        """See ``ports.ByokStore``."""
        values = _values(connection) | {"canary": canary.ciphertext, "steps": steps_json(steps)}
        with self._database.transaction("make_current") as transaction:
            found, pending = transaction.batch((_LOCK, values), (_IS_PENDING, values))
            is_same = bool(found) and (found[0].setting_version, found[0].plan) == (setting_version, Plan.ENTERPRISE)
            if not is_same or not pending:
                return False
            transaction.commit((_RETIRE, values), (_VERIFIED, values), (_POINT, values))
        return True

    def note_verification(
        self, connection: Connection, steps: Sequence[StepResult], *, passed: bool, flag: bool | None
    ) -> None:
        """See ``ports.ByokStore``."""
        values = _values(connection) | {"steps": steps_json(steps), "passed": passed, "flag": flag}
        self._database.run("note_verification", _NOTE, values)

    def connections(self, workspace_id: str) -> Sequence[ConnectionView]:
        """See ``ports.ByokStore``."""
        self._workspace(workspace_id)
        rows = self._database.run("connections", _CONNECTIONS, {"workspace_id": workspace_id})
        return [_view_from(row) for row in rows]

    def disconnect(self, workspace_id: str) -> None:
        """See ``ports.ByokStore``."""
        values = {"workspace_id": workspace_id, "id": None}
        with self._database.transaction("disconnect") as transaction:
            (found,) = transaction.batch((_LOCK, values))
            if not found:
                raise no_workspace()
            if found[0].connection_id is None:
                raise Conflict("BYOK is not connected")
            transaction.commit((_RETIRE, values), (_POINT, values))

    def affected(self, workspace_id: str) -> Affected:
        """See ``ports.ByokStore``."""
        values = {"workspace_id": workspace_id}
        with self._database.transaction("affected") as transaction:
            _, workspaces, secrets, connections = transaction.commit(
                (_ONE_MOMENT, {}), (WORKSPACE, values), (_AFFECTED_SECRETS, values), (_AFFECTED_CONNECTIONS, values)
            )
        if not workspaces:
            raise no_workspace()
        return Affected(_connections_from(connections), [_secret_from(row) for row in secrets])

    def _workspace(self, workspace_id: str) -> Any:
        rows = self._database.run("setting", _SETTING, {"workspace_id": workspace_id})
        if not rows:
            raise no_workspace()
        return rows[0]


def _connections_from(rows: Sequence[Any]) -> list[AffectedConnection]:
    grouped: dict[Any, list[Any]] = {}
    for row in rows:
        grouped.setdefault(row.connection_id, []).append(row)
    return [
        AffectedConnection(
            connection_id=connection_id,
            state=KeyState(group[0].state),
            aws_code=group[0].aws_code,
            since=group[0].first_seen,
            found_by=FoundBy(group[0].found_by),
            secrets=[(row.secret_id, row.name) for row in group if row.secret_id is not None],
        )
        for connection_id, group in grouped.items()
    ]


def _view_from(row: Any) -> ConnectionView:
    return ConnectionView(
        id=row.connection_id,
        status=ConnectionStatus(row.status),
        role_arn=row.role_arn,
        key_arn=row.key_arn,
        region=parse_key_arn(row.key_arn).region,
        external_id=row.external_id,
        created_at=row.created_at,
        verified_at=row.verified_at,
        health=row.health,
        health_since=row.health_since,
        steps=steps_from(row.steps),
        needed_by=row.needed_by,
        waiting=row.waiting,
        retired_at=row.retired_at,
    )


def _secret_from(row: Any) -> AffectedSecret:
    return AffectedSecret(
        row.secret_id, row.name, KeyState(row.state), row.aws_code, row.first_seen, FoundBy(row.found_by)
    )


def _values(connection: Connection) -> dict[str, Any]:
    return {
        "id": connection.id,
        "workspace_id": connection.workspace_id,
        "role_arn": connection.role_arn,
        "external_id": connection.external_id,
        "key_arn": connection.key_arn,
    }
