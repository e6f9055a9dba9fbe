"""InjectStore and AuditStore: who may use what, and what is written about it."""

from __future__ import annotations

from collections.abc import Sequence

from broker_core.audit import Intent, Outcome, Result
from broker_core.ports import Candidate
from tests.fakes_store_parts.rows import Rows, SecretRow

#: the value was decrypted and handed over, whatever the upstream then said
RELEASED = frozenset({Outcome.OK, Outcome.UPSTREAM_FAILED, Outcome.WITHHELD})


class UseRoom(Rows):
    """See ``broker_core.ports.InjectStore`` and ``AuditStore``."""

    def candidates(self, workspace_id: str, agent_id: str | None, mcp_server_id: str | None) -> Sequence[Candidate]:
        with self._transaction():
            bound = [
                row
                for row in self._secrets.values()
                if row.workspace_id == workspace_id and _is_bound(row, agent_id, mcp_server_id)
            ]
            return [self._candidate(row) for row in sorted(bound, key=lambda row: row.name)]

    def begin_uses(self, intents: Sequence[Intent]) -> bool:
        with self._transaction(audits=True) as now:
            for intent in intents:
                secret = self._secret(intent.workspace_id, intent.secret_id)
                if secret is None or secret.blob is None or secret.version != intent.version:
                    return False
            for intent in intents:
                self._begin_use(intent, now)
            return True

    def end_uses(self, results: Sequence[tuple[Intent, Result]]) -> None:
        with self._transaction() as now:
            for intent, result in results:
                self._end_use(intent.id, result)
                secret = self._secret(intent.workspace_id, intent.secret_id)
                if result.outcome in RELEASED and secret is not None and secret.version == intent.version:
                    secret.last_used_at = secret.checked_at = now
                    self._close_own(secret, now)

    def begin_use(self, intent: Intent) -> None:
        with self._transaction(audits=True) as now:
            self._begin_use(intent, now)

    def end_use(self, intent: Intent, result: Result) -> None:
        with self._transaction():
            self._end_use(intent.id, result)

    def _candidate(self, row: SecretRow) -> Candidate:
        connection = self._connection(row.workspace_id, row.connection_id)
        assert row.blob is not None
        assert row.injection is not None
        return Candidate(
            secret_id=row.id,
            workspace_id=row.workspace_id,
            name=row.name,
            version=row.version,
            injection=row.injection,
            blob=row.blob,
            connection=connection.connection if connection else None,
        )


def _is_bound(row: SecretRow, agent_id: str | None, mcp_server_id: str | None) -> bool:
    if row.blob is None or row.injection is None:
        return False
    fits_agent = row.injection.agent_id in (None, agent_id)
    return fits_agent and row.injection.mcp_server_id in (None, mcp_server_id)
