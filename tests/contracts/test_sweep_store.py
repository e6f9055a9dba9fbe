"""``ports.SweepStore``: what the fake and the SQL store both promise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest

from broker_core.audit import Outcome, Result
from broker_core.errors import BrokerError, KeyState
from broker_core.model import Connection, FoundBy, Purpose, SecretStatus, StepOutcome, StepResult
from broker_core.ports import DueCheck
from tests.store_setup import (
    CANARY,
    DENIED,
    OK,
    STEPS,
    age_connection,
    age_secret,
    connected,
    failure,
    intent,
    new_connection,
    stored,
)

DAY = 86_400.0


@pytest.fixture
def which_database() -> str:
    """One without any row: the sweep looks at all workspaces."""
    return "clean_database"


def probed(store: Any, limit: int = 100) -> list[UUID]:
    """The connections that are due."""
    return [due.connection.id for due in store.due_probes(limit, 300, 60)]


def due_connection(store: Any, workspace: str) -> Connection:
    """A current connection whose probe is due."""
    connection = connected(store, workspace)
    age_connection(store, connection, "next_probe_at", 1)
    return connection


def full_budget(store: Any, connection: Connection) -> None:
    """Let the connection save up all that it may."""
    age_connection(store, connection, "check_ready_at", 60)


def old_secret(store: Any, workspace: str, name: str, days: float) -> UUID:
    """A secret that was last checked so many days ago."""
    secret_id = stored(store, workspace, name=name)
    age_secret(store, secret_id, "checked_at", days * DAY)
    return secret_id


def checked(store: Any, connection: Connection, limit: int = 100, per_second: float = 5) -> list[DueCheck]:
    """The checks that are due, with a full budget."""
    full_budget(store, connection)
    return list(store.due_checks(limit, DAY, per_second))


def end_check(store: Any, connection: Connection, secret_id: UUID, result: Result, version: int = 1) -> None:
    """Begin and end one check."""
    use = intent(
        connection.workspace_id,
        purpose=Purpose.CHECK,
        secret_id=secret_id,
        connection_id=connection.id,
        version=version,
    )
    store.begin_checks([use])
    store.end_checks([(use, result)])


def together(*calls: Any) -> list[Any]:
    """Run calls in threads that start at one moment; their answers."""
    gate = Barrier(len(calls))

    def run(call: Any) -> Any:
        gate.wait(timeout=20)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class TestDueProbes:
    """Claiming probes."""

    def test_a_verified_connection_is_not_due_at_once(self, store: Any, workspace: str) -> None:
        """Its verification was a probe."""
        connected(store, workspace)
        assert probed(store) == []

    def test_a_due_connection_comes_with_its_canary(self, store: Any, workspace: str) -> None:
        """A probe needs the connection and the canary."""
        connection = due_connection(store, workspace)
        (due,) = store.due_probes(10, 300, 60)
        assert (due.connection, due.canary) == (connection, CANARY)

    def test_a_probe_is_claimed_once(self, store: Any, workspace: str) -> None:
        """What was claimed is not due again before its next time."""
        due_connection(store, workspace)
        assert len(probed(store)) == 1
        assert probed(store) == []

    def test_no_more_than_the_limit(self, store: Any, workspace: str, neighbour: str) -> None:
        """The limit bounds one claim; the rest stays due."""
        connections = {due_connection(store, each).id for each in (workspace, neighbour)}
        first = probed(store, limit=1)
        assert len(first) == 1
        assert set(first + probed(store, limit=1)) == connections

    def test_the_longest_due_comes_first(self, store: Any, workspace: str, neighbour: str) -> None:
        """Nobody starves."""
        late, later = due_connection(store, workspace), due_connection(store, neighbour)
        age_connection(store, late, "next_probe_at", 10)
        age_connection(store, later, "next_probe_at", 20)
        assert probed(store, limit=1) == [later.id]

    def test_a_pending_connection_is_not_probed(self, store: Any, workspace: str) -> None:
        """It has no canary yet."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        age_connection(store, connection, "next_probe_at", 1)
        assert probed(store) == []

    def test_a_retired_connection_is_probed_while_blobs_need_it(self, store: Any, workspace: str) -> None:
        """Old blobs still use the old key."""
        old = due_connection(store, workspace)
        stored(store, workspace)
        connected(store, workspace)
        assert probed(store) == [old.id]

    def test_a_retired_connection_without_blobs_is_not_probed(self, store: Any, workspace: str) -> None:
        """A key that protects nothing is not asked."""
        due_connection(store, workspace)
        store.disconnect(workspace)
        assert probed(store) == []

    def test_two_sweepers_claim_a_probe_once(self, store: Any, workspace: str, neighbour: str) -> None:
        """Claims are taken in the store, so that two sweepers never do one thing twice."""
        wanted = {due_connection(store, each).id for each in (workspace, neighbour)}
        claimed = [one for batch in together(*[lambda: probed(store)] * 4) for one in batch]
        assert sorted(claimed) == sorted(set(claimed))
        assert set(claimed) | set(probed(store)) == wanted


class TestDueChecks:
    """Claiming checks."""

    def test_an_old_secret_is_due(self, store: Any, workspace: str) -> None:
        """A check comes with all that it needs."""
        connection = connected(store, workspace)
        secret_id = old_secret(store, workspace, "github", 2)
        (due,) = checked(store, connection)
        assert (due.secret_id, due.name, due.version, due.connection) == (secret_id, "github", 1, connection)
        assert due.blob.ciphertext == b"blob of github 1"

    def test_a_fresh_secret_is_not_due(self, store: Any, workspace: str) -> None:
        """Storing it was a proof; one round takes the whole time."""
        connection = connected(store, workspace)
        stored(store, workspace)
        assert checked(store, connection) == []

    def test_a_platform_secret_is_never_due(self, store: Any, workspace: str) -> None:
        """There is no customer's key to ask."""
        secret_id = stored(store, workspace)
        age_secret(store, secret_id, "checked_at", 9 * DAY)
        connection = connected(store, workspace)
        assert checked(store, connection) == []

    def test_the_oldest_check_comes_first(self, store: Any, workspace: str) -> None:
        """A budget of one takes the one that waited longest."""
        connection = connected(store, workspace)
        for name, days in (("b", 2), ("c", 4), ("a", 3)):
            old_secret(store, workspace, name, days)
        order = [checked(store, connection, limit=1)[0].name for _ in range(3)]
        assert order == ["c", "a", "b"]

    def test_a_failing_secret_comes_before_older_ones(self, store: Any, workspace: str) -> None:
        """A secret with an open failure of its own is asked first, whatever the budget."""
        connection = connected(store, workspace)
        for number in range(8):
            old_secret(store, workspace, f"old-{number}", 9)
        failing = [old_secret(store, workspace, f"failing-{number}", 0.01) for number in range(2)]
        for secret_id in failing:
            store.open_failure(failure(connection, secret_id))
        assert {due.secret_id for due in checked(store, connection, limit=2)} == set(failing)

    def test_a_healed_connection_comes_before_others(self, store: Any, workspace: str, neighbour: str) -> None:
        """Secrets that show ``rechecking`` are asked before what is merely old."""
        healed, other = connected(store, workspace), connected(store, neighbour)
        rechecking = stored(store, workspace)
        old_secret(store, neighbour, "old", 9)
        age_secret(store, rechecking, "checked_at", 20)
        age_secret(store, rechecking, "rotated_at", 20)
        age_connection(store, healed, "healed_at", 10)
        age_connection(store, healed, "check_ready_at", 30)
        age_connection(store, other, "check_ready_at", 60)
        assert [due.secret_id for due in store.due_checks(1, DAY, 5)] == [rechecking]

    def test_a_budget_bounds_one_connection(self, store: Any, workspace: str) -> None:
        """At most two seconds' worth is saved up, and what was spent is gone."""
        connection = connected(store, workspace)
        for number in range(8):
            old_secret(store, workspace, f"secret-{number}", 2)
        assert len(checked(store, connection, per_second=3)) == 6
        assert store.due_checks(100, DAY, 0.01) == []

    def test_a_slow_budget_still_gives(self, store: Any, workspace: str) -> None:
        """A budget below one check in two seconds is slow, not never."""
        connection = connected(store, workspace)
        old_secret(store, workspace, "github", 2)
        assert len(checked(store, connection, per_second=0.1)) == 1

    def test_each_connection_has_its_own_budget(self, store: Any, workspace: str, neighbour: str) -> None:
        """A customer with many secrets takes nothing of another's turn."""
        connections = [connected(store, each) for each in (workspace, neighbour)]
        for each in (workspace, neighbour):
            for number in range(3):
                old_secret(store, each, f"secret-{number}", 2)
        for connection in connections:
            full_budget(store, connection)
        due = store.due_checks(100, DAY, 1)
        assert sorted(check.connection.workspace_id for check in due) == sorted(
            [workspace, workspace, neighbour, neighbour]
        )

    def test_no_more_than_the_limit(self, store: Any, workspace: str) -> None:
        """The limit bounds one batch over all connections."""
        connection = connected(store, workspace)
        for number in range(4):
            old_secret(store, workspace, f"secret-{number}", 2)
        assert len(checked(store, connection, limit=3)) == 3

    def test_a_claimed_check_is_leased(self, store: Any, workspace: str) -> None:
        """What one sweeper works on is not given to another."""
        connection = connected(store, workspace)
        old_secret(store, workspace, "github", 2)
        assert len(checked(store, connection)) == 1
        assert checked(store, connection) == []

    def test_a_lease_runs_out(self, store: Any, workspace: str) -> None:
        """A sweeper that died leaves its checks to the next one."""
        connection = connected(store, workspace)
        secret_id = old_secret(store, workspace, "github", 2)
        checked(store, connection)
        age_secret(store, secret_id, "check_lease_until", 1)
        assert [due.secret_id for due in checked(store, connection)] == [secret_id]

    def test_nothing_is_due_under_a_failing_connection(self, store: Any, workspace: str) -> None:
        """Its secrets inherit the answer; each call would be on the customer's bill."""
        connection = connected(store, workspace)
        old_secret(store, workspace, "github", 2)
        store.open_failure(failure(connection))
        assert checked(store, connection) == []

    def test_two_sweepers_claim_a_check_once(self, store: Any, workspace: str) -> None:
        """Concurrent sweepers never get the same secret."""
        connection = connected(store, workspace)
        for number in range(6):
            old_secret(store, workspace, f"secret-{number}", 2)
        full_budget(store, connection)
        batches = together(*[lambda: store.due_checks(2, DAY, 5)] * 4)
        claimed = [due.secret_id for batch in batches for due in batch]
        assert len(claimed) == len(set(claimed)) > 0


class TestEndChecks:
    """Outcomes of checks."""

    @pytest.mark.parametrize("result", [OK, DENIED], ids=["ok", "denied"])
    def test_an_answer_is_noted(self, store: Any, workspace: str, result: Result) -> None:
        """Yes and no are both answers: the secret is not asked again in this round."""
        connection = connected(store, workspace)
        secret_id = old_secret(store, workspace, "github", 2)
        checked(store, connection)
        end_check(store, connection, secret_id, result)
        assert checked(store, connection) == []

    def test_no_answer_is_not_noted(self, store: Any, workspace: str) -> None:
        """A timeout says nothing: the secret is due again when its lease ends."""
        connection = connected(store, workspace)
        secret_id = old_secret(store, workspace, "github", 2)
        end_check(store, connection, secret_id, Result(Outcome.FAILED, "transient"))
        assert len(checked(store, connection)) == 1

    def test_a_check_of_an_older_version_is_not_noted(self, store: Any, workspace: str) -> None:
        """A rotation during the check leaves the new version unchecked."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        stored(store, workspace, version=2)
        age_secret(store, secret_id, "checked_at", 2 * DAY)
        end_check(store, connection, secret_id, OK, version=1)
        assert len(checked(store, connection)) == 1

    def test_a_success_closes_the_secrets_own_failure(self, store: Any, workspace: str) -> None:
        """It works again."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id))
        end_check(store, connection, secret_id, OK)
        assert store.affected(workspace).secrets == []

    def test_a_batch_is_audited(self, store: Any, workspace: str) -> None:
        """Every check of a batch has its own intent and outcome."""
        connection = connected(store, workspace)
        checks = [
            intent(workspace, purpose=Purpose.CHECK, secret_id=stored(store, workspace, name=name), secret_name=name)
            for name in ("one", "two")
        ]
        store.begin_checks(checks)
        store.end_checks([(checks[0], OK), (checks[1], DENIED)])
        written = {row.intent.secret_name: row.result for row in store.uses(workspace) if row.intent in checks}
        assert written == {"one": OK, "two": DENIED}
        assert connection.workspace_id == workspace


class TestFailures:
    """The failure record."""

    def test_a_connections_failure_affects_all_its_secrets(self, store: Any, workspace: str) -> None:
        """One row, which every secret under the connection inherits."""
        connection = connected(store, workspace)
        for name in ("one", "two"):
            stored(store, workspace, name=name)
        store.open_failure(failure(connection))
        (affected,) = store.affected(workspace).connections
        assert [name for _, name in affected.secrets] == ["one", "two"]
        assert store.affected(workspace).secrets == []

    def test_a_secrets_own_failure_affects_it_alone(self, store: Any, workspace: str) -> None:
        """A failure of its own is the secret's row."""
        connection = connected(store, workspace)
        one = stored(store, workspace, name="one")
        stored(store, workspace, name="two")
        store.open_failure(failure(connection, one, state=KeyState.KEY_GONE, found_by=FoundBy.CHECK))
        affected = store.affected(workspace)
        assert affected.connections == []
        (secret,) = affected.secrets
        assert (secret.secret_id, secret.state, secret.found_by) == (one, KeyState.KEY_GONE, FoundBy.CHECK)

    def test_a_secrets_failure_is_not_listed_twice(self, store: Any, workspace: str) -> None:
        """Under a failing connection a secret is listed there."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id))
        store.open_failure(failure(connection))
        affected = store.affected(workspace)
        assert (len(affected.connections), affected.secrets) == (1, [])

    def test_seeing_it_again_keeps_since_and_shows_the_newest(self, store: Any, workspace: str) -> None:
        """``since`` and how it was found stay; the state is the newest answer's."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection, state=KeyState.ACCESS_DENIED, found_by=FoundBy.INJECT))
        (first,) = store.affected(workspace).connections
        store.open_failure(failure(connection, state=KeyState.KEY_DISABLED, aws_code="DisabledException"))
        (again,) = store.affected(workspace).connections
        assert (again.since, again.found_by) == (first.since, FoundBy.INJECT)
        assert (again.state, again.aws_code) == (KeyState.KEY_DISABLED, "DisabledException")

    @pytest.mark.parametrize("of_secret", [False, True], ids=["connection", "secret"])
    def test_open_at_most_once_under_threads(self, store: Any, workspace: str, of_secret: bool) -> None:
        """Eight injections that fail together make one row."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace) if of_secret else None
        together(*[lambda: store.open_failure(failure(connection, secret_id))] * 8)
        store.close_failure(workspace, connection.id, secret_id)
        affected = store.affected(workspace)
        assert (affected.connections, affected.secrets) == ([], [])

    @pytest.mark.parametrize("state", [KeyState.INTEGRITY, KeyState.MISCONFIGURED])
    def test_what_blames_nobody_affects_nobody(self, store: Any, workspace: str, state: KeyState) -> None:
        """Only customer-side denials make a secret affected (INV-8)."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, state=state))
        store.open_failure(failure(connection, secret_id, state=state))
        affected = store.affected(workspace)
        assert (affected.connections, affected.secrets) == ([], [])

    def test_a_new_failure_brings_the_probe_forward(self, store: Any, workspace: str) -> None:
        """An injection's denial is asked back at once."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection, stored(store, workspace), found_by=FoundBy.INJECT))
        assert probed(store) == [connection.id]

    def test_an_old_failure_does_not(self, store: Any, workspace: str) -> None:
        """Seeing a failure again does not probe at every tick."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection))
        probed(store)
        store.open_failure(failure(connection))
        assert probed(store) == []

    def test_a_strange_connection_is_refused(self, store: Any, workspace: str, neighbour: str) -> None:
        """A failure cannot point at another workspace's connection."""
        connection = connected(store, neighbour)
        with pytest.raises(BrokerError):
            store.open_failure(failure(connection, workspace_id=workspace))
        assert store.affected(neighbour).connections == []

    def test_closing_heals(self, store: Any, workspace: str) -> None:
        """A closed row affects nobody; the connection's secrets are asked again."""
        connection = connected(store, workspace)
        stored(store, workspace)
        store.open_failure(failure(connection))
        store.close_failure(workspace, connection.id, None)
        assert store.affected(workspace).connections == []
        assert store.secrets(workspace)[0].status is SecretStatus.RECHECKING

    def test_closing_a_secrets_row_marks_nothing(self, store: Any, workspace: str) -> None:
        """A secret's own healing is no healing of its connection."""
        connection = connected(store, workspace)
        secret_id = stored(store, workspace)
        store.open_failure(failure(connection, secret_id))
        store.close_failure(workspace, connection.id, secret_id)
        assert store.secrets(workspace)[0].status is SecretStatus.ACTIVE

    def test_closing_nothing_marks_nothing(self, store: Any, workspace: str) -> None:
        """A probe that works every time rechecks nothing."""
        connection = connected(store, workspace)
        stored(store, workspace)
        store.close_failure(workspace, connection.id, None)
        assert store.secrets(workspace)[0].status is SecretStatus.ACTIVE

    def test_a_neighbour_closes_nothing(self, store: Any, workspace: str, neighbour: str) -> None:
        """Another workspace's name with our connection's id finds no row."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection))
        store.close_failure(neighbour, connection.id, None)
        assert len(store.affected(workspace).connections) == 1

    def test_it_opens_again(self, store: Any, workspace: str) -> None:
        """A healed failure that comes back is a new row."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection))
        store.close_failure(workspace, connection.id, None)
        store.open_failure(failure(connection))
        assert len(store.affected(workspace).connections) == 1

    def test_a_rotation_closes_the_secrets_own_failure(self, store: Any, workspace: str) -> None:
        """Giving the value again ends what was wrong with the old blob."""
        connection = connected(store, workspace)
        store.open_failure(failure(connection, stored(store, workspace)))
        stored(store, workspace, version=2)
        assert store.affected(workspace).secrets == []


class TestTurnedShare:
    """The brake on many turning at once."""

    def test_nobody_turned(self, store: Any, workspace: str) -> None:
        """All current connections, none failing."""
        connected(store, workspace)
        assert store.turned_share(600) == (0, 1)

    def test_a_fresh_failure_turned(self, store: Any, workspace: str, neighbour: str) -> None:
        """One of two turned; its secret's own failure does not count."""
        connected(store, neighbour)
        connection = connected(store, workspace)
        store.open_failure(failure(connection, stored(store, workspace)))
        assert store.turned_share(600) == (0, 2)
        store.open_failure(failure(connection))
        assert store.turned_share(600) == (1, 2)

    def test_an_old_failure_did_not_turn_now(self, store: Any, workspace: str) -> None:
        """What opened before the time does not count."""
        store.open_failure(failure(connected(store, workspace)))
        assert store.turned_share(0) == (0, 1)

    def test_our_own_faults_do_not_count(self, store: Any, workspace: str) -> None:
        """``misconfigured`` blames nobody."""
        store.open_failure(failure(connected(store, workspace), state=KeyState.MISCONFIGURED))
        assert store.turned_share(600) == (0, 1)

    def test_a_retired_connection_does_not_count(self, store: Any, workspace: str) -> None:
        """Neither above nor below the line."""
        store.open_failure(failure(connected(store, workspace)))
        store.disconnect(workspace)
        assert store.turned_share(600) == (0, 0)


class TestRefusals:
    """When a role is to show again that it refuses others, and what it showed."""

    def due(self, store: Any, connection: Connection) -> list[Connection]:
        """What is claimed of this test's own."""
        return [one for one in store.due_refusals(1000, 3600) if one.workspace_id == connection.workspace_id]

    def test_not_right_after_connecting(self, store: Any, workspace: str) -> None:
        """It has just been verified."""
        assert self.due(store, connected(store, workspace)) == []

    def test_once_for_each_time(self, store: Any, workspace: str) -> None:
        """What one sweeper claimed no other gets, until its claim is over."""
        connection = connected(store, workspace)
        age_connection(store, connection, "next_refusals_at", 1)
        assert (self.due(store, connection), self.due(store, connection)) == ([connection], [])

    def test_two_at_once_do_not_double(self, store: Any, workspace: str) -> None:
        """Of two sweepers one gets it."""
        connection = connected(store, workspace)
        age_connection(store, connection, "next_refusals_at", 1)
        with ThreadPoolExecutor(2) as pool:
            got = list(pool.map(lambda _: self.due(store, connection), range(2)))
        assert sorted(len(one) for one in got) == [0, 1]

    def test_a_pending_one_is_never_due(self, store: Any, workspace: str) -> None:
        """It encrypts nothing."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        age_connection(store, connection, "next_refusals_at", 86_400)
        assert self.due(store, connection) == []

    @pytest.mark.parametrize("has_blobs", [True, False])
    def test_a_retired_one_is_due_while_blobs_need_it(self, store: Any, workspace: str, has_blobs: bool) -> None:
        """A replaced role that protects nothing is nobody's trouble."""
        old = connected(store, workspace)
        if has_blobs:
            stored(store, workspace)
        connected(store, workspace)
        age_connection(store, old, "next_refusals_at", 1)
        assert self.due(store, old) == ([old] if has_blobs else [])

    def test_the_result_takes_the_place_of_the_last_one(self, store: Any, workspace: str) -> None:
        """Steps of the same name change, the others stay, all in their order; a new one comes last."""
        connection = new_connection(workspace)
        store.add_pending(connection)
        store.make_current(connection, CANARY, 0, STEPS)
        now = (StepResult("two", StepOutcome.OK, "", "request-9"), StepResult("four", StepOutcome.OK))
        store.end_refusals(connection, now, False, 86_400)
        assert list(store.connections(workspace)[0].steps) == [STEPS[0], now[0], STEPS[2], now[1]]

    def test_the_flag_is_raised_once_and_lowered(self, store: Any, workspace: str) -> None:
        """Since when is the first time's."""
        connection = connected(store, workspace)
        seen = []
        for is_flagged in (True, True, False):
            store.end_refusals(connection, STEPS, is_flagged, 86_400)
            view = store.connections(workspace)[0]
            seen.append((view.health, view.health_since))
        assert seen[0] == seen[1]
        assert [health for health, _ in seen] == ["flagged", "flagged", "healthy"]

    def test_a_flag_affects_nobody(self, store: Any, workspace: str) -> None:
        """INV-8: it is no failure."""
        connection = connected(store, workspace)
        stored(store, workspace)
        store.end_refusals(connection, STEPS, True, 86_400)
        affected = store.affected(workspace)
        assert (list(affected.connections), list(affected.secrets)) == ([], [])

    def test_it_is_due_again_after_its_time(self, store: Any, workspace: str) -> None:
        """A result sets the next time, whatever the claim had set."""
        connection = connected(store, workspace)
        age_connection(store, connection, "next_refusals_at", 1)
        self.due(store, connection)
        store.end_refusals(connection, STEPS, False, -10)
        assert self.due(store, connection) == [connection]
