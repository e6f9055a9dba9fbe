"""The store's part in inject: ``ports.InjectStore``. Three statements, three round trips."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from broker_core.adapters.store.database import Database, Row
from broker_core.adapters.store.rows import (
    CONNECTION_COLUMNS,
    connection_from,
    injection_from,
    intents_json,
    results_json,
)
from broker_core.audit import Intent, Result
from broker_core.errors import AuditUnavailable, Unavailable
from broker_core.model import Blob, CipherName
from broker_core.ports import Candidate

_CANDIDATES = f"""
    SELECT s.id, s.workspace_id, s.name, s.version, s.cipher, s.blob, s.injection_kind, s.binding_key, s.target_host,
        s.mcp_server_id, s.agent_id, {CONNECTION_COLUMNS}
    FROM broker_secrets s
    LEFT JOIN byok_connections c ON c.workspace_id = s.workspace_id AND c.id = s.connection_id
    WHERE s.workspace_id = %(workspace_id)s
        AND (s.agent_id IS NULL OR s.agent_id = %(agent_id)s)
        AND (s.mcp_server_id IS NULL OR s.mcp_server_id = %(mcp_server_id)s)
        AND s.injection_kind IS NOT NULL AND s.blob IS NOT NULL"""

INTENT_RECORD = """id uuid, workspace_id text, purpose text, cipher text, connection_id uuid, secret_id uuid,
    secret_name text, version bigint, event_id uuid, agent_id text, mcp_server_id text, method text, target text"""
INTENT_COLUMNS = """id, workspace_id, purpose, cipher, connection_id, secret_id, secret_name, version, event_id,
    agent_id, mcp_server_id, method, target"""
RESULT_RECORD = f"""{INTENT_RECORD}, outcome text, code text, aws_code text, session_name text, assume_request_id text,
    kms_request_id text, upstream_status int, redactions int"""

# All or none: the intents are written only if each secret still is what was selected.
_BEGIN_USES = f"""
    WITH i AS (SELECT * FROM jsonb_to_recordset(%(intents)s) AS i({INTENT_RECORD})),
    same AS (
        SELECT count(*) AS secrets FROM i JOIN broker_secrets s
        ON s.workspace_id = i.workspace_id AND s.id = i.secret_id AND s.version = i.version AND s.blob IS NOT NULL)
    INSERT INTO audit_log ({INTENT_COLUMNS})
    SELECT {INTENT_COLUMNS} FROM i WHERE (SELECT secrets FROM same) = (SELECT count(*) FROM i)
    RETURNING id"""

# A key that answered heals the secret's own failure, whatever the upstream did. last_used_at is coarse on purpose: one
# write in ten seconds, so that a busy secret's row is no queue; but the first use after its connection healed counts.
END_USES = f"""
    WITH r AS (SELECT * FROM jsonb_to_recordset(%(results)s) AS r({RESULT_RECORD})),
    worked AS (SELECT workspace_id, secret_id, version FROM r WHERE outcome IN ('ok', 'upstream_failed', 'withheld')),
    used AS (
        UPDATE broker_secrets s SET last_used_at = now(), checked_at = now() FROM worked u
        WHERE s.workspace_id = u.workspace_id AND s.id = u.secret_id AND s.version = u.version
            AND (s.last_used_at IS NULL OR s.last_used_at < now() - interval '10 seconds' OR EXISTS (
                SELECT FROM byok_connections c
                WHERE c.workspace_id = s.workspace_id AND c.id = s.connection_id AND c.healed_at > s.checked_at))),
    healed AS (
        UPDATE decrypt_failures f SET ended_at = now() FROM worked u
        WHERE f.workspace_id = u.workspace_id AND f.secret_id = u.secret_id AND f.ended_at IS NULL)
    UPDATE audit_log a SET outcome = r.outcome, code = r.code, aws_code = r.aws_code, session_name = r.session_name,
        assume_request_id = r.assume_request_id, kms_request_id = r.kms_request_id, upstream_status = r.upstream_status,
        redactions = r.redactions, ended_at = now()
    FROM r WHERE a.workspace_id = r.workspace_id AND a.id = r.id AND a.outcome IS NULL"""


class InjectSql:
    """``ports.InjectStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def candidates(self, workspace_id: str, agent_id: str | None, mcp_server_id: str | None) -> Sequence[Candidate]:
        """See ``ports.InjectStore``."""
        values = {"workspace_id": workspace_id, "agent_id": agent_id, "mcp_server_id": mcp_server_id}
        return [_candidate_from(row) for row in self._database.run("candidates", _CANDIDATES, values)]

    def begin_uses(self, intents: Sequence[Intent]) -> bool:
        """See ``ports.InjectStore``."""
        try:
            rows = self._database.run("begin_uses", _BEGIN_USES, {"intents": intents_json(list(intents))})
        except Unavailable:
            raise AuditUnavailable("the audit intent could not be written, so nothing was released") from None
        return len(rows) == len(intents)

    def end_uses(self, results: Sequence[tuple[Intent, Result]]) -> None:
        """See ``ports.InjectStore``."""
        self._database.run("end_uses", END_USES, {"results": results_json(list(results))})


def _candidate_from(row: Row) -> Candidate:
    injection = injection_from(row)
    assert injection is not None  # noqa: S101 - the statement selects only rows that have one
    secret_id: UUID = row.id
    return Candidate(
        secret_id=secret_id,
        workspace_id=row.workspace_id,
        name=row.name,
        version=row.version,
        injection=injection,
        blob=Blob(CipherName(row.cipher), row.blob),
        connection=connection_from(row),
    )
