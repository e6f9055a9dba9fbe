"""Fixtures of the contract suites: each port's fake and its real adapter."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from broker_core.model import Connection
from tests.fakes_store import FakeStore


@pytest.fixture
def which_database() -> str:
    """The fixture of the database for ``store``: here one that may hold rows of other workspaces."""
    return "database_url"


@pytest.fixture(params=["fake", "sql"])
def store(request: pytest.FixtureRequest, which_database: str) -> Iterator[Any]:
    """A store with no rows of this test's workspaces in it."""
    if request.param == "fake":
        yield FakeStore(lambda: datetime.now(UTC))
        return
    from broker_core.adapters.store import Store

    request.getfixturevalue(which_database)
    yield Store(request.getfixturevalue("kept_database"))


def _workspace(store: Any) -> str:
    workspace_id = f"ws_{uuid4().hex}"
    store.put_workspace(workspace_id, "enterprise")
    return workspace_id


@pytest.fixture
def workspace(store: Any) -> str:
    """A workspace of this test's own."""
    return _workspace(store)


@pytest.fixture
def neighbour(store: Any) -> str:
    """Another tenant."""
    return _workspace(store)


@pytest.fixture
def connection(workspace: str) -> Connection:
    """A connection that is not stored yet."""
    return Connection(
        uuid4(),
        workspace,
        "arn:aws:iam::222222222222:role/axiorank",
        f"external-{uuid4().hex}",
        f"arn:aws:kms:eu-west-1:222222222222:key/{uuid4()}",
    )
