"""The status in SQL says what ``model.status_of`` says: for every combination of facts, and over generated rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from typing import Any
from uuid import UUID, uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_core.adapters.store import Database, Store
from broker_core.adapters.store.owner import STATUS
from broker_core.audit import Outcome, Result
from broker_core.errors import KeyState
from broker_core.model import EventState, EventType, SecretFacts, SecretStatus, status_of
from tests.fakes_store import FakeStore
from tests.store_setup import (
    OK,
    age_secret,
    begun,
    blob_for,
    connected,
    draft,
    failure,
)

_FACTS = tuple(SecretFacts.__dataclass_fields__)
_ONE = f"SELECT {STATUS} AS status FROM (SELECT {', '.join(f'%({name})s AS {name}' for name in _FACTS)}) facts"


def test_every_combination_of_facts(kept_database: Database) -> None:
    """The whole table of 64."""
    for values in product((False, True), repeat=len(_FACTS)):
        facts = dict(zip(_FACTS, values, strict=True))
        ((row,),) = [kept_database.run("test", _ONE, facts)]
        assert row.status == status_of(SecretFacts(**facts)).value, facts


class World:
    """One workspace with one secret, in one store."""

    def __init__(self, store: Any) -> None:
        self.store, self.workspace = store, f"ws_{uuid4().hex}"
        self.connection: Any = None
        self.secret_id: UUID | None = None
        store.put_workspace(self.workspace, "enterprise")

    def accept(self, kind: EventType, **changes: Any) -> UUID:
        event = self.store.accept(draft(self.workspace, type=kind, version=None, **changes)).event
        self.secret_id = event.secret_id
        found: UUID = event.id
        return found

    def stored(self, kind: EventType, **changes: Any) -> None:
        attempt = begun(self.store, self.accept(kind, **changes))
        self.store.keep(attempt, blob_for(attempt), OK)

    def refused(self) -> None:
        attempt = begun(self.store, self.accept(EventType.CREATED))
        self.store.hold(attempt, EventState.REFUSED, Result(Outcome.REFUSED, "access_denied"), 60)

    def ended(self, state: EventState) -> None:
        attempt = begun(self.store, self.accept(EventType.CREATED))
        self.store.end(attempt, state, "reason", Result(Outcome.REFUSED, "reason"))

    def discarded(self) -> None:
        self.store.discard(self.workspace, self.accept(EventType.CREATED))

    def connect(self) -> None:
        self.connection = connected(self.store, self.workspace)

    def fail(self, state: KeyState, *, own: bool) -> None:
        if self.connection is not None and self.secret_id is not None:
            self.store.open_failure(failure(self.connection, self.secret_id if own else None, state=state))

    def heal(self) -> None:
        if self.connection is not None:
            self.store.close_failure(self.workspace, self.connection.id, None)

    def age(self) -> None:
        """What was proved is older than any healing."""
        if self.secret_id is not None and any(view.rotated_at for view in self.store.secrets(self.workspace)):
            for column in ("checked_at", "rotated_at"):
                age_secret(self.store, self.secret_id, column, 60)

    def shown(self) -> list[tuple[str, int, SecretStatus, KeyState | None]]:
        """What an owner sees, in the list and in the lists of each status."""
        views = self.store.secrets(self.workspace)
        for status in SecretStatus:
            assert self.store.secrets(self.workspace, status=status) == [v for v in views if v.status is status]
        return [(v.name, v.version, v.status, v.failure.state if v.failure else None) for v in views]


#: what may happen to one secret; each takes the world that it happens to
STEPS: dict[str, Callable[[World], object]] = {
    "created waits": lambda world: world.accept(EventType.CREATED),
    "created stored": lambda world: world.stored(EventType.CREATED),
    "rotated stored": lambda world: world.stored(EventType.ROTATED, injection=None),
    "rotated waits": lambda world: world.accept(EventType.ROTATED, injection=None),
    "refused": lambda world: world.refused(),
    "expired": lambda world: world.ended(EventState.EXPIRED),
    "unreadable": lambda world: world.ended(EventState.UNREADABLE),
    "discarded": lambda world: world.discarded(),
    "deleted": lambda world: world.accept(EventType.DELETED),
    "connected": lambda world: world.connect(),
    "connection denied": lambda world: world.fail(KeyState.ACCESS_DENIED, own=False),
    "connection misconfigured": lambda world: world.fail(KeyState.MISCONFIGURED, own=False),
    "secret denied": lambda world: world.fail(KeyState.KEY_DISABLED, own=True),
    "secret's integrity": lambda world: world.fail(KeyState.INTEGRITY, own=True),
    "connection heals": lambda world: world.heal(),
    "long ago": lambda world: world.age(),
}


_BEGINNINGS: list[list[str]] = [
    [],
    ["connected", "created stored"],
    ["connected", "created stored", "long ago", "connection denied", "connection heals"],
]


@settings(max_examples=60)
@given(beginning=st.sampled_from(_BEGINNINGS), rest=st.lists(st.sampled_from(sorted(STEPS)), max_size=5))
def test_generated_rows(kept_database: Database, beginning: list[str], rest: list[str]) -> None:
    """Whatever happens to a secret, both stores show it alike; the fake asks ``status_of``."""
    worlds = World(FakeStore(lambda: datetime.now(UTC))), World(Store(kept_database))
    for step in [*beginning, *rest]:
        for world in worlds:
            STEPS[step](world)
    fake, sql = (world.shown() for world in worlds)
    assert sql == fake
