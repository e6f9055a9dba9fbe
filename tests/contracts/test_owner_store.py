"""``ports.OwnerStore``: what the fake and the SQL store both promise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from broker_core.audit import Outcome, Result
from broker_core.errors import KeyState, NotFound
from broker_core.model import CipherName, EventState, EventType, FoundBy, Purpose, SecretStatus
from tests.store_setup import (
    BEARER,
    OK,
    age_connection,
    age_secret,
    begun,
    blob_for,
    connected,
    draft,
    failure,
    intent,
    stored,
)


def status(store: Any, workspace: str) -> SecretStatus:
    """The status of the workspace's one secret."""
    (view,) = store.secrets(workspace)
    found: SecretStatus = view.status
    return found


def ended(store: Any, workspace: str, state: EventState, **changes: Any) -> None:
    """An event that ended without a blob."""
    attempt = begun(store, store.accept(draft(workspace, **changes)).event.id)
    store.end(attempt, state, "reason", Result(Outcome.REFUSED, "reason"))


class TestStatus:
    """The one status that an owner sees."""

    def test_pending(self, store: Any, workspace: str) -> None:
        """A first value that waits."""
        store.accept(draft(workspace))
        assert status(store, workspace) is SecretStatus.PENDING

    def test_pending_while_refused(self, store: Any, workspace: str) -> None:
        """A first value that the customer's side refused still waits."""
        attempt = begun(store, store.accept(draft(workspace)).event.id)
        store.hold(attempt, EventState.REFUSED, Result(Outcome.REFUSED, "access_denied"), 60)
        assert status(store, workspace) is SecretStatus.PENDING

    def test_active(self, store: Any, workspace: str) -> None:
        """A blob, bound, nothing wrong."""
        stored(store, workspace)
        assert status(store, workspace) is SecretStatus.ACTIVE

    def test_active_while_a_rotation_waits(self, store: Any, workspace: str) -> None:
        """The old blob stays in use."""
        stored(store, workspace)
        store.accept(draft(workspace, type=EventType.ROTATED, version=2))
        assert status(store, workspace) is SecretStatus.ACTIVE

    def test_unbound(self, store: Any, workspace: str) -> None:
        """A rotation of a name never created cannot inject."""
        stored(store, workspace, type=EventType.ROTATED, injection=None)
        assert status(store, workspace) is SecretStatus.UNBOUND

    def test_affected_by_its_connection(self, store: Any, workspace: str) -> None:
        """A failing connection is inherited."""
        connection = connected(store, workspace)
        stored(store, workspace)
        store.open_failure(failure(connection))
        assert status(store, workspace) is SecretStatus.AFFECTED

    def test_affected_on_its_own(self, store: Any, workspace: str) -> None:
        """A failure of its own."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection, stored(store, workspace)))
        assert status(store, workspace) is SecretStatus.AFFECTED

    def test_not_affected_by_anothers_failure(self, store: Any, workspace: str) -> None:
        """Another secret's own failure is not inherited."""
        connection = connected(store, workspace)
        other = stored(store, workspace, name="other")
        stored(store, workspace)
        store.open_failure(failure(connection, other))
        shown = {view.name: view.status for view in store.secrets(workspace)}
        assert shown == {"other": SecretStatus.AFFECTED, "github": SecretStatus.ACTIVE}

    @pytest.mark.parametrize("state", [KeyState.INTEGRITY, KeyState.MISCONFIGURED])
    def test_our_own_faults_affect_nobody(self, store: Any, workspace: str, state: KeyState) -> None:
        """INV-8."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection, stored(store, workspace), state=state))
        assert status(store, workspace) is SecretStatus.ACTIVE

    def test_a_platform_secret_is_not_affected(self, store: Any, workspace: str) -> None:
        """A blob from before BYOK does not use the failing key."""
        stored(store, workspace)
        store.open_failure(failure(connected(store, workspace)))
        assert status(store, workspace) is SecretStatus.ACTIVE

    def test_rechecking(self, store: Any, workspace: str) -> None:
        """Its connection healed after its last check."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        for column in ("checked_at", "rotated_at"):
            age_secret(store, secret_id, column, 60)
        age_connection(store, connection, "healed_at", 1)
        assert status(store, workspace) is SecretStatus.RECHECKING

    def test_a_check_after_healing_ends_rechecking(self, store: Any, workspace: str) -> None:
        """Once checked, it is active."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        for column in ("checked_at", "rotated_at"):
            age_secret(store, secret_id, column, 60)
        age_connection(store, connection, "healed_at", 1)
        check = intent(workspace, purpose=Purpose.CHECK, secret_id=secret_id)
        store.begin_checks([check])
        store.end_checks([(check, OK)])
        assert status(store, workspace) is SecretStatus.ACTIVE

    @pytest.mark.parametrize("state", [EventState.EXPIRED, EventState.UNREADABLE])
    def test_needs_reprovision_for_a_first_value(self, store: Any, workspace: str, state: EventState) -> None:
        """The value is lost, and there was none before."""
        ended(store, workspace, state)
        assert status(store, workspace) is SecretStatus.NEEDS_REPROVISION

    def test_needs_reprovision_for_a_rotation(self, store: Any, workspace: str) -> None:
        """The newest value is lost; the old blob may be of a revoked credential."""
        stored(store, workspace)
        ended(store, workspace, EventState.EXPIRED, version=2, type=EventType.ROTATED)
        assert status(store, workspace) is SecretStatus.NEEDS_REPROVISION

    def test_an_older_loss_is_no_loss(self, store: Any, workspace: str) -> None:
        """A value that was lost below the blob's version needs nothing."""
        stored(store, workspace, version=2)
        attempt = begun(store, store.accept(draft(workspace, version=1)).event.id)
        store.end(attempt, EventState.EXPIRED, "claim_gone", Result(Outcome.REFUSED))
        assert status(store, workspace) is SecretStatus.ACTIVE

    def test_giving_the_value_again_is_pending(self, store: Any, workspace: str) -> None:
        """A new event on its way ends ``needs_reprovision``."""
        ended(store, workspace, EventState.EXPIRED)
        store.accept(draft(workspace, version=2))
        assert status(store, workspace) is SecretStatus.PENDING

    def test_a_discarded_value_does_not_mend_a_lost_one(self, store: Any, workspace: str) -> None:
        """Discarding the replacement leaves the loss."""
        stored(store, workspace)
        ended(store, workspace, EventState.EXPIRED, version=2)
        waiting = store.accept(draft(workspace, version=3)).event
        store.discard(workspace, waiting.id)
        assert status(store, workspace) is SecretStatus.NEEDS_REPROVISION

    def test_a_discarded_first_value_needs_another(self, store: Any, workspace: str) -> None:
        """A name without any value."""
        store.discard(workspace, store.accept(draft(workspace)).event.id)
        assert status(store, workspace) is SecretStatus.NEEDS_REPROVISION


class TestSecrets:
    """The list."""

    def test_a_view_says_what_is_stored(self, store: Any, workspace: str) -> None:
        """Cipher, connection, fields and times; never a value."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace, version=3, rotation_policy="90d")
        (view,) = store.secrets(workspace)
        assert (view.id, view.name, view.version) == (secret_id, "github", 3)
        assert (view.cipher, view.connection_id) == (CipherName.KMS, connection.id)
        assert (view.injection, view.rotation_policy) == (BEARER, "90d")
        assert view.created_at <= view.rotated_at
        assert view.last_used_at is None

    def test_it_is_in_pages_oldest_id_first(self, store: Any, workspace: str) -> None:
        """Each page goes on after the last id of the one before."""
        for name in ("a", "b", "c"):
            stored(store, workspace, name=name)
        first = store.secrets(workspace, limit=2)
        rest = store.secrets(workspace, after=first[-1].id, limit=2)
        ids = [view.id for view in [*first, *rest]]
        assert (len(first), len(rest)) == (2, 1)
        assert ids == sorted(ids)

    def test_a_deleted_secret_is_not_listed(self, store: Any, workspace: str) -> None:
        """A tombstone is no secret."""
        stored(store, workspace)
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        assert store.secrets(workspace) == []

    def test_a_name_that_begins_anew_is_listed(self, store: Any, workspace: str) -> None:
        """Above its tombstone."""
        stored(store, workspace)
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        store.accept(draft(workspace, version=3))
        assert status(store, workspace) is SecretStatus.PENDING

    def test_a_neighbour_sees_nothing(self, store: Any, workspace: str, neighbour: str) -> None:
        """Lists are of one workspace."""
        stored(store, workspace)
        assert store.secrets(neighbour) == []

    def test_an_unknown_workspace_is_not_found(self, store: Any, workspace: str) -> None:
        """And so is a deleted one."""
        store.delete_workspace(workspace)
        for strange in (workspace, f"ws_{uuid4().hex}"):
            with pytest.raises(NotFound):
                store.secrets(strange)

    def test_one_status_only(self, store: Any, workspace: str) -> None:
        """Pages of one status are full ones, and go on as the others do."""
        for name in ("a", "b", "c"):
            stored(store, workspace, name=name)
            store.accept(draft(workspace, name=f"pending-{name}"))
        first = store.secrets(workspace, status=SecretStatus.PENDING, limit=2)
        rest = store.secrets(workspace, status=SecretStatus.PENDING, after=first[-1].id, limit=2)
        assert (len(first), len(rest)) == (2, 1)
        assert {view.name for view in [*first, *rest]} == {"pending-a", "pending-b", "pending-c"}
        assert store.secrets(workspace, status=SecretStatus.AFFECTED) == []

    def test_a_name_that_begins_anew_has_its_own_times(self, store: Any, workspace: str) -> None:
        """Neither when the one before it was created, nor when that was rotated or used."""
        secret_id = stored(store, workspace)
        before = store.secret(workspace, secret_id).created_at
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        store.accept(draft(workspace, version=3))
        view = store.secret(workspace, secret_id)
        assert view.created_at > before
        assert (view.rotated_at, view.last_used_at, view.last_checked_at) == (None, None, None)


class TestSecret:
    """One of them."""

    def test_it_is_as_in_the_list(self, store: Any, workspace: str) -> None:
        """One view of a secret."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        stored(store, workspace, name="other")
        store.open_failure(failure(connection))
        assert store.secret(workspace, secret_id) in store.secrets(workspace)
        assert store.secret(workspace, secret_id).id == secret_id

    def test_what_is_deleted_unknown_or_a_neighbours_is_not_found(
        self, store: Any, workspace: str, neighbour: str
    ) -> None:
        """All three alike."""
        deleted, theirs = stored(store, workspace), stored(store, neighbour)
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        for strange in (deleted, theirs, uuid4()):
            with pytest.raises(NotFound):
                store.secret(workspace, strange)


class TestFailure:
    """Why a secret cannot be decrypted now."""

    def test_without_one_there_is_none(self, store: Any, workspace: str) -> None:
        """The usual case."""
        connected(store, workspace)
        assert store.secret(workspace, stored(store, workspace)).failure is None

    def test_it_says_what_since_when_and_how_it_was_found(self, store: Any, workspace: str) -> None:
        """As it was recorded."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id, aws_code="DisabledException", found_by=FoundBy.INJECT))
        told = store.secret(workspace, secret_id).failure
        assert (told.state, told.aws_code, told.found_by) == (
            KeyState.ACCESS_DENIED,
            "DisabledException",
            FoundBy.INJECT,
        )
        assert told.since.tzinfo is not None

    def test_the_connections_comes_before_its_own(self, store: Any, workspace: str) -> None:
        """It is what has to be mended first."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id, aws_code="its own"))
        store.open_failure(failure(connection, aws_code="the connection's"))
        assert store.secret(workspace, secret_id).failure.aws_code == "the connection's"

    def test_what_blames_the_customer_comes_first(self, store: Any, workspace: str) -> None:
        """Status and failure tell the same story."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, state=KeyState.MISCONFIGURED))
        store.open_failure(failure(connection, secret_id, state=KeyState.KEY_DISABLED))
        view = store.secret(workspace, secret_id)
        assert (view.status, view.failure.state) == (SecretStatus.AFFECTED, KeyState.KEY_DISABLED)

    def test_our_own_fault_is_shown_and_affects_nobody(self, store: Any, workspace: str) -> None:
        """The owner sees that something is wrong, and that it is not on their side (INV-8)."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id, state=KeyState.INTEGRITY))
        view = store.secret(workspace, secret_id)
        assert (view.status, view.failure.state) == (SecretStatus.ACTIVE, KeyState.INTEGRITY)

    def test_what_has_ended_is_not_shown(self, store: Any, workspace: str) -> None:
        """A healed connection has no failure."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection))
        store.close_failure(workspace, connection.id, None)
        assert store.secret(workspace, secret_id).failure is None

    def test_anothers_is_not_shown(self, store: Any, workspace: str) -> None:
        """A secret's own failure is its own."""
        connection = connected(store, workspace)
        secret_id, other = stored(store, workspace), stored(store, workspace, name="other")
        store.open_failure(failure(connection, other))
        assert store.secret(workspace, secret_id).failure is None


class TestRotationPolicy:
    """The one thing that owners change without a new value."""

    def policy(self, store: Any, workspace: str) -> str | None:
        """Of the workspace's one secret."""
        (view,) = store.secrets(workspace)
        found: str | None = view.rotation_policy
        return found

    def test_it_is_set_and_taken_away(self, store: Any, workspace: str) -> None:
        """Both are changes."""
        secret_id = stored(store, workspace, rotation_policy="90d")
        store.set_rotation_policy(workspace, secret_id, "30d")
        assert self.policy(store, workspace) == "30d"
        store.set_rotation_policy(workspace, secret_id, None)
        assert self.policy(store, workspace) is None

    @pytest.mark.parametrize("policy", ["30d", None])
    def test_an_event_that_was_accepted_before_does_not_change_it(
        self, store: Any, workspace: str, policy: str | None
    ) -> None:
        """A value that waited while the owner changed the policy brings the value only."""
        secret_id = stored(store, workspace)
        attempt = begun(store, store.accept(draft(workspace, version=2, rotation_policy="90d")).event.id)
        store.set_rotation_policy(workspace, secret_id, policy)
        assert store.keep(attempt, blob_for(attempt), OK) is EventState.STORED
        assert self.policy(store, workspace) == policy

    def test_nor_does_a_first_value(self, store: Any, workspace: str) -> None:
        """Which fills the injection fields, too."""
        attempt = begun(store, store.accept(draft(workspace, rotation_policy="90d")).event.id)
        store.set_rotation_policy(workspace, attempt.event.secret_id, "30d")
        store.keep(attempt, blob_for(attempt), OK)
        assert self.policy(store, workspace) == "30d"

    def test_a_later_event_changes_it(self, store: Any, workspace: str) -> None:
        """The newest word counts."""
        store.set_rotation_policy(workspace, stored(store, workspace), "30d")
        stored(store, workspace, version=2, rotation_policy="90d")
        assert self.policy(store, workspace) == "90d"

    def test_a_name_that_begins_anew_has_none(self, store: Any, workspace: str) -> None:
        """And takes its own first event's."""
        store.set_rotation_policy(workspace, stored(store, workspace), "30d")
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        store.accept(draft(workspace, version=3))
        assert self.policy(store, workspace) is None
        stored(store, workspace, version=4, rotation_policy="7d")
        assert self.policy(store, workspace) == "7d"

    def test_what_is_deleted_unknown_or_a_neighbours_is_not_found(
        self, store: Any, workspace: str, neighbour: str
    ) -> None:
        """All three alike, and the neighbour's stays."""
        deleted, theirs = stored(store, workspace), stored(store, neighbour, rotation_policy="90d")
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        for strange in (deleted, theirs, uuid4()):
            with pytest.raises(NotFound):
                store.set_rotation_policy(workspace, strange, "1d")
        assert self.policy(store, neighbour) == "90d"


class TestUses:
    """The audit log."""

    def test_a_period(self, store: Any, workspace: str) -> None:
        """From its first moment on, and before its last."""
        for each in [intent(workspace) for _ in range(3)]:
            store.begin_use(each)
        one, two, three = store.uses(workspace)
        since, until = two.started_at, three.started_at
        assert store.uses(workspace, since=since, until=until) == [two]
        assert store.uses(workspace, since=since) == [two, three]
        assert store.uses(workspace, until=since) == [one]
        assert store.uses(workspace, since=since, after=two.intent.id) == [three]

    def test_any_period_may_be_asked_for(self, store: Any, workspace: str) -> None:
        """Also one that ends before ids began, or long after everything."""
        store.begin_use(intent(workspace))
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        now = store.uses(workspace)[0].started_at
        assert len(store.uses(workspace, since=first, until=last)) == 1
        assert store.uses(workspace, until=first) == store.uses(workspace, since=last) == []
        assert store.uses(workspace, since=now + timedelta(days=1)) == []

    def test_custody_is_audited(self, store: Any, workspace: str) -> None:
        """Storing a value is a use of the key, with its event, version and cipher."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        (use,) = store.uses(workspace)
        told = use.intent
        assert (told.purpose, told.cipher, told.connection_id) == (Purpose.ENCRYPT, CipherName.KMS, connection.id)
        assert (told.secret_id, told.secret_name, told.version) == (secret_id, "github", 1)
        assert told.event_id is not None
        assert use.result == OK

    def test_it_is_in_pages_oldest_id_first(self, store: Any, workspace: str) -> None:
        """Each page goes on after the last id of the one before."""
        written = [intent(workspace) for _ in range(3)]
        for each in written:
            store.begin_use(each)
        first = store.uses(workspace, limit=2)
        rest = store.uses(workspace, after=first[-1].intent.id, limit=2)
        assert [use.intent for use in [*first, *rest]] == sorted(written, key=lambda each: each.id)

    def test_a_deleted_workspaces_rows_stay(self, store: Any, workspace: str) -> None:
        """An audit row outlives all."""
        stored(store, workspace)
        store.delete_workspace(workspace)
        assert len(store.uses(workspace)) == 1

    def test_a_neighbour_sees_nothing(self, store: Any, workspace: str, neighbour: str) -> None:
        """Lists are of one workspace."""
        stored(store, workspace)
        assert store.uses(neighbour) == []
