"""MoveStore: re-encryptions, one secret at a time; and retiring a connection."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from broker_core.audit import Intent, Result
from broker_core.errors import Conflict, KeyState, NotFound
from broker_core.model import Blob, CipherName, ConnectionStatus, Plan
from broker_core.ports import DueMove, MoveOutcome, Reencryption, Stuck
from tests.fakes_store_parts.rows import ConnectionRow, MoveItemRow, MoveRow, Rows, WorkspaceRow

_BURST = 2.0
_STUCK = (MoveOutcome.DENIED, MoveOutcome.FAILED)


class MoveRoom(Rows):
    """See ``broker_core.ports.MoveStore``."""

    def start_move(self, workspace_id: str, move_id: UUID, from_connection_id: UUID | None) -> Reencryption:
        with self._transaction() as now:
            workspace = self._workspace(workspace_id)
            self._check_source(workspace, from_connection_id)
            for row in self._moves.values():
                if row.workspace_id == workspace_id and row.ended_at is None:
                    if row.from_connection_id != from_connection_id:
                        raise Conflict("another re-encryption is running in this workspace")
                    return _snapshot(row)
            items = {
                secret.id: MoveItemRow(secret.id, secret.connection_id, now)
                for secret in self._secrets.values()
                if secret.workspace_id == workspace_id
                and secret.connection_id not in (None, workspace.connection_id)
                and from_connection_id in (None, secret.connection_id)
                and secret.connection_id is not None
            }
            row = self._moves[move_id] = MoveRow(move_id, workspace_id, from_connection_id, now, items)
            return _snapshot(row)

    def _check_source(self, workspace: WorkspaceRow, from_connection_id: UUID | None) -> None:
        if workspace.connection_id is None:
            raise Conflict("BYOK is not connected")
        if from_connection_id is None:
            return
        source = self._connection(workspace.id, from_connection_id)
        if source is None:
            raise NotFound("no such connection")
        if source.status is not ConnectionStatus.RETIRED:
            raise Conflict("name an older one")

    def move(self, workspace_id: str, move_id: UUID | None = None) -> Reencryption:
        with self._transaction():
            found = [
                row for row in self._moves.values() if row.workspace_id == workspace_id and move_id in (None, row.id)
            ]
            if not found:
                raise NotFound("no such re-encryption")
            return _snapshot(max(enumerate(found), key=lambda pair: (pair[1].started_at, pair[0]))[1])

    def running_moves(self, limit: int) -> Sequence[Reencryption]:
        with self._transaction():
            running = [row for row in self._moves.values() if row.ended_at is None]
            return [_snapshot(row) for row in random.sample(running, min(limit, len(running)))]

    def claim_move(self, move: Reencryption, per_second: float, lease_seconds: float) -> DueMove | None:
        with self._transaction() as now:
            row, workspace = self._moves[move.id], self._workspaces[move.workspace_id]
            current = self._connection(workspace.id, workspace.connection_id)
            if row.ended_at or workspace.deleted_at or workspace.plan != Plan.ENTERPRISE or current is None:
                return None
            cost = timedelta(seconds=1 / per_second)
            fails = self._open_row(workspace.id, current.connection.id, None)
            if fails or current.check_ready_at + cost > now:
                return None
            due = sorted(
                (item.due_at, item.secret_id)
                for item in row.items.values()
                if item.outcome is None
                and item.due_at <= now
                and self._connections[item.connection_id].check_ready_at + cost <= now
            )
            if not due:
                return None
            item = row.items[due[0][1]]
            for bucket in (current, self._connections[item.connection_id]):
                _spend(bucket, now, cost)
            item.attempts, item.due_at = item.attempts + 1, now + timedelta(seconds=lease_seconds)
            return self._due(item, workspace)

    def _due(self, item: MoveItemRow, workspace: WorkspaceRow) -> DueMove:
        secret = self._secrets[item.secret_id]
        return DueMove(
            secret_id=secret.id,
            name=secret.name,
            version=secret.version,
            blob=secret.blob if secret.connection_id == item.connection_id else None,
            source=self._connections[item.connection_id].connection,
            setting=self._setting(workspace),
            attempts=item.attempts,
        )

    def keep_move(self, move: Reencryption, due: DueMove, blob: Blob, intent: Intent, result: Result) -> bool | None:
        with self._transaction() as now:
            use, item = self._uses[intent.id], self._claimed_move(move, due)
            use.intent = replace(use.intent, cipher=blob.cipher)
            workspace, secret = self._workspaces[move.workspace_id], self._secrets[due.secret_id]
            if item is None:
                self._end_use(intent.id, replace(result, code="claim_lost"))
                return None
            if workspace.setting_version != due.setting.version or workspace.plan != Plan.ENTERPRISE:
                self._end_use(intent.id, replace(result, code="setting_changed"))
                return None
            if (secret.version, secret.connection_id) != (due.version, due.source.id):
                self._end_use(intent.id, replace(result, code="overtaken"))
                item.outcome = MoveOutcome.OVERTAKEN
                return False
            if blob.cipher is CipherName.PLATFORM or due.setting.connection is None:
                raise ValueError("a blob is moved under a customer's key, or not at all")  # INV-3
            secret.blob, secret.connection_id = blob, due.setting.connection.id
            secret.checked_at, secret.check_lease_until = now, None
            item.outcome = MoveOutcome.MOVED
            self._close_own(secret, now)
            self._end_use(intent.id, result)
            return True

    def settle_move(
        self, move: Reencryption, due: DueMove, outcome: MoveOutcome, state: KeyState | None = None, aws_code: str = ""
    ) -> None:
        with self._transaction():
            item = self._claimed_move(move, due)
            if item is not None:
                item.outcome, item.state, item.aws_code = outcome, state, aws_code

    def put_back_move(
        self,
        move: Reencryption,
        due: DueMove,
        retry_seconds: float,
        *,
        counts: bool = True,
        current_fails: bool = False,
    ) -> None:
        with self._transaction() as now:
            item = self._claimed_move(move, due)
            if item is not None:
                item.due_at = now + timedelta(seconds=retry_seconds)
                item.attempts -= 0 if counts else 1
            current = due.setting.connection
            if current_fails and current is not None:
                row = self._connections[current.id]
                row.next_probe_at = min(row.next_probe_at, now)

    def end_move(self, move: Reencryption, stopped_by: str | None = None) -> Reencryption:
        with self._transaction() as now:
            row = self._moves[move.id]
            is_done = all(item.outcome for item in row.items.values())
            if row.ended_at is None and (stopped_by is not None or is_done):
                row.ended_at, row.stopped_by = now, stopped_by
            return _snapshot(row)

    def stuck(self, move: Reencryption, *, after: UUID | None = None, limit: int = 50) -> Sequence[Stuck]:
        with self._transaction():
            items = sorted(self._moves[move.id].items.values(), key=lambda item: item.secret_id)
            found = [
                Stuck(
                    item.secret_id,
                    self._secrets[item.secret_id].name,
                    item.connection_id,
                    item.outcome,
                    item.state,
                    item.aws_code,
                )
                for item in items
                if item.outcome in _STUCK and (after is None or item.secret_id > after)
            ]
            return found[:limit]

    def retire(self, workspace_id: str, connection_id: UUID) -> None:
        with self._transaction() as now:
            self._workspace(workspace_id)
            row = self._connection(workspace_id, connection_id)
            if row is None:
                raise NotFound("no such connection")
            if row.status is not ConnectionStatus.RETIRED:
                raise Conflict(f"this connection is {row.status}")
            needed_by = sum(secret.connection_id == connection_id for secret in self._secrets.values())
            if needed_by:
                raise Conflict(f"{needed_by} secrets are still under this connection")
            row.retired_at = row.retired_at or now
            for failure in self._failures:
                if failure.connection_id == connection_id:
                    failure.ended_at = failure.ended_at or now

    def _claimed_move(self, move: Reencryption, due: DueMove) -> MoveItemRow | None:
        item = self._moves[move.id].items[due.secret_id]
        return item if item.outcome is None and item.attempts == due.attempts else None


def _spend(bucket: ConnectionRow, now: datetime, cost: timedelta) -> None:
    burst = max(timedelta(seconds=_BURST), cost)
    bucket.check_ready_at = max(bucket.check_ready_at, now - burst) + cost


def _snapshot(row: MoveRow) -> Reencryption:
    counts = Counter(item.outcome for item in row.items.values())
    return Reencryption(
        id=row.id,
        workspace_id=row.workspace_id,
        from_connection_id=row.from_connection_id,
        started_at=row.started_at,
        ended_at=row.ended_at,
        stopped_by=row.stopped_by,
        total=len(row.items),
        moved=counts[MoveOutcome.MOVED],
        denied=counts[MoveOutcome.DENIED],
        overtaken=counts[MoveOutcome.OVERTAKEN],
        failed=counts[MoveOutcome.FAILED],
        left=counts[None],
    )
