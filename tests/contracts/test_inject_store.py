"""``ports.InjectStore``: what the fake and the SQL store both promise."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import Receipt
from broker_core.injection import Injection, Kind
from broker_core.model import CipherName, EventType, SecretStatus
from tests.store_setup import (
    DENIED,
    OK,
    age_connection,
    age_secret,
    connected,
    draft,
    failure,
    intent,
    stored,
)


def bound_to(server: str | None, agent: str | None) -> Injection:
    """A bearer for a server, an agent or both."""
    return Injection(Kind.BEARER, None, "api.example.com", server, agent)


def names(store: Any, workspace: str, agent: str | None, server: str | None) -> set[str]:
    """The names of the candidates."""
    return {candidate.name for candidate in store.candidates(workspace, agent, server)}


def outcome_of(store: Any, use: Intent) -> Result | None:
    """What the audit log says of a use."""
    (row,) = [row for row in store.uses(use.workspace_id, limit=200) if row.intent.id == use.id]
    result: Result | None = row.result
    return result


def audited(store: Any, workspace: str) -> set[UUID]:
    """The ids of the workspace's injections in the audit log."""
    return {row.intent.id for row in store.uses(workspace, limit=200) if row.intent.event_id is None}


class TestCandidates:
    """Which secrets a call might use."""

    @pytest.mark.parametrize(
        ("server", "agent", "caller_agent", "caller_server", "fits"),
        [
            ("server-1", "agent-1", "agent-1", "server-1", True),
            ("server-1", "agent-1", "agent-2", "server-1", False),
            ("server-1", "agent-1", "agent-1", "server-2", False),
            ("server-1", "agent-1", "agent-1", None, False),
            ("server-1", None, "agent-9", "server-1", True),
            ("server-1", None, None, "server-1", True),
            ("server-1", None, "agent-1", None, False),
            (None, "agent-1", "agent-1", "server-9", True),
            (None, "agent-1", "agent-1", None, True),
            (None, "agent-1", None, "server-1", False),
            (None, "agent-1", "AGENT-1", None, False),
        ],
    )
    def test_each_id_equals_or_is_unset(
        self,
        store: Any,
        workspace: str,
        server: str | None,
        agent: str | None,
        caller_agent: str | None,
        caller_server: str | None,
        fits: bool,
    ) -> None:
        """A secret's server and agent must each be the caller's, or unset."""
        stored(store, workspace, injection=bound_to(server, agent))
        assert bool(names(store, workspace, caller_agent, caller_server)) is fits

    def test_another_workspaces_secret_is_no_candidate(self, store: Any, workspace: str, neighbour: str) -> None:
        """The same agent id in another workspace finds nothing."""
        stored(store, workspace)
        assert names(store, neighbour, "agent-1", None) == set()

    def test_a_secret_without_a_blob_is_no_candidate(self, store: Any, workspace: str) -> None:
        """What still waits cannot be used."""
        store.accept(draft(workspace))
        assert names(store, workspace, "agent-1", None) == set()

    def test_an_unbound_secret_is_no_candidate(self, store: Any, workspace: str) -> None:
        """A rotation of a name never created has no one to be used by."""
        stored(store, workspace, type=EventType.ROTATED, injection=None)
        assert names(store, workspace, "agent-1", None) == set()

    def test_a_candidate_of_the_platform_cipher_has_no_connection(self, store: Any, workspace: str) -> None:
        """Before BYOK a blob has no connection."""
        stored(store, workspace)
        (candidate,) = store.candidates(workspace, "agent-1", None)
        assert (candidate.connection, candidate.blob.cipher) == (None, CipherName.PLATFORM)

    def test_a_candidate_keeps_the_connection_that_made_its_blob(self, store: Any, workspace: str) -> None:
        """An old blob points at its own connection, whatever the setting is now."""
        first = connected(store, workspace)
        stored(store, workspace)
        connected(store, workspace)
        (candidate,) = store.candidates(workspace, "agent-1", None)
        assert candidate.connection == first

    def test_being_affected_hides_no_candidate(self, store: Any, workspace: str) -> None:
        """Every call tries: a failing connection is no reason to refuse."""
        connection = connected(store, workspace)
        stored(store, workspace)
        store.open_failure(failure(connection))
        assert names(store, workspace, "agent-1", None) == {"github"}


class TestBeginUses:
    """Intents."""

    def test_intents_are_committed(self, store: Any, workspace: str) -> None:
        """An intent is in the audit log before its outcome is."""
        use = intent(workspace, secret_id=stored(store, workspace))
        assert store.begin_uses([use])
        assert audited(store, workspace) == {use.id}
        assert outcome_of(store, use) is None

    def test_an_intent_is_kept_whole(self, store: Any, workspace: str) -> None:
        """Every field of an intent is read back as it was written."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        use = intent(workspace, secret_id=secret_id, connection_id=connection.id, mcp_server_id="server-1")
        store.begin_uses([use])
        (row,) = [row for row in store.uses(workspace) if row.intent.id == use.id]
        assert row.intent == use

    def test_a_moved_version_writes_nothing(self, store: Any, workspace: str) -> None:
        """A rotation since the selection answers False, and no intent is there."""
        secret_id = stored(store, workspace)
        stored(store, workspace, version=2)
        assert not store.begin_uses([intent(workspace, secret_id=secret_id, version=1)])
        assert audited(store, workspace) == set()

    def test_one_moved_version_stops_all(self, store: Any, workspace: str) -> None:
        """Intents of one call are written all or none."""
        still = stored(store, workspace, name="still")
        moved = stored(store, workspace, name="moved")
        stored(store, workspace, name="moved", version=2)
        uses = [intent(workspace, secret_id=still), intent(workspace, secret_id=moved, version=1)]
        assert not store.begin_uses(uses)
        assert audited(store, workspace) == set()

    def test_a_deleted_secret_is_not_begun(self, store: Any, workspace: str) -> None:
        """A deletion since the selection answers False."""
        secret_id = stored(store, workspace)
        store.accept(draft(workspace, type=EventType.DELETED, version=2))
        assert not store.begin_uses([intent(workspace, secret_id=secret_id, version=1)])
        assert not store.begin_uses([intent(workspace, secret_id=secret_id, version=2)])

    def test_another_workspaces_secret_is_not_begun(self, store: Any, workspace: str, neighbour: str) -> None:
        """A secret's id with another workspace's name on it answers like one that does not exist."""
        secret_id = stored(store, workspace)
        assert not store.begin_uses([intent(neighbour, secret_id=secret_id)])

    def test_several_intents_are_written(self, store: Any, workspace: str) -> None:
        """An environment of two variables is two intents."""
        uses = [intent(workspace, secret_id=stored(store, workspace, name=name)) for name in ("one", "two")]
        assert store.begin_uses(uses)
        assert audited(store, workspace) == {use.id for use in uses}


class TestEndUses:
    """Outcomes."""

    def test_an_outcome_is_kept_whole(self, store: Any, workspace: str) -> None:
        """Codes, request ids and counts are read back as they were written."""
        use = intent(workspace, secret_id=stored(store, workspace))
        result = Result(Outcome.OK, "", "", Receipt("session", "sts-1", "kms-1"), 200, 3)
        store.begin_uses([use])
        store.end_uses([(use, result)])
        assert outcome_of(store, use) == result

    def test_the_first_outcome_stands(self, store: Any, workspace: str) -> None:
        """An outcome is written once."""
        use = intent(workspace, secret_id=stored(store, workspace))
        store.begin_uses([use])
        store.end_uses([(use, OK)])
        store.end_uses([(use, DENIED)])
        assert outcome_of(store, use) == OK

    @pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.UPSTREAM_FAILED, Outcome.WITHHELD])
    def test_a_key_that_answered_sets_last_used(self, store: Any, workspace: str, outcome: Outcome) -> None:
        """The value was released, whatever the upstream did with it."""
        _use(store, workspace, stored(store, workspace), Result(outcome))
        assert store.secrets(workspace)[0].last_used_at is not None

    @pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FAILED])
    def test_a_refusal_is_no_use(self, store: Any, workspace: str, outcome: Outcome) -> None:
        """What was not released was not used."""
        _use(store, workspace, stored(store, workspace), Result(outcome))
        assert store.secrets(workspace)[0].last_used_at is None

    def test_a_success_closes_the_secrets_own_failure(self, store: Any, workspace: str) -> None:
        """A key that answered heals the secret."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id))
        _use(store, workspace, secret_id, OK)
        assert store.affected(workspace).secrets == []

    def test_a_refusal_closes_nothing(self, store: Any, workspace: str) -> None:
        """A denial heals nobody."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id))
        _use(store, workspace, secret_id, DENIED)
        assert len(store.affected(workspace).secrets) == 1

    def test_a_success_leaves_other_failures_open(self, store: Any, workspace: str) -> None:
        """One secret's success says nothing of another, nor of the connection's canary."""
        connection = connected(store, workspace)
        one, other = stored(store, workspace, name="one"), stored(store, workspace, name="other")
        store.open_failure(failure(connection, other))
        _use(store, workspace, one, OK)
        assert [secret.name for secret in store.affected(workspace).secrets] == ["other"]

    def test_a_use_of_an_older_version_is_no_use_of_this_one(self, store: Any, workspace: str) -> None:
        """A rotation during the use leaves the new version unused."""
        secret_id = stored(store, workspace)
        use = intent(workspace, secret_id=secret_id)
        store.begin_uses([use])
        stored(store, workspace, version=2)
        store.end_uses([(use, OK)])
        assert store.secrets(workspace)[0].last_used_at is None

    def test_a_use_after_healing_ends_the_recheck(self, store: Any, workspace: str) -> None:
        """A busy secret, used just before its connection healed and again after, is active at once."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        _use(store, workspace, secret_id, OK)
        age_secret(store, secret_id, "checked_at", 3)
        age_secret(store, secret_id, "last_used_at", 3)
        _age_rotation(store, secret_id)
        age_connection(store, connection, "healed_at", 1)
        assert store.secrets(workspace)[0].status is SecretStatus.RECHECKING
        _use(store, workspace, secret_id, OK)
        assert store.secrets(workspace)[0].status is SecretStatus.ACTIVE


def _age_rotation(store: Any, secret_id: UUID) -> None:
    age_secret(store, secret_id, "rotated_at", 5)


def _use(store: Any, workspace: str, secret_id: UUID, result: Result) -> None:
    use = intent(workspace, secret_id=secret_id, id=uuid4())
    assert store.begin_uses([use])
    store.end_uses([(use, result)])
