"""IntakeStore: accepting events, versions, tombstones."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from broker_core.errors import Conflict, NotFound, RateLimited
from broker_core.injection import Injection
from broker_core.model import Event, EventState, EventType
from broker_core.ports import Accepted, Draft
from tests.fakes_store_parts.rows import EventRow, Rows, SecretRow


class IntakeRoom(Rows):
    """See ``broker_core.ports.IntakeStore``."""

    def injection_of(self, workspace_id: str, name: str) -> Injection | None:
        with self._transaction():
            self._workspace(workspace_id)
            secret = self._secret_named(workspace_id, name)
            return secret.injection if secret else None

    def accept(self, draft: Draft) -> Accepted:
        with self._transaction() as now:
            self._workspace(draft.workspace_id)
            first = self._first_of(draft)
            if first is not None:
                return Accepted(first.snapshot(), is_new=False, claim_key=first.claim_key)
            secret = self._secret_named(draft.workspace_id, draft.name)
            if draft.claim_key is not None and len(self._waiting(draft.workspace_id)) >= draft.most_waiting:
                raise RateLimited("too many values wait", 30)
            self._refuse_taken(draft, secret)
            if secret is None:
                secret = SecretRow(self._new_id(), draft.workspace_id, draft.name, created_at=now)
            event = self._event_of(draft, secret, now)
            self._secrets[secret.id], self._events[event.id] = secret, event
            released: tuple[str, ...] = ()
            if draft.type is EventType.DELETED:
                released = self._delete(event, secret, now)
            elif event.version > secret.highest_version and secret.deleted_at is not None:
                secret.created_at, secret.deleted_at = now, None  # the name begins anew, above its tombstone
            secret.highest_version = max(secret.highest_version, event.version)
            return Accepted(event.snapshot(), is_new=True, claim_key=event.claim_key, released_claims=released)

    def event(self, workspace_id: str, event_id: UUID) -> Event:
        with self._transaction():
            return self._event(workspace_id, event_id).snapshot()

    def discard(self, workspace_id: str, event_id: UUID) -> str | None:
        with self._transaction() as now:
            row = self._event(workspace_id, event_id)
            if row.state.is_end:
                raise Conflict("this event has ended")
            row.finish(EventState.DELETED, "discarded", now)
            return row.claim_id

    def _event(self, workspace_id: str, event_id: UUID) -> EventRow:
        row = self._events.get(event_id)
        if row is None or row.workspace_id != workspace_id:
            raise NotFound("no such event")
        return row

    def _first_of(self, draft: Draft) -> EventRow | None:
        identity = (draft.workspace_id, draft.source, draft.event_id)
        rows = self._events.values()
        return next((row for row in rows if (row.workspace_id, row.source, row.event_id) == identity), None)

    def _refuse_taken(self, draft: Draft, secret: SecretRow | None) -> None:
        if draft.must_exist and (secret is None or secret.deleted_at is not None):
            raise NotFound("no such secret")
        if secret is None:
            return
        if draft.must_be_new and secret.deleted_at is None:
            raise Conflict("this name is in use", code="name_taken")
        if draft.version is not None and any(
            (row.secret_id, row.version) == (secret.id, draft.version) for row in self._events.values()
        ):
            raise Conflict("another event has this version", code="version_taken")

    def _event_of(self, draft: Draft, secret: SecretRow, now: datetime) -> EventRow:
        deletes = draft.type is EventType.DELETED
        if deletes != (draft.claim_key is None):
            raise ValueError("a value comes with its one-time key, a deletion without")
        return EventRow(
            id=draft.id,
            workspace_id=draft.workspace_id,
            secret_id=secret.id,
            source=draft.source,
            event_id=draft.event_id,
            type=draft.type,
            name=draft.name,
            version=secret.highest_version + 1 if draft.version is None else draft.version,
            injection=draft.injection,
            rotation_policy=draft.rotation_policy,
            claim_id=draft.claim_id,
            accepted_at=now,
            ring_at=now + timedelta(seconds=self._ring_after_seconds),
            claim_key=draft.claim_key,
            claim_expires_at=None if deletes else now + timedelta(seconds=draft.ttl_seconds),
            traceparent=draft.traceparent,
        )

    def _delete(self, event: EventRow, secret: SecretRow, now: datetime) -> tuple[str, ...]:
        """Leave a tombstone, unless a later event was accepted before. A deletion waits for nothing: it ends here."""
        if event.version <= secret.highest_version:
            event.finish(EventState.SUPERSEDED, None, now)
            return ()
        event.finish(EventState.DELETED, None, now)
        ended = self._waiting(secret.workspace_id, secret.id)
        for waiting in ended:
            waiting.finish(EventState.DELETED, "secret_deleted", now)
        self._bury(secret, event.version, now)
        return tuple(waiting.claim_id for waiting in ended if waiting.claim_id is not None)

    def _bury(self, secret: SecretRow, version: int, now: datetime) -> None:
        self._close_own(secret, now)
        bare = SecretRow(secret.id, secret.workspace_id, secret.name, secret.created_at)
        counters = dict.fromkeys(("version", "highest_version", "fields_version", "policy_version"), version)
        tomb = replace(bare, **counters, deleted_at=now)
        vars(secret).update(vars(tomb))
