"""Taking a value in while our own database is in trouble."""

from __future__ import annotations

from typing import Any

import pytest

from broker_core.audit import Outcome
from broker_core.custody import MOST_CRASHES
from broker_core.errors import Unavailable
from broker_core.model import EventState
from tests.taking_in import WORKSPACE, TakingIn


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> TakingIn:
    """One workspace on fakes, whose store cannot store a blob (a lock that is held too long, say)."""
    world = TakingIn()

    def locked(*_: Any) -> None:
        raise Unavailable("a lock is held too long")

    monkeypatch.setattr(world.store, "keep", locked)
    return world


def test_a_blob_that_cannot_be_stored_is_no_crash(world: TakingIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the database refuses to store, the value is not given up: the attempt reported back."""
    receipt = world.accept()
    for _ in range(MOST_CRASHES * 2):
        with pytest.raises(Unavailable):
            world.custody.run(receipt.id)
    monkeypatch.undo()
    assert world.custody.run(receipt.id) is EventState.STORED


def test_its_audit_row_is_closed(world: TakingIn) -> None:
    """The use of the key that was in vain has an outcome."""
    receipt = world.accept()
    with pytest.raises(Unavailable):
        world.custody.run(receipt.id)
    (use,) = world.store.uses(WORKSPACE)
    assert use.result is not None
    assert use.result.outcome is Outcome.FAILED
    assert world.state(receipt.id) is EventState.ACCEPTED
