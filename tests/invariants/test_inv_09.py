"""INV-9: every accepted event reaches an end, and an owner can see where it is.

Each way through the states is walked on the real store, and each ends where the table says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from broker_core.custody import MOST_CRASHES
from broker_core.dev.aws import Fault
from broker_core.errors import Transient, Unavailable
from broker_core.model import TRANSITIONS, WAITING, EventState, SecretStatus
from tests.live import Live
from tests.store_setup import age_event


def _sql(live: Live, statement: str, event_id: UUID | None = None) -> list[Any]:
    rows: list[Any] = live.app.store._database.run("test", statement, {"id": event_id})
    return rows


def _time_is_over(live: Live, event_id: UUID) -> None:
    _sql(live, "UPDATE secret_events SET claim_expires_at = now() WHERE id = %(id)s", event_id)
    live.app.reconcile()


def _store(live: Live) -> UUID:
    return live.store().id


def _supersede(live: Live) -> UUID:
    live.store(version=2)
    late = live.publish(version=1)
    live.work()
    return late.id


def _supersede_while_waiting(live: Live) -> UUID:
    first = live.publish(version=1)
    second = live.publish(version=2)
    live.app.custody.run(second.id)
    live.app.custody.run(first.id)
    return first.id


def _lose_the_claim(live: Live) -> UUID:
    receipt = live.publish()
    event = live.app.store.event(live.workspace, receipt.id)
    live.app.custody._claims.delete(event.claim_id)
    live.work()
    return receipt.id


def _let_the_time_pass(live: Live) -> UUID:
    receipt = live.publish()
    _time_is_over(live, receipt.id)
    return receipt.id


def _refuse_until_the_time_is_over(live: Live) -> UUID:
    _key(live, "DisabledException")
    receipt = live.publish()
    live.work()
    _time_is_over(live, receipt.id)
    return receipt.id


def _refuse_and_heal(live: Live) -> UUID:
    _key(live, "AccessDeniedException")
    receipt = live.publish()
    live.work()
    live.aws.faults.clear()
    live.app.custody.run(receipt.id)
    return receipt.id


def _throttle_and_recover(live: Live) -> UUID:
    _key(live, "ThrottlingException")
    receipt = live.publish()
    with pytest.raises(Transient):
        live.work()
    live.aws.faults.clear()
    live.app.custody.run(receipt.id)
    return receipt.id


def _damage_the_claim(live: Live) -> UUID:
    receipt = live.publish()
    get = live.app.custody._claims.get
    vars(live.app.custody._claims)["get"] = lambda claim: (get(claim) or b"")[:-1] + b"!"
    live.work()
    return receipt.id


def _crash_and_crash(live: Live) -> UUID:
    receipt = live.publish()
    for _ in range(MOST_CRASHES):  # an attempt that begins and never reports back
        assert live.app.store.begin(receipt.id, _new_id())
        age_event(live.app.store, receipt.id, "begun_at", 60)
    live.work()
    return receipt.id


def _discard(live: Live) -> UUID:
    receipt = live.publish()
    live.app.store.discard(live.workspace, receipt.id)
    return receipt.id


def _delete_the_secret(live: Live) -> UUID:
    receipt = live.publish()
    live.publish(kind="secret.deleted", version=2)
    return receipt.id


def _delete_the_secret_after_the_encryption(live: Live) -> UUID:
    receipt = live.publish()
    keep = live.app.store.keep

    def deleted_first(*given: Any) -> Any:
        live.publish(kind="secret.deleted", version=2)
        return keep(*given)

    vars(live.app.custody._store)["keep"] = deleted_first
    live.work()
    return receipt.id


def _deletion_itself(live: Live) -> UUID:
    live.store()
    return live.publish(kind="secret.deleted", version=2).id


WAYS: dict[str, tuple[Callable[[Live], UUID], EventState]] = {
    "stored": (_store, EventState.STORED),
    "a higher version was there": (_supersede, EventState.SUPERSEDED),
    "a higher version overtakes it": (_supersede_while_waiting, EventState.SUPERSEDED),
    "its claim is gone": (_lose_the_claim, EventState.EXPIRED),
    "its time is over": (_let_the_time_pass, EventState.EXPIRED),
    "refused until its time is over": (_refuse_until_the_time_is_over, EventState.EXPIRED),
    "refused, then healed": (_refuse_and_heal, EventState.STORED),
    "throttled, then well": (_throttle_and_recover, EventState.STORED),
    "its claim does not open": (_damage_the_claim, EventState.UNREADABLE),
    "its workers crash": (_crash_and_crash, EventState.UNREADABLE),
    "discarded": (_discard, EventState.DELETED),
    "its secret is deleted": (_delete_the_secret, EventState.DELETED),
    "its secret is deleted meanwhile": (_delete_the_secret_after_the_encryption, EventState.DELETED),
}


def _key(live: Live, error: str) -> None:
    """From now on the customer's key answers with an error."""
    live.connect(live.customer())
    live.aws.faults.add(Fault("kms:Encrypt", error=error))


def _new_id() -> UUID:
    from broker_core.bootstrap import new_id

    return new_id()


@pytest.mark.parametrize("name", WAYS)
def test_each_way_ends_where_the_table_says(live: Live, name: str) -> None:
    """The owner's view has the state and the time; nothing is held any more, and neither half of the value is left."""
    walk, state = WAYS[name]

    event_id = walk(live)

    event = live.app.store.event(live.workspace, event_id)
    assert (event.state, event.ended_at is not None, event.held_until) == (state, True, None)
    (row,) = _sql(live, "SELECT claim_key FROM secret_events WHERE id = %(id)s", event_id)
    assert row.claim_key is None


@pytest.mark.parametrize("name", WAYS)
def test_an_end_is_an_end(live: Live, name: str) -> None:
    """Another doorbell, and the reconciler, change nothing."""
    walk, _ = WAYS[name]
    event_id = walk(live)
    before = live.app.store.event(live.workspace, event_id)

    assert live.app.custody.run(event_id) is None
    live.app.reconcile()

    assert live.app.store.event(live.workspace, event_id) == before


def test_every_end_is_reached_by_some_way() -> None:
    """The table above leaves no state out."""
    assert {state for _, state in WAYS.values()} == set(EventState) - WAITING


def test_no_end_has_a_way_out() -> None:
    """The model's own table says so too, and every waiting state can reach every end."""
    ends = set(EventState) - WAITING
    assert all(not TRANSITIONS[state] for state in ends)
    assert all(ends <= TRANSITIONS[state] for state in WAITING)


def test_a_deletion_ends_when_it_is_accepted(live: Live) -> None:
    """No worker is needed for it, and no later event can bring the value back."""
    event_id = _deletion_itself(live)

    assert live.app.store.event(live.workspace, event_id).state.is_end
    assert live.app.store.candidates(live.workspace, "agent-1", None) == []


@pytest.mark.parametrize(
    ("error", "state"), [("DisabledException", EventState.REFUSED), ("ThrottlingException", EventState.ACCEPTED)]
)
def test_what_waits_says_until_when(live: Live, error: str, state: EventState) -> None:
    """Held and not under their key yet: the owner sees the state, the reason and the time until which it is held."""
    _key(live, error)
    receipt = live.publish()
    try:
        live.work()
    except Transient:
        assert state is EventState.ACCEPTED

    event = live.app.store.event(live.workspace, receipt.id)
    assert (event.state, event.ended_at, event.held_until is not None) == (state, None, True)
    assert event.reason in ("key_disabled", "transient")


@pytest.mark.parametrize(
    "name", ["its claim is gone", "its time is over", "its claim does not open", "its workers crash"]
)
def test_a_lost_value_asks_to_be_given_again(live: Live, name: str) -> None:
    """An end without a blob shows in the list of secrets as ``needs_reprovision``; a new value mends it."""
    walk, _ = WAYS[name]
    walk(live)
    (before,) = live.app.store.secrets(live.workspace)

    vars(live.app.custody._claims).pop("get", None)
    live.store(kind="secret.rotated", version=9)

    (after,) = live.app.store.secrets(live.workspace)
    assert (before.status, after.status) == (SecretStatus.NEEDS_REPROVISION, SecretStatus.ACTIVE)


def _ring_is_lost(live: Live, monkeypatch: pytest.MonkeyPatch) -> UUID:
    def away(*_: Any) -> None:
        raise Unavailable("the queue is away")

    with monkeypatch.context() as patched:
        patched.setattr(live.queue, "ring", away)
        return live.publish().id


def _message_is_lost(live: Live, monkeypatch: pytest.MonkeyPatch) -> UUID:
    receipt = live.publish()
    live.queue.rung.clear()
    return receipt.id


def _worker_crashes(live: Live, monkeypatch: pytest.MonkeyPatch) -> UUID:
    receipt = live.publish()
    live.queue.rung.clear()
    assert live.app.store.begin(receipt.id, _new_id())
    return receipt.id


def _is_held(live: Live, monkeypatch: pytest.MonkeyPatch) -> UUID:
    _key(live, "DisabledException")
    receipt = live.publish()
    live.work()
    live.aws.faults.clear()
    return receipt.id


@pytest.mark.parametrize("lose", [_ring_is_lost, _message_is_lost, _worker_crashes, _is_held])
def test_what_waits_is_rung_for_again(
    live: Live, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Live, pytest.MonkeyPatch], UUID]
) -> None:
    """A lost doorbell, message or worker, or a refusal: once its time has come the reconciler rings, and it is
    stored."""
    event_id = lose(live, monkeypatch)
    live.app.reconcile()
    assert live.queue.rung == []  # not at once: whoever was rung for may be on its way

    _sql(live, "UPDATE secret_events SET ring_at = now() WHERE id = %(id)s AND ring_at > now() RETURNING id", event_id)
    live.app.reconcile()

    assert [each for _, each in live.queue.rung] == [event_id]
    assert live.work() == [EventState.STORED]
