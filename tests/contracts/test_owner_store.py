"""``ports.OwnerStore``: what the fake and the SQL store both promise."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from broker_core.audit import Outcome, Result
from broker_core.errors import KeyState, NotFound
from broker_core.model import CipherName, EventState, EventType, Purpose, SecretStatus
from tests.store_setup import BEARER, OK, age_connection, age_secret, begun, connected, draft, failure, intent, stored


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


class TestUses:
    """The audit log."""

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
