"""Accepting events: order, duplicates, and what is kept when something is away."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from broker_core import envelope
from broker_core.errors import Conflict, Invalid, NotFound, Unavailable
from broker_core.intake import claim_binding
from broker_core.model import EventState, EventType
from tests.taking_in import TTL_SECONDS, VALUE, WORKSPACE, TakingIn, incoming


@pytest.fixture
def world() -> TakingIn:
    """One workspace on fakes."""
    return TakingIn()


def watch(world: TakingIn, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order in which the parts are asked."""
    seen: list[str] = []
    for part, method in ((world.claims, "put"), (world.store, "accept"), (world.queue, "ring")):
        original = getattr(part, method)

        def told(*args: Any, original: Any = original, method: str = method, **more: Any) -> Any:
            seen.append(method)
            return original(*args, **more)

        monkeypatch.setattr(part, method, told)
    return seen


class TestAccepting:
    """A new event."""

    def test_claim_then_row_then_ring(self, world: TakingIn, monkeypatch: pytest.MonkeyPatch) -> None:
        """A crash at any point leaves nothing, an orphan claim, or a row that the reconciler rings for."""
        seen = watch(world, monkeypatch)
        world.accept()
        assert seen == ["put", "accept", "ring"]

    def test_the_answer_says_where_to_look(self, world: TakingIn) -> None:
        """Our id, the state, the name and the version."""
        receipt = world.accept(version=7)
        assert (receipt.status, receipt.name, receipt.version, receipt.warnings) == ("accepted", "github", 7, ())
        assert world.state(receipt.id) is EventState.ACCEPTED

    def test_the_value_is_split(self, world: TakingIn) -> None:
        """The row's key opens the claim; neither holds the value alone."""
        receipt = world.accept()
        claim_id, key = world.store.event(WORKSPACE, receipt.id).claim_id, world.store.claim_key(receipt.id)
        assert claim_id is not None
        assert key is not None
        sealed = world.claims.get(claim_id)
        assert sealed is not None
        assert VALUE.encode() not in sealed
        assert VALUE.encode() not in key
        assert envelope.open_into(key, sealed, claim_binding(WORKSPACE, "github", claim_id)) == VALUE.encode()

    def test_the_message_carries_the_id(self, world: TakingIn) -> None:
        """And the type, which says which actor."""
        receipt = world.accept()
        assert world.queue.rung == [(EventType.CREATED, receipt.id)]

    def test_a_claim_lives_its_time(self, world: TakingIn) -> None:
        """And no longer."""
        world.accept()
        world.clock.advance(TTL_SECONDS - 1)
        assert len(world.claims.ids()) == 1
        world.clock.advance(1)
        assert world.claims.ids() == []

    @pytest.mark.parametrize(("size", "warns"), [(7, True), (8, False)])
    def test_a_short_value_warns(self, world: TakingIn, size: int, warns: bool) -> None:
        """Answers are not redacted for it."""
        assert bool(world.accept(value="v" * size).warnings) is warns

    @pytest.mark.parametrize("value", ["trailing\n", " outer", "outer ", "in\rside", "in\x00side", "pässwörd"])
    def test_a_value_that_no_header_can_hold_is_refused(self, world: TakingIn, value: str) -> None:
        """At acceptance, by its field, and nothing is kept."""
        with pytest.raises(Invalid) as error:
            world.accept(value=value)
        assert list(error.value.fields) == ["data.value"]
        assert (world.claims.ids(), world.queue.rung) == ([], [])

    def test_a_rotations_value_is_judged_by_the_fields_in_place(self, world: TakingIn) -> None:
        """It leaves them out, but will be used with them."""
        world.take_in()
        with pytest.raises(Invalid):
            world.accept(type="secret.rotated", version=2, value="two\nlines")

    def test_the_value_is_used_up(self, world: TakingIn) -> None:
        """Whether it is accepted or not."""
        for event, workspace in ((incoming(), WORKSPACE), (incoming(), "ws_other"), (incoming(value="x\n"), WORKSPACE)):
            with suppress(NotFound, Invalid):
                world.intake.accept(event, workspace_id=workspace)
            assert event.value is not None
            with pytest.raises(ValueError, match="wiped"), event.value.reveal():
                pass


class TestRefusals:
    """What is not accepted keeps nothing."""

    def test_another_workspaces_event(self, world: TakingIn) -> None:
        """The event's workspace must be the token's."""
        with pytest.raises(NotFound):
            world.intake.accept(incoming(), workspace_id="ws_other")
        assert world.claims.ids() == []

    def test_an_unknown_workspace(self, world: TakingIn) -> None:
        """Workspaces are created by the platform alone."""
        with pytest.raises(NotFound):
            world.intake.accept(incoming(workspaceId="ws_new"), workspace_id="ws_new")
        assert world.claims.ids() == []

    def test_a_version_that_is_taken(self, world: TakingIn) -> None:
        """The loser deletes its own claim; the first one's stays."""
        first = world.accept()
        with pytest.raises(Conflict) as error:
            world.accept()
        assert error.value.reason == "version_taken"
        assert world.claims.ids() == [world.store.event(WORKSPACE, first.id).claim_id]

    def test_a_name_that_is_taken(self, world: TakingIn) -> None:
        """For our own doors' creation."""
        world.accept()
        event = replace(incoming(), version=None)
        with pytest.raises(Conflict) as error:
            world.intake.accept(event, workspace_id=WORKSPACE, must_be_new=True)
        assert error.value.reason == "name_taken"
        assert len(world.claims.ids()) == 1


class TestDuplicates:
    """The same event again."""

    def test_it_is_answered_like_the_first(self, world: TakingIn) -> None:
        """Same id, one row, one ring."""
        first, again = world.accept(id="same"), world.accept(id="same")
        assert again == first
        assert len(world.queue.rung) == 1

    def test_it_deletes_its_own_claim_only(self, world: TakingIn) -> None:
        """The first one's claim is what custody needs."""
        first = world.accept(id="same")
        world.accept(id="same")
        assert world.claims.ids() == [world.store.event(WORKSPACE, first.id).claim_id]
        assert world.custody.run(first.id) is EventState.STORED

    def test_after_the_end_it_says_how_it_ended(self, world: TakingIn) -> None:
        """A late repeat is no new event."""
        world.custody.run(world.accept(id="same").id)
        assert world.accept(id="same").status == "stored"
        assert world.claims.ids() == []

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"value": "another-value"}, "data.value"),
            ({"value": VALUE + "!"}, "data.value"),
            ({"subject": "gitlab"}, "subject"),
            ({"version": 2}, "data.version"),
            ({"type": "secret.rotated"}, "type"),
            ({"type": "secret.deleted"}, "type"),
            ({"targetHost": "evil.example.com"}, "data.injectionKind"),
            ({"rotationPolicy": "90d"}, "data.rotationPolicy"),
        ],
    )
    def test_another_body_is_refused(self, world: TakingIn, changes: dict[str, Any], field: str) -> None:
        """With the field that differs, and the id."""
        first = world.accept(id="same")
        with pytest.raises(Invalid) as error:
            world.accept(id="same", **changes)
        assert {field, "id"} <= set(error.value.fields)
        assert world.claims.ids() == [world.store.event(WORKSPACE, first.id).claim_id]

    def test_the_value_is_compared_while_its_claim_is_open(self, world: TakingIn) -> None:
        """After that nothing is left to compare with: no hash of a value is kept."""
        world.custody.run(world.accept(id="same").id)
        assert world.accept(id="same", value="another-value").status == "stored"

    def test_a_lost_claim_is_not_compared(self, world: TakingIn) -> None:
        """A restarted claim server does not turn repeats into errors."""
        first = world.accept(id="same")
        world.claims.restart()
        assert world.accept(id="same", value="another-value").id == first.id

    def test_a_claim_that_does_not_open_is_not_compared(self, world: TakingIn) -> None:
        """A first claim that somebody changed is its own custody's alarm; the repeat is answered like the first."""
        receipt = world.accept(id="same", value="first-value")
        claim_id = world.store.event(WORKSPACE, receipt.id).claim_id or ""
        world.claims.delete(claim_id)
        world.claims.put(claim_id, b"changed" * 20, TTL_SECONDS)
        assert world.accept(id="same", value="other-value").id == receipt.id

    def test_another_source_is_another_event(self, world: TakingIn) -> None:
        """Ids are a source's own."""
        first = world.accept(id="same")
        assert world.accept(id="same", source="other", version=2).id != first.id


class TestAway:
    """Something does not answer."""

    def test_without_claims_nothing_is_kept(self, world: TakingIn) -> None:
        """No row, no ring: the producer sends it again."""
        world.claims.is_away = True
        with pytest.raises(Unavailable):
            world.accept(id="same")
        world.claims.is_away = False
        assert world.queue.rung == []
        assert world.accept(id="same").status == "accepted"

    def test_without_the_queue_it_is_accepted(self, world: TakingIn) -> None:
        """The row is the truth; the reconciler rings."""
        world.queue.is_away = True
        receipt = world.accept()
        world.queue.is_away = False
        world.clock.advance(11)
        world.reconciler.run()
        assert world.queue.rung == [(EventType.CREATED, receipt.id)]

    def test_without_the_database_nothing_is_kept(self, world: TakingIn) -> None:
        """Not even a claim."""
        world.store.is_away = True
        with pytest.raises(Unavailable):
            world.accept()
        assert world.claims.ids() == []

    def test_a_lost_commit_leaves_its_claim(self, world: TakingIn, monkeypatch: pytest.MonkeyPatch) -> None:
        """The row may be there: its claim must not be deleted, it expires by itself."""
        accept = world.store.accept

        def lost(draft: Any) -> Any:
            accept(draft)
            raise Unavailable("the answer was lost")

        monkeypatch.setattr(world.store, "accept", lost)
        with pytest.raises(Unavailable):
            world.accept(id="same")
        monkeypatch.setattr(world.store, "accept", accept)
        assert world.custody.run(world.accept(id="same").id) is EventState.STORED

    def test_a_claim_that_cannot_be_deleted_expires(self, world: TakingIn, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is noise; the duplicate is answered all the same."""

        def away(claim_id: str) -> None:
            raise Unavailable("away")

        first = world.accept(id="same")
        monkeypatch.setattr(world.claims, "delete", away)
        assert world.accept(id="same") == first


class TestDeletion:
    """``secret.deleted``."""

    def test_it_ends_at_once_and_rings_nobody(self, world: TakingIn) -> None:
        """No actor is needed."""
        world.take_in()
        world.queue.rung.clear()
        assert world.accept(type="secret.deleted", version=2).status == "deleted"
        assert world.queue.rung == []
        assert world.store.candidates(WORKSPACE, "agent-1", None) == []

    def test_it_deletes_the_claims_of_what_waited(self, world: TakingIn) -> None:
        """And ends their events."""
        waiting = world.accept()
        world.accept(type="secret.deleted", version=2)
        assert world.claims.ids() == []
        assert world.state(waiting.id) is EventState.DELETED

    def test_a_repeat_is_answered_like_the_first(self, world: TakingIn) -> None:
        """Also a deletion is known by its id."""
        world.take_in()
        first = world.accept(type="secret.deleted", version=2, id="gone")
        assert world.accept(type="secret.deleted", version=2, id="gone") == first

    def test_versions_go_on_above_it(self, world: TakingIn) -> None:
        """A name that begins anew does not restart."""
        world.take_in()
        world.accept(type="secret.deleted", version=5)
        event = replace(incoming(), version=None)
        assert world.intake.accept(event, workspace_id=WORKSPACE, must_be_new=True).version == 6
