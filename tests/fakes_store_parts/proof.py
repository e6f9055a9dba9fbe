"""ProofStore: lockout proofs, one secret at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from broker_core.errors import Conflict, NotFound
from broker_core.model import CipherName, Connection, ConnectionStatus, EventState
from broker_core.ports import Ask, Beside, DueItem, Proof, ProofItem, ProofOutcome
from tests.fakes_store_parts.rows import ConnectionRow, ProofItemRow, ProofRow, Rows, SecretRow

_BURST = 2.0
_CALLS = 2


class ProofRoom(Rows):
    """See ``broker_core.ports.ProofStore``."""

    def start_proof(self, workspace_id: str, proof_id: UUID, connection_id: UUID | None, asked_by: str) -> Proof:
        with self._transaction() as now:
            self._workspace(workspace_id)
            connection = self._chosen(workspace_id, connection_id)
            secrets = self._under(connection)
            if not secrets:
                raise Conflict("no secret is under this connection")
            if any(row.ended_at is None for row in self._proofs_of(workspace_id)):
                raise Conflict("a lockout proof is running in this workspace")
            items = {row.id: ProofItemRow(row.id, row.name, row.version, now) for row in secrets}
            self._proofs[proof_id] = ProofRow(proof_id, connection, asked_by, now, items)
            return self._proofs[proof_id].snapshot()

    def proof(self, workspace_id: str, proof_id: UUID | None = None) -> Proof:
        with self._transaction():
            found = [row for row in self._proofs_of(workspace_id) if proof_id in (None, row.id)]
            if not found:
                raise NotFound("no such lockout proof")
            return max(found, key=lambda row: row.started_at).snapshot()

    def running_proofs(self, limit: int) -> Sequence[Proof]:
        with self._transaction():
            running = [row for row in self._proofs.values() if row.ended_at is None]
            return [row.snapshot() for row in random.sample(running, min(limit, len(running)))]

    def claim_item(self, proof: Proof, per_second: float, lease_seconds: float) -> DueItem | None:
        with self._transaction() as now:
            row, cost = self._proofs[proof.id], _CALLS / per_second
            waiting = [item for item in row.items.values() if item.outcome is None]
            due = sorted((item.due_at, item.secret_id) for item in waiting if item.due_at <= now)
            is_leased = any(item.lease_until is not None and item.lease_until > now for item in waiting)
            bucket = self._connections[row.connection.id]
            ready = max(bucket.check_ready_at, now - timedelta(seconds=max(_BURST, cost)))
            if row.ended_at or not due or is_leased or ready + timedelta(seconds=cost) > now:
                return None
            bucket.check_ready_at = ready + timedelta(seconds=cost)
            item = row.items[due[0][1]]
            item.attempts, item.lease_until = item.attempts + 1, now + timedelta(seconds=lease_seconds)
            return _due(item, self._secrets[item.secret_id], row.connection)

    def settle_item(self, proof: Proof, item: DueItem, outcome: ProofOutcome, note: str, asks: Sequence[Ask]) -> None:
        with self._transaction() as now:
            row = self._claimed(proof, item)
            if row is not None:
                row.outcome, row.note, row.settled_at = outcome, note, now
                row.lease_until = None
                _note(row, item, asks)

    def put_back(
        self, proof: Proof, item: DueItem, asks: Sequence[Ask], retry_seconds: float, *, counts: bool = True
    ) -> None:
        with self._transaction() as now:
            row = self._claimed(proof, item)
            if row is not None:
                row.due_at, row.lease_until = now + timedelta(seconds=retry_seconds), None
                row.attempts -= 0 if counts else 1
                _note(row, item, asks)

    def proof_items(self, proof: Proof, *, after: str | None = None, limit: int = 500) -> Sequence[ProofItem]:
        with self._transaction():
            rows = sorted(self._proofs[proof.id].items.values(), key=lambda row: row.name)
            later = [row for row in rows if after is None or row.name > after][:limit]
            return [
                ProofItem(row.secret_id, row.name, row.version, row.outcome, row.note, row.settled_at, list(row.asks))
                for row in later
            ]

    def beside(self, proof: Proof) -> Beside:
        with self._transaction():
            workspace_id, items = proof.connection.workspace_id, self._proofs[proof.id].items
            asked = {(item.secret_id, item.version) for item in items.values()}
            live = [row for row in self._secrets.values() if row.workspace_id == workspace_id and row.blob]
            others = [row for row in self._connections.values() if row.connection.workspace_id == workspace_id]
            waiting = self._waiting(workspace_id)
            return Beside(
                stored_meanwhile=sum((row.id, row.version) not in asked for row in self._under(proof.connection)),
                on_their_way=len(waiting),
                held=sum(event.state is EventState.REFUSED for event in waiting),
                platform_secrets=sum(row.blob is not None and row.blob.cipher is CipherName.PLATFORM for row in live),
                other_connections=[
                    (row.connection.id, row.connection.key_arn, len(secrets))
                    for row in sorted(others, key=lambda row: (row.created_at, row.connection.id))
                    if row.connection.id != proof.connection.id and (secrets := self._under(row.connection))
                ],
            )

    def finish_proof(self, proof: Proof, document: str, is_locked_out: bool, ended_at: datetime) -> Proof:
        with self._transaction():
            row = self._proofs[proof.id]
            if row.ended_at is None:
                row.document, row.is_locked_out, row.ended_at = document, is_locked_out, ended_at
            return row.snapshot()

    def _proofs_of(self, workspace_id: str) -> list[ProofRow]:
        return [row for row in self._proofs.values() if row.connection.workspace_id == workspace_id]

    def _under(self, connection: Connection) -> list[SecretRow]:
        return [
            row
            for row in self._secrets.values()
            if row.workspace_id == connection.workspace_id and row.connection_id == connection.id
        ]

    def _chosen(self, workspace_id: str, connection_id: UUID | None) -> Connection:
        def rank(row: ConnectionRow) -> tuple[bool, bool, datetime]:
            return row.status is ConnectionStatus.CURRENT, bool(self._under(row.connection)), row.created_at

        found = [
            row
            for row in self._connections.values()
            if row.connection.workspace_id == workspace_id
            and row.status is not ConnectionStatus.PENDING
            and connection_id in (None, row.connection.id)
        ]
        if not found:
            raise NotFound("no such connection")
        return max(found, key=rank).connection

    def _claimed(self, proof: Proof, item: DueItem) -> ProofItemRow | None:
        row = self._proofs[proof.id].items[item.secret_id]
        return row if row.outcome is None and row.attempts == item.attempts else None


def _due(item: ProofItemRow, secret: SecretRow, connection: Connection) -> DueItem:
    blob = secret.blob if secret.connection_id == connection.id else None
    return DueItem(
        secret_id=item.secret_id,
        name=item.name,
        version=secret.version if blob else item.version,
        blob=blob,
        is_deleted=secret.deleted_at is not None,
        attempts=item.attempts,
    )


def _note(row: ProofItemRow, item: DueItem, asks: Sequence[Ask]) -> None:
    """What was asked is of the version that is named."""
    row.asks = [*(row.asks if row.version == item.version else []), *asks]
    row.version = item.version
