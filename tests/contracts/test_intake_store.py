"""``ports.IntakeStore`` and ``ports.CustodyStore``: what the fake and the SQL store both promise."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from broker_core.audit import Outcome, Result
from broker_core.errors import Conflict, NotFound, RateLimited
from broker_core.injection import Injection, Kind
from broker_core.model import Blob, CipherName, Connection, EventState, EventType
from tests.store_setup import BEARER, OK, age_event, begun, draft
from tests.waiting import wait_until

OTHER = Injection(Kind.HTTP_HEADER, "X-Api-Key", "other.example.com", "server-1", None)
PLATFORM_BLOB = Blob(CipherName.PLATFORM, b"platform blob")


def kept(store: Any, workspace: str, **changes: Any) -> EventState | None:
    """Accept and store one event under the current setting."""
    accepted = store.accept(draft(workspace, **changes))
    return store.keep(begun(store, accepted.event.id), PLATFORM_BLOB, OK)


class TestAccept:
    """Accepting."""

    def test_a_new_event_waits_as_accepted(self, store: Any, workspace: str) -> None:
        """A new event is ``accepted`` and held until its claim's time."""
        accepted = store.accept(draft(workspace))
        assert accepted.is_new
        assert accepted.event.state is EventState.ACCEPTED
        assert accepted.event.held_until is not None

    def test_an_unknown_workspace_is_refused(self, store: Any) -> None:
        """An event for a workspace that does not exist is NotFound."""
        with pytest.raises(NotFound):
            store.accept(draft("nobody"))

    def test_a_deleted_workspace_is_refused(self, store: Any, workspace: str) -> None:
        """An event for a deleted workspace is NotFound."""
        store.delete_workspace(workspace)
        with pytest.raises(NotFound):
            store.accept(draft(workspace))

    def test_the_same_event_is_accepted_once(self, store: Any, workspace: str) -> None:
        """A repeat is answered with the first one's row and key."""
        first = store.accept(draft(workspace, event_id="same", claim_key=b"1" * 32))
        again = store.accept(draft(workspace, event_id="same", claim_key=b"2" * 32))
        assert not again.is_new
        assert again.event.id == first.event.id
        assert again.claim_key == b"1" * 32

    def test_the_same_id_under_another_name_is_the_same_event(self, store: Any, workspace: str) -> None:
        """An event is known by workspace, source and id, whatever else it says."""
        first = store.accept(draft(workspace, event_id="same"))
        again = store.accept(draft(workspace, event_id="same", name="gitlab"))
        assert again.event.id == first.event.id

    def test_another_source_is_another_event(self, store: Any, workspace: str) -> None:
        """Two producers may use the same id."""
        store.accept(draft(workspace, event_id="same"))
        assert store.accept(draft(workspace, event_id="same", source="other", version=2)).is_new

    def test_a_version_is_taken_once(self, store: Any, workspace: str) -> None:
        """Another event with the same name and version is ``version_taken``."""
        store.accept(draft(workspace))
        with pytest.raises(Conflict) as caught:
            store.accept(draft(workspace))
        assert caught.value.reason == "version_taken"

    def test_without_a_version_the_next_one_is_counted(self, store: Any, workspace: str) -> None:
        """Our own doors get the highest accepted version plus one."""
        store.accept(draft(workspace, version=7))
        accepted = store.accept(draft(workspace, version=None, type=EventType.ROTATED))
        assert accepted.event.version == 8

    def test_a_name_in_use_is_taken(self, store: Any, workspace: str) -> None:
        """``must_be_new`` refuses a live name."""
        store.accept(draft(workspace))
        with pytest.raises(Conflict) as caught:
            store.accept(draft(workspace, version=None, must_be_new=True))
        assert caught.value.reason == "name_taken"

    def test_what_must_exist(self, store: Any, workspace: str) -> None:
        """A name never used, or deleted, is NotFound, and is not brought to life."""
        with pytest.raises(NotFound):
            store.accept(draft(workspace, version=None, must_exist=True))
        store.accept(draft(workspace))
        assert store.accept(draft(workspace, version=None, must_exist=True)).event.version == 2
        store.accept(draft(workspace, type=EventType.DELETED, version=None, must_exist=True))
        for kind in (EventType.ROTATED, EventType.DELETED):
            with pytest.raises(NotFound):
                store.accept(draft(workspace, type=kind, version=None, must_exist=True))
        assert store.secrets(workspace) == []

    def test_an_exclusive_event_is_accepted_as_any(self, store: Any, workspace: str) -> None:
        """Nobody else is accepting it: once, then as a repeat."""
        first = store.accept(draft(workspace, event_id="same", is_exclusive=True))
        again = store.accept(draft(workspace, event_id="same", is_exclusive=True))
        assert (first.is_new, again.is_new) == (True, False)

    def test_names_of_two_workspaces_do_not_meet(self, store: Any, workspace: str, neighbour: str) -> None:
        """Each workspace has its own names and versions."""
        assert store.accept(draft(workspace)).is_new
        assert store.accept(draft(neighbour)).is_new

    def test_an_event_of_a_neighbour_is_not_found(self, store: Any, workspace: str, neighbour: str) -> None:
        """Another workspace's event answers like one that does not exist."""
        accepted = store.accept(draft(workspace))
        with pytest.raises(NotFound):
            store.event(neighbour, accepted.event.id)


class TestMostWaiting:
    """A workspace's values that wait."""

    def fill(self, store: Any, workspace: str) -> None:
        """Two of them."""
        for number in (1, 2):
            store.accept(draft(workspace, version=number, event_id=f"waits-{number}"))

    def test_one_more_is_refused(self, store: Any, workspace: str) -> None:
        """With the seconds to wait; nothing of it is kept."""
        self.fill(store, workspace)
        with pytest.raises(RateLimited) as caught:
            store.accept(draft(workspace, name="another", version=3, most_waiting=2))
        assert caught.value.retry_after >= 1
        assert [view.name for view in store.secrets(workspace)] == ["github"]

    def test_what_has_ended_does_not_wait(self, store: Any, workspace: str) -> None:
        """An end makes room."""
        self.fill(store, workspace)
        event = store.accept(draft(workspace, event_id="waits-1")).event
        store.discard(workspace, event.id)
        assert store.accept(draft(workspace, version=3, most_waiting=2)).is_new

    def test_a_repeat_is_answered(self, store: Any, workspace: str) -> None:
        """It brings nothing new."""
        self.fill(store, workspace)
        assert not store.accept(draft(workspace, event_id="waits-2", most_waiting=2)).is_new

    def test_a_deletion_is_accepted(self, store: Any, workspace: str) -> None:
        """It has no value, and makes room."""
        self.fill(store, workspace)
        store.accept(draft(workspace, type=EventType.DELETED, version=3, most_waiting=2))
        assert store.accept(draft(workspace, version=4, most_waiting=2)).is_new

    def test_a_neighbours_do_not_count(self, store: Any, workspace: str, neighbour: str) -> None:
        """Each workspace has its own room."""
        self.fill(store, workspace)
        assert store.accept(draft(neighbour, most_waiting=1)).is_new


class TestDelete:
    """Tombstones."""

    def test_a_deletion_ends_at_once(self, store: Any, workspace: str) -> None:
        """A deletion needs no actor."""
        kept(store, workspace)
        accepted = store.accept(draft(workspace, type=EventType.DELETED, version=2))
        assert accepted.event.state is EventState.DELETED
        assert store.candidates(workspace, "agent-1", None) == []

    def test_a_deletion_ends_what_waits(self, store: Any, workspace: str) -> None:
        """Waiting events of the secret end as ``deleted``, and their claims are handed back."""
        waiting = store.accept(draft(workspace, claim_id="waiting"))
        deleted = store.accept(draft(workspace, type=EventType.DELETED, version=2))
        assert store.event(workspace, waiting.event.id).state is EventState.DELETED
        assert list(deleted.released_claims) == ["waiting"]

    def test_a_late_deletion_changes_nothing(self, store: Any, workspace: str) -> None:
        """A deletion below the highest accepted version is ``superseded``."""
        kept(store, workspace, version=5)
        accepted = store.accept(draft(workspace, type=EventType.DELETED, version=4))
        assert accepted.event.state is EventState.SUPERSEDED
        assert len(store.candidates(workspace, "agent-1", None)) == 1

    def test_versions_never_restart(self, store: Any, workspace: str) -> None:
        """A name that is used again goes on from its tombstone's version."""
        kept(store, workspace, version=5)
        store.accept(draft(workspace, type=EventType.DELETED, version=6))
        accepted = store.accept(draft(workspace, version=None, must_be_new=True))
        assert accepted.event.version == 7

    def test_an_event_older_than_the_tombstone_is_superseded(self, store: Any, workspace: str) -> None:
        """What arrives late does not bring a deleted secret back."""
        kept(store, workspace, version=5)
        store.accept(draft(workspace, type=EventType.DELETED, version=6))
        assert kept(store, workspace, version=3) is EventState.SUPERSEDED
        assert store.candidates(workspace, "agent-1", None) == []


class TestKeep:
    """Storing the blob."""

    def test_a_kept_event_is_stored(self, store: Any, workspace: str) -> None:
        """The blob is in place and the event has ended."""
        assert kept(store, workspace) is EventState.STORED
        (candidate,) = store.candidates(workspace, "agent-1", None)
        assert (candidate.blob, candidate.version) == (PLATFORM_BLOB, 1)

    def test_the_key_is_forgotten(self, store: Any, workspace: str) -> None:
        """A repeat of an ended event finds no key."""
        kept(store, workspace, event_id="same")
        assert store.accept(draft(workspace, event_id="same")).claim_key is None

    def test_an_ended_event_is_not_begun(self, store: Any, workspace: str) -> None:
        """A second message for an ended event finds nothing to do."""
        accepted = store.accept(draft(workspace))
        store.keep(begun(store, accepted.event.id), PLATFORM_BLOB, OK)
        assert store.begin(accepted.event.id, uuid4()) is None

    def test_each_attempt_is_counted(self, store: Any, workspace: str) -> None:
        """The counter is raised by beginning, not by ending."""
        event = store.accept(draft(workspace)).event
        seen = []
        for _ in range(3):
            seen.append(begun(store, event.id).attempts)
            age_event(store, event.id, "begun_at", 60)
        assert seen == [1, 2, 3]

    def test_attempts_at_the_same_time_count_as_one(self, store: Any, workspace: str) -> None:
        """A flood of doorbells while an attempt is under way is no row of crashes."""
        event = store.accept(draft(workspace)).event
        assert [begun(store, event.id).attempts for _ in range(10)] == [1] * 10

    def test_an_attempt_that_reported_back_is_not_counted(self, store: Any, workspace: str) -> None:
        """Holding sets the counter back: it counts crashes."""
        accepted = store.accept(draft(workspace))
        store.hold(begun(store, accepted.event.id), EventState.ACCEPTED, Result(Outcome.FAILED), 0)
        assert begun(store, accepted.event.id).attempts == 1

    def test_a_lower_version_is_superseded(self, store: Any, workspace: str) -> None:
        """The highest version wins, whatever the order."""
        kept(store, workspace, version=5)
        assert kept(store, workspace, version=4) is EventState.SUPERSEDED
        assert store.candidates(workspace, "agent-1", None)[0].version == 5

    def test_two_workers_store_once(self, store: Any, workspace: str) -> None:
        """The second attempt at one event finds that it ended."""
        accepted = store.accept(draft(workspace))
        one, two = begun(store, accepted.event.id), begun(store, accepted.event.id)
        assert store.keep(one, PLATFORM_BLOB, OK) is EventState.STORED
        assert store.keep(two, Blob(CipherName.PLATFORM, b"other"), OK) is EventState.STORED
        assert store.candidates(workspace, "agent-1", None)[0].blob == PLATFORM_BLOB

    def test_a_changed_setting_starts_over(self, store: Any, workspace: str, connection: Connection) -> None:
        """What was encrypted under the old setting is not stored after it changed."""
        attempt = begun(store, store.accept(draft(workspace)).event.id)
        store.add_pending(connection)
        assert store.make_current(connection, Blob(CipherName.KMS, b"canary"), 0)
        assert store.keep(attempt, PLATFORM_BLOB, OK) is None
        assert begun(store, attempt.event.id).setting.connection == connection

    def test_an_attempt_under_a_changed_setting_is_not_counted(
        self, store: Any, workspace: str, connection: Connection
    ) -> None:
        """It reported back: only crashes count."""
        attempt = begun(store, store.accept(draft(workspace)).event.id)
        store.add_pending(connection)
        assert store.make_current(connection, Blob(CipherName.KMS, b"canary"), 0)
        assert store.keep(attempt, PLATFORM_BLOB, OK) is None
        assert begun(store, attempt.event.id).attempts == 1

    def test_a_superseded_created_fills_the_fields(self, store: Any, workspace: str) -> None:
        """``rotated`` came first and had no fields; ``created`` is late, but says where the value may go."""
        kept(store, workspace, version=2, type=EventType.ROTATED, injection=None)
        assert store.candidates(workspace, "agent-1", None) == []
        assert kept(store, workspace, version=1) is EventState.SUPERSEDED
        assert store.candidates(workspace, "agent-1", None)[0].injection == BEARER

    def test_superseded_fields_do_not_replace_later_ones(self, store: Any, workspace: str) -> None:
        """Fields follow the highest event that set them."""
        kept(store, workspace, version=3, injection=OTHER)
        kept(store, workspace, version=2, injection=BEARER)
        assert store.candidates(workspace, None, "server-1")[0].injection == OTHER

    def test_a_rotation_without_fields_keeps_them(self, store: Any, workspace: str) -> None:
        """A rotation may leave the injection fields out."""
        kept(store, workspace)
        kept(store, workspace, version=2, type=EventType.ROTATED, injection=None)
        assert store.candidates(workspace, "agent-1", None)[0].injection == BEARER

    def test_a_rotation_policy_needs_no_fields(self, store: Any, workspace: str) -> None:
        """A rotation that keeps the fields may still change when the next one is due."""
        kept(store, workspace, rotation_policy="90d")
        kept(store, workspace, version=2, type=EventType.ROTATED, injection=None, rotation_policy="30d")
        (secret,) = store.secrets(workspace)
        assert secret.rotation_policy == "30d"

    def test_a_deleted_event_is_not_stored(self, store: Any, workspace: str) -> None:
        """A discard during the encryption wins."""
        attempt = begun(store, store.accept(draft(workspace)).event.id)
        assert store.discard(workspace, attempt.event.id) == attempt.event.claim_id
        assert store.keep(attempt, PLATFORM_BLOB, OK) is EventState.DELETED
        assert store.candidates(workspace, "agent-1", None) == []


class TestHold:
    """Waiting."""

    def test_a_refused_event_stays_refused(self, store: Any, workspace: str) -> None:
        """A transient error after a refusal does not hide the refusal."""
        event_id = store.accept(draft(workspace)).event.id
        store.hold(begun(store, event_id), EventState.REFUSED, Result(Outcome.REFUSED, "access_denied"), 0)
        store.hold(begun(store, event_id), EventState.ACCEPTED, Result(Outcome.FAILED, "transient"), 0)
        assert store.event(workspace, event_id).state is EventState.REFUSED

    def test_a_held_event_says_why(self, store: Any, workspace: str) -> None:
        """The reason is the key's state."""
        event_id = store.accept(draft(workspace)).event.id
        store.hold(begun(store, event_id), EventState.REFUSED, Result(Outcome.REFUSED, "key_disabled"), 0)
        assert store.event(workspace, event_id).reason == "key_disabled"

    def test_an_end_is_final(self, store: Any, workspace: str) -> None:
        """Holding an event that has ended does nothing."""
        attempt = begun(store, store.accept(draft(workspace)).event.id)
        store.end(attempt, EventState.EXPIRED, "claim_gone", Result(Outcome.REFUSED))
        store.hold(attempt, EventState.ACCEPTED, Result(Outcome.FAILED), 0)
        assert store.event(workspace, attempt.event.id).state is EventState.EXPIRED

    def test_what_has_ended_cannot_be_discarded(self, store: Any, workspace: str) -> None:
        """Discarding is for what waits."""
        kept(store, workspace, event_id="done")
        done = store.accept(draft(workspace, event_id="done")).event
        with pytest.raises(Conflict):
            store.discard(workspace, done.id)


class TestReconcile:
    """Housekeeping."""

    def test_a_held_event_is_rung_again(self, store: Any, workspace: str) -> None:
        """An event whose time to be tried has come is claimed for the doorbell, once."""
        event = store.accept(draft(workspace)).event
        store.hold(begun(store, event.id), EventState.ACCEPTED, Result(Outcome.FAILED), 0)
        assert event.id in [ring.event_id for ring in store.reconcile(500, 3600).to_ring]
        assert event.id not in [ring.event_id for ring in store.reconcile(500, 3600).to_ring]

    def test_a_ring_continues_the_events_trace(self, store: Any, workspace: str) -> None:
        """Whoever rings again does so in the trace that the event was accepted in."""
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        event = store.accept(draft(workspace, traceparent=parent)).event
        store.hold(begun(store, event.id), EventState.ACCEPTED, Result(Outcome.FAILED), 0)
        (ring,) = (ring for ring in store.reconcile(500, 3600).to_ring if ring.event_id == event.id)
        assert ring.traceparent == parent

    def test_an_event_over_its_time_expires(self, store: Any, workspace: str) -> None:
        """At the claim's end the key goes, and the event ends ``expired``."""
        event = store.accept(draft(workspace, ttl_seconds=0)).event
        wait_until(lambda: store.reconcile(500, 3600) and store.event(workspace, event.id).state is EventState.EXPIRED)
        assert store.event(workspace, event.id).ended_at is not None
