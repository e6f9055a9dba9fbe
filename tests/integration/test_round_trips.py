"""Round trips to PostgreSQL, counted on the wire and not in our own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from broker_core.adapters.store import Database, Pool, Store
from broker_core.audit import Outcome, Result
from broker_core.injection import Injection, Kind
from broker_core.model import EventState
from tests.store_setup import OK, begun, blob_for, draft, intent, stored
from tests.wire import CountingProxy

#: psycopg prepares a statement at its sixth run (that run costs a turn more): what is counted is after that
WARM_UP = 8


@pytest.fixture
def proxy(clean_database: str) -> Iterator[CountingProxy]:
    """A counting proxy before this worker's database."""
    with CountingProxy(clean_database) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: CountingProxy) -> Iterator[Store]:
    """A store that reaches its database through the proxy, on one connection."""
    database = Database(proxy.url, Pool(size=1))
    yield Store(database)
    database.close()


@pytest.fixture
def workspace(store: Store) -> str:
    """A workspace."""
    workspace_id = f"ws_{uuid4().hex}"
    store.put_workspace(workspace_id, "enterprise")
    return workspace_id


def turns(proxy: CountingProxy, step: Callable[[int], object]) -> int:
    """The turns of one warm step; each step gets its number."""
    for number in range(WARM_UP):
        step(number)
    with proxy.counting() as counted:
        step(WARM_UP)
    return counted[0]


def test_the_proxy_counts_a_statement_as_one_turn(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """The measure itself: one warm statement is one turn."""
    assert turns(proxy, lambda _: store.plan_of(workspace)) == 1


def test_storing_an_event_takes_three(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """Custody: ``begin`` is one, ``keep`` is two: lock and read, write and commit."""
    events = [store.accept(draft(workspace, version=number + 1)).event.id for number in range(WARM_UP + 1)]

    def step(number: int) -> None:
        attempt = begun(store, events[number])
        store.keep(attempt, blob_for(attempt), OK)

    assert turns(proxy, step) == 3


def test_an_injection_takes_three(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """Select, intent, outcome."""
    secret_id = stored(store, workspace)

    def step(_: int) -> None:
        store.candidates(workspace, "agent-1", None)
        use = intent(workspace, secret_id=secret_id)
        store.begin_uses([use])
        store.end_uses([(use, OK)])

    assert turns(proxy, step) == 3


def test_an_environment_takes_three(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """Any number of variables is one batch."""
    ids = [
        stored(store, workspace, name=name, injection=Injection(Kind.STDIO_ENV, name, None, None, "agent-1"))
        for name in ("ONE", "TWO", "THREE")
    ]

    def step(_: int) -> None:
        store.candidates(workspace, "agent-1", None)
        uses = [intent(workspace, secret_id=each) for each in ids]
        store.begin_uses(uses)
        store.end_uses([(use, OK) for use in uses])

    assert turns(proxy, step) == 3


def test_accepting_an_event_takes_three(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """Lock and read, look for the version, write and commit."""

    def step(number: int) -> None:
        store.accept(draft(workspace, version=number + 1))

    assert turns(proxy, step) == 3


def test_a_repeat_that_is_rolled_back_takes_two(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """A duplicate reads, and gives its transaction back."""
    repeat = draft(workspace)
    assert turns(proxy, lambda _: store.accept(repeat)) == 2


def test_holding_an_event_takes_one(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """A refusal is written in one statement."""
    event_id = store.accept(draft(workspace)).event.id
    for _ in range(WARM_UP):
        store.hold(begun(store, event_id), EventState.ACCEPTED, Result(Outcome.FAILED), 0)
    attempt = begun(store, event_id)
    with proxy.counting() as counted:
        store.hold(attempt, EventState.ACCEPTED, Result(Outcome.FAILED), 0)
    assert counted[0] == 1


def test_what_is_counted_in_code_is_what_is_on_the_wire(proxy: CountingProxy, workspace: str) -> None:
    """``on_wait`` tells of every turn of a warm connection."""
    waits: list[str] = []
    database = Database(proxy.url, Pool(size=1), on_wait=waits.append)
    store = Store(database)
    secret_id = stored(store, workspace)
    for _ in range(WARM_UP):
        store.end_uses([(intent(workspace, secret_id=secret_id), OK)])
        stored(store, workspace, version=None)
    waits.clear()
    with proxy.counting() as counted:
        stored(store, workspace, version=None)
        store.end_uses([(intent(workspace, secret_id=secret_id), OK)])
    database.close()
    assert counted[0] == len(waits)


def test_what_is_affected_takes_one(proxy: CountingProxy, store: Store, workspace: str) -> None:
    """One question, of one moment."""
    assert turns(proxy, lambda _: store.affected(workspace)) == 1
