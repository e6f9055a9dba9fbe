"""OwnerStore: what owners read; the status is derived, never stored."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from broker_core.ports import SecretView, Use
from tests.fakes_store_parts.rows import Rows, SecretRow


class OwnerRoom(Rows):
    """See ``broker_core.ports.OwnerStore``."""

    def secrets(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[SecretView]:
        with self._transaction():
            self._workspace(workspace_id)
            live = [row for row in self._secrets.values() if row.workspace_id == workspace_id and not row.deleted_at]
            later = sorted((row for row in live if after is None or row.id > after), key=lambda row: row.id)
            return [self._view(row) for row in later[:limit]]

    def uses(self, workspace_id: str, *, after: UUID | None = None, limit: int = 50) -> Sequence[Use]:
        with self._transaction():
            rows = [row for row in self._uses.values() if row.intent.workspace_id == workspace_id]
            later = sorted(
                (row for row in rows if after is None or row.intent.id > after), key=lambda row: row.intent.id
            )
            return [Use(row.intent, row.result, row.started_at, row.ended_at) for row in later[:limit]]

    def _view(self, row: SecretRow) -> SecretView:
        first_accepted = min(event.accepted_at for event in self._events.values() if event.secret_id == row.id)
        return SecretView(
            id=row.id,
            name=row.name,
            version=row.version,
            status=self._status(row),
            cipher=row.blob.cipher if row.blob else None,
            connection_id=row.connection_id,
            injection=row.injection,
            rotation_policy=row.rotation_policy,
            created_at=first_accepted,
            rotated_at=row.rotated_at,
            last_used_at=row.last_used_at,
            last_checked_at=row.checked_at,
        )
