"""INV-10: a query without a workspace does not exist; another tenant's id answers like one that does not exist."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from broker_core.adapters import store as store_package
from broker_core.adapters.store import Database, Store
from broker_core.adapters.tables import metadata
from broker_core.errors import BrokerError, NotFound
from tests.store_setup import connected, draft, failure, intent, new_connection, stored

#: statements that serve all workspaces, each with the reason why it may
FOR_ALL = {
    "custody._BEGIN": "a message carries an event's id only; the rest is reached through the event's row",
    "custody._EXPIRE": "the reconciler ends what is over its time, whose it is does not matter",
    "custody._CLOSE_UNKNOWN": "the reconciler closes uses of crashed processes",
    "custody._TO_RING": "the reconciler rings for what waits; it learns ids and types only",
    "moves._RUNNING": "the sweeper goes on with every re-encryption that runs; each comes with its workspace",
    "proof._RUNNING": "the sweeper goes on with every proof that runs; each comes with its workspace",
    "sweep._DUE_PROBES": "the sweep claims due connections; each comes with its workspace",
    "sweep._DUE_REFUSALS": "the sweep claims roles that are to refuse others; each comes with its workspace",
    "sweep._BUDGETS": "the sweep looks which connections may be asked; each comes with its workspace",
    "notices._ROTATIONS_DUE": "the scheduler tells of what is due; each notice carries its secret's workspace",
    "notices._CLAIM": "the outbox is delivered in order of time; each notice comes with its workspace",
    "notices._GIVE_UP": "old notices are given up, whose they are does not matter; each comes with its workspace",
    "notices._FORGET": "notices that are over are deleted by their age alone; nothing of them is shown",
    "sweep._TURNED": "the brake counts connections that turn at once, and tells numbers only",
}
_STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
#: a workspace that was given: as a parameter, or as a column of the given records
_NAMES_A_WORKSPACE = re.compile(
    r"%\(workspace_id\)s|workspace_id = [iru]\.workspace_id|SELECT id, workspace_id, .*FROM", re.S
)


def statements() -> Iterator[tuple[str, str]]:
    """Every statement that a module of the store defines."""
    for info in pkgutil.iter_modules(store_package.__path__):
        module = importlib.import_module(f"{store_package.__name__}.{info.name}")
        for name, value in _constants(module):
            for text in (value,) if isinstance(value, str) else value:
                if _STATEMENT.match(text):
                    yield f"{info.name}.{name}", text


def _constants(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(one, str) for one in value)):
            yield name, value


STATEMENTS = list(statements())


@pytest.mark.parametrize("table", [name for name in metadata.tables if name != "workspaces"])
def test_every_table_carries_the_workspace(table: str) -> None:
    """And requires it."""
    assert not metadata.tables[table].c.workspace_id.nullable


@pytest.mark.parametrize(("name", "text"), STATEMENTS, ids=[name for name, _ in STATEMENTS])
def test_every_statement_names_a_workspace(name: str, text: str) -> None:
    """But for those that serve all, by name and with a reason."""
    assert name in FOR_ALL or _NAMES_A_WORKSPACE.search(text)


def test_no_reason_is_left_over() -> None:
    """The list of exceptions holds what exists."""
    assert set(FOR_ALL) <= {name for name, _ in STATEMENTS}


@pytest.mark.parametrize(("name", "text"), STATEMENTS, ids=[name for name, _ in STATEMENTS])
def test_every_join_carries_the_workspace(name: str, text: str) -> None:
    """Wherever a tenant's table is joined to another, the workspace is part of what must be equal."""
    for condition in re.findall(r"JOIN (?!LATERAL)\w+ \w+\s+ON (.*?)(?=LEFT JOIN|JOIN|WHERE|\)|$)", text, re.S):
        assert re.search(
            r"workspace_id = \w+\.workspace_id|workspace_id = \w+\.id|\w+\.id = \w+\.workspace_id", condition
        )


@pytest.fixture
def store(clean_database: str) -> Iterator[Store]:
    """The real store, with two tenants: ``ours`` and ``theirs``."""
    database = Database(clean_database)
    store = Store(database)
    for workspace in ("ours", "theirs"):
        store.put_workspace(workspace, "enterprise")
    yield store
    database.close()


def answer(call: Any) -> tuple[type, str]:
    """What a caller learns."""
    try:
        return type(call()), ""
    except BrokerError as error:
        return type(error), str(error)


def test_a_strange_event_is_one_that_does_not_exist(store: Store) -> None:
    """Looking and discarding say the same words for both."""
    theirs = store.accept(draft("theirs")).event.id
    for ask in (store.event, store.discard):
        strange = answer(lambda ask=ask: ask("ours", theirs))
        assert strange == answer(lambda ask=ask: ask("ours", uuid4()))
        assert strange[0] is NotFound
    assert store.event("theirs", theirs).ended_at is None


def test_a_strange_secret_is_one_that_does_not_exist(store: Store) -> None:
    """It is neither selected nor used, and no outcome of ours marks it."""
    secret_id = stored(store, "theirs")
    assert store.candidates("ours", "agent-1", None) == []
    assert not store.begin_uses([intent("ours", secret_id=secret_id)])
    assert not store.begin_uses([intent("ours", secret_id=uuid4())])


def test_a_strange_connection_is_one_that_does_not_exist(store: Store) -> None:
    """A failure of it cannot be opened or closed from here."""
    connection = connected(store, "theirs")
    unknown = new_connection("ours")
    strange = answer(lambda: store.open_failure(failure(connection, workspace_id="ours")))
    assert strange == answer(lambda: store.open_failure(failure(unknown)))
    assert issubclass(strange[0], BrokerError)
    store.open_failure(failure(connection))
    store.close_failure("ours", connection.id, None)
    assert len(store.affected("theirs").connections) == 1
