"""ByokStore: workspaces, connections, the setting, what is affected."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from broker_core.errors import Conflict
from broker_core.model import Blob, Connection, ConnectionStatus, EventState, Plan, Setting, StepResult
from broker_core.ports import Affected, AffectedConnection, AffectedSecret, ConnectionView
from tests.fakes_store_parts.rows import ConnectionRow, FailureRow, Rows, SecretRow, WorkspaceRow

_FIRST_PROBE = timedelta(minutes=1)  # it was asked a moment ago, to be verified
_FIRST_REFUSALS = timedelta(days=1)
_ORDER = [ConnectionStatus.CURRENT, ConnectionStatus.PENDING, ConnectionStatus.RETIRED]


class ByokRoom(Rows):
    """See ``broker_core.ports.ByokStore``."""

    def setting(self, workspace_id: str) -> Setting:
        with self._transaction():
            return self._setting(self._workspace(workspace_id))

    def plan_of(self, workspace_id: str) -> str:
        with self._transaction():
            return self._workspace(workspace_id).plan

    def put_workspace(self, workspace_id: str, plan: str) -> None:
        with self._transaction():
            row = self._workspaces.setdefault(workspace_id, WorkspaceRow(workspace_id, Plan(plan)))
            if row.deleted_at is not None:
                raise Conflict("this workspace was deleted")
            row.plan = Plan(plan)

    def delete_workspace(self, workspace_id: str) -> Sequence[str]:
        with self._transaction() as now:
            workspace = self._workspace(workspace_id)
            waiting = self._waiting(workspace_id)
            for event in waiting:
                event.finish(EventState.DELETED, "workspace_deleted", now)
            for secret in self._secrets.values():
                if secret.workspace_id == workspace_id:
                    secret.blob, secret.connection_id, secret.version = None, None, secret.highest_version
                    secret.deleted_at = secret.deleted_at or now
            for failure in self._failures:
                if failure.workspace_id == workspace_id:
                    failure.ended_at = failure.ended_at or now
            self._follow(workspace, None)
            workspace.deleted_at = now
            return [event.claim_id for event in waiting if event.claim_id is not None]

    def add_pending(self, connection: Connection) -> None:
        with self._transaction() as now:
            self._workspace(connection.workspace_id)
            owner = self._external_ids.get(connection.external_id, connection.workspace_id)
            if owner != connection.workspace_id:
                raise Conflict("this external id cannot be used; choose another")
            self._external_ids[connection.external_id] = owner
            for row in self._of(connection.workspace_id):
                if row.status is ConnectionStatus.PENDING:
                    del self._connections[row.connection.id]
            self._connections[connection.id] = ConnectionRow(connection, now, next_probe_at=now, check_ready_at=now)

    def make_current(
        self, connection: Connection, canary: Blob, setting_version: int, steps: Sequence[StepResult] = ()
    ) -> bool:
        with self._transaction() as now:
            workspace = self._workspaces.get(connection.workspace_id)
            if workspace is None or workspace.deleted_at or workspace.setting_version != setting_version:
                return False
            row = self._connection(connection.workspace_id, connection.id)
            if row is None or row.status is not ConnectionStatus.PENDING or workspace.plan != Plan.ENTERPRISE:
                return False
            self._follow(workspace, row)
            row.canary, row.verified_at, row.next_probe_at = canary, now, now + _FIRST_PROBE
            row.steps, row.next_refusals_at = tuple(steps), now + _FIRST_REFUSALS
            return True

    def note_verification(
        self, connection: Connection, steps: Sequence[StepResult], *, passed: bool, flag: bool | None
    ) -> None:
        with self._transaction() as now:
            row = self._connection(connection.workspace_id, connection.id)
            if row is None:
                return
            row.steps = tuple(steps)
            row.verified_at = now if passed else row.verified_at
            if flag is not None:
                row.flagged_at = (row.flagged_at or now) if flag else None

    def connections(self, workspace_id: str) -> Sequence[ConnectionView]:
        with self._transaction():
            self._workspace(workspace_id)
            newest_first = sorted(
                self._of(workspace_id), key=lambda row: (row.created_at, row.connection.id), reverse=True
            )
            return [
                self._connection_view(row) for row in sorted(newest_first, key=lambda row: _ORDER.index(row.status))
            ]

    def disconnect(self, workspace_id: str) -> None:
        with self._transaction():
            workspace = self._workspace(workspace_id)
            if workspace.connection_id is None:
                raise Conflict("BYOK is not connected")
            self._follow(workspace, None)

    def affected(self, workspace_id: str) -> Affected:
        with self._transaction():
            self._workspace(workspace_id)
            stored = [row for row in self._secrets.values() if row.workspace_id == workspace_id and row.blob]
            stored.sort(key=lambda row: row.name)
            rows = [row for row in self._failures if row.workspace_id == workspace_id and row.ended_at is None]
            blamed = [row for row in rows if row.secret_id is None and row.blames_customer]
            connections = [self._affected_connection(row, stored) for row in blamed]
            own = [self._affected_secret(row) for row in stored]
            return Affected([one for one in connections if one], [one for one in own if one])

    def _of(self, workspace_id: str) -> list[ConnectionRow]:
        return [row for row in self._connections.values() if row.connection.workspace_id == workspace_id]

    def _connection_view(self, row: ConnectionRow) -> ConnectionView:
        connection = row.connection
        health, since = self._health(row)
        return ConnectionView(
            id=connection.id,
            status=row.status,
            role_arn=connection.role_arn,
            key_arn=connection.key_arn,
            region=connection.region,
            external_id=connection.external_id,
            created_at=row.created_at,
            verified_at=row.verified_at,
            health=health,
            health_since=since,
            steps=list(row.steps),
            needed_by=sum(secret.connection_id == connection.id for secret in self._secrets.values()),
            waiting=len(self._waiting(connection.workspace_id)) if row.status is ConnectionStatus.CURRENT else 0,
            retired_at=row.retired_at,
        )

    def _health(self, row: ConnectionRow) -> tuple[str, datetime | None]:
        if row.status is ConnectionStatus.PENDING:
            return "unverified", None
        failure = self._open_row(row.connection.workspace_id, row.connection.id, None)
        if failure is not None:
            return failure.state.value, failure.first_seen
        return ("flagged", row.flagged_at) if row.flagged_at else ("healthy", None)

    def _follow(self, workspace: WorkspaceRow, row: ConnectionRow | None) -> None:
        """Make a connection, or none, what encrypts next; every change counts the setting's version up."""
        if workspace.connection_id is not None:
            self._connections[workspace.connection_id].status = ConnectionStatus.RETIRED
        if row is not None:
            row.status = ConnectionStatus.CURRENT
        workspace.connection_id = row.connection.id if row else None
        workspace.setting_version += 1

    def _affected_connection(self, row: FailureRow, stored: Sequence[SecretRow]) -> AffectedConnection | None:
        """A retired connection that no blob uses any more affects nobody."""
        connection = self._connection(row.workspace_id, row.connection_id)
        if connection is None or not self._is_live(connection):
            return None
        under = [(secret.id, secret.name) for secret in stored if secret.connection_id == row.connection_id]
        return AffectedConnection(
            connection.connection.id, row.state, row.aws_code, row.first_seen, row.found_by, secrets=under
        )

    def _affected_secret(self, secret: SecretRow) -> AffectedSecret | None:
        """A secret's own failure; under a failing connection it is listed there, and not twice."""
        row = self._own_failure(secret)
        if row is None or not row.blames_customer or self._blamed(secret.workspace_id, secret.connection_id):
            return None
        return AffectedSecret(secret.id, secret.name, row.state, row.aws_code, row.first_seen, row.found_by)
