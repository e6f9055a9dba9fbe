"""``ports.MoveStore``: what the fake and the SQL store both promise; and ``ByokStore.retire``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
import uuid_utils.compat as uuid_utils

from broker_core.audit import Intent
from broker_core.errors import Conflict, KeyState, NotFound
from broker_core.model import Blob, CipherName, Connection, ConnectionStatus, EventType, Purpose
from broker_core.ports import DueMove, MoveOutcome, Reencryption
from tests.store_setup import OK, age_connection, connected, draft, failure, new_connection, stored

FAST = 1000.0
MOVED = Blob(CipherName.KMS_ENVELOPE, b"under the new key")


@pytest.fixture
def which_database() -> str:
    """One without any row: re-encryptions that run are listed for all workspaces."""
    return "clean_database"


def replaced(store: Any, workspace: str, *names: str) -> tuple[Connection, Connection]:
    """An older connection with secrets under it, and the current one; both have saved up all of their budgets."""
    older = connected(store, workspace)
    for name in names:
        stored(store, workspace, name=name)
    current = connected(store, workspace)
    saved_up(store, older, current)
    return older, current


def saved_up(store: Any, *connections: Connection) -> None:
    for connection in connections:
        age_connection(store, connection, "check_ready_at", 60)


def started(store: Any, workspace: str, source: UUID | None = None) -> Reencryption:
    move: Reencryption = store.start_move(workspace, uuid4(), source)
    return move


def claimed(store: Any, move: Reencryption, per_second: float = FAST, lease: float = 60) -> DueMove:
    """The next secret, which must be there."""
    due: DueMove | None = store.claim_move(move, per_second, lease)
    assert due is not None
    return due


def begun(store: Any, due: DueMove) -> Intent:
    """The intent of an encryption under the current key."""
    assert due.setting.connection is not None
    intent = Intent(
        uuid_utils.uuid7(),
        due.source.workspace_id,
        Purpose.ENCRYPT,
        CipherName.KMS,
        due.setting.connection.id,
        due.secret_id,
        due.name,
        due.version,
    )
    store.begin_use(intent)
    return intent


def kept(store: Any, move: Reencryption, due: DueMove, blob: Blob = MOVED) -> bool | None:
    result: bool | None = store.keep_move(move, due, blob, begun(store, due), OK)
    return result


def progress(store: Any, move: Reencryption) -> dict[str, int]:
    """What is not zero."""
    now = store.move(move.workspace_id, move.id)
    counts = {name: getattr(now, name) for name in ("total", "moved", "denied", "overtaken", "failed", "left")}
    return {name: count for name, count in counts.items() if count}


def last_use(store: Any, workspace: str) -> tuple[str | None, str | None, str]:
    """Outcome, code and cipher of the newest audit row that is not custody's."""
    use = [use for use in store.uses(workspace) if use.intent.event_id is None][-1]
    result = use.result
    return (result.outcome if result else None, result.code if result else None, use.intent.cipher)


class TestStart:
    def test_everything_older(self, store: Any, workspace: str, neighbour: str) -> None:
        """What is under any older key; not what is current, under the platform cipher, or somebody else's."""
        stored(store, workspace, name="before")
        replaced(store, neighbour, "theirs")
        connected(store, workspace)
        stored(store, workspace, name="first")
        replaced(store, workspace, "second")
        stored(store, workspace, name="current")
        move = started(store, workspace)
        assert (move.workspace_id, move.from_connection_id, move.ended_at) == (workspace, None, None)
        assert progress(store, move) == {"total": 2, "left": 2}
        assert claimed(store, move).name in {"first", "second"}

    def test_from_one(self, store: Any, workspace: str) -> None:
        """Only what is under the connection that was named."""
        first = connected(store, workspace)
        stored(store, workspace, name="first")
        replaced(store, workspace, "second")
        saved_up(store, first)
        move = started(store, workspace, first.id)
        due = claimed(store, move)
        assert (progress(store, move), due.name, due.source) == ({"total": 1, "left": 1}, "first", first)

    def test_goes_on_with_what_runs(self, store: Any, workspace: str) -> None:
        """A second start from the same is the first; from another it is refused; after its end it is a new one."""
        older, _ = replaced(store, workspace, "github")
        move = started(store, workspace)
        assert started(store, workspace).id == move.id
        with pytest.raises(Conflict):
            started(store, workspace, older.id)
        store.end_move(move, "disconnected")
        assert started(store, workspace, older.id).id != move.id

    def test_many_at_once(self, store: Any, workspace: str) -> None:
        """Of many who start at the same moment all get the same one."""
        replaced(store, workspace, "github")
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: started(store, workspace).id, range(6)))
        assert len(set(found)) == 1

    def test_nothing_to_move_to(self, store: Any, workspace: str) -> None:
        """Without a current connection it is refused."""
        replaced(store, workspace, "github")
        store.disconnect(workspace)
        with pytest.raises(Conflict):
            started(store, workspace)

    @pytest.mark.parametrize("status", [ConnectionStatus.CURRENT, ConnectionStatus.PENDING])
    def test_not_an_older_one(self, store: Any, workspace: str, status: ConnectionStatus) -> None:
        """The current connection is where things go to, and a pending one was never under anything."""
        _, current = replaced(store, workspace, "github")
        pending = new_connection(workspace)
        store.add_pending(pending)
        with pytest.raises(Conflict):
            started(store, workspace, current.id if status is ConnectionStatus.CURRENT else pending.id)

    def test_not_found(self, store: Any, workspace: str, neighbour: str) -> None:
        """Unknown workspaces and connections, and another tenant's."""
        theirs, _ = replaced(store, neighbour, "github")
        replaced(store, workspace, "github")
        move = started(store, neighbour)
        for workspace_id, source in (("nobody", None), (workspace, theirs.id), (workspace, uuid4())):
            with pytest.raises(NotFound):
                started(store, workspace_id, source)
        for move_id in (None, move.id):
            with pytest.raises(NotFound):
                store.move(workspace, move_id)


class TestClaims:
    def test_what_stands_there(self, store: Any, workspace: str) -> None:
        """A claim brings the blob, what it is under, and what it is to go under."""
        older, current = replaced(store, workspace, "github")
        due = claimed(store, started(store, workspace))
        assert due.blob is not None
        assert (due.name, due.version, due.attempts, due.blob.ciphertext) == ("github", 1, 1, b"blob of github 1")
        assert (due.source, due.setting) == (older, store.setting(workspace))
        assert due.setting.connection == current

    def test_two_never_get_the_same(self, store: Any, workspace: str) -> None:
        """Whoever claims next gets another secret, and then none."""
        older, current = replaced(store, workspace, "a", "b")
        move = started(store, workspace)
        first = claimed(store, move)
        saved_up(store, older, current)
        second = claimed(store, move)
        saved_up(store, older, current)
        assert (first.secret_id != second.secret_id, store.claim_move(move, FAST, 60)) == (True, None)

    def test_many_at_once(self, store: Any, workspace: str) -> None:
        """Of many who claim at the same moment no two get the same secret."""
        replaced(store, workspace, "a", "b", "c")
        move = started(store, workspace)
        with ThreadPoolExecutor(8) as pool:
            found = [due.secret_id for due in pool.map(lambda _: store.claim_move(move, FAST, 60), range(8)) if due]
        assert 1 <= len(found) <= 3
        assert len(set(found)) == len(found)

    def test_a_lease_that_is_over(self, store: Any, workspace: str) -> None:
        """Whoever died with a claim holds nobody up; and what it still writes counts no more."""
        older, current = replaced(store, workspace, "github")
        move = started(store, workspace)
        dead = claimed(store, move, lease=0)
        saved_up(store, older, current)
        again = claimed(store, move)
        assert (dead.attempts, again.attempts) == (1, 2)
        store.settle_move(move, dead, MoveOutcome.DENIED)
        assert kept(store, move, dead) is None
        assert last_use(store, workspace)[1] == "claim_lost"
        assert progress(store, move) == {"total": 1, "left": 1}
        assert kept(store, move, again) is True

    @pytest.mark.parametrize("spent", [0, 1])
    def test_both_budgets(self, store: Any, workspace: str, spent: int) -> None:
        """One call of each connection's budget: where either has none left, nothing is claimed."""
        pair = replaced(store, workspace, "a", "b")
        move = started(store, workspace)
        claimed(store, move, per_second=0.02)
        saved_up(store, pair[1 - spent])
        age_connection(store, pair[1 - spent], "check_ready_at", 1000)
        assert store.claim_move(move, 0.02, 60) is None
        age_connection(store, pair[spent], "check_ready_at", 51)
        claimed(store, move, per_second=0.02)

    def test_not_while_the_current_key_fails(self, store: Any, workspace: str) -> None:
        """What cannot be encrypted is not decrypted either; an older key that fails is asked."""
        older, current = replaced(store, workspace, "github")
        move = started(store, workspace)
        store.open_failure(failure(current))
        assert store.claim_move(move, FAST, 60) is None
        store.close_failure(workspace, current.id, None)
        store.open_failure(failure(older))
        claimed(store, move)

    def test_only_enterprise(self, store: Any, workspace: str) -> None:
        """On another plan nothing is claimed."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        store.put_workspace(workspace, "team")
        assert store.claim_move(move, FAST, 60) is None

    def test_only_while_connected(self, store: Any, workspace: str) -> None:
        """Without a key to move to nothing is claimed."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        store.disconnect(workspace)
        assert store.claim_move(move, FAST, 60) is None

    def test_not_after_its_end(self, store: Any, workspace: str) -> None:
        """One that was ended claims nothing."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        store.end_move(move, "disconnected")
        assert store.claim_move(move, FAST, 60) is None

    def test_what_was_rotated_has_no_blob_here(self, store: Any, workspace: str) -> None:
        """It is under the current key already."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        stored(store, workspace, type=EventType.ROTATED, version=2)
        assert claimed(store, move).blob is None

    def test_what_was_deleted_has_none_either(self, store: Any, workspace: str) -> None:
        """A tombstone is claimed only to be settled."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        assert claimed(store, move).blob is None

    def test_goes_to_what_is_current_when_it_is_claimed(self, store: Any, workspace: str) -> None:
        """A key that was connected after the start is the one that it goes under."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        newest = connected(store, workspace)
        saved_up(store, newest)
        assert claimed(store, move).setting.connection == newest

    def test_put_back(self, store: Any, workspace: str) -> None:
        """It comes again after the wait; a try that was none is not counted."""
        pair = replaced(store, workspace, "github")
        move = started(store, workspace)
        store.put_back_move(move, claimed(store, move), 0.0)
        saved_up(store, *pair)
        store.put_back_move(move, claimed(store, move), 0.0, counts=False)
        saved_up(store, *pair)
        again = claimed(store, move)
        assert again.attempts == 2
        store.put_back_move(move, again, 60.0)
        saved_up(store, *pair)
        assert store.claim_move(move, FAST, 60) is None

    @pytest.mark.parametrize("fails", [True, False])
    def test_a_current_key_that_says_no_is_probed(self, store: Any, workspace: str, fails: bool) -> None:
        """Its probe is brought forward, and only then."""
        _, current = replaced(store, workspace, "github")
        move = started(store, workspace)
        store.put_back_move(move, claimed(store, move), 0.0, current_fails=fails)
        probed = [due.connection.id for due in store.due_probes(10, 300, 60)]
        assert (current.id in probed) == fails


class TestKeep:
    def test_moves(self, store: Any, workspace: str) -> None:
        """The new blob with its cipher and connection; the version, and when it was rotated, stay."""
        _, current = replaced(store, workspace, "github")
        before = store.secrets(workspace)[0]
        move = started(store, workspace)
        due = claimed(store, move)
        assert kept(store, move, due) is True
        held = store.blob(workspace, due.secret_id)
        assert (held.version, held.blob, held.connection) == (1, MOVED, current)
        after = store.secrets(workspace)[0]
        assert (after.rotated_at, after.cipher) == (before.rotated_at, CipherName.KMS_ENVELOPE)
        assert progress(store, move) == {"total": 1, "moved": 1}
        assert last_use(store, workspace) == ("ok", "", CipherName.KMS_ENVELOPE)

    def test_ends_the_secrets_own_failure(self, store: Any, workspace: str) -> None:
        """It was of the older key's blob."""
        older, _ = replaced(store, workspace, "github")
        move = started(store, workspace)
        due = claimed(store, move)
        store.open_failure(failure(older, due.secret_id))
        kept(store, move, due)
        assert store.affected(workspace).secrets == []

    def test_a_rotation_wins(self, store: Any, workspace: str) -> None:
        """A newer value that was stored meanwhile stays, and the secret is settled as overtaken."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        due = claimed(store, move)
        stored(store, workspace, type=EventType.ROTATED, version=2)
        assert kept(store, move, due) is False
        held = store.blob(workspace, due.secret_id)
        assert (held.version, held.blob.ciphertext) == (2, b"blob of github 2")
        assert progress(store, move) == {"total": 1, "overtaken": 1}
        assert last_use(store, workspace)[1] == "overtaken"

    def test_a_deletion_wins(self, store: Any, workspace: str) -> None:
        """What was deleted meanwhile does not come back."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        due = claimed(store, move)
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        assert kept(store, move, due) is False
        with pytest.raises(NotFound):
            store.blob(workspace, due.secret_id)

    @pytest.mark.parametrize("change", ["connect", "disconnect", "plan"])
    def test_a_change_of_the_setting_wins(self, store: Any, workspace: str, change: str) -> None:
        """A blob that was encrypted under another setting, or on another plan, is not stored."""
        older, _ = replaced(store, workspace, "github")
        move = started(store, workspace)
        due = claimed(store, move)
        if change == "connect":
            connected(store, workspace)
        elif change == "disconnect":
            store.disconnect(workspace)
        else:
            store.put_workspace(workspace, "team")
        assert kept(store, move, due) is None
        assert store.blob(workspace, due.secret_id).connection == older
        assert (progress(store, move), last_use(store, workspace)[1]) == ({"total": 1, "left": 1}, "setting_changed")

    def test_once(self, store: Any, workspace: str) -> None:
        """What was settled is not stored again."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        due = claimed(store, move)
        store.settle_move(move, due, MoveOutcome.DENIED)
        assert kept(store, move, due) is None


class TestEnd:
    def test_only_when_nothing_is_left(self, store: Any, workspace: str) -> None:
        """It ends with its last secret, and the first end stands."""
        replaced(store, workspace, "github")
        move = started(store, workspace)
        assert store.end_move(move).ended_at is None
        assert [one.id for one in store.running_moves(10)] == [move.id]
        store.settle_move(move, claimed(store, move), MoveOutcome.FAILED, KeyState.TRANSIENT, "InternalError")
        ended = store.end_move(move)
        assert (ended.ended_at is not None, ended.stopped_by, store.running_moves(10)) == (True, None, [])
        assert store.end_move(move, "disconnected") == ended

    def test_each_that_runs_has_its_turn(self, store: Any, workspace: str, neighbour: str) -> None:
        """One that waits, for a key that fails or for hours of work, keeps no other from being listed."""
        for one in (workspace, neighbour):
            replaced(store, one, "github")
        running = {started(store, one).id for one in (workspace, neighbour)}
        # by chance one of the two would be missing once in 2**99 times
        assert {store.running_moves(1)[0].id for _ in range(100)} == running

    def test_for_a_reason(self, store: Any, workspace: str) -> None:
        """What is left then stays counted as left."""
        replaced(store, workspace, "github")
        ended = store.end_move(started(store, workspace), "plan_required")
        assert (ended.stopped_by, ended.left) == ("plan_required", 1)

    def test_stuck(self, store: Any, workspace: str) -> None:
        """Denied and failed ones with their reasons, in pages; moved ones are not among them."""
        older, current = replaced(store, workspace, "a", "b", "c")
        move = started(store, workspace)
        outcomes: Sequence[MoveOutcome] = (MoveOutcome.DENIED, MoveOutcome.FAILED, MoveOutcome.OVERTAKEN)
        by_id = {}
        for outcome in outcomes:
            saved_up(store, older, current)
            due = claimed(store, move)
            by_id[due.secret_id] = (due.name, outcome)
            store.settle_move(move, due, outcome, KeyState.KEY_DISABLED, "DisabledException")
        first = store.stuck(move, limit=1)
        found = [*first, *store.stuck(move, after=first[0].secret_id)]
        expected = {key: value for key, value in by_id.items() if value[1] is not MoveOutcome.OVERTAKEN}
        assert {one.secret_id: (one.name, one.outcome) for one in found} == expected
        assert {(one.connection_id, one.state, one.aws_code) for one in found} == {
            (older.id, KeyState.KEY_DISABLED, "DisabledException")
        }


class TestRetire:
    def test_when_nothing_needs_it(self, store: Any, workspace: str) -> None:
        """It says since when, and its failure is over; a second time changes nothing."""
        older, _ = replaced(store, workspace)
        store.open_failure(failure(older))
        store.retire(workspace, older.id)
        view = next(one for one in store.connections(workspace) if one.id == older.id)
        assert (view.status, view.health, view.retired_at is not None) == (ConnectionStatus.RETIRED, "healthy", True)
        store.retire(workspace, older.id)
        assert view in store.connections(workspace)

    def test_not_while_blobs_need_it(self, store: Any, workspace: str) -> None:
        """The refusal says how many."""
        older, _ = replaced(store, workspace, "a", "b")
        with pytest.raises(Conflict, match="2 secrets"):
            store.retire(workspace, older.id)
        assert [one.needed_by for one in store.connections(workspace)] == [0, 2]

    def test_not_the_current_one(self, store: Any, workspace: str) -> None:
        """Nor one that is pending."""
        current, pending = connected(store, workspace), new_connection(workspace)
        store.add_pending(pending)
        for connection in (current, pending):
            with pytest.raises(Conflict):
                store.retire(workspace, connection.id)

    def test_not_found(self, store: Any, workspace: str, neighbour: str) -> None:
        """Unknown ones, and another tenant's."""
        theirs, _ = replaced(store, neighbour)
        for workspace_id, connection_id in (("nobody", theirs.id), (workspace, theirs.id), (workspace, uuid4())):
            with pytest.raises(NotFound):
                store.retire(workspace_id, connection_id)

    def test_it_is_not_asked_about_any_more(self, store: Any, workspace: str) -> None:
        """Neither probed nor looked at."""
        older, _ = replaced(store, workspace)
        store.retire(workspace, older.id)
        for column in ("next_probe_at", "next_refusals_at"):
            age_connection(store, older, column, 60)
        asked = [due.connection.id for due in store.due_probes(10, 300, 60)]
        asked += [connection.id for connection in store.due_refusals(10, 60)]
        assert older.id not in asked


class TestNeeds:
    def test_values_on_their_way_need_the_current_one(self, store: Any, workspace: str) -> None:
        """They go under what is current when they are stored, whatever was current when they came."""
        replaced(store, workspace, "github")
        store.accept(draft(workspace, name="waits"))
        assert [(one.status, one.needed_by, one.waiting) for one in store.connections(workspace)] == [
            (ConnectionStatus.CURRENT, 0, 1),
            (ConnectionStatus.RETIRED, 1, 0),
        ]
