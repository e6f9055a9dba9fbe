"""``ports.ProofStore``: what the fake and the SQL store both promise; and ``OwnerStore.blob``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from broker_core.errors import Conflict, KeyState, NotFound, Receipt
from broker_core.model import CipherName, Connection, EventState, EventType
from broker_core.ports import Ask, AskKind, DueItem, Proof, ProofOutcome
from tests.store_setup import DENIED, age_connection, begun, connected, draft, stored

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ASK = Ask(
    AskKind.DRY_RUN,
    uuid4(),
    NOW,
    KeyState.ACCESS_DENIED,
    "AccessDeniedException",
    Receipt("axiorank-proof-1", "sts-1", "kms-1"),
)
FAST = 1000.0


@pytest.fixture
def which_database() -> str:
    """One without any row: proofs that run are listed for all workspaces."""
    return "clean_database"


def started(store: Any, workspace: str, connection_id: UUID | None = None) -> Proof:
    """A proof that has begun, whose connection has saved up all of its budget."""
    proof: Proof = store.start_proof(workspace, uuid4(), connection_id, "somebody")
    age_connection(store, proof.connection, "check_ready_at", 60)
    return proof


def claimed(store: Any, proof: Proof, per_second: float = FAST) -> DueItem:
    """The next secret, which must be there."""
    item: DueItem | None = store.claim_item(proof, per_second, 60)
    assert item is not None
    return item


def with_secrets(store: Any, workspace: str, *names: str) -> Connection:
    connection = connected(store, workspace)
    for name in names:
        stored(store, workspace, name=name)
    return connection


class TestStart:
    def test_every_secret_under_the_connection(self, store: Any, workspace: str, neighbour: str) -> None:
        """What is under the platform cipher, or somebody else's, is not in it."""
        stored(store, workspace, name="before")
        with_secrets(store, neighbour, "theirs")
        connection = with_secrets(store, workspace, "b", "a")
        proof = started(store, workspace)
        assert (proof.connection, proof.total, proof.done, proof.asked_by) == (connection, 2, 0, "somebody")
        assert [item.name for item in store.proof_items(proof)] == ["a", "b"]
        assert (proof.ended_at, proof.is_locked_out, proof.document) == (None, None, None)

    def test_the_newest_that_blobs_need(self, store: Any, workspace: str) -> None:
        """Without a current connection it is the retired one that secrets are still under."""
        needed = with_secrets(store, workspace, "github")
        connected(store, workspace)
        store.disconnect(workspace)
        assert started(store, workspace).connection == needed

    def test_a_named_one(self, store: Any, workspace: str) -> None:
        """An older connection can be asked about while another is current."""
        older = with_secrets(store, workspace, "old")
        with_secrets(store, workspace, "new")
        assert started(store, workspace, older.id).connection == older

    def test_one_at_a_time(self, store: Any, workspace: str, neighbour: str) -> None:
        """A second one is refused while one runs; in another workspace it is not."""
        with_secrets(store, workspace, "github")
        with_secrets(store, neighbour, "github")
        proof = started(store, workspace)
        with pytest.raises(Conflict):
            started(store, workspace)
        started(store, neighbour)
        store.finish_proof(proof, "jws", False, NOW)
        started(store, workspace)

    def test_nothing_to_show(self, store: Any, workspace: str) -> None:
        """A connection without secrets proves nothing, and leaves no proof behind."""
        connected(store, workspace)
        with pytest.raises(Conflict):
            started(store, workspace)
        with pytest.raises(NotFound):
            store.proof(workspace)

    def test_not_found(self, store: Any, workspace: str, neighbour: str) -> None:
        """Unknown workspaces and connections, and another tenant's."""
        theirs = with_secrets(store, neighbour, "github")
        for workspace_id, connection_id in (("nobody", None), (workspace, None), (workspace, theirs.id)):
            with pytest.raises(NotFound):
                started(store, workspace_id, connection_id)
        proof = started(store, neighbour)
        with pytest.raises(NotFound):
            store.proof(workspace, proof.id)


class TestClaims:
    def test_what_stands_there(self, store: Any, workspace: str) -> None:
        """A claim brings the blob and its version."""
        with_secrets(store, workspace, "github")
        item = claimed(store, started(store, workspace))
        assert item.blob is not None
        assert (item.name, item.version, item.attempts, item.is_deleted) == ("github", 1, 1, False)
        assert item.blob.ciphertext == b"blob of github 1"

    def test_one_at_a_time(self, store: Any, workspace: str) -> None:
        """While one secret is claimed none is given out; then the next."""
        with_secrets(store, workspace, "a", "b")
        proof = started(store, workspace)
        first = claimed(store, proof)
        assert store.claim_item(proof, FAST, 60) is None
        store.settle_item(proof, first, ProofOutcome.LOCKED_OUT, "", [ASK])
        assert claimed(store, proof).secret_id != first.secret_id

    def test_many_at_once(self, store: Any, workspace: str) -> None:
        """Of many who claim at the same moment one gets it."""
        with_secrets(store, workspace, "a", "b", "c")
        proof = started(store, workspace)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: store.claim_item(proof, FAST, 60), range(8)))
        assert sum(item is not None for item in found) == 1

    def test_a_lease_that_is_over(self, store: Any, workspace: str) -> None:
        """Whoever died with a claim holds nobody up; and what it still writes counts no more."""
        with_secrets(store, workspace, "github")
        proof = started(store, workspace)
        dead = store.claim_item(proof, FAST, 0)
        again = claimed(store, proof)
        assert (dead.attempts, again.attempts) == (1, 2)
        store.settle_item(proof, dead, ProofOutcome.LOCKED_OUT, "", [ASK])
        assert store.proof(workspace, proof.id).done == 0
        store.settle_item(proof, again, ProofOutcome.STILL_DECRYPTS, "", [])
        assert store.proof_items(proof)[0].outcome is ProofOutcome.STILL_DECRYPTS

    def test_the_budget(self, store: Any, workspace: str) -> None:
        """Two calls of the connection's budget for each secret, and no more saved up than those: at one call in 50 s
        the second secret waits 100 s for its turn, whatever was saved before."""
        with_secrets(store, workspace, "a", "b")
        proof = started(store, workspace)
        age_connection(store, proof.connection, "check_ready_at", 1000)
        first = claimed(store, proof, per_second=0.02)
        store.settle_item(proof, first, ProofOutcome.LOCKED_OUT, "", [])
        assert store.claim_item(proof, 0.02, 60) is None
        age_connection(store, proof.connection, "check_ready_at", 101)
        claimed(store, proof, per_second=0.02)

    def test_put_back(self, store: Any, workspace: str) -> None:
        """It comes again after the wait, with what was asked; a try that was none is not counted."""
        with_secrets(store, workspace, "github")
        proof = started(store, workspace)
        store.put_back(proof, claimed(store, proof), [ASK], 0.0)
        store.put_back(proof, claimed(store, proof), [], 0.0, counts=False)
        item = claimed(store, proof)
        assert item.attempts == 2
        store.put_back(proof, item, [], 60.0)
        assert store.claim_item(proof, FAST, 60) is None
        assert store.proof_items(proof)[0].asks == [ASK]

    def test_rotated_under_the_same_connection(self, store: Any, workspace: str) -> None:
        """The value that stands there is asked about, and named."""
        with_secrets(store, workspace, "github")
        proof = started(store, workspace)
        stored(store, workspace, type=EventType.ROTATED, version=2)
        item = claimed(store, proof)
        store.settle_item(proof, item, ProofOutcome.LOCKED_OUT, "note", [ASK])
        (kept,) = store.proof_items(proof)
        assert (item.version, kept.version, kept.outcome, kept.note, kept.asks) == (
            2,
            2,
            ProofOutcome.LOCKED_OUT,
            "note",
            [ASK],
        )

    def test_what_was_asked_about_an_earlier_version(self, store: Any, workspace: str) -> None:
        """Goes with it: the document shows what was asked about the version that it names, and nothing else."""
        with_secrets(store, workspace, "github")
        proof = started(store, workspace)
        store.put_back(proof, claimed(store, proof), [ASK], 0.0)
        stored(store, workspace, type=EventType.ROTATED, version=2)
        other = replace(ASK, audit_id=uuid4())
        store.put_back(proof, claimed(store, proof), [other], 0.0)
        assert store.proof_items(proof)[0].asks == [other]
        store.settle_item(proof, claimed(store, proof), ProofOutcome.LOCKED_OUT, "", [ASK])
        assert store.proof_items(proof)[0].asks == [other, ASK]

    def test_moved_and_deleted(self, store: Any, workspace: str) -> None:
        """What is no longer under the connection comes without a blob."""
        with_secrets(store, workspace, "deleted", "moved")
        proof = started(store, workspace)
        connected(store, workspace)
        stored(store, workspace, name="moved", type=EventType.ROTATED, version=2)
        store.accept(draft(workspace, name="deleted", type=EventType.DELETED, version=2))
        found = []
        for _ in range(2):
            item = claimed(store, proof)
            found.append((item.name, item.blob, item.is_deleted, item.version))
            store.settle_item(proof, item, ProofOutcome.MOVED, "", [])
        assert sorted(found) == [("deleted", None, True, 1), ("moved", None, False, 1)]

    def test_a_finished_one_gives_nothing_out(self, store: Any, workspace: str) -> None:
        """The document is written, so nothing is asked any more."""
        with_secrets(store, workspace, "github")
        proof = started(store, workspace)
        store.finish_proof(proof, "jws", True, NOW)
        assert store.claim_item(proof, FAST, 60) is None


class TestEnd:
    def test_the_first_document_stands(self, store: Any, workspace: str) -> None:
        """Two who finish at once leave one document."""
        with_secrets(store, workspace, "github")
        proof = started(store, workspace)
        store.finish_proof(proof, "first", True, NOW)
        found = store.finish_proof(proof, "second", False, NOW)
        assert (found.document, found.is_locked_out, found.ended_at) == ("first", True, NOW)

    def test_the_newest(self, store: Any, workspace: str) -> None:
        """Without an id it is the one that began last."""
        with_secrets(store, workspace, "github")
        store.finish_proof(started(store, workspace), "first", True, NOW)
        newest = started(store, workspace)
        assert store.proof(workspace).id == newest.id

    def test_which_run(self, store: Any, workspace: str, neighbour: str) -> None:
        """Those of all workspaces that have not ended."""
        with_secrets(store, workspace, "github")
        with_secrets(store, neighbour, "github")
        ended, running = started(store, workspace), started(store, neighbour)
        store.finish_proof(ended, "jws", True, NOW)
        assert [proof.id for proof in store.running_proofs(10)] == [running.id]
        assert store.running_proofs(0) == []

    def test_each_that_runs_has_its_turn(self, store: Any, workspace: str, neighbour: str) -> None:
        """One with hours of work before it keeps no other from being listed."""
        for one in (workspace, neighbour):
            with_secrets(store, one, "github")
        running = {started(store, one).id for one in (workspace, neighbour)}
        # by chance one of the two would be missing once in 2**99 times
        assert {store.running_proofs(1)[0].id for _ in range(100)} == running

    def test_pages(self, store: Any, workspace: str) -> None:
        """By name, after a name."""
        with_secrets(store, workspace, "a", "b", "c")
        proof = started(store, workspace)
        assert [item.name for item in store.proof_items(proof, after="a", limit=1)] == ["b"]

    def test_beside(self, store: Any, workspace: str) -> None:
        """Everything that the proof does not cover is counted."""
        stored(store, workspace, name="platform")
        older = with_secrets(store, workspace, "older")
        with_secrets(store, workspace, "asked")
        proof = started(store, workspace)
        stored(store, workspace, name="after")
        store.accept(draft(workspace, name="waiting"))
        refused = begun(store, store.accept(draft(workspace, name="held")).event.id)
        store.hold(refused, EventState.REFUSED, DENIED, 60)
        found = store.beside(proof)
        assert (found.stored_meanwhile, found.on_their_way, found.held, found.platform_secrets) == (1, 2, 1, 1)
        assert list(found.other_connections) == [(older.id, older.key_arn, 1)]


class TestBlob:
    def test_what_is_stored(self, store: Any, workspace: str, neighbour: str) -> None:
        """Name, version, blob and connection, for the escape hatch; of another tenant's nothing."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        name, version, blob, under = store.blob(workspace, secret_id)
        assert (name, version, blob.cipher, under) == ("github", 1, CipherName.KMS, connection)
        with pytest.raises(NotFound):
            store.blob(neighbour, secret_id)

    def test_under_the_platform_cipher(self, store: Any, workspace: str) -> None:
        """There is no connection to give."""
        assert store.blob(workspace, stored(store, workspace)).connection is None

    def test_no_value_yet(self, store: Any, workspace: str) -> None:
        """An accepted event has stored nothing."""
        with pytest.raises(NotFound):
            store.blob(workspace, store.accept(draft(workspace)).event.secret_id)
