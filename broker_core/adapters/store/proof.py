"""The store's part in lockout proofs: ``ports.ProofStore``.

A claim locks the connection's row, whose budget of calls it spends (the same that the sweep's checks spend), and so is
one at a time for a connection; it skips a row that somebody else holds. What is claimed is settled by the number of its
attempt: whoever was too slow, and lost its claim, writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from broker_core.adapters.store.database import Database, Taken
from broker_core.adapters.store.rows import CONNECTION_COLUMNS, connection_from
from broker_core.adapters.store.shared import BURST_SECONDS, SPEND, UNHURRIED, WORKSPACE, no_workspace
from broker_core.errors import Conflict, KeyState, NotFound, Receipt
from broker_core.model import Blob, CipherName
from broker_core.ports import Ask, AskKind, Beside, DueItem, Proof, ProofItem, ProofOutcome

#: calls of one secret: a dry run and a real Decrypt
_CALLS = 2

_CHOOSE = """
    SELECT c.id, EXISTS (
        SELECT FROM broker_secrets s WHERE s.workspace_id = c.workspace_id AND s.connection_id = c.id) AS is_needed
    FROM byok_connections c
    WHERE c.workspace_id = %(workspace_id)s AND c.status <> 'pending'
        AND (%(connection_id)s::uuid IS NULL OR c.id = %(connection_id)s)
    ORDER BY c.status = 'current' DESC, is_needed DESC, c.created_at DESC, c.id DESC LIMIT 1"""
_START = """
    INSERT INTO lockout_proofs (id, workspace_id, connection_id, asked_by)
    VALUES (%(id)s, %(workspace_id)s, %(connection_id)s, %(asked_by)s)"""
_ENLIST = """
    WITH enlisted AS (
        INSERT INTO lockout_proof_items (proof_id, workspace_id, secret_id, name, version)
        SELECT %(id)s, s.workspace_id, s.id, s.name, s.version FROM broker_secrets s
        WHERE s.workspace_id = %(workspace_id)s AND s.connection_id = %(connection_id)s
        RETURNING secret_id)
    SELECT count(*) AS secrets FROM enlisted"""

_PROGRESS = f"""
    SELECT p.id, p.asked_by, p.started_at, p.ended_at, p.is_locked_out, p.document, {CONNECTION_COLUMNS}, n.total,
        n.done
    FROM {{proofs}} p
    JOIN byok_connections c ON c.workspace_id = p.workspace_id AND c.id = p.connection_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS total, count(i.outcome) AS done
        FROM lockout_proof_items i WHERE i.workspace_id = p.workspace_id AND i.proof_id = p.id) n"""
_PROOF = f"""{_PROGRESS.format(proofs="lockout_proofs")}
    WHERE p.workspace_id = %(workspace_id)s AND (%(id)s::uuid IS NULL OR p.id = %(id)s)
    ORDER BY p.started_at DESC, p.id DESC LIMIT 1"""
# By chance: one may run for hours, and must keep no other from its turn.
_RUNNING = _PROGRESS.format(
    proofs="(SELECT * FROM lockout_proofs WHERE ended_at IS NULL ORDER BY random() LIMIT %(limit)s)"
)

_MAY_ASK = """
    SELECT c.id FROM byok_connections c
    WHERE c.workspace_id = %(workspace_id)s AND c.id = %(connection_id)s
        AND c.check_ready_at <= now() - make_interval(secs => %(cost)s)
    FOR NO KEY UPDATE SKIP LOCKED"""
# Read off two indexes, whatever the statistics say: the last lease, and what is due longest. What is due at the same
# time is in no order, since a second key would have each claim sort all that are left.
_CLAIM = """
    UPDATE lockout_proof_items u
    SET lease_until = now() + make_interval(secs => %(lease)s), attempts = u.attempts + 1
    FROM broker_secrets s
    WHERE u.workspace_id = %(workspace_id)s AND u.proof_id = %(id)s
        AND s.workspace_id = u.workspace_id AND s.id = u.secret_id
        AND coalesce((
            SELECT max(o.lease_until) FROM lockout_proof_items o
            WHERE o.workspace_id = %(workspace_id)s AND o.proof_id = %(id)s), '-infinity') <= now()
        AND u.secret_id = (
            SELECT i.secret_id FROM lockout_proof_items i
            JOIN lockout_proofs p ON p.workspace_id = i.workspace_id AND p.id = i.proof_id
            WHERE i.workspace_id = %(workspace_id)s AND i.proof_id = %(id)s AND i.outcome IS NULL
                AND i.due_at <= now() AND p.ended_at IS NULL
            ORDER BY i.due_at LIMIT 1)
    RETURNING u.secret_id, u.name, u.version AS listed_version, u.attempts, s.version, s.cipher, s.blob,
        s.deleted_at IS NOT NULL AS is_deleted, s.connection_id = %(connection_id)s AS is_here"""
# What was asked is of the version that is named: of an earlier one it goes when that was rotated meanwhile.
_ASKED = "asks = CASE WHEN version = %(version)s THEN asks ELSE '[]' END || %(asks)s"
_SETTLE = f"""
    UPDATE lockout_proof_items
    SET outcome = %(outcome)s, note = %(note)s, version = %(version)s, settled_at = now(), lease_until = NULL,
        {_ASKED}
    WHERE workspace_id = %(workspace_id)s AND proof_id = %(id)s AND secret_id = %(secret_id)s
        AND outcome IS NULL AND attempts = %(attempts)s"""
_PUT_BACK = f"""
    UPDATE lockout_proof_items
    SET due_at = now() + make_interval(secs => %(retry)s), lease_until = NULL, version = %(version)s,
        attempts = attempts - CASE WHEN %(counts)s THEN 0 ELSE 1 END, {_ASKED}
    WHERE workspace_id = %(workspace_id)s AND proof_id = %(id)s AND secret_id = %(secret_id)s
        AND outcome IS NULL AND attempts = %(attempts)s"""

_ITEMS = """
    SELECT secret_id, name, version, outcome, note, settled_at, asks FROM lockout_proof_items
    WHERE workspace_id = %(workspace_id)s AND proof_id = %(id)s AND (%(after)s::text IS NULL OR name > %(after)s)
    ORDER BY name LIMIT %(limit)s"""
_BESIDE = """
    SELECT
        (SELECT count(*) FROM broker_secrets s
            WHERE s.workspace_id = %(workspace_id)s AND s.connection_id = %(connection_id)s AND NOT EXISTS (
                SELECT FROM lockout_proof_items i
                WHERE i.workspace_id = s.workspace_id AND i.proof_id = %(id)s AND i.secret_id = s.id
                    AND i.version = s.version)) AS stored_meanwhile,
        (SELECT count(*) FROM secret_events e
            WHERE e.workspace_id = %(workspace_id)s AND e.ended_at IS NULL) AS on_their_way,
        (SELECT count(*) FROM secret_events e
            WHERE e.workspace_id = %(workspace_id)s AND e.ended_at IS NULL AND e.state = 'refused') AS held,
        (SELECT count(*) FROM broker_secrets s
            WHERE s.workspace_id = %(workspace_id)s AND s.cipher = 'platform') AS platform_secrets"""
_OTHERS = """
    SELECT c.id, c.key_arn, count(*) AS secrets FROM byok_connections c
    JOIN broker_secrets s ON s.workspace_id = c.workspace_id AND s.connection_id = c.id
    WHERE c.workspace_id = %(workspace_id)s AND c.id <> %(connection_id)s
    GROUP BY c.id, c.key_arn, c.created_at ORDER BY c.created_at, c.id"""
_FINISH = """
    UPDATE lockout_proofs SET document = %(document)s, is_locked_out = %(is_locked_out)s, ended_at = %(ended_at)s
    WHERE workspace_id = %(workspace_id)s AND id = %(id)s AND ended_at IS NULL"""


class ProofSql:
    """``ports.ProofStore`` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start_proof(self, workspace_id: str, proof_id: UUID, connection_id: UUID | None, asked_by: str) -> Proof:
        """See ``ports.ProofStore``."""
        values = {"workspace_id": workspace_id, "id": proof_id, "connection_id": connection_id, "asked_by": asked_by}
        try:
            self._begin_proof(values)
        except Taken:
            raise Conflict("a lockout proof is running in this workspace: go on with that one") from None
        return self.proof(workspace_id, proof_id)

    def _begin_proof(self, values: Mapping[str, Any]) -> None:
        with self._database.transaction("start_proof") as transaction:
            workspaces, chosen = transaction.batch((WORKSPACE, values), (_CHOOSE, values))
            if not workspaces:
                raise no_workspace()
            if not chosen:
                raise NotFound("no such connection" if values["connection_id"] else "no key was ever connected")
            chosen_values = {**values, "connection_id": chosen[0].id}
            _, _, (enlisted,) = transaction.batch(UNHURRIED, (_START, chosen_values), (_ENLIST, chosen_values))
            if not enlisted.secrets:
                raise Conflict("no secret is under this connection, so there is nothing to show; name another one")
            transaction.commit()

    def proof(self, workspace_id: str, proof_id: UUID | None = None) -> Proof:
        """See ``ports.ProofStore``."""
        rows = self._database.run("proof", _PROOF, {"workspace_id": workspace_id, "id": proof_id})
        if not rows:
            raise NotFound("no such lockout proof")
        return _proof_from(rows[0])

    def running_proofs(self, limit: int) -> Sequence[Proof]:
        """See ``ports.ProofStore``."""
        return [_proof_from(row) for row in self._database.run("running_proofs", _RUNNING, {"limit": limit})]

    def claim_item(self, proof: Proof, per_second: float, lease_seconds: float) -> DueItem | None:
        """See ``ports.ProofStore``."""
        cost = _CALLS / per_second
        values = _values(proof) | {"cost": cost, "lease": lease_seconds, "burst": max(BURST_SECONDS, cost)}
        with self._database.transaction("claim_item") as transaction:
            (ready,) = transaction.batch((_MAY_ASK, values))
            claimed = transaction.batch((_CLAIM, values))[0] if ready else []
            if not claimed:
                return None
            transaction.commit((SPEND, values | {"spent": cost, "spenders": [proof.connection.id]}))
        return _due_from(claimed[0])

    def settle_item(self, proof: Proof, item: DueItem, outcome: ProofOutcome, note: str, asks: Sequence[Ask]) -> None:
        """See ``ports.ProofStore``."""
        values = _item_values(proof, item, asks) | {"outcome": outcome.value, "note": note}
        self._database.run("settle_item", _SETTLE, values)

    def put_back(
        self, proof: Proof, item: DueItem, asks: Sequence[Ask], retry_seconds: float, *, counts: bool = True
    ) -> None:
        """See ``ports.ProofStore``."""
        values = _item_values(proof, item, asks) | {"retry": retry_seconds, "counts": counts}
        self._database.run("put_back", _PUT_BACK, values)

    def proof_items(self, proof: Proof, *, after: str | None = None, limit: int = 500) -> Sequence[ProofItem]:
        """See ``ports.ProofStore``."""
        values = _values(proof) | {"after": after, "limit": limit}
        return [_item_from(row) for row in self._database.run("proof_items", _ITEMS, values)]

    def beside(self, proof: Proof) -> Beside:
        """See ``ports.ProofStore``."""
        (row,) = self._database.run("beside", _BESIDE, _values(proof))
        others = self._database.run("other_connections", _OTHERS, _values(proof))
        return Beside(
            stored_meanwhile=row.stored_meanwhile,
            on_their_way=row.on_their_way,
            held=row.held,
            platform_secrets=row.platform_secrets,
            other_connections=[(other.id, other.key_arn, other.secrets) for other in others],
        )

    def finish_proof(self, proof: Proof, document: str, is_locked_out: bool, ended_at: datetime) -> Proof:
        """See ``ports.ProofStore``."""
        values = _values(proof) | {"document": document, "is_locked_out": is_locked_out, "ended_at": ended_at}
        self._database.run("finish_proof", _FINISH, values)
        return self.proof(proof.connection.workspace_id, proof.id)


def _values(proof: Proof) -> dict[str, Any]:
    connection = proof.connection
    return {"workspace_id": connection.workspace_id, "id": proof.id, "connection_id": connection.id}


def _item_values(proof: Proof, item: DueItem, asks: Sequence[Ask]) -> dict[str, Any]:
    given = {"secret_id": item.secret_id, "attempts": item.attempts, "version": item.version}
    return _values(proof) | given | {"asks": Jsonb([_ask_json(ask) for ask in asks])}


def _proof_from(row: Any) -> Proof:
    connection = connection_from(row)
    assert connection is not None  # noqa: S101 - the statement joins it
    return Proof(
        id=row.id,
        connection=connection,
        asked_by=row.asked_by,
        started_at=row.started_at,
        ended_at=row.ended_at,
        is_locked_out=row.is_locked_out,
        total=row.total,
        done=row.done,
        document=row.document,
    )


def _due_from(row: Any) -> DueItem:
    blob = Blob(CipherName(row.cipher), row.blob) if row.is_here and row.blob is not None else None
    return DueItem(
        secret_id=row.secret_id,
        name=row.name,
        version=row.version if blob else row.listed_version,
        blob=blob,
        is_deleted=row.is_deleted,
        attempts=row.attempts,
    )


def _item_from(row: Any) -> ProofItem:
    return ProofItem(
        secret_id=row.secret_id,
        name=row.name,
        version=row.version,
        outcome=ProofOutcome(row.outcome) if row.outcome else None,
        note=row.note,
        settled_at=row.settled_at,
        asks=[_ask_from(ask) for ask in row.asks],
    )


def _ask_json(ask: Ask) -> dict[str, str | None]:
    return {
        "kind": ask.kind.value,
        "audit_id": str(ask.audit_id),
        "at": ask.at.isoformat(),
        "state": ask.state.value if ask.state else None,
        "aws_code": ask.aws_code,
        "session_name": ask.receipt.session_name,
        "assume_request_id": ask.receipt.assume_request_id,
        "kms_request_id": ask.receipt.kms_request_id,
    }


def _ask_from(row: Mapping[str, Any]) -> Ask:
    return Ask(
        kind=AskKind(row["kind"]),
        audit_id=UUID(row["audit_id"]),
        at=datetime.fromisoformat(row["at"]),
        state=KeyState(row["state"]) if row["state"] else None,
        aws_code=row["aws_code"],
        receipt=Receipt(row["session_name"], row["assume_request_id"], row["kms_request_id"]),
    )
