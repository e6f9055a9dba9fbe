"""The outbox of notices: ``ports.NoticeStore``, and how other statements write into it.

A notice is written by the statement that makes what it tells of: both are there, or neither. ``cause`` names what it
tells of, and is unique for each type, so that nothing is told twice. A notice holds ids, names and codes, no value.

Those who deliver claim notices one by one: the claim's lease ends by itself, so what a crashed process had claimed
comes again. Imports the gate to PostgreSQL and the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker_core.adapters.store.database import Database
from broker_core.adapters.store.rows import ROTATION_DUE
from broker_core.events import Notice, NoticeType
from broker_core.ports import DueNotice

#: how many of a connection's secrets its notice names; it counts all of them
MOST_NAMED = 100

#: a UUIDv7 (RFC 9562): milliseconds, then a random UUID's bits with the version's four set to 7. PostgreSQL has a
#: function for it from version 18 on
UUID7 = """encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
    52, 1), 53, 1), 'hex')::uuid"""


def utc(column: str) -> str:
    """A time as notices write it: RFC 3339, UTC."""
    return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def tell(kind: NoticeType, source: str, *, cause: str, about: str, payload: str) -> str:
    """A CTE that writes one notice for each row of ``source`` (a FROM clause with its WHERE).

    ``cause``, ``about`` (``connection_id`` or ``secret_id`` and its value) and ``payload`` (the arguments of
    ``jsonb_build_object``) are SQL over the source's columns; ``e.workspace_id`` is one of them.
    """
    column, value = about.split(" ", 1)
    return f"""told AS (
        INSERT INTO notifications (id, workspace_id, type, cause, {column}, payload)
        SELECT {UUID7}, e.workspace_id, '{kind.value}', {cause}, {value}, jsonb_build_object({payload})
        FROM {source}
        ON CONFLICT (workspace_id, type, cause) DO NOTHING)"""


#: over ``failing e``: rows of decrypt_failures with ``is_announced``
TELL_FAILING = tell(
    NoticeType.CONNECTION_FAILING,
    """failing e JOIN byok_connections c ON c.workspace_id = e.workspace_id AND c.id = e.connection_id
        WHERE e.is_announced""",
    cause="e.id::text",
    about="connection_id e.connection_id",
    payload=f"""'connectionId', e.connection_id, 'failureId', e.id, 'keyArn', c.key_arn, 'state', e.state,
            'awsCode', e.aws_code, 'requestId', e.request_id, 'since', {utc("e.first_seen")}, 'foundBy', e.found_by,
            'secretCount', (
                SELECT count(*) FROM broker_secrets s
                WHERE s.workspace_id = e.workspace_id AND s.connection_id = e.connection_id),
            'secrets', (
                SELECT coalesce(jsonb_agg(jsonb_build_object('id', n.id, 'name', n.name) ORDER BY n.id), '[]')
                FROM (
                    SELECT s.id, s.name FROM broker_secrets s
                    WHERE s.workspace_id = e.workspace_id AND s.connection_id = e.connection_id
                    ORDER BY s.id LIMIT {MOST_NAMED}) n)""",
)
#: over ``closed e``: rows of decrypt_failures that have just ended
TELL_RECOVERED = tell(
    NoticeType.CONNECTION_RECOVERED,
    """closed e JOIN byok_connections c ON c.workspace_id = e.workspace_id AND c.id = e.connection_id
        WHERE e.secret_id IS NULL AND e.announced_at IS NOT NULL""",
    cause="e.id::text",
    about="connection_id e.connection_id",
    payload=f"""'connectionId', e.connection_id, 'failureId', e.id, 'keyArn', c.key_arn,
            'since', {utc("e.first_seen")}, 'announcedAt', {utc("e.announced_at")}""",
)
#: over ``ended e``: events that have just ended. The statement sees the table as it was before, so of several that end
#: together each sees the others waiting: only the last one is told of. What an owner discarded does not count as later
TELL_LOST = tell(
    NoticeType.NEEDS_REPROVISION,
    """ended e JOIN broker_secrets s ON s.workspace_id = e.workspace_id AND s.id = e.secret_id
        WHERE e.state IN ('expired', 'unreadable') AND s.deleted_at IS NULL AND s.version < e.version
            AND NOT EXISTS (
                SELECT FROM secret_events l
                WHERE l.workspace_id = e.workspace_id AND l.secret_id = e.secret_id AND l.version > e.version
                    AND l.state <> 'deleted')""",
    cause="e.id::text",
    about="secret_id e.secret_id",
    payload="""'secretId', e.secret_id, 'name', e.name, 'version', e.version, 'eventId', e.id, 'state', e.state,
            'reason', e.reason""",
)

_TELL_DUE = tell(
    NoticeType.ROTATION_DUE,
    "due e",
    cause=f"e.id || ' ' || {utc('e.due_noticed')}",
    about="secret_id e.id",
    payload=f"""'secretId', e.id, 'name', e.name, 'version', e.version, 'rotationPolicy', e.rotation_policy,
            'dueAt', {utc("e.due_noticed")}""",
)
# A due date is told of once: the index holds those that were not, in their order.
_ROTATIONS_DUE = f"""
    WITH due AS (
        UPDATE broker_secrets SET due_noticed = {ROTATION_DUE}
        WHERE id = ANY(ARRAY(
            SELECT id FROM broker_secrets
            WHERE rotation_policy IS NOT NULL AND deleted_at IS NULL AND due_noticed IS DISTINCT FROM {ROTATION_DUE}
                AND {ROTATION_DUE} <= now()
            ORDER BY {ROTATION_DUE} LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
        RETURNING id, workspace_id, name, version, rotation_policy, due_noticed),
    {_TELL_DUE}
    SELECT id FROM due"""

_OPEN = "delivered_at IS NULL AND given_up_at IS NULL"
_NOTICE_COLUMNS = "n.id, n.workspace_id, n.type, n.created_at, n.payload, n.attempts"
_CLAIM = f"""
    UPDATE notifications n
    SET lease_until = now() + make_interval(secs => %(lease_seconds)s), attempts = n.attempts + 1
    WHERE n.id = ANY(ARRAY(
        SELECT id FROM notifications
        WHERE {_OPEN} AND next_try_at <= now() AND (lease_until IS NULL OR lease_until < now())
        ORDER BY next_try_at LIMIT 1 FOR UPDATE SKIP LOCKED))
    RETURNING {_NOTICE_COLUMNS}"""
# Also by one whose lease was over meanwhile: it was taken, whoever sent it.
_DELIVERED = f"""
    UPDATE notifications SET delivered_at = now(), lease_until = NULL
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s AND {_OPEN}"""
_PUT_OFF = f"""
    UPDATE notifications SET next_try_at = now() + make_interval(secs => %(seconds)s), lease_until = NULL
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s AND attempts = %(attempts)s AND {_OPEN}"""
_GIVE_UP = f"""
    UPDATE notifications n SET given_up_at = now(), lease_until = NULL
    WHERE n.id = ANY(ARRAY(
        SELECT id FROM notifications
        WHERE {_OPEN} AND created_at < now() - make_interval(secs => %(after_seconds)s)
            AND (lease_until IS NULL OR lease_until < now())
        ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    RETURNING {_NOTICE_COLUMNS}"""
# Ids are in order of time, so only the oldest rows are looked at, whatever the table holds.
_FORGET = f"""
    DELETE FROM notifications
    WHERE id = ANY(ARRAY(
        SELECT id FROM (SELECT * FROM notifications ORDER BY id LIMIT %(limit)s) oldest
        WHERE NOT ({_OPEN}) AND created_at < now() - make_interval(secs => %(after_seconds)s)))
    RETURNING id"""


class NoticeSql:
    """``ports.NoticeStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tell_due_rotations(self, limit: int) -> int:
        """See ``ports.NoticeStore``."""
        return len(self._database.run("tell_due_rotations", _ROTATIONS_DUE, {"limit": limit}))

    def claim_notice(self, lease_seconds: float) -> DueNotice | None:
        """See ``ports.NoticeStore``."""
        rows = self._database.run("claim_notice", _CLAIM, {"lease_seconds": lease_seconds})
        return _due(rows[0]) if rows else None

    def end_notice(self, due: DueNotice) -> None:
        """See ``ports.NoticeStore``."""
        self._database.run("end_notice", _DELIVERED, _values(due))

    def put_off_notice(self, due: DueNotice, retry_seconds: float) -> None:
        """See ``ports.NoticeStore``."""
        self._database.run("put_off_notice", _PUT_OFF, _values(due) | {"seconds": retry_seconds})

    def give_up_notices(self, after_seconds: float, limit: int) -> Sequence[DueNotice]:
        """See ``ports.NoticeStore``."""
        rows = self._database.run("give_up_notices", _GIVE_UP, {"after_seconds": after_seconds, "limit": limit})
        return [_due(row) for row in rows]

    def forget_notices(self, after_seconds: float, limit: int) -> int:
        """See ``ports.NoticeStore``."""
        return len(self._database.run("forget_notices", _FORGET, {"after_seconds": after_seconds, "limit": limit}))


def _values(due: DueNotice) -> dict[str, Any]:
    return {"workspace_id": due.notice.workspace_id, "id": due.notice.id, "attempts": due.attempts}


def _due(row: Any) -> DueNotice:
    return DueNotice(Notice(row.id, NoticeType(row.type), row.created_at, row.workspace_id, row.payload), row.attempts)
