"""OwnerStore: what owners read; the status is derived, never stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from broker_core.errors import NotFound
from broker_core.model import SecretStatus
from broker_core.ports import FailureView, SecretView, StoredBlob, Use
from tests.fakes_store_parts.rows import FailureRow, Rows, SecretRow


class OwnerRoom(Rows):
    """See ``broker_core.ports.OwnerStore``."""

    def secrets(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        status: SecretStatus | None = None,
    ) -> Sequence[SecretView]:
        with self._transaction():
            self._workspace(workspace_id)
            live = [row for row in self._secrets.values() if row.workspace_id == workspace_id and not row.deleted_at]
            later = sorted((row for row in live if after is None or row.id > after), key=lambda row: row.id)
            views = (self._view(row) for row in later)
            return [view for view in views if status in (None, view.status)][:limit]

    def secret(self, workspace_id: str, secret_id: UUID) -> SecretView:
        with self._transaction():
            return self._view(self._live(workspace_id, secret_id))

    def blob(self, workspace_id: str, secret_id: UUID) -> StoredBlob:
        with self._transaction():
            row = self._live(workspace_id, secret_id)
            if row.blob is None:
                raise NotFound("no value is stored")
            connection = self._connection(workspace_id, row.connection_id)
            return StoredBlob(row.name, row.version, row.blob, connection.connection if connection else None)

    def set_rotation_policy(self, workspace_id: str, secret_id: UUID, policy: str | None) -> None:
        with self._transaction():
            row = self._live(workspace_id, secret_id)
            row.rotation_policy, row.policy_version = policy, row.highest_version

    def uses(
        self,
        workspace_id: str,
        *,
        after: UUID | None = None,
        limit: int = 50,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[Use]:
        with self._transaction():
            rows = [
                row
                for row in self._uses.values()
                if row.intent.workspace_id == workspace_id
                and (after is None or row.intent.id > after)
                and (since is None or row.started_at >= since)
                and (until is None or row.started_at < until)
            ]
            rows.sort(key=lambda row: row.intent.id)
            return [Use(row.intent, row.result, row.started_at, row.ended_at) for row in rows[:limit]]

    def _live(self, workspace_id: str, secret_id: UUID) -> SecretRow:
        row = self._secret(workspace_id, secret_id)
        if row is None or row.deleted_at is not None:
            raise NotFound("no such secret")
        return row

    def _view(self, row: SecretRow) -> SecretView:
        return SecretView(
            id=row.id,
            name=row.name,
            version=row.version,
            status=self._status(row),
            cipher=row.blob.cipher if row.blob else None,
            connection_id=row.connection_id,
            injection=row.injection,
            rotation_policy=row.rotation_policy,
            created_at=row.created_at,
            rotated_at=row.rotated_at,
            last_used_at=row.last_used_at,
            last_checked_at=row.checked_at,
            failure=self._failure(row),
        )

    def _failure(self, secret: SecretRow) -> FailureView | None:
        """What blames the customer comes first, then the connection's before the secret's own."""
        connections = self._open_row(secret.workspace_id, secret.connection_id, None) if secret.connection_id else None
        rows: list[FailureRow] = [row for row in (connections, self._own_failure(secret)) if row is not None]
        rows.sort(key=lambda row: not row.blames_customer)
        return FailureView(rows[0].state, rows[0].aws_code, rows[0].first_seen, rows[0].found_by) if rows else None
