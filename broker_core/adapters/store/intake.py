"""The store's part in accepting events: ``ports.IntakeStore``."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from broker_core.adapters.store.database import Database, Row, Taken, Transaction
from broker_core.adapters.store.rows import EVENT_COLUMNS, event_from, injection_from, injection_values, new_id
from broker_core.adapters.store.shared import CLOSE_SECRET_FAILURES, no_workspace
from broker_core.errors import Conflict, NotFound, RateLimited
from broker_core.injection import Injection
from broker_core.model import Event, EventType
from broker_core.ports import Accepted, Draft

# Before anything, where it was asked for: one accept at a time for one event. The lock is the transaction's own and
# ends with it, however that ends: a crash leaves nothing locked, there is no time to guess, and no other server to ask.
# Two ids with one hash would only conflict for a moment.
_TRY_EVENT = """
    SELECT pg_try_advisory_xact_lock(hashtextextended(
        concat_ws(chr(10), %(workspace_id)s::text, %(source)s::text, %(event_id)s::text), 0)) AS is_ours"""
# The first batch. The secret's row is made if need be and locked; what is read after it sees what others committed
# before.
_LOCK_WORKSPACE = "SELECT id FROM workspaces WHERE id = %(workspace_id)s AND deleted_at IS NULL FOR SHARE"
_MAKE_SECRET = """
    INSERT INTO broker_secrets (id, workspace_id, name)
    SELECT %(secret_id)s, id, %(name)s FROM workspaces WHERE id = %(workspace_id)s AND deleted_at IS NULL
    ON CONFLICT (workspace_id, name) DO NOTHING"""
# NO KEY: a proof or a re-encryption that begins holds the key of every secret, for seconds.
_LOCK_SECRET = """
    SELECT id, version, highest_version, deleted_at, id = %(secret_id)s AS is_new
    FROM broker_secrets WHERE workspace_id = %(workspace_id)s AND name = %(name)s FOR NO KEY UPDATE"""
_SAME_EVENT = f"""
    SELECT {EVENT_COLUMNS}, e.claim_key FROM secret_events e
    WHERE e.workspace_id = %(workspace_id)s AND e.source = %(source)s AND e.event_id = %(event_id)s"""
_WAITING = """
    SELECT count(*) AS events FROM (
        SELECT FROM secret_events WHERE workspace_id = %(workspace_id)s AND ended_at IS NULL
        LIMIT %(most_waiting)s) waiting"""
_SAME_VERSION = """
    SELECT count(*) AS events FROM secret_events
    WHERE workspace_id = %(workspace_id)s AND name = %(name)s AND version = %(version)s"""

# The last batch. ring_at: the producer rings at once; the reconciler does, should that be lost.
_ADD_EVENT = f"""
    WITH e AS (
        INSERT INTO secret_events (id, workspace_id, secret_id, source, event_id, type, name, version, state,
            injection_kind, binding_key, target_host, mcp_server_id, agent_id, rotation_policy, claim_id, claim_key,
            claim_expires_at, ring_at, traceparent, ended_at)
        VALUES (%(id)s, %(workspace_id)s, %(secret_id)s, %(source)s, %(event_id)s, %(type)s, %(name)s, %(version)s,
            %(state)s, %(injection_kind)s, %(binding_key)s, %(target_host)s, %(mcp_server_id)s, %(agent_id)s,
            %(rotation_policy)s, %(claim_id)s, %(claim_key)s,
            CASE WHEN %(claim_key)s::bytea IS NOT NULL THEN now() + make_interval(secs => %(ttl_seconds)s) END,
            now() + interval '10 seconds', %(traceparent)s, CASE WHEN %(claim_key)s::bytea IS NULL THEN now() END)
        RETURNING *)
    SELECT {EVENT_COLUMNS} FROM e"""
_RAISE_VERSION = """
    UPDATE broker_secrets
    SET created_at = CASE WHEN %(version)s > highest_version AND deleted_at IS NOT NULL THEN now() ELSE created_at END,
        deleted_at = CASE WHEN %(version)s > highest_version THEN NULL ELSE deleted_at END,
        highest_version = greatest(highest_version, %(version)s)
    WHERE workspace_id = %(workspace_id)s AND id = %(secret_id)s"""
_TOMBSTONE = """
    UPDATE broker_secrets
    SET deleted_at = now(), blob = NULL, cipher = NULL, connection_id = NULL, version = %(version)s,
        highest_version = %(version)s, fields_version = %(version)s, injection_kind = NULL, binding_key = NULL,
        target_host = NULL, mcp_server_id = NULL, agent_id = NULL, rotation_policy = NULL, policy_version = %(version)s,
        rotated_at = NULL, last_used_at = NULL, checked_at = NULL, check_lease_until = NULL
    WHERE workspace_id = %(workspace_id)s AND id = %(secret_id)s"""
_END_WAITING = """
    UPDATE secret_events SET state = 'deleted', reason = 'secret_deleted', claim_key = NULL, ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND secret_id = %(secret_id)s AND ended_at IS NULL
    RETURNING claim_id"""

_INJECTION_OF = """
    SELECT s.injection_kind, s.binding_key, s.target_host, s.mcp_server_id, s.agent_id
    FROM workspaces w LEFT JOIN broker_secrets s ON s.workspace_id = w.id AND s.name = %(name)s
    WHERE w.id = %(workspace_id)s AND w.deleted_at IS NULL"""
_EVENT = f"SELECT {EVENT_COLUMNS} FROM secret_events e WHERE e.workspace_id = %(workspace_id)s AND e.id = %(id)s"
_DISCARD = """
    UPDATE secret_events SET state = 'deleted', reason = 'discarded', claim_key = NULL, ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s AND ended_at IS NULL
    RETURNING claim_id"""


class IntakeSql:
    """``ports.IntakeStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def injection_of(self, workspace_id: str, name: str) -> Injection | None:
        """See ``ports.IntakeStore``."""
        rows = self._database.run("injection_of", _INJECTION_OF, {"workspace_id": workspace_id, "name": name})
        if not rows:
            raise no_workspace()
        return injection_from(rows[0])

    def accept(self, draft: Draft) -> Accepted:
        """See ``ports.IntakeStore``."""
        try:
            return self._accept(draft)
        except Taken:
            # Another accept with this event's id, under another name, or with this version came first and is committed
            # by now: what it wrote is there to be seen
            return self._accept(draft)

    def _accept(self, draft: Draft) -> Accepted:
        values = _values(draft)
        with self._database.transaction("accept") as transaction:
            if draft.is_exclusive:
                _refuse_in_flight(transaction, values)
            workspace, _, secret, same, waiting = transaction.batch(
                *((sql, values) for sql in (_LOCK_WORKSPACE, _MAKE_SECRET, _LOCK_SECRET, _SAME_EVENT, _WAITING))
            )
            if not workspace:
                raise no_workspace()
            if same:
                return Accepted(event_from(same[0]), is_new=False, claim_key=same[0].claim_key)
            if draft.claim_key is not None and waiting[0].events >= draft.most_waiting:
                raise _too_many_wait(draft.most_waiting)
            return _write(transaction, draft, values, secret[0])

    def event(self, workspace_id: str, event_id: UUID) -> Event:
        """See ``ports.IntakeStore``."""
        rows = self._database.run("event", _EVENT, {"workspace_id": workspace_id, "id": event_id})
        if not rows:
            raise NotFound("no such event")
        return event_from(rows[0])

    def discard(self, workspace_id: str, event_id: UUID) -> str | None:
        """See ``ports.IntakeStore``."""
        rows = self._database.run("discard", _DISCARD, {"workspace_id": workspace_id, "id": event_id})
        if rows:
            claim_id: str | None = rows[0].claim_id
            return claim_id
        self.event(workspace_id, event_id)
        raise Conflict("this event has ended; there is nothing left to discard")


def _write(transaction: Transaction, draft: Draft, values: dict[str, Any], secret: Row) -> Accepted:
    is_live = not secret.is_new and secret.deleted_at is None
    if draft.must_be_new and is_live:
        raise Conflict("a secret of this name exists; rotate it, or delete it first", code="name_taken")
    if draft.must_exist and not is_live:
        raise NotFound("no such secret")
    version = draft.version or secret.highest_version + 1
    values |= {"secret_id": secret.id, "version": version, "state": "accepted"}
    _refuse_taken_version(transaction, values)
    if draft.type is not EventType.DELETED:
        _, rows = transaction.commit((_RAISE_VERSION, values), (_ADD_EVENT, values))
        return Accepted(event_from(rows[0]), is_new=True, claim_key=draft.claim_key)
    return _delete(transaction, values, secret.highest_version)


def _refuse_in_flight(transaction: Transaction, values: dict[str, Any]) -> None:
    ((lock,),) = transaction.batch((_TRY_EVENT, values))
    if not lock.is_ours:
        raise Conflict("this request is being served already; ask again in a moment")


def _refuse_taken_version(transaction: Transaction, values: dict[str, Any]) -> None:
    ((taken,),) = transaction.batch((_SAME_VERSION, values))
    if taken.events:
        raise Conflict("another event has this version; give the next one", code="version_taken")


def _delete(transaction: Transaction, values: dict[str, Any], highest_version: int) -> Accepted:
    """A deletion needs no actor: it reads no value. A late one (a higher version was accepted) changes nothing."""
    if values["version"] <= highest_version:
        (rows,) = transaction.commit((_ADD_EVENT, values | {"state": "superseded"}))
        return Accepted(event_from(rows[0]), is_new=True)
    ended, _, _, rows = transaction.commit(
        (_END_WAITING, values),
        (_TOMBSTONE, values),
        (CLOSE_SECRET_FAILURES, values),
        (_ADD_EVENT, values | {"state": "deleted"}),
    )
    return Accepted(event_from(rows[0]), is_new=True, released_claims=tuple(row.claim_id for row in ended))


def _values(draft: Draft) -> dict[str, Any]:
    return {
        "id": draft.id,
        "workspace_id": draft.workspace_id,
        "secret_id": new_id(),
        "source": draft.source,
        "event_id": draft.event_id,
        "type": draft.type.value,
        "name": draft.name,
        "rotation_policy": draft.rotation_policy,
        "claim_id": draft.claim_id,
        "claim_key": draft.claim_key,
        "ttl_seconds": draft.ttl_seconds,
        "most_waiting": draft.most_waiting,
        "traceparent": draft.traceparent,
        **injection_values(draft.injection),
    }


def _too_many_wait(most: int) -> RateLimited:
    # what waits because a customer's key refuses it is tried again in minutes; the rest is taken in within seconds
    return RateLimited(f"{most} values of this workspace wait to be stored already; let them be stored first", 30)
