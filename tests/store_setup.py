"""Bringing a store, fake or SQL, into the state that a test begins with; and moving its rows back in time.

Time is moved, never waited for: a test that needs a row to be old makes it so.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import uuid_utils.compat as uuid_utils

from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import KeyState, Receipt
from broker_core.injection import Injection, Kind
from broker_core.model import (
    Blob,
    CipherName,
    Connection,
    EventState,
    EventType,
    FoundBy,
    Purpose,
    StepOutcome,
    StepResult,
)
from broker_core.ports import Attempt, Draft, Failure

BEARER = Injection(Kind.BEARER, None, "api.example.com", None, "agent-1")
OK = Result(Outcome.OK, receipt=Receipt("session", "assume-id", "kms-id"))
DENIED = Result(Outcome.REFUSED, "access_denied", "AccessDeniedException")
CANARY = Blob(CipherName.KMS, b"canary")
STEPS = (
    StepResult("one", StepOutcome.OK),
    StepResult("two", StepOutcome.FAILED, "AccessDenied", "request-2", "Do this."),
    StepResult("three", StepOutcome.WARNING, what_to_do="Know this."),
)


def draft(workspace: str, **changes: Any) -> Draft:
    """A created event with version 1, changed as told."""
    fields: dict[str, Any] = {
        "id": uuid4(),
        "workspace_id": workspace,
        "source": "tests",
        "event_id": uuid4().hex,
        "type": EventType.CREATED,
        "name": "github",
        "version": 1,
        "injection": BEARER,
        "rotation_policy": None,
        "claim_id": uuid4().hex,
        "claim_key": b"k" * 32,
    }
    fields.update(changes)
    if fields["type"] is EventType.DELETED:
        fields.update(claim_id=None, claim_key=None, injection=None)
    return Draft(**fields)


def begun(store: Any, event_id: UUID) -> Attempt:
    """An attempt at custody that must be there."""
    attempt: Attempt | None = store.begin(event_id, uuid4())
    assert attempt is not None
    return attempt


def stored(store: Any, workspace: str, **changes: Any) -> UUID:
    """Accept an event and store a blob for it under the current setting; returns the secret's id."""
    attempt = begun(store, store.accept(draft(workspace, **changes)).event.id)
    assert store.keep(attempt, blob_for(attempt), OK) is EventState.STORED
    return attempt.event.secret_id


def blob_for(attempt: Attempt) -> Blob:
    """A blob of the cipher that the attempt's setting asks for."""
    cipher = CipherName.KMS if attempt.setting.connection else CipherName.PLATFORM
    return Blob(cipher, f"blob of {attempt.event.name} {attempt.event.version}".encode())


def new_connection(workspace: str, **changes: Any) -> Connection:
    """A connection that is not stored yet."""
    fields: dict[str, Any] = {
        "id": uuid4(),
        "workspace_id": workspace,
        "role_arn": "arn:aws:iam::222222222222:role/axiorank",
        "external_id": f"external-{uuid4().hex}",
        "key_arn": f"arn:aws:kms:eu-west-1:222222222222:key/{uuid4()}",
    }
    return Connection(**(fields | changes))


def connected(store: Any, workspace: str, **changes: Any) -> Connection:
    """A new connection, made the workspace's current one."""
    connection = new_connection(workspace, **changes)
    store.add_pending(connection)
    assert store.make_current(connection, CANARY, store.setting(workspace).version)
    return connection


def intent(workspace: str, **changes: Any) -> Intent:
    """An injection's intent, changed as told."""
    fields: dict[str, Any] = {
        "id": uuid_utils.uuid7(),
        "workspace_id": workspace,
        "purpose": Purpose.INJECT,
        "cipher": CipherName.KMS,
        "secret_name": "github",
        "version": 1,
        "agent_id": "agent-1",
        "method": "GET",
        "target": "api.example.com:443",
    }
    return Intent(**(fields | changes))


def failure(connection: Connection, secret_id: UUID | None = None, **changes: Any) -> Failure:
    """A denial of a connection, or of one secret under it."""
    fields: dict[str, Any] = {
        "workspace_id": connection.workspace_id,
        "connection_id": connection.id,
        "secret_id": secret_id,
        "state": KeyState.ACCESS_DENIED,
        "aws_code": "AccessDeniedException",
        "request_id": "request-1",
        "found_by": FoundBy.PROBE,
    }
    return Failure(**(fields | changes))


def age_connection(store: Any, connection: Connection, column: str, seconds: float) -> None:
    """Set ``next_probe_at``, ``next_refusals_at``, ``check_ready_at`` or ``healed_at`` to so many seconds ago."""
    _age(store, "byok_connections", connection.id, column, seconds)


def age_secret(store: Any, secret_id: UUID, column: str, seconds: float) -> None:
    """Set ``checked_at``, ``last_used_at`` or ``check_lease_until`` to so many seconds ago."""
    _age(store, "broker_secrets", secret_id, column, seconds)


def age_event(store: Any, event_id: UUID, column: str, seconds: float) -> None:
    """Set ``begun_at`` or ``claim_expires_at`` to so many seconds ago."""
    _age(store, "secret_events", event_id, column, seconds)


def age_notice(store: Any, notice_id: UUID, column: str, seconds: float) -> None:
    """Set ``created_at``, ``next_try_at`` or ``lease_until`` to so many seconds ago."""
    _age(store, "notifications", notice_id, column, seconds)


def age_failures(store: Any, connection: Connection, column: str, seconds: float) -> None:
    """Set ``first_seen`` of a connection's failures, its secrets' too, to so many seconds ago."""
    if hasattr(store, "age"):
        for row in store.failures():
            if row.connection_id == connection.id:
                store.age(row.id, column, seconds)
        return
    statement = f"""UPDATE decrypt_failures SET {column} = now() - make_interval(secs => %(seconds)s)
        WHERE connection_id = %(id)s"""
    store._database.run("test", statement, {"seconds": seconds, "id": connection.id})


def _age(store: Any, table: str, row_id: UUID, column: str, seconds: float) -> None:
    if hasattr(store, "age"):
        store.age(row_id, column, seconds)
        return
    statement = f"UPDATE {table} SET {column} = now() - make_interval(secs => %(seconds)s) WHERE id = %(id)s"
    store._database.run("test", statement, {"seconds": seconds, "id": row_id})
