"""``ports.NoticeStore``, and the notices that other statements write: what the fake and the SQL store both promise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from broker_core.audit import Outcome, Result
from broker_core.errors import KeyState
from broker_core.events import NOTICE_FIELDS, Notice, NoticeType
from broker_core.model import EventState, EventType, FoundBy
from tests.store_setup import (
    age_event,
    age_failures,
    age_notice,
    age_secret,
    begun,
    connected,
    draft,
    failure,
    stored,
)

DAY = 86_400.0
FAILED = Result(Outcome.FAILED)


@pytest.fixture
def which_database() -> str:
    """One without any row: the outbox is everybody's."""
    return "clean_database"


def told(store: Any) -> list[Notice]:
    """Every notice that waits, oldest first; each is claimed by looking."""
    found = []
    while (due := store.claim_notice(60)) is not None:
        found.append(due.notice)
    return found


def ended(store: Any, event_id: UUID, state: EventState = EventState.UNREADABLE) -> None:
    """Bring an event to a bad end."""
    store.end(begun(store, event_id), state, "attempts_spent", FAILED)


class TestFailing:
    def test_the_first_denial_tells_nobody(self, store: Any, workspace: str) -> None:
        """It may be a change that is still spreading."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection), 0)
        assert told(store) == []

    def test_the_second_one_tells_once(self, store: Any, workspace: str) -> None:
        """However often the denial is seen after it."""
        connection = connected(store, workspace)
        for _ in range(4):
            store.open_failure(failure(connection), 0)
        (notice,) = told(store)
        assert (notice.type, notice.workspace_id) == (NoticeType.CONNECTION_FAILING, workspace)

    def test_not_before_its_time(self, store: Any, workspace: str) -> None:
        """A second denial that comes soon after the first is none."""
        connection = connected(store, workspace)
        for seconds in (0, 1, 119):
            store.open_failure(failure(connection), 120)
            age_failures(store, connection, "first_seen", seconds)
        assert told(store) == []
        age_failures(store, connection, "first_seen", 121)
        store.open_failure(failure(connection), 120)
        assert len(told(store)) == 1

    def test_a_refused_injection_is_a_first_denial(self, store: Any, workspace: str) -> None:
        """What a secret met a moment ago, the connection's own denial confirms."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id, found_by=FoundBy.INJECT), 0)
        assert told(store) == []
        store.open_failure(failure(connection), 0)
        assert len(told(store)) == 1

    def test_a_secrets_old_failure_is_none(self, store: Any, workspace: str) -> None:
        """A secret that has failed for long for a reason of its own says nothing about the connection."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection, stored(store, workspace)), 0)
        age_failures(store, connection, "first_seen", 660)
        store.open_failure(failure(connection), 0)
        assert told(store) == []

    def test_a_secrets_own_failure_is_not_announced(self, store: Any, workspace: str) -> None:
        """The owner sees it in the list of what is affected."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        for _ in range(3):
            store.open_failure(failure(connection, secret_id), 0)
        assert told(store) == []

    @pytest.mark.parametrize("state", [KeyState.INTEGRITY, KeyState.MISCONFIGURED])
    def test_what_blames_nobody_is_not_announced(self, store: Any, workspace: str, state: KeyState) -> None:
        """An operator is told, in the log; the owner is not."""
        connection = connected(store, workspace)
        for _ in range(3):
            store.open_failure(failure(connection, state=state), 0)
        assert told(store) == []
        store.open_failure(failure(connection), 0)
        assert told(store) == []  # what came before was no denial

    def test_it_lists_the_secrets(self, store: Any, workspace: str, neighbour: str) -> None:
        """One notice with all of the connection's secrets, and nobody else's."""
        connection = connected(store, workspace)
        connected(store, neighbour)
        ids = {stored(store, workspace, name=name): name for name in ("one", "two", "three")}
        stored(store, neighbour, name="theirs")
        for _ in range(2):
            store.open_failure(failure(connection, aws_code="Denied", request_id="request-2"), 0)
        (notice,) = told(store)
        assert {*notice.data, "whatToDo"} == set(NOTICE_FIELDS[notice.type])
        assert notice.data["secretCount"] == 3
        assert notice.data["secrets"] == [{"id": str(each), "name": ids[each]} for each in sorted(ids)]
        shown = {
            key: notice.data[key] for key in ("connectionId", "keyArn", "state", "awsCode", "requestId", "foundBy")
        }
        assert shown == {
            "connectionId": str(connection.id),
            "keyArn": connection.key_arn,
            "state": "access_denied",
            "awsCode": "Denied",
            "requestId": "request-2",
            "foundBy": "probe",
        }
        assert notice.data["since"].endswith("Z")
        assert datetime.fromisoformat(notice.data["since"]).tzinfo is UTC

    def test_of_many_secrets_the_first_are_named(self, store: Any, workspace: str) -> None:
        """A notice stays small; it counts all."""
        connection = connected(store, workspace)
        for number in range(101):
            stored(store, workspace, name=f"name-{number}")
        for _ in range(2):
            store.open_failure(failure(connection), 0)
        (notice,) = told(store)
        assert (notice.data["secretCount"], len(notice.data["secrets"])) == (101, 100)
        assert len(notice.body()) < 32_768

    def test_a_new_failure_is_told_again(self, store: Any, workspace: str) -> None:
        """Once for each, not once for ever."""
        connection = connected(store, workspace)
        for _ in range(2):
            store.open_failure(failure(connection), 0)
            store.open_failure(failure(connection), 0)
            store.close_failure(workspace, connection.id, None)
        notices = told(store)
        assert [notice.type for notice in notices] == 2 * [
            NoticeType.CONNECTION_FAILING,
            NoticeType.CONNECTION_RECOVERED,
        ]
        assert len({notice.data["failureId"] for notice in notices}) == 2

    def test_many_at_once_tell_once(self, store: Any, workspace: str) -> None:
        """Those who see the denial at the same moment write one notice."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection), 0)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: store.open_failure(failure(connection), 0), range(16)))
        assert len(told(store)) == 1


class TestRecovered:
    def test_what_was_announced(self, store: Any, workspace: str) -> None:
        """Its end is told, and belongs to the notice of its beginning."""
        connection = connected(store, workspace)
        for _ in range(2):
            store.open_failure(failure(connection), 0)
        for _ in range(2):
            store.close_failure(workspace, connection.id, None)
        failing, recovered = told(store)
        assert recovered.type is NoticeType.CONNECTION_RECOVERED
        assert set(recovered.data) == set(NOTICE_FIELDS[recovered.type])
        same = ("connectionId", "failureId", "keyArn", "since")
        assert [recovered.data[key] for key in same] == [failing.data[key] for key in same]

    def test_what_was_not(self, store: Any, workspace: str) -> None:
        """Who heard of no failure hears of no recovery."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection), 120)
        store.close_failure(workspace, connection.id, None)
        assert told(store) == []


class TestLost:
    @pytest.mark.parametrize("state", [EventState.EXPIRED, EventState.UNREADABLE])
    def test_a_lost_value(self, store: Any, workspace: str, state: EventState) -> None:
        """An event that ends without its value, and no later one: the owner must give it again."""
        event = store.accept(draft(workspace, name="lost")).event
        ended(store, event.id, state)
        (notice,) = told(store)
        assert notice.type is NoticeType.NEEDS_REPROVISION
        assert {*notice.data, "whatToDo"} == set(NOTICE_FIELDS[notice.type])
        assert notice.data == {
            "secretId": str(event.secret_id),
            "name": "lost",
            "version": 1,
            "eventId": str(event.id),
            "state": state.value,
            "reason": "attempts_spent",
        }

    @pytest.mark.parametrize("state", [EventState.SUPERSEDED, EventState.DELETED])
    def test_other_ends(self, store: Any, workspace: str, state: EventState) -> None:
        """Nothing was lost."""
        ended(store, store.accept(draft(workspace)).event.id, state)
        assert told(store) == []

    def test_a_stored_value(self, store: Any, workspace: str) -> None:
        """Nothing is to be told."""
        stored(store, workspace)
        assert told(store) == []

    @pytest.mark.parametrize("is_stored", [True, False])
    def test_a_later_version(self, store: Any, workspace: str, is_stored: bool) -> None:
        """A newer value is there, or on its way: the older one is not missed."""
        first = store.accept(draft(workspace)).event.id
        if is_stored:
            stored(store, workspace, version=2, type=EventType.ROTATED)
        else:
            store.accept(draft(workspace, version=2, type=EventType.ROTATED))
        ended(store, first)
        assert told(store) == []

    def test_a_later_one_that_was_discarded(self, store: Any, workspace: str) -> None:
        """It is as if it had never come."""
        first = store.accept(draft(workspace)).event.id
        store.discard(workspace, store.accept(draft(workspace, version=2, type=EventType.ROTATED)).event.id)
        ended(store, first)
        assert len(told(store)) == 1

    def test_a_deleted_secret(self, store: Any, workspace: str) -> None:
        """Nobody needs its value: its events ended with it."""
        event_id = store.accept(draft(workspace)).event.id
        attempt = begun(store, event_id)
        store.accept(draft(workspace, version=2, type=EventType.DELETED))
        store.end(attempt, EventState.UNREADABLE, "attempts_spent", FAILED)
        assert told(store) == []

    def test_expiring(self, store: Any, workspace: str, neighbour: str) -> None:
        """The reconciler tells once for each secret, of its last event, and not twice."""
        events = [
            store.accept(draft(workspace, version=version, type=EventType.ROTATED)).event for version in (1, 2, 3)
        ]
        events.append(store.accept(draft(neighbour)).event)
        for event in events:
            age_event(store, event.id, "claim_expires_at", 1)
        assert store.reconcile(10, 60).expired == 4
        assert store.reconcile(10, 60).expired == 0
        found = {notice.workspace_id: notice for notice in told(store)}
        assert {key: notice.data["version"] for key, notice in found.items()} == {workspace: 3, neighbour: 1}
        assert found[workspace].data["reason"] == "claim_time_over"


class TestRotations:
    def due(self, store: Any, workspace: str, days: float = 31, policy: str = "30d", **changes: Any) -> UUID:
        """A secret whose value is so many days old."""
        secret_id = stored(store, workspace, rotation_policy=policy, **changes)
        age_secret(store, secret_id, "rotated_at", days * DAY)
        return secret_id

    def test_what_is_due(self, store: Any, workspace: str) -> None:
        """The owner is told once of a due date."""
        secret_id = self.due(store, workspace)
        assert [store.tell_due_rotations(10) for _ in range(3)] == [1, 0, 0]
        (notice,) = told(store)
        assert notice.type is NoticeType.ROTATION_DUE
        assert {*notice.data, "whatToDo"} == set(NOTICE_FIELDS[notice.type])
        shown = {key: notice.data[key] for key in ("secretId", "name", "version", "rotationPolicy")}
        assert shown == {"secretId": str(secret_id), "name": "github", "version": 1, "rotationPolicy": "30d"}
        due_at = datetime.fromisoformat(notice.data["dueAt"])
        assert (datetime.now(UTC) - due_at).total_seconds() == pytest.approx(DAY, abs=60)

    def test_what_is_not(self, store: Any, workspace: str) -> None:
        """Young values, and those without a policy."""
        self.due(store, workspace, days=29.9)
        age_secret(store, stored(store, workspace, name="other"), "rotated_at", 9999 * DAY)
        assert store.tell_due_rotations(10) == 0

    def test_the_next_period(self, store: Any, workspace: str) -> None:
        """A rotation begins a new one, at whose end the owner is told again."""
        secret_id = self.due(store, workspace)
        store.tell_due_rotations(10)
        stored(store, workspace, version=2, type=EventType.ROTATED)
        assert store.tell_due_rotations(10) == 0
        age_secret(store, secret_id, "rotated_at", 30.5 * DAY)
        assert store.tell_due_rotations(10) == 1
        assert len(told(store)) == 2

    def test_another_policy(self, store: Any, workspace: str) -> None:
        """It has a due date of its own; the one before it is not told twice."""
        secret_id = self.due(store, workspace, days=61)
        told_of = []
        for policy in ("60d", "30d", "60d", None):
            store.set_rotation_policy(workspace, secret_id, policy)
            store.tell_due_rotations(10)
            told_of += [notice.data["rotationPolicy"] for notice in told(store)]
        assert told_of == ["60d", "30d"]

    def test_a_deleted_secret(self, store: Any, workspace: str) -> None:
        """Needs no rotation."""
        self.due(store, workspace)
        store.accept(draft(workspace, version=2, type=EventType.DELETED))
        assert store.tell_due_rotations(10) == 0

    def test_in_batches(self, store: Any, workspace: str) -> None:
        """The longest due come first."""
        for days in (31, 33, 32):
            self.due(store, workspace, days, name=f"{days} days")
        assert [store.tell_due_rotations(2) for _ in range(3)] == [2, 1, 0]
        names = [notice.data["name"] for notice in told(store)]
        assert (sorted(names[:2]), names[2]) == (["32 days", "33 days"], "31 days")

    def test_two_at_once(self, store: Any, workspace: str) -> None:
        """Two schedulers' rounds tell nothing twice."""
        for number in range(20):
            self.due(store, workspace, name=f"name-{number}")
        with ThreadPoolExecutor(4) as pool:
            counts = list(pool.map(lambda _: store.tell_due_rotations(7), range(4)))
        while count := store.tell_due_rotations(7):
            counts.append(count)
        assert sum(counts) == len(told(store)) == 20


class TestOutbox:
    @pytest.fixture
    def notice(self, store: Any, workspace: str) -> Notice:
        """One that waits."""
        ended(store, store.accept(draft(workspace)).event.id)
        due = store.claim_notice(60)
        store.put_off_notice(due, 0)
        waits: Notice = due.notice
        return waits

    def test_ids_are_in_order_of_time(self, notice: Notice) -> None:
        """A UUIDv7, of now."""
        assert notice.id.version == 7
        assert notice.id.variant == uuid4().variant
        assert (notice.id.int >> 80) / 1000 == pytest.approx(notice.time.timestamp(), abs=60)

    def test_a_claim_holds(self, store: Any, notice: Notice) -> None:
        """For its lease, nobody else gets it; afterwards it is the same notice."""
        first = store.claim_notice(60)
        assert first.notice == notice
        assert store.claim_notice(60) is None
        age_notice(store, notice.id, "lease_until", 1)
        second = store.claim_notice(60)
        assert (second.notice, second.attempts) == (notice, first.attempts + 1)

    def test_what_was_taken_is_over(self, store: Any, notice: Notice) -> None:
        """It is neither claimed nor given up."""
        due = store.claim_notice(60)
        store.end_notice(due)
        store.put_off_notice(due, 0)
        age_notice(store, notice.id, "created_at", 9999)
        assert store.claim_notice(60) is None
        assert store.give_up_notices(1, 10) == []

    def test_what_was_put_off(self, store: Any, notice: Notice) -> None:
        """Comes again when its time has come."""
        store.put_off_notice(store.claim_notice(60), 30)
        assert store.claim_notice(60) is None
        age_notice(store, notice.id, "next_try_at", 1)
        assert store.claim_notice(60).notice == notice

    def test_a_lost_claim_puts_nothing_off(self, store: Any, notice: Notice) -> None:
        """Whoever was too slow does not undo the next one's claim, but may still say that it was taken."""
        slow = store.claim_notice(60)
        age_notice(store, notice.id, "lease_until", 1)
        store.claim_notice(60)
        store.put_off_notice(slow, 0)
        assert store.claim_notice(60) is None
        store.end_notice(slow)
        age_notice(store, notice.id, "lease_until", 1)
        assert store.claim_notice(60) is None

    def test_the_longest_due_first(self, store: Any, workspace: str, notice: Notice) -> None:
        """Of all that wait."""
        event_id = store.accept(draft(workspace, version=2, type=EventType.ROTATED)).event.id
        ended(store, event_id)
        age_notice(store, notice.id, "next_try_at", 60)
        assert [each.data["version"] for each in told(store)] == [1, 2]

    def test_old_ones_are_given_up(self, store: Any, notice: Notice) -> None:
        """Once, and then they are over; a claimed one is left to whoever has it."""
        age_notice(store, notice.id, "created_at", 100)
        assert store.give_up_notices(101, 10) == []
        store.claim_notice(60)
        assert store.give_up_notices(99, 10) == []
        age_notice(store, notice.id, "lease_until", 1)
        (given_up,) = store.give_up_notices(99, 10)
        assert given_up.notice.id == notice.id
        assert store.give_up_notices(99, 10) == []
        assert store.claim_notice(60) is None

    @pytest.mark.parametrize("how", ["taken", "given up"])
    def test_old_ones_are_forgotten(self, store: Any, notice: Notice, how: str) -> None:
        """Once they are over, and not before their time."""
        age_notice(store, notice.id, "created_at", 100)
        if how == "taken":
            store.end_notice(store.claim_notice(60))
        else:
            store.give_up_notices(1, 10)
        assert store.forget_notices(101, 10) == 0
        assert store.forget_notices(99, 10) == 1
        assert store.forget_notices(99, 10) == 0

    def test_what_waits_is_not_forgotten(self, store: Any, notice: Notice) -> None:
        """However old it is."""
        age_notice(store, notice.id, "created_at", 100)
        assert store.forget_notices(99, 10) == 0
        assert [each.id for each in told(store)] == [notice.id]

    def test_forgetting_is_bounded(self, store: Any, workspace: str) -> None:
        """The oldest first."""
        for version in range(1, 4):
            ended(store, store.accept(draft(workspace, version=version, type=EventType.ROTATED)).event.id)
        while (due := store.claim_notice(60)) is not None:
            store.end_notice(due)
        assert [store.forget_notices(-1, 2) for _ in range(3)] == [2, 1, 0]

    def test_what_is_forgotten_is_not_told_again(self, store: Any, workspace: str) -> None:
        """A failure that lasts longer than its notice is kept was told of all the same."""
        connection = connected(store, workspace)
        for _ in range(2):
            store.open_failure(failure(connection), 0)
        (notice,) = told(store)
        age_notice(store, notice.id, "lease_until", 1)
        store.end_notice(store.claim_notice(60))
        assert store.forget_notices(-1, 10) == 1
        store.open_failure(failure(connection), 0)
        assert told(store) == []

    def test_many_claim_at_once(self, store: Any, workspace: str) -> None:
        """No notice is given to two."""
        for version in range(1, 21):
            ended(store, store.accept(draft(workspace, version=version, type=EventType.ROTATED)).event.id)
        with ThreadPoolExecutor(8) as pool:
            claimed = [due.notice.id for due in pool.map(lambda _: store.claim_notice(60), range(24)) if due]
        assert len(claimed) == len(set(claimed))
        assert len(claimed) + len(told(store)) == 20
