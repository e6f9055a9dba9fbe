"""The store's part in changing keys: ``ports.MoveStore``, and ``retire`` of ``ports.ByokStore``.

A claim locks the rows of the connections whose budgets it spends (the same that checks and proofs spend), and skips
what somebody else holds; the current connection is one of them, so claims come one at a time for a workspace, and the
work between them does not. A claim is a time and a number: it is over when its time is, and it is settled by the number
of its attempt, so that whoever was too slow writes nothing. Locks: workspace, secret, item; then failures and
connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from broker_core.adapters.store.database import Database, Taken
from broker_core.adapters.store.rows import CONNECTION_COLUMNS, result_values, setting_from
from broker_core.adapters.store.shared import BURST_SECONDS, CLOSE_SECRET_FAILURES, SPEND, UNHURRIED, no_workspace
from broker_core.audit import Intent, Result
from broker_core.errors import Conflict, KeyState, NotFound
from broker_core.model import Blob, CipherName, Connection
from broker_core.ports import DueMove, MoveOutcome, Reencryption, Stuck

_WORKSPACE = """
    SELECT connection_id FROM workspaces WHERE id = %(workspace_id)s AND deleted_at IS NULL FOR SHARE"""
_SOURCE = """
    SELECT status FROM byok_connections WHERE workspace_id = %(workspace_id)s AND id = %(from_connection_id)s"""
_RUNNING_ONE = """
    SELECT id, from_connection_id FROM reencryptions WHERE workspace_id = %(workspace_id)s AND ended_at IS NULL"""
_START = """
    INSERT INTO reencryptions (id, workspace_id, from_connection_id)
    VALUES (%(id)s, %(workspace_id)s, %(from_connection_id)s)"""
_ENLIST = """
    INSERT INTO reencryption_items (reencryption_id, workspace_id, secret_id, connection_id)
    SELECT %(id)s, s.workspace_id, s.id, s.connection_id FROM broker_secrets s
    WHERE s.workspace_id = %(workspace_id)s AND s.connection_id IS NOT NULL
        AND s.connection_id <> %(current_id)s
        AND (%(from_connection_id)s::uuid IS NULL OR s.connection_id = %(from_connection_id)s)"""

_PROGRESS = """
    SELECT r.id, r.workspace_id, r.from_connection_id, r.started_at, r.ended_at, r.stopped_by, n.total, n.moved,
        n.denied, n.overtaken, n.failed, n."left"
    FROM {reencryptions} r
    CROSS JOIN LATERAL (
        SELECT count(*) AS total, count(*) FILTER (WHERE i.outcome = 'moved') AS moved,
            count(*) FILTER (WHERE i.outcome = 'denied') AS denied,
            count(*) FILTER (WHERE i.outcome = 'overtaken') AS overtaken,
            count(*) FILTER (WHERE i.outcome = 'failed') AS failed,
            count(*) FILTER (WHERE i.outcome IS NULL) AS "left"
        FROM reencryption_items i WHERE i.workspace_id = r.workspace_id AND i.reencryption_id = r.id) n"""
_MOVE = f"""{_PROGRESS.format(reencryptions="reencryptions")}
    WHERE r.workspace_id = %(workspace_id)s AND (%(id)s::uuid IS NULL OR r.id = %(id)s)
    ORDER BY r.started_at DESC, r.id DESC LIMIT 1"""
# By chance: one may run for hours, or wait for ever for a key that fails, and must keep no other from its turn.
_RUNNING = _PROGRESS.format(
    reencryptions="(SELECT * FROM reencryptions WHERE ended_at IS NULL ORDER BY random() LIMIT %(limit)s)"
)

# Nothing is claimed while the current key is known to fail: its probe says when that is over. An older key that fails
# is asked all the same, since its no is the answer. What is due first is read off an index, whatever the statistics
# say; whether anything is due would be looked for among all that are left, for each connection that has nothing.
_READY = """
    SELECT c.id, c.id = w.connection_id AS is_current
    FROM workspaces w JOIN byok_connections c ON c.workspace_id = w.id
    WHERE w.id = %(workspace_id)s AND w.deleted_at IS NULL AND w.plan = 'enterprise' AND w.connection_id IS NOT NULL
        AND c.check_ready_at <= now() - make_interval(secs => %(cost)s)
        AND CASE WHEN c.id = w.connection_id THEN NOT EXISTS (
            SELECT FROM decrypt_failures f
            WHERE f.workspace_id = c.workspace_id AND f.connection_id = c.id AND f.secret_id IS NULL
                AND f.ended_at IS NULL)
            ELSE now() >= (
            SELECT min(i.due_at) FROM reencryption_items i
            WHERE i.workspace_id = c.workspace_id AND i.reencryption_id = %(id)s AND i.connection_id = c.id
                AND i.outcome IS NULL) END
    FOR NO KEY UPDATE OF c SKIP LOCKED"""
_CLAIM = f"""
    WITH chosen AS (
        SELECT i.secret_id FROM reencryption_items i
        JOIN reencryptions r ON r.workspace_id = i.workspace_id AND r.id = i.reencryption_id
        WHERE i.workspace_id = %(workspace_id)s AND i.reencryption_id = %(id)s AND i.outcome IS NULL
            AND i.due_at <= now() AND i.connection_id = ANY(%(sources)s) AND r.ended_at IS NULL
        ORDER BY i.due_at LIMIT 1 FOR UPDATE OF i SKIP LOCKED),
    claimed AS (
        UPDATE reencryption_items u
        SET due_at = now() + make_interval(secs => %(lease)s), attempts = u.attempts + 1
        FROM chosen
        WHERE u.workspace_id = %(workspace_id)s AND u.reencryption_id = %(id)s AND u.secret_id = chosen.secret_id
        RETURNING u.workspace_id, u.secret_id, u.connection_id, u.attempts)
    SELECT k.workspace_id, k.secret_id, k.attempts, w.setting_version, {CONNECTION_COLUMNS},
        o.id AS source_id, o.role_arn AS source_role_arn, o.external_id AS source_external_id,
        o.key_arn AS source_key_arn, s.name, s.version, s.cipher, s.blob, s.connection_id = o.id AS is_there
    FROM claimed k
    JOIN workspaces w ON w.id = k.workspace_id
    JOIN broker_secrets s ON s.workspace_id = k.workspace_id AND s.id = k.secret_id
    JOIN byok_connections c ON c.workspace_id = k.workspace_id AND c.id = w.connection_id
    JOIN byok_connections o ON o.workspace_id = k.workspace_id AND o.id = k.connection_id"""

_LOCK_SETTING = """
    SELECT setting_version, plan FROM workspaces WHERE id = %(workspace_id)s FOR SHARE"""
# NO KEY: a proof or a re-encryption that begins holds the key of every secret, for seconds.
_LOCK_SECRET = """
    SELECT version, connection_id FROM broker_secrets
    WHERE workspace_id = %(workspace_id)s AND id = %(secret_id)s FOR NO KEY UPDATE"""
_LOCK_ITEM = """
    SELECT attempts FROM reencryption_items
    WHERE workspace_id = %(workspace_id)s AND reencryption_id = %(id)s AND secret_id = %(secret_id)s
        AND outcome IS NULL FOR UPDATE"""
# The version stays, since the context does; so does rotated_at, since the value was not rotated.
_STORE_BLOB = """
    UPDATE broker_secrets
    SET blob = %(blob)s, cipher = %(cipher)s, connection_id = %(current_id)s, checked_at = now(),
        check_lease_until = NULL
    WHERE workspace_id = %(workspace_id)s AND id = %(secret_id)s"""
_END_AUDIT = """
    UPDATE audit_log SET outcome = %(outcome)s, code = %(code)s, aws_code = %(aws_code)s, cipher = %(cipher)s,
        session_name = %(session_name)s, assume_request_id = %(assume_request_id)s,
        kms_request_id = %(kms_request_id)s, ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND id = %(audit_id)s AND outcome IS NULL"""
_SETTLE = """
    UPDATE reencryption_items
    SET outcome = %(item_outcome)s, state = %(state)s, aws_code = %(item_aws_code)s, settled_at = now()
    WHERE workspace_id = %(workspace_id)s AND reencryption_id = %(id)s AND secret_id = %(secret_id)s
        AND outcome IS NULL AND attempts = %(attempts)s"""
_PUT_BACK = """
    WITH put_back AS (
        UPDATE reencryption_items
        SET due_at = now() + make_interval(secs => %(retry)s),
            attempts = attempts - CASE WHEN %(counts)s THEN 0 ELSE 1 END
        WHERE workspace_id = %(workspace_id)s AND reencryption_id = %(id)s AND secret_id = %(secret_id)s
            AND outcome IS NULL AND attempts = %(attempts)s)
    UPDATE byok_connections SET next_probe_at = least(next_probe_at, now())
    WHERE workspace_id = %(workspace_id)s AND id = %(current_id)s AND %(current_fails)s"""
_END = """
    UPDATE reencryptions r SET ended_at = now(), stopped_by = %(stopped_by)s
    WHERE r.workspace_id = %(workspace_id)s AND r.id = %(id)s AND r.ended_at IS NULL
        AND (%(stopped_by)s::text IS NOT NULL OR NOT EXISTS (
            SELECT FROM reencryption_items i
            WHERE i.workspace_id = r.workspace_id AND i.reencryption_id = r.id AND i.outcome IS NULL))"""
_STUCK = """
    SELECT i.secret_id, s.name, i.connection_id, i.outcome, i.state, i.aws_code
    FROM reencryption_items i JOIN broker_secrets s ON s.workspace_id = i.workspace_id AND s.id = i.secret_id
    WHERE i.workspace_id = %(workspace_id)s AND i.reencryption_id = %(id)s AND i.outcome IN ('denied', 'failed')
        AND (%(after)s::uuid IS NULL OR i.secret_id > %(after)s)
    ORDER BY i.secret_id LIMIT %(limit)s"""

# Custody and moves store under the current connection only, and hold the workspace's row while they do: behind this
# lock no blob can come to a connection that is not current.
_LOCK_WORKSPACE = """
    SELECT id FROM workspaces WHERE id = %(workspace_id)s AND deleted_at IS NULL FOR UPDATE"""
_NEEDED = """
    SELECT c.status, (SELECT count(*) FROM broker_secrets s
        WHERE s.workspace_id = c.workspace_id AND s.connection_id = c.id) AS needed_by
    FROM byok_connections c WHERE c.workspace_id = %(workspace_id)s AND c.id = %(connection_id)s"""
_RETIRE = """
    UPDATE byok_connections SET retired_at = coalesce(retired_at, now())
    WHERE workspace_id = %(workspace_id)s AND id = %(connection_id)s"""
_CLOSE_CONNECTION = """
    UPDATE decrypt_failures SET ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND connection_id = %(connection_id)s AND ended_at IS NULL"""
_NOT_RETIRED = {
    "current": "this connection is current: connect another key, or disconnect, first",
    "pending": "this connection was never enabled; the next attempt to connect takes its place",
}


class MoveSql:
    """``ports.MoveStore`` on PostgreSQL, and ``retire``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start_move(self, workspace_id: str, move_id: UUID, from_connection_id: UUID | None) -> Reencryption:
        """See ``ports.MoveStore``."""
        values = {"workspace_id": workspace_id, "id": move_id, "from_connection_id": from_connection_id}
        try:
            return self.move(workspace_id, self._start(values))
        except Taken:  # somebody began one at the same moment
            return self.move(workspace_id, self._start(values))

    def _start(self, values: Mapping[str, Any]) -> UUID:
        with self._database.transaction("start_move") as transaction:
            workspaces, sources, running = transaction.batch(
                (_WORKSPACE, values), (_SOURCE, values), (_RUNNING_ONE, values)
            )
            _check_source(values, workspaces, sources)
            if running:
                return _running_id(values, running[0])
            enlisting = {**values, "current_id": workspaces[0].connection_id}
            transaction.commit(UNHURRIED, (_START, values), (_ENLIST, enlisting))
            started: UUID = values["id"]
            return started

    def move(self, workspace_id: str, move_id: UUID | None = None) -> Reencryption:
        """See ``ports.MoveStore``."""
        rows = self._database.run("move", _MOVE, {"workspace_id": workspace_id, "id": move_id})
        if not rows:
            raise NotFound("no such re-encryption")
        return _move_from(rows[0])

    def running_moves(self, limit: int) -> Sequence[Reencryption]:
        """See ``ports.MoveStore``."""
        return [_move_from(row) for row in self._database.run("running_moves", _RUNNING, {"limit": limit})]

    def claim_move(self, move: Reencryption, per_second: float, lease_seconds: float) -> DueMove | None:
        """See ``ports.MoveStore``."""
        cost = 1 / per_second
        values = _values(move) | {"cost": cost, "burst": max(BURST_SECONDS, cost), "lease": lease_seconds}
        with self._database.transaction("claim_move") as transaction:
            (ready,) = transaction.batch((_READY, values))
            current = [row.id for row in ready if row.is_current]
            sources = [row.id for row in ready if not row.is_current]
            if not current or not sources:
                return None
            (claimed,) = transaction.batch((_CLAIM, values | {"sources": sources}))
            if not claimed:
                return None
            transaction.commit((SPEND, values | {"spent": cost, "spenders": [*current, claimed[0].source_id]}))
        return _due_from(claimed[0])

    def keep_move(self, move: Reencryption, due: DueMove, blob: Blob, intent: Intent, result: Result) -> bool | None:
        """See ``ports.MoveStore``."""
        values = _due_values(move, due) | result_values(result) | {"audit_id": intent.id}
        values |= {"blob": blob.ciphertext, "cipher": blob.cipher.value, "state": None, "item_aws_code": None}
        with self._database.transaction("keep_move") as transaction:
            (setting,), (secret,), items = transaction.batch(
                (_LOCK_SETTING, values), (_LOCK_SECRET, values), (_LOCK_ITEM, values)
            )
            if not items or items[0].attempts != due.attempts:
                transaction.commit((_END_AUDIT, values | {"code": "claim_lost"}))
                return None
            if setting.setting_version != due.setting.version or setting.plan != "enterprise":
                transaction.commit((_END_AUDIT, values | {"code": "setting_changed"}))
                return None
            if (secret.version, secret.connection_id) != (due.version, due.source.id):
                overtaken = values | {"code": "overtaken", "item_outcome": MoveOutcome.OVERTAKEN.value}
                transaction.commit((_SETTLE, overtaken), (_END_AUDIT, overtaken))
                return False
            moved = values | {"item_outcome": MoveOutcome.MOVED.value}
            transaction.commit(
                (_STORE_BLOB, moved), (_SETTLE, moved), (CLOSE_SECRET_FAILURES, moved), (_END_AUDIT, moved)
            )
            return True

    def settle_move(
        self, move: Reencryption, due: DueMove, outcome: MoveOutcome, state: KeyState | None = None, aws_code: str = ""
    ) -> None:
        """See ``ports.MoveStore``."""
        values = _due_values(move, due) | {"item_outcome": outcome.value, "item_aws_code": aws_code or None}
        self._database.run("settle_move", _SETTLE, values | {"state": state.value if state else None})

    def put_back_move(
        self,
        move: Reencryption,
        due: DueMove,
        retry_seconds: float,
        *,
        counts: bool = True,
        current_fails: bool = False,
    ) -> None:
        """See ``ports.MoveStore``."""
        values = _due_values(move, due) | {"retry": retry_seconds, "counts": counts, "current_fails": current_fails}
        self._database.run("put_back_move", _PUT_BACK, values)

    def end_move(self, move: Reencryption, stopped_by: str | None = None) -> Reencryption:
        """See ``ports.MoveStore``."""
        self._database.run("end_move", _END, _values(move) | {"stopped_by": stopped_by})
        return self.move(move.workspace_id, move.id)

    def stuck(self, move: Reencryption, *, after: UUID | None = None, limit: int = 50) -> Sequence[Stuck]:
        """See ``ports.MoveStore``."""
        rows = self._database.run("stuck", _STUCK, _values(move) | {"after": after, "limit": limit})
        return [_stuck_from(row) for row in rows]

    def retire(self, workspace_id: str, connection_id: UUID) -> None:
        """See ``ports.ByokStore``."""
        values = {"workspace_id": workspace_id, "connection_id": connection_id}
        with self._database.transaction("retire") as transaction:
            workspaces, found = transaction.batch((_LOCK_WORKSPACE, values), (_NEEDED, values))
            if not workspaces:
                raise no_workspace()
            if not found:
                raise NotFound("no such connection")
            if found[0].status in _NOT_RETIRED:
                raise Conflict(_NOT_RETIRED[found[0].status])
            if found[0].needed_by:
                raise Conflict(
                    f"{found[0].needed_by} secrets are still under this connection: move or rotate them first"
                )
            transaction.commit((_CLOSE_CONNECTION, values), (_RETIRE, values))


def _check_source(values: Mapping[str, Any], workspaces: Sequence[Any], sources: Sequence[Any]) -> None:
    if not workspaces:
        raise no_workspace()
    if workspaces[0].connection_id is None:
        raise Conflict("BYOK is not connected, so there is no key to move to")
    if values["from_connection_id"] is None:
        return
    if not sources:
        raise NotFound("no such connection")
    if sources[0].status != "retired":
        raise Conflict(f"this connection is {sources[0].status}: name an older one")


def _running_id(values: Mapping[str, Any], running: Any) -> UUID:
    if running.from_connection_id != values["from_connection_id"]:
        raise Conflict("another re-encryption is running in this workspace: let it end first")
    running_id: UUID = running.id
    return running_id


def _values(move: Reencryption) -> dict[str, Any]:
    return {"workspace_id": move.workspace_id, "id": move.id}


def _due_values(move: Reencryption, due: DueMove) -> dict[str, Any]:
    current = due.setting.connection
    given = {"secret_id": due.secret_id, "attempts": due.attempts, "current_id": current.id if current else None}
    return _values(move) | given


def _move_from(row: Any) -> Reencryption:
    return Reencryption(**row._asdict())


def _due_from(row: Any) -> DueMove:
    is_there = row.is_there and row.blob is not None
    return DueMove(
        secret_id=row.secret_id,
        name=row.name,
        version=row.version,
        blob=Blob(CipherName(row.cipher), row.blob) if is_there else None,
        source=Connection(
            row.source_id, row.workspace_id, row.source_role_arn, row.source_external_id, row.source_key_arn
        ),
        setting=setting_from(row),
        attempts=row.attempts,
    )


def _stuck_from(row: Any) -> Stuck:
    return Stuck(
        secret_id=row.secret_id,
        name=row.name,
        connection_id=row.connection_id,
        outcome=MoveOutcome(row.outcome),
        state=KeyState(row.state) if row.state else None,
        aws_code=row.aws_code or "",
    )
