"""What admins do with secrets, on the fakes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest

from broker_core.administer import Administer, Fields, NewSecret
from broker_core.errors import Conflict, Invalid, NotFound, RateLimited
from broker_core.events import OWN_SOURCE
from broker_core.injection import Injection, Kind
from broker_core.intake import MOST_WAITING, Intake, Receipt
from broker_core.model import EventState, Plan, SecretStatus
from broker_core.secret import Plaintext
from tests.taking_in import TTL_SECONDS, VALUE, WORKSPACE, TakingIn

FIELDS = Fields(Kind.BEARER, None, "api.example.com", None, "agent-1")
OTHER = Fields(Kind.HTTP_HEADER, "X-Key", "other.example.com", "server-1", None)
#: what is no idempotency key
NO_KEYS = ["", "a b", "a\n", "ä", "\x7f", "x" * 256]


class Desk(TakingIn):
    """The world of intake, and an admin at their desk."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        super().__init__()
        self.intake = Intake(
            self.store, self.claims, self.queue, ttl_seconds=TTL_SECONDS, new_id=uuid4, most_waiting=most_waiting
        )
        self.admin = Administer(self.intake, self.store, self.store, self.store, uuid4)

    def create(self, name: str = "github", key: str | None = None, **changes: Any) -> Receipt:
        """A new secret."""
        value = Plaintext(changes.pop("value", VALUE).encode())
        new = NewSecret(name, value, changes.pop("fields", FIELDS), changes.pop("policy", None))
        return self.admin.create(changes.pop("workspace", WORKSPACE), new, key)

    def rotate(self, secret_id: UUID, key: str | None = None, value: str = "another-value", **changes: Any) -> Receipt:
        """A new value."""
        return self.admin.rotate(
            changes.get("workspace", WORKSPACE),
            secret_id,
            Plaintext(value.encode()),
            changes.get("fields", Fields()),
            key,
        )

    def stored(self, *args: Any, **kwargs: Any) -> UUID:
        """A secret whose first value is in place; its id."""
        receipt = self.create(*args, **kwargs)
        assert self.custody.run(receipt.id) is EventState.STORED
        return receipt.secret_id


@pytest.fixture
def desk() -> Desk:
    """One workspace."""
    return Desk()


def refusal(call: Any) -> dict[str, str]:
    """The fields of what is refused."""
    with pytest.raises(Invalid) as error:
        call()
    return error.value.fields


class TestCreate:
    """A name that is not in use."""

    def test_its_event_is_of_our_own_source(self, desk: Desk) -> None:
        """With the first version, and a ring for custody."""
        receipt = desk.create(policy="90d")
        event = desk.store.event(WORKSPACE, receipt.id)
        assert (event.source, event.version, event.rotation_policy) == (OWN_SOURCE, 1, "90d")
        assert event.injection == Injection(Kind.BEARER, None, "api.example.com", None, "agent-1")
        assert [event_id for _, event_id in desk.queue.rung] == [receipt.id]

    def test_the_value_is_taken_in(self, desk: Desk) -> None:
        """By the one function behind all doors."""
        desk.stored()
        assert desk.value() == VALUE.encode()

    def test_a_name_in_use_is_taken(self, desk: Desk) -> None:
        """Rotate it instead."""
        desk.create()
        with pytest.raises(Conflict) as error:
            desk.create()
        assert error.value.reason == "name_taken"

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"name": ""}, "name"),
            ({"name": " github"}, "name"),
            ({"name": "git*hub"}, "name"),
            ({"value": ""}, "secret"),
            ({"value": "x" * 65_537}, "secret"),
            ({"value": "two\nlines"}, "secret"),
            ({"policy": "0d"}, "rotationPolicy"),
            ({"policy": "90"}, "rotationPolicy"),
            ({"fields": Fields()}, "injectionKind"),
            ({"fields": Fields(None, None, "api.example.com", None, "agent-1")}, "injectionKind"),
            ({"fields": Fields(Kind.BEARER, None, None, None, "agent-1")}, "targetHost"),
            ({"fields": Fields(Kind.HTTP_HEADER, "Host", "api.example.com", None, "agent-1")}, "bindingKey"),
            ({"fields": Fields(Kind.BEARER, None, "api.example.com", None, None)}, "mcpServerId"),
            *[({"key": key}, "Idempotency-Key") for key in NO_KEYS],
        ],
    )
    def test_what_is_wrong_is_named_as_in_the_request(self, desk: Desk, changes: dict[str, Any], field: str) -> None:
        """And nothing is kept."""
        assert list(refusal(lambda: desk.create(**changes))) == [field]
        assert (desk.claims.ids(), desk.queue.rung) == ([], [])

    def test_an_unknown_workspace(self, desk: Desk) -> None:
        """Workspaces are made by the platform alone."""
        with pytest.raises(NotFound):
            desk.create(workspace="ws_other")

    @pytest.mark.parametrize("name", ["github", " bad "])
    def test_the_value_is_used_up(self, desk: Desk, name: str) -> None:
        """Whatever happens."""
        value = Plaintext(b"a-value-to-use-up")
        with suppress(Invalid):
            desk.admin.create(WORKSPACE, NewSecret(name, value, FIELDS))
        with pytest.raises(ValueError, match="wiped"), value.reveal():
            pass


class TestRotate:
    """A new value."""

    def test_fields_that_are_not_given_stay(self, desk: Desk) -> None:
        """And the version counts on."""
        secret_id = desk.stored()
        receipt = desk.rotate(secret_id)
        desk.custody.run(receipt.id)
        view = desk.admin.secret(WORKSPACE, secret_id)
        assert (receipt.version, view.version, desk.value()) == (2, 2, b"another-value")
        assert view.injection == FIELDS.injection()

    def test_fields_change_together(self, desk: Desk) -> None:
        """With the value that is for them."""
        secret_id = desk.stored()
        desk.custody.run(desk.rotate(secret_id, fields=OTHER).id)
        assert desk.admin.secret(WORKSPACE, secret_id).injection == OTHER.injection()

    def test_one_field_alone_is_refused(self, desk: Desk) -> None:
        """A value's destination is not changed piece by piece."""
        secret_id = desk.stored()
        fields = Fields(target_host="evil.example.com")
        assert list(refusal(lambda: desk.rotate(secret_id, fields=fields))) == ["injectionKind"]

    def test_it_is_judged_by_the_fields_in_place(self, desk: Desk) -> None:
        """Which it will be used with."""
        secret_id = desk.stored()
        assert list(refusal(lambda: desk.rotate(secret_id, value="two\nlines"))) == ["secret"]

    def test_what_is_deleted_or_unknown_is_not_found(self, desk: Desk) -> None:
        """And does not come to life."""
        secret_id = desk.stored()
        desk.admin.delete(WORKSPACE, secret_id)
        for strange in (secret_id, uuid4()):
            with pytest.raises(NotFound):
                desk.rotate(strange)
        assert desk.admin.secrets(WORKSPACE).items == []

    def test_a_deletion_meanwhile_wins(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between the look at the secret and the accepting transaction."""
        secret_id = desk.stored()
        injection_of = desk.store.injection_of

        def deleted_meanwhile(workspace_id: str, name: str) -> Any:
            monkeypatch.undo()
            desk.admin.delete(WORKSPACE, secret_id)
            return injection_of(workspace_id, name)

        monkeypatch.setattr(desk.store, "injection_of", deleted_meanwhile)
        with pytest.raises(NotFound):
            desk.rotate(secret_id)
        assert (desk.admin.secrets(WORKSPACE).items, desk.claims.ids()) == ([], [])

    def test_a_neighbours_secret_is_not_found(self, desk: Desk) -> None:
        """INV-10."""
        desk.store.put_workspace("ws_other", "free")
        secret_id = desk.stored()
        with pytest.raises(NotFound):
            desk.rotate(secret_id, workspace="ws_other")


class TestIdempotency:
    """The same key again."""

    def test_a_repeat_is_answered_like_the_first(self, desk: Desk) -> None:
        """One event, one claim, one ring; and it says that it is a repeat."""
        first, again = desk.create(key="k-1"), desk.create(key="k-1")
        assert (again, first.is_new, again.is_new) == (first, True, False)
        assert (len(desk.claims.ids()), len(desk.queue.rung)) == (1, 1)

    def test_a_repeat_of_a_rotation(self, desk: Desk) -> None:
        """Counts no version."""
        secret_id = desk.stored()
        first, again = desk.rotate(secret_id, key="k-1"), desk.rotate(secret_id, key="k-1")
        assert (again.version, again.id, again.is_new) == (2, first.id, False)

    def test_after_the_end_too(self, desk: Desk) -> None:
        """A client that comes late is told the same version."""
        desk.stored(key="k-1")
        again = desk.create(key="k-1")
        assert (again.version, again.is_new) == (1, False)

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"name": "gitlab"}, "name"),
            ({"value": "another-value"}, "secret"),
            ({"fields": OTHER}, "injectionKind"),
            ({"policy": "90d"}, "rotationPolicy"),
        ],
    )
    def test_another_body_is_refused(self, desk: Desk, changes: dict[str, Any], field: str) -> None:
        """By the field that differs, and the key."""
        desk.create(key="k-1")
        assert set(refusal(lambda: desk.create(key="k-1", **changes))) == {field, "Idempotency-Key"}
        assert len(desk.claims.ids()) == 1

    def test_another_kind_of_request_is_refused(self, desk: Desk) -> None:
        """A creation's key does not rotate."""
        secret_id = desk.stored(key="k-1")
        assert "Idempotency-Key" in refusal(lambda: desk.rotate(secret_id, key="k-1"))

    def test_another_secrets_rotation_is_refused(self, desk: Desk) -> None:
        """A key is for one request."""
        one, other = desk.stored("one"), desk.stored("other")
        desk.rotate(one, key="k-1")
        assert set(refusal(lambda: desk.rotate(other, key="k-1"))) == {"name", "Idempotency-Key"}

    def test_another_workspace_may_use_the_same_key(self, desk: Desk) -> None:
        """Keys are a workspace's own."""
        desk.store.put_workspace("ws_other", "free")
        desk.create(key="k-1")
        assert desk.create(key="k-1", workspace="ws_other", value="another-value").is_new

    @pytest.mark.parametrize("key", ["!", "~", "x" * 255])
    def test_any_visible_ascii(self, desk: Desk, key: str) -> None:
        """1 to 255 of them."""
        assert desk.create(key=key).is_new

    def test_without_a_key_each_request_is_its_own(self, desk: Desk) -> None:
        """Two rotations are two versions."""
        secret_id = desk.stored()
        assert [desk.rotate(secret_id).version, desk.rotate(secret_id).version] == [2, 3]


class TestMostWaiting:
    """A workspace's room."""

    def test_a_flood_keeps_nothing_more(self) -> None:
        """Neither row nor claim; another workspace goes on."""
        desk = Desk(most_waiting=2)
        desk.store.put_workspace("ws_other", "free")
        for name in ("one", "two"):
            desk.create(name)
        with pytest.raises(RateLimited):
            desk.create("three")
        assert len(desk.claims.ids()) == 2
        assert desk.create("three", workspace="ws_other").is_new

    def test_what_was_stored_makes_room(self) -> None:
        """The limit is of what waits."""
        desk = Desk(most_waiting=1)
        assert [desk.stored(name) is not None for name in ("one", "two", "three")] == [True] * 3


class TestDelete:
    """The end of a secret."""

    def test_it_ends_the_secret_and_what_waits(self, desk: Desk) -> None:
        """Blob and claim go."""
        secret_id = desk.stored()
        waiting = desk.rotate(secret_id)
        receipt = desk.admin.delete(WORKSPACE, secret_id)
        assert (receipt.status, receipt.version, receipt.secret_id) == ("deleted", 3, secret_id)
        assert desk.state(waiting.id) is EventState.DELETED
        assert (desk.claims.ids(), desk.store.candidates(WORKSPACE, "agent-1", None)) == ([], [])

    def test_the_name_may_be_used_again(self, desk: Desk) -> None:
        """With a higher version: they never restart."""
        desk.admin.delete(WORKSPACE, desk.stored())
        assert desk.create().version == 3

    def test_twice_is_not_found(self, desk: Desk) -> None:
        """It is gone."""
        secret_id = desk.stored()
        desk.admin.delete(WORKSPACE, secret_id)
        with pytest.raises(NotFound):
            desk.admin.delete(WORKSPACE, secret_id)


class TestDiscard:
    """A value that waits."""

    def test_it_ends_and_its_claim_goes(self, desk: Desk) -> None:
        """Nothing is left to open."""
        receipt = desk.create()
        event = desk.admin.discard(WORKSPACE, receipt.id)
        assert (event.state, event.reason, event.held_until) == (EventState.DELETED, "discarded", None)
        assert desk.claims.ids() == []

    def test_what_has_ended_is_a_conflict(self, desk: Desk) -> None:
        """There is nothing to discard."""
        receipt = desk.create()
        desk.custody.run(receipt.id)
        with pytest.raises(Conflict):
            desk.admin.discard(WORKSPACE, receipt.id)

    def test_a_neighbours_is_not_found(self, desk: Desk) -> None:
        """INV-10: and it still waits."""
        desk.store.put_workspace("ws_other", "free")
        receipt = desk.create()
        with pytest.raises(NotFound):
            desk.admin.discard("ws_other", receipt.id)
        assert desk.state(receipt.id) is EventState.ACCEPTED


class TestLists:
    """Pages."""

    def test_secrets_in_pages(self, desk: Desk) -> None:
        """Each goes on after the one before; the last has no cursor."""
        for name in ("a", "b", "c"):
            desk.stored(name)
        first = desk.admin.secrets(WORKSPACE, limit=2)
        rest = desk.admin.secrets(WORKSPACE, limit=2, after=first.next)
        assert [len(first.items), len(rest.items), rest.next] == [2, 1, None]
        assert len({view.id for view in [*first.items, *rest.items]}) == 3

    def test_a_last_page_that_is_full_has_no_cursor(self, desk: Desk) -> None:
        """Nobody asks for an empty page."""
        desk.stored()
        assert desk.admin.secrets(WORKSPACE, limit=1).next is None

    def test_of_one_status(self, desk: Desk) -> None:
        """As owners look for what needs them."""
        desk.stored("active")
        desk.create("pending")
        names = [view.name for view in desk.admin.secrets(WORKSPACE, status=SecretStatus.PENDING).items]
        assert names == ["pending"]

    def test_uses_in_pages(self, desk: Desk) -> None:
        """The audit log, too."""
        for name in ("a", "b", "c"):
            desk.stored(name)
        first = desk.admin.uses(WORKSPACE, limit=2)
        rest = desk.admin.uses(WORKSPACE, limit=2, after=first.next)
        assert [len(first.items), len(rest.items), rest.next] == [2, 1, None]


class TestPolicy:
    """When a new value is due."""

    def test_it_changes_without_a_value(self, desk: Desk) -> None:
        """The version stays."""
        view = desk.admin.set_rotation_policy(WORKSPACE, desk.stored(), "30d")
        assert (view.rotation_policy, view.version) == ("30d", 1)

    def test_a_bad_one_is_refused(self, desk: Desk) -> None:
        """Before anything is asked."""
        assert list(refusal(lambda: desk.admin.set_rotation_policy(WORKSPACE, uuid4(), "soon"))) == ["rotationPolicy"]


class TestWorkspaces:
    """The platform's part."""

    def test_it_begins_and_changes(self, desk: Desk) -> None:
        """By its plan."""
        desk.admin.put_workspace("ws_new", Plan.FREE)
        desk.admin.put_workspace("ws_new", Plan.TEAM)
        assert desk.store.plan_of("ws_new") == Plan.TEAM

    def test_its_end_forgets_what_waits(self, desk: Desk) -> None:
        """Claims and all."""
        receipt = desk.create()
        desk.admin.delete_workspace(WORKSPACE)
        assert (desk.claims.ids(), desk.state(receipt.id)) == ([], EventState.DELETED)

    def test_its_id_is_never_used_again(self, desk: Desk) -> None:
        """A conflict."""
        desk.admin.delete_workspace(WORKSPACE)
        with pytest.raises(Conflict):
            desk.admin.put_workspace(WORKSPACE, Plan.FREE)
