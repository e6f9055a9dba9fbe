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
from tests.live import AGENT, Live
from tests.store_setup import age_event
from tests.web import Web


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


def _refused(live: Live) -> UUID:
    _key(live, "AccessDeniedException")
    receipt = live.publish()
    live.work()
    live.aws.faults.clear()
    return receipt.id


def _refuse_and_disconnect(live: Live) -> UUID:
    event_id = _refused(live)
    live.app.byok.disconnect(live.workspace)
    live.app.custody.run(event_id)
    return event_id


def _refuse_and_connect_another(live: Live) -> UUID:
    event_id = _refused(live)
    live.connect(live.customer())
    live.app.custody.run(event_id)
    return event_id


def _refuse_and_rotate(live: Live) -> UUID:
    event_id = _refused(live)
    newer = live.publish(kind="secret.rotated", version=2)
    live.app.custody.run(newer.id)
    live.app.custody.run(event_id)
    return event_id


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
    "refused, then disconnected": (_refuse_and_disconnect, EventState.STORED),
    "refused, then another key": (_refuse_and_connect_another, EventState.STORED),
    "refused, then rotated": (_refuse_and_rotate, EventState.SUPERSEDED),
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


@pytest.mark.parametrize("name", WAYS)
def test_an_owner_sees_each_end_over_http(live: Live, web: Web, name: str) -> None:
    """The state and the time, by the event's id; nothing says any more until when it is held."""
    walk, state = WAYS[name]

    seen = web.get(f"/events/{walk(live)}", role="admin").json()

    assert (seen["status"], "endedAt" in seen, "heldUntil" in seen) == (state.value, True, False)


def _created(live: Live, web: Web) -> Any:
    fields = {"name": "made", "secret": "value-1234", "injectionKind": "bearer"}
    where = {"targetHost": live.target, "agentId": AGENT}
    return web.post("/broker-secrets", json={**fields, **where}, role="admin")


def _created_again(live: Live, web: Web) -> Any:
    body = {"name": "made", "secret": "value-1234", "injectionKind": "bearer", "targetHost": "a.b", "agentId": AGENT}
    key = {"Idempotency-Key": "one"}
    web.post("/broker-secrets", json=body, headers=key, role="admin")
    return web.post("/broker-secrets", json=body, headers=key, role="admin")


def _rotated(live: Live, web: Web) -> Any:
    secret_id = live.store().secret_id
    return web.post(f"/broker-secrets/{secret_id}/rotate", json={"secret": "value-5678"}, role="admin")


def _deleted(live: Live, web: Web) -> Any:
    return web.request("DELETE", f"/broker-secrets/{live.store().secret_id}", role="admin")


def _produced(live: Live, web: Web) -> Any:
    return web.post("/events", json=live.event("produced"), scope="broker:events")


DOORS: dict[str, tuple[Callable[[Live, Web], Any], str, str]] = {
    "created": (_created, "accepted", "stored"),
    "created again": (_created_again, "accepted", "stored"),
    "rotated": (_rotated, "accepted", "stored"),
    "deleted": (_deleted, "deleted", "deleted"),
    "produced": (_produced, "accepted", "stored"),
}


@pytest.mark.parametrize("name", DOORS)
def test_whatever_is_accepted_over_http_can_be_followed_to_its_end(live: Live, web: Web, name: str) -> None:
    """202 comes with an event's id, which says where it is, before and after."""
    door, before, after = DOORS[name]
    answer = door(live, web)
    event_id = answer.json().get("eventId", answer.json()["id"])

    seen = [web.get(f"/events/{event_id}", role="admin").json()["status"]]
    live.work()
    seen.append(web.get(f"/events/{event_id}", role="admin").json()["status"])

    assert (answer.status_code, seen) == (202, [before, after])


def test_what_is_refused_over_http_leaves_no_event(live: Live, web: Web) -> None:
    """Nothing that was not accepted waits for an end."""
    live.store("made")
    assert [_created(live, web).status_code, web.post("/broker-secrets", json={}, role="admin").status_code] == [
        409,
        422,
    ]

    assert len(_sql(live, "SELECT id FROM secret_events")) == 1


def test_what_is_held_is_in_the_coverage(live: Live, web: Web) -> None:
    """An owner need not know the event's id to see that a value waits and is not yet under their key."""
    _refused(live)

    found = web.get("/byok/coverage", role="admin").json()

    assert (found["held"], [each["name"] for each in found["items"]]) == (1, ["github"])


def test_a_workspaces_end_ends_its_events(live: Live) -> None:
    """Every value that waits is forgotten with it: both halves."""
    receipt = live.publish()
    claim = live.app.store.event(live.workspace, receipt.id).claim_id

    live.app.administer.delete_workspace(live.workspace)

    (row,) = _sql(live, "SELECT state, claim_key, ended_at FROM secret_events WHERE id = %(id)s", receipt.id)
    assert (row.state, row.claim_key, row.ended_at is not None) == ("deleted", None, True)
    assert live.app.custody._claims.get(claim) is None
    assert live.work() == [None]


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
