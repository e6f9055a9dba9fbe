"""``ports.AuditStore``: what the fake and the SQL store both promise."""

from __future__ import annotations

from typing import Any

import pytest

from broker_core.audit import Outcome, Result
from broker_core.errors import AuditUnavailable, Receipt
from broker_core.model import Purpose
from tests.store_setup import DENIED, OK, connected, failure, intent, stored


def probe(workspace: str, **changes: Any) -> Any:
    """A probe's intent: no secret, no event."""
    bare = dict.fromkeys(("secret_name", "version", "agent_id", "method", "target"))
    return intent(workspace, purpose=Purpose.PROBE, **(bare | changes))


class TestUses:
    """Intents and outcomes of probes and verification."""

    def test_an_intent_is_committed_before_its_outcome(self, store: Any, workspace: str) -> None:
        """A crash leaves the intent, without an outcome."""
        use = probe(workspace)
        store.begin_use(use)
        (row,) = store.uses(workspace)
        assert (row.intent, row.result, row.ended_at) == (use, None, None)

    def test_an_outcome_is_written(self, store: Any, workspace: str) -> None:
        """Codes and request ids as they were."""
        use = probe(workspace)
        result = Result(Outcome.REFUSED, "access_denied", "AccessDenied", Receipt("session", "sts-1", "kms-1"))
        store.begin_use(use)
        store.end_use(use, result)
        (row,) = store.uses(workspace)
        assert row.result == result
        assert row.ended_at is not None

    def test_the_first_outcome_stands(self, store: Any, workspace: str) -> None:
        """What the reconciler or a worker wrote first is what is kept."""
        use = probe(workspace)
        store.begin_use(use)
        store.end_use(use, OK)
        store.end_use(use, DENIED)
        assert store.uses(workspace)[0].result == OK

    def test_a_crashed_use_is_closed_as_unknown(self, store: Any, workspace: str) -> None:
        """The log never claims less than what happened."""
        use = probe(workspace)
        store.begin_use(use)
        store.reconcile(500, -1)
        (row,) = store.uses(workspace)
        assert row.result == Result(Outcome.UNKNOWN)
        assert row.ended_at is not None

    def test_a_use_within_its_grace_is_left_open(self, store: Any, workspace: str) -> None:
        """A slow use is no crashed one."""
        store.begin_use(probe(workspace))
        store.reconcile(500, 3600)
        assert store.uses(workspace)[0].result is None

    def test_a_probes_success_closes_no_failure(self, store: Any, workspace: str) -> None:
        """Whether a connection healed is the sweep's to say."""
        connection = connected(store, workspace)
        stored(store, workspace)
        store.open_failure(failure(connection))
        use = probe(workspace, connection_id=connection.id)
        store.begin_use(use)
        store.end_use(use, OK)
        assert len(store.affected(workspace).connections) == 1


class TestAway:
    """No audit, no use."""

    @pytest.fixture
    def away(self, store: Any) -> Any:
        """The store, with its database gone."""
        if hasattr(store, "is_away"):
            store.is_away = True
            return store
        from broker_core.adapters.store import Database, Store

        return Store(Database("postgresql:///nowhere?host=/nonexistent"))

    def test_an_intent_that_cannot_be_written_says_so(self, away: Any, workspace: str) -> None:
        """``audit_unavailable``: nothing was asked."""
        with pytest.raises(AuditUnavailable):
            away.begin_use(probe(workspace))

    def test_a_batch_that_cannot_be_written_says_so(self, away: Any, workspace: str) -> None:
        """The same for a batch of checks."""
        with pytest.raises(AuditUnavailable):
            away.begin_checks([probe(workspace)])

    def test_an_injection_that_cannot_be_written_says_so(self, away: Any, workspace: str) -> None:
        """The same for an injection: nothing was released."""
        with pytest.raises(AuditUnavailable):
            away.begin_uses([intent(workspace)])

    @pytest.fixture
    def workspace(self) -> str:
        """A name is enough: nothing answers."""
        return "ws_any"
