"""Intents and results of probes, checks and verification: ``ports.AuditStore`` and the batches of the sweep."""

from __future__ import annotations

from collections.abc import Sequence

from broker_core.adapters.store.database import Database
from broker_core.adapters.store.inject import INTENT_COLUMNS, INTENT_RECORD, RESULT_RECORD
from broker_core.adapters.store.rows import intents_json, results_json
from broker_core.audit import Intent, Result
from broker_core.errors import AuditUnavailable, Unavailable

_BEGIN = f"""
    INSERT INTO audit_log ({INTENT_COLUMNS})
    SELECT {INTENT_COLUMNS} FROM jsonb_to_recordset(%(intents)s) AS i({INTENT_RECORD})"""
# A check that worked closes the secret's own failure; any check that gave an answer is noted as one.
_END = f"""
    WITH r AS (SELECT * FROM jsonb_to_recordset(%(results)s) AS r({RESULT_RECORD})),
    checked AS (
        UPDATE broker_secrets s SET checked_at = now(), check_lease_until = NULL FROM r
        WHERE r.purpose = 'check' AND r.outcome IN ('ok', 'refused')
            AND s.workspace_id = r.workspace_id AND s.id = r.secret_id AND s.version = r.version),
    healed AS (
        UPDATE decrypt_failures f SET ended_at = now() FROM r
        WHERE r.purpose = 'check' AND r.outcome = 'ok'
            AND f.workspace_id = r.workspace_id AND f.secret_id = r.secret_id AND f.ended_at IS NULL)
    UPDATE audit_log a SET outcome = r.outcome, code = r.code, aws_code = r.aws_code, session_name = r.session_name,
        assume_request_id = r.assume_request_id, kms_request_id = r.kms_request_id, ended_at = now()
    FROM r WHERE a.workspace_id = r.workspace_id AND a.id = r.id AND a.outcome IS NULL"""


class AuditSql:
    """``ports.AuditStore`` on PostgreSQL, and ``begin_checks``/``end_checks`` of ``ports.SweepStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin_use(self, intent: Intent) -> None:
        """See ``ports.AuditStore``."""
        self.begin_checks([intent])

    def end_use(self, intent: Intent, result: Result) -> None:
        """See ``ports.AuditStore``."""
        self.end_checks([(intent, result)])

    def begin_checks(self, intents: Sequence[Intent]) -> None:
        """See ``ports.SweepStore``."""
        try:
            self._database.run("begin_checks", _BEGIN, {"intents": intents_json(list(intents))})
        except Unavailable:
            raise AuditUnavailable("the audit intent could not be written, so nothing was asked") from None

    def end_checks(self, results: Sequence[tuple[Intent, Result]]) -> None:
        """See ``ports.SweepStore``."""
        self._database.run("end_checks", _END, {"results": results_json(list(results))})
