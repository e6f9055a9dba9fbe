"""Rows to nouns and nouns to parameters, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import uuid_utils.compat as uuid_utils
from psycopg.types.json import Jsonb

from broker_core import errors
from broker_core.audit import Intent, Result
from broker_core.injection import Injection, Kind
from broker_core.model import Connection, Event, EventState, EventType, Setting, StepOutcome, StepResult

#: columns of an event as ``event_from`` reads them, from a table named or aliased ``e``
EVENT_COLUMNS = """e.id, e.workspace_id, e.secret_id, e.source, e.event_id, e.type, e.name, e.version, e.state,
    e.injection_kind, e.binding_key, e.target_host, e.mcp_server_id, e.agent_id, e.rotation_policy, e.claim_id,
    e.reason, e.accepted_at, e.claim_expires_at, e.ended_at"""

#: columns of a connection as ``connection_from`` reads them, from a table named or aliased ``c``
CONNECTION_COLUMNS = """c.id AS connection_id, c.workspace_id AS connection_workspace_id, c.role_arn, c.external_id,
    c.key_arn"""

#: ``errors.CUSTOMER_SIDE``, for ``IN``
CUSTOMER_SIDE = "('" + "', '".join(errors.CUSTOMER_SIDE) + "')"

#: when the rotation of a row of broker_secrets is due, as ``model.rotation_due`` says it; NULL without a policy.
#: Written as the index is
ROTATION_DUE = """timezone('UTC', timezone('UTC', coalesce(rotated_at, created_at))
    + make_interval(days => rtrim(rotation_policy, 'd')::integer))"""


def new_id() -> UUID:
    """A UUIDv7: unique, and in order of time, so that indexes grow at one end."""
    return uuid_utils.uuid7()


def injection_from(row: Any) -> Injection | None:
    """The injection fields of a row; None when it has none."""
    if row.injection_kind is None:
        return None
    return Injection(Kind(row.injection_kind), row.binding_key, row.target_host, row.mcp_server_id, row.agent_id)


def injection_values(injection: Injection | None) -> dict[str, Any]:
    """The injection fields as parameters; all None for none."""
    if injection is None:
        return dict.fromkeys(("injection_kind", "binding_key", "target_host", "mcp_server_id", "agent_id"))
    return {
        "injection_kind": injection.kind.value,
        "binding_key": injection.binding_key,
        "target_host": injection.target_host,
        "mcp_server_id": injection.mcp_server_id,
        "agent_id": injection.agent_id,
    }


def connection_from(row: Any) -> Connection | None:
    """The connection of a row; None where the outer join found none."""
    if row.connection_id is None:
        return None
    return Connection(row.connection_id, row.connection_workspace_id, row.role_arn, row.external_id, row.key_arn)


def steps_from(rows: Sequence[Mapping[str, str]]) -> list[StepResult]:
    """A connection's ``steps`` column, read."""
    return [
        StepResult(
            name=row["name"],
            outcome=StepOutcome(row["outcome"]),
            aws_code=row.get("awsCode", ""),
            request_id=row.get("requestId"),
            what_to_do=row.get("whatToDo", ""),
        )
        for row in rows
    ]


def steps_json(steps: Sequence[StepResult]) -> Jsonb:
    """Steps as that column keeps them: the names that the API has, and nothing that is empty."""
    return Jsonb([{key: value for key, value in _step_json(step).items() if value} for step in steps])


def _step_json(step: StepResult) -> dict[str, str | None]:
    return {
        "name": step.name,
        "outcome": step.outcome.value,
        "awsCode": step.aws_code,
        "requestId": step.request_id,
        "whatToDo": step.what_to_do,
    }


def setting_from(row: Any) -> Setting:
    """The current setting of a row's workspace."""
    return Setting(row.workspace_id, row.setting_version, connection_from(row))


def event_from(row: Any) -> Event:
    """An event, without its one-time key."""
    state = EventState(row.state)
    return Event(
        id=row.id,
        workspace_id=row.workspace_id,
        secret_id=row.secret_id,
        source=row.source,
        event_id=row.event_id,
        type=EventType(row.type),
        name=row.name,
        version=row.version,
        state=state,
        injection=injection_from(row),
        rotation_policy=row.rotation_policy,
        claim_id=row.claim_id,
        reason=row.reason,
        accepted_at=row.accepted_at,
        held_until=None if state.is_end else row.claim_expires_at,
        ended_at=row.ended_at,
    )


def intents_json(intents: list[Intent]) -> Jsonb:
    """Intents as one parameter, for ``jsonb_to_recordset``: a batch is one statement."""
    return Jsonb([_plain(intent.__dict__) for intent in intents])


def results_json(results: list[tuple[Intent, Result]]) -> Jsonb:
    """Results as one parameter."""
    return Jsonb([{**_plain(intent.__dict__), **_plain(result_values(result))} for intent, result in results])


def result_values(result: Result) -> dict[str, Any]:
    """The columns of audit_log that a result fills."""
    return {
        "outcome": result.outcome.value,
        "code": result.code or None,
        "aws_code": result.aws_code or None,
        "session_name": result.receipt.session_name,
        "assume_request_id": result.receipt.assume_request_id,
        "kms_request_id": result.receipt.kms_request_id,
        "upstream_status": result.upstream_status,
        "redactions": result.redactions,
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, UUID) else value for key, value in values.items() if value is not None}
