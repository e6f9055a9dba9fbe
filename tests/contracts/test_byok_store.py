"""``ports.ByokStore``: what the fake and the SQL store both promise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from broker_core.errors import Conflict, KeyState, NotFound
from broker_core.model import CipherName, Connection, ConnectionStatus, EventState
from tests.store_setup import CANARY, OK, STEPS, begun, blob_for, connected, draft, failure, new_connection, stored

#: what is asked of a workspace by its id alone
QUESTIONS = ["setting", "plan_of", "affected", "connections", "delete_workspace", "disconnect"]


class TestWorkspaces:
    """Tenants."""

    def test_a_new_workspace_has_no_connection(self, store: Any, workspace: str) -> None:
        """The platform cipher, at version 0."""
        setting = store.setting(workspace)
        assert (setting.workspace_id, setting.version, setting.connection) == (workspace, 0, None)

    @pytest.mark.parametrize("plan", ["free", "team", "enterprise"])
    def test_a_plan_is_kept(self, store: Any, workspace: str, plan: str) -> None:
        """Putting a workspace again changes its plan."""
        store.put_workspace(workspace, plan)
        assert store.plan_of(workspace) == plan

    def test_a_change_of_plan_keeps_the_connection(self, store: Any, workspace: str) -> None:
        """Losing Enterprise never changes a cipher."""
        connection = connected(store, workspace)
        store.put_workspace(workspace, "free")
        assert store.setting(workspace).connection == connection

    @pytest.mark.parametrize("question", QUESTIONS)
    def test_an_unknown_workspace_is_not_found(self, store: Any, question: str) -> None:
        """Every question about a workspace that does not exist is NotFound."""
        with pytest.raises(NotFound):
            getattr(store, question)(f"ws_{uuid4().hex}")

    @pytest.mark.parametrize("question", QUESTIONS)
    def test_a_deleted_workspace_is_not_found(self, store: Any, workspace: str, question: str) -> None:
        """A tombstone answers like nothing at all."""
        store.delete_workspace(workspace)
        with pytest.raises(NotFound):
            getattr(store, question)(workspace)

    def test_a_deleted_workspace_is_not_made_again(self, store: Any, workspace: str) -> None:
        """An id is never used again."""
        store.delete_workspace(workspace)
        with pytest.raises(Conflict):
            store.put_workspace(workspace, "free")


class TestDeleteWorkspace:
    """Tombstones of workspaces."""

    def test_waiting_events_end(self, store: Any, workspace: str) -> None:
        """Every waiting event ends ``deleted``, and its claim id is handed back."""
        event = store.accept(draft(workspace, claim_id="open-claim")).event
        assert list(store.delete_workspace(workspace)) == ["open-claim"]
        assert store.event(workspace, event.id).state is EventState.DELETED

    def test_a_deleted_workspaces_event_is_not_begun(self, store: Any, workspace: str) -> None:
        """A message on its way finds nothing to do."""
        event = store.accept(draft(workspace)).event
        store.delete_workspace(workspace)
        assert store.begin(event.id, uuid4()) is None

    def test_an_attempt_that_was_begun_stores_nothing(self, store: Any, workspace: str) -> None:
        """A value that was under encryption meanwhile is not kept."""
        attempt = begun(store, store.accept(draft(workspace)).event.id)
        store.delete_workspace(workspace)
        assert store.keep(attempt, blob_for(attempt), OK) is EventState.DELETED
        assert store.candidates(workspace, "agent-1", None) == []

    def test_every_blob_goes(self, store: Any, workspace: str) -> None:
        """Nothing is left to decrypt."""
        connected(store, workspace)
        stored(store, workspace)
        store.delete_workspace(workspace)
        assert store.candidates(workspace, "agent-1", None) == []

    def test_ended_events_stay_as_they_ended(self, store: Any, workspace: str) -> None:
        """History is not rewritten."""
        stored(store, workspace, event_id="same")
        event = store.accept(draft(workspace, event_id="same")).event
        store.delete_workspace(workspace)
        assert store.event(workspace, event.id).state is EventState.STORED

    def test_a_neighbour_keeps_everything(self, store: Any, workspace: str, neighbour: str) -> None:
        """Another workspace's rows are not touched."""
        stored(store, neighbour)
        store.delete_workspace(workspace)
        assert len(store.candidates(neighbour, "agent-1", None)) == 1

    def test_it_is_not_made_current_any_more(self, store: Any, workspace: str) -> None:
        """A verification that ends after the deletion changes nothing."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        store.delete_workspace(workspace)
        assert not store.make_current(connection, CANARY, 0)


class TestConnect:
    """The setting."""

    def test_a_pending_connection_changes_nothing(self, store: Any, workspace: str) -> None:
        """The setting moves only when it is verified."""
        store.add_pending(new_connection(workspace))
        setting = store.setting(workspace)
        assert (setting.version, setting.connection) == (0, None)

    def test_a_current_connection_is_the_setting(self, store: Any, workspace: str) -> None:
        """It encrypts what comes next, and the version counts up."""
        connection = connected(store, workspace)
        setting = store.setting(workspace)
        assert (setting.version, setting.connection) == (1, connection)

    def test_a_moved_setting_refuses(self, store: Any, workspace: str) -> None:
        """Making current is a compare-and-set: a verification of an older setting is False."""
        late = new_connection(workspace)
        store.add_pending(late)
        first = connected(store, workspace)
        assert not store.make_current(late, CANARY, 0)
        assert store.setting(workspace).connection == first

    def test_a_lost_plan_refuses(self, store: Any, workspace: str) -> None:
        """A verification takes seconds; the plan that it began on may be gone at its end."""
        late = new_connection(workspace)
        store.add_pending(late)
        store.put_workspace(workspace, "team")
        assert not store.make_current(late, CANARY, 0)
        assert store.setting(workspace).connection is None

    def test_of_two_at_once_one_wins(self, store: Any, workspace: str) -> None:
        """Concurrent verifications of one setting: exactly one is made current."""
        connections = [new_connection(workspace) for _ in range(2)]
        for connection in connections:
            store.add_pending(connection)
        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(lambda connection: store.make_current(connection, CANARY, 0), connections))
        assert sorted(won) == [False, True]
        assert store.setting(workspace).connection == connections[won.index(True)]

    def test_replacing_keeps_old_blobs_where_they_are(self, store: Any, workspace: str) -> None:
        """Old blobs point at the connection that made them."""
        old = connected(store, workspace)
        stored(store, workspace)
        new = connected(store, workspace)
        (candidate,) = store.candidates(workspace, "agent-1", None)
        assert (candidate.connection, store.setting(workspace).connection) == (old, new)

    def test_disconnecting_goes_back_to_the_platform_cipher(self, store: Any, workspace: str) -> None:
        """For what comes; the version counts up."""
        connected(store, workspace)
        store.disconnect(workspace)
        setting = store.setting(workspace)
        assert (setting.version, setting.connection) == (2, None)

    def test_disconnecting_keeps_old_blobs(self, store: Any, workspace: str) -> None:
        """They stay under the old connection."""
        connection = connected(store, workspace)
        stored(store, workspace)
        store.disconnect(workspace)
        (candidate,) = store.candidates(workspace, "agent-1", None)
        assert (candidate.connection, candidate.blob.cipher) == (connection, CipherName.KMS)

    def test_disconnecting_nothing_is_a_conflict(self, store: Any, workspace: str) -> None:
        """There is nothing to go back from."""
        with pytest.raises(Conflict):
            store.disconnect(workspace)

    def test_an_unknown_workspace_connects_nothing(self, store: Any) -> None:
        """A connection belongs to a workspace that exists."""
        with pytest.raises(NotFound):
            store.add_pending(new_connection(f"ws_{uuid4().hex}"))


class TestExternalIds:
    """An external id is one workspace's for ever."""

    def test_anothers_is_refused(self, store: Any, workspace: str, neighbour: str) -> None:
        """One generic refusal, which says nothing of whose."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        with pytest.raises(Conflict) as caught:
            store.add_pending(new_connection(neighbour, external_id=connection.external_id))
        assert workspace not in str(caught.value)
        assert connection.external_id not in str(caught.value)

    def test_ones_own_may_be_used_again(self, store: Any, workspace: str) -> None:
        """A replaced connection may keep the external id."""
        first = connected(store, workspace)
        again = connected(store, workspace, external_id=first.external_id)
        assert store.setting(workspace).connection == again

    def test_a_deleted_workspaces_stays_taken(self, store: Any, workspace: str, neighbour: str) -> None:
        """Even after its workspace is gone."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        store.delete_workspace(workspace)
        with pytest.raises(Conflict):
            store.add_pending(new_connection(neighbour, external_id=connection.external_id))

    def test_of_two_workspaces_at_once_one_gets_it(self, store: Any, workspace: str, neighbour: str) -> None:
        """Concurrent claims of one external id: exactly one is refused."""
        external_id = f"external-{uuid4().hex}"

        def claim(owner: str) -> bool:
            try:
                store.add_pending(new_connection(owner, external_id=external_id))
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(claim, (workspace, neighbour))) == [False, True]


class TestAffected:
    """What owners see after a revocation (the record itself: test_sweep_store)."""

    def test_nothing_is_affected(self, store: Any, workspace: str) -> None:
        """Two empty lists."""
        connected(store, workspace)
        affected = store.affected(workspace)
        assert (affected.connections, affected.secrets) == ([], [])

    def test_a_failing_connection_without_secrets_is_listed(self, store: Any, workspace: str) -> None:
        """The next value could not be stored: its owner must see that."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection))
        (affected,) = store.affected(workspace).connections
        assert (affected.connection_id, affected.secrets) == (connection.id, [])

    def test_a_retired_connection_without_blobs_is_nobodys_trouble(self, store: Any, workspace: str) -> None:
        """What protects nothing is not listed."""
        store.open_failure(failure(connected(store, workspace)))
        store.disconnect(workspace)
        assert store.affected(workspace).connections == []

    def test_re_provisioning_under_a_new_connection_ends_it(self, store: Any, workspace: str) -> None:
        """A value given again goes under the current key; the old failure affects it no more."""
        old = connected(store, workspace)
        stored(store, workspace)
        store.open_failure(failure(old))
        connected(store, workspace)
        assert [name for _, name in store.affected(workspace).connections[0].secrets] == ["github"]
        stored(store, workspace, version=2)
        assert store.affected(workspace).connections == []

    def test_a_neighbour_is_not_affected(self, store: Any, workspace: str, neighbour: str) -> None:
        """Another workspace's failure shows nothing."""
        connection: Connection = connected(store, workspace)
        store.open_failure(failure(connection))
        assert store.affected(neighbour).connections == []


class TestVerifications:
    """What a verification leaves with its connection, and what owners see of it."""

    def test_a_pending_connection_is_shown_as_it_is(self, store: Any, workspace: str) -> None:
        """All that it says, unverified, with no steps yet."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        (view,) = store.connections(workspace)
        assert (view.id, view.role_arn, view.key_arn) == (connection.id, connection.role_arn, connection.key_arn)
        assert (view.external_id, view.region) == (connection.external_id, "eu-west-1")
        assert (view.status, view.health, view.health_since) == (ConnectionStatus.PENDING, "unverified", None)
        assert (view.verified_at, list(view.steps)) == (None, [])

    def test_steps_that_failed_stay_with_it(self, store: Any, workspace: str) -> None:
        """Every field of every step, in order; it is not verified by them."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        store.note_verification(connection, STEPS, passed=False, flag=None)
        (view,) = store.connections(workspace)
        assert (list(view.steps), view.verified_at, view.status) == (list(STEPS), None, ConnectionStatus.PENDING)

    def test_steps_that_passed_come_with_being_current(self, store: Any, workspace: str) -> None:
        """In the one transaction that enables it."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        assert store.make_current(connection, CANARY, 0, STEPS)
        (view,) = store.connections(workspace)
        assert (view.status, view.health, list(view.steps)) == (ConnectionStatus.CURRENT, "healthy", list(STEPS))
        assert view.verified_at is not None

    def test_a_newer_attempt_takes_a_pending_ones_place(self, store: Any, workspace: str) -> None:
        """The older one is gone, and cannot be made current any more."""
        first, second = new_connection(workspace), new_connection(workspace)
        store.add_pending(first)
        store.add_pending(second)
        assert [view.id for view in store.connections(workspace)] == [second.id]
        assert not store.make_current(first, CANARY, 0)
        store.note_verification(first, STEPS, passed=False, flag=True)
        assert [view.id for view in store.connections(workspace)] == [second.id]

    def test_a_neighbours_pending_one_stays(self, store: Any, workspace: str, neighbour: str) -> None:
        """An attempt takes the place of the workspace's own only."""
        theirs = new_connection(neighbour)
        store.add_pending(theirs)
        store.add_pending(new_connection(workspace))
        assert [view.id for view in store.connections(neighbour)] == [theirs.id]

    def test_a_current_one_is_not_made_current_again(self, store: Any, workspace: str) -> None:
        """Only what is pending can be enabled."""
        connection = connected(store, workspace)
        assert not store.make_current(connection, CANARY, store.setting(workspace).version)

    def test_the_current_one_is_first_and_the_oldest_last(self, store: Any, workspace: str) -> None:
        """Then the pending one, then what is retired, newest first."""
        first, second, third = (connected(store, workspace) for _ in range(3))
        pending = new_connection(workspace)
        store.add_pending(pending)
        assert [view.id for view in store.connections(workspace)] == [third.id, pending.id, second.id, first.id]

    def test_verifying_again_moves_the_time_only_if_it_passed(self, store: Any, workspace: str) -> None:
        """When it was last passed stays what it was; the steps are the last ones."""
        connection = connected(store, workspace)
        (before,) = store.connections(workspace)
        store.note_verification(connection, STEPS, passed=False, flag=None)
        (failed,) = store.connections(workspace)
        store.note_verification(connection, (), passed=True, flag=False)
        (passed,) = store.connections(workspace)
        assert (failed.verified_at, list(failed.steps)) == (before.verified_at, list(STEPS))
        assert (passed.verified_at > before.verified_at, list(passed.steps)) == (True, [])

    def test_a_flag_keeps_its_time_until_it_goes(self, store: Any, workspace: str) -> None:
        """Raised twice it is as old as the first; not having learnt anything leaves it."""
        connection = connected(store, workspace)
        seen = []
        for flag in (True, True, None, False):
            store.note_verification(connection, STEPS, passed=False, flag=flag)
            (view,) = store.connections(workspace)
            seen.append((view.health, view.health_since))
        assert seen[0][0] == "flagged"
        assert seen[0][1] is not None
        assert seen == [seen[0], seen[0], seen[0], ("healthy", None)]

    def test_an_open_failure_comes_before_a_flag(self, store: Any, workspace: str) -> None:
        """Its state, and since when; once it is closed the flag is seen again."""
        connection = connected(store, workspace)
        store.note_verification(connection, STEPS, passed=False, flag=True)
        store.open_failure(failure(connection, state=KeyState.KEY_DISABLED))
        (failing,) = store.connections(workspace)
        store.close_failure(workspace, connection.id, None)
        (flagged,) = store.connections(workspace)
        assert (failing.health, flagged.health) == ("key_disabled", "flagged")
        assert failing.health_since is not None

    def test_a_secrets_own_failure_is_not_the_connections(self, store: Any, workspace: str) -> None:
        """It is listed with the secret."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection, stored(store, workspace)))
        assert store.connections(workspace)[0].health == "healthy"

    def test_only_the_workspaces_own_are_shown(self, store: Any, workspace: str, neighbour: str) -> None:
        """INV-10."""
        connected(store, neighbour)
        assert list(store.connections(workspace)) == []

    def test_another_workspaces_connection_is_not_noted(self, store: Any, workspace: str, neighbour: str) -> None:
        """INV-10: a connection is known together with its workspace only."""
        theirs = connected(store, neighbour)
        forged = Connection(theirs.id, workspace, theirs.role_arn, theirs.external_id, theirs.key_arn)
        store.note_verification(forged, STEPS, passed=False, flag=True)
        assert store.connections(neighbour)[0].health == "healthy"

    def test_an_external_id_is_not_shown_by_accident(self, store: Any, workspace: str) -> None:
        """Printing a view does not show it."""
        connection = connected(store, workspace)
        assert connection.external_id not in repr(store.connections(workspace))
