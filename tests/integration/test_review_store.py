"""The SQL store where two parts of the broker meet at one row."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from broker_core.adapters.store import Database, Store
from broker_core.adapters.store.moves import _CLAIM as _CLAIM_MOVE
from broker_core.adapters.store.moves import _READY
from broker_core.adapters.store.proof import _CLAIM as _CLAIM_ITEM
from broker_core.adapters.store.sweep import _BUDGETS, _DUE_PROBES
from broker_core.audit import Intent
from broker_core.model import Connection, EventState, EventType, Purpose
from tests.databases import plain, plan_by
from tests.store_setup import OK, begun, blob_for, connected, draft, failure, stored
from tests.waiting import wait_until

WORKSPACE = "ws_review"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
_ROUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "checks": (_BUDGETS, {"burst": 2.0, "limit": 100, "per_second": 5}),
    "probes": (_DUE_PROBES, {"limit": 100, "every": 300, "unhealthy": 60}),
}


@pytest.fixture
def store(clean_database: str, kept_database: Database) -> Store:
    """A store with one workspace."""
    store = Store(kept_database)
    store.put_workspace(WORKSPACE, "enterprise")
    return store


@pytest.mark.parametrize("round_", _ROUNDS)
def test_a_round_of_the_sweep_does_not_hold_up_custody(store: Store, round_: str) -> None:
    """A value is stored under a connection while a round of the sweep holds that connection's row.

    Waiting for it would be half of a deadlock: the round goes on to the secrets, which custody has locked.
    """
    connection = connected(store, WORKSPACE)
    stored(store, WORKSPACE, name="older")  # so that there is something to check
    store._database.run(
        "test",
        "UPDATE byok_connections SET next_probe_at = now() - interval '1 minute', "
        "check_ready_at = now() - interval '1 minute'",
        {},
    )
    attempt = begun(store, store.accept(draft(WORKSPACE, name="newer")).event.id)
    sql, values = _ROUNDS[round_]
    with store._database.transaction("round") as round_of_sweep:
        (rows,) = round_of_sweep.batch((sql, values))
        assert [row.connection_id for row in rows] == [connection.id]
        assert store.keep(attempt, blob_for(attempt), OK) is EventState.STORED


def test_retiring_waits_for_a_failure_without_its_connection(store: Store, clean_database: str) -> None:
    """Who records a failure goes on to the connection: whoever had locked that, and waited for the failure, would make
    it a deadlock."""
    older = connected(store, WORKSPACE)
    connected(store, WORKSPACE)
    store.open_failure(failure(older))
    with psycopg.connect(plain(clean_database)) as recording, ThreadPoolExecutor(1) as pool:
        recording.execute("SELECT FROM decrypt_failures FOR UPDATE")
        retiring = pool.submit(store.retire, WORKSPACE, older.id)
        wait_until(lambda: recording.execute(_WAITING).fetchone() == (1,), what="the retiring to wait")
        recording.execute("SELECT FROM byok_connections WHERE id = %s FOR NO KEY UPDATE NOWAIT", [older.id])
        recording.commit()
        retiring.result(timeout=60)


def test_what_is_affected_is_of_one_moment(store: Store, clean_database: str) -> None:
    """A connection that begins to fail, or heals, while an owner asks: its secrets are in one of the two lists."""
    connection = connected(store, WORKSPACE)
    secret_id = stored(store, WORKSPACE)
    store.open_failure(failure(connection, secret_id))
    with psycopg.connect(plain(clean_database)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("LOCK TABLE byok_connections")
        asking = pool.submit(store.affected, WORKSPACE)
        wait_until(lambda: other.execute(_WAITING).fetchone() == (1,), what="the question to wait")
        other.execute("UPDATE decrypt_failures SET secret_id = NULL")
        other.commit()
        affected = asking.result(timeout=60)
    assert (affected.connections, [one.secret_id for one in affected.secrets]) == ([], [secret_id])


@pytest.fixture
def impatient_tables(clean_database: str) -> Iterator[None]:
    """Tables that take a secret's row only from a statement that may run longer than others."""
    tables = "lockout_proof_items", "reencryption_items"
    with psycopg.connect(plain(clean_database), autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse_in_haste() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF current_setting('statement_timeout')::interval <= '10s' THEN RAISE 'in haste'; END IF; RETURN NULL;"
            " END $$"
        )
        for table in tables:
            connection.execute(f"CREATE TRIGGER haste AFTER INSERT ON {table} EXECUTE FUNCTION refuse_in_haste()")
        yield
        for table in tables:
            connection.execute(f"DROP TRIGGER haste ON {table}")
        connection.execute("DROP FUNCTION refuse_in_haste")


class TestOfAllSecrets:
    """A proof and a re-encryption begin with a row for each secret: of 100,000, in seconds."""

    @pytest.fixture
    def older(self, store: Store) -> Connection:
        """A connection that a secret is still under, beside the current one."""
        older = connected(store, WORKSPACE)
        stored(store, WORKSPACE)
        connected(store, WORKSPACE)
        return older

    @pytest.mark.usefixtures("impatient_tables")
    def test_they_may_take_longer_than_others(self, store: Store, older: Connection) -> None:
        """More than a statement has elsewhere; elsewhere it stays so."""
        store.start_proof(WORKSPACE, uuid4(), older.id, "somebody")
        store.start_move(WORKSPACE, uuid4(), None)
        with store._database._connection() as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("10s",)

    @pytest.mark.usefixtures("older")
    def test_they_hold_up_no_new_value(self, store: Store, clean_database: str) -> None:
        """A rotation is accepted and stored while one begins: it waits for none of the rows that name its secret."""
        with psycopg.connect(plain(clean_database)) as beginning:
            beginning.execute("SELECT FROM broker_secrets FOR KEY SHARE")  # as the items' foreign key does
            rotated = store.accept(draft(WORKSPACE, type=EventType.ROTATED, version=2)).event
            attempt = begun(store, rotated.id)
            assert store.keep(attempt, blob_for(attempt), OK) is EventState.STORED


@pytest.mark.parametrize(
    ("claim", "indexes"),
    [
        (_READY, {"reencryption_items_source_idx"}),
        (_CLAIM_MOVE, {"reencryption_items_due_idx"}),
        (_CLAIM_ITEM, {"lockout_proof_items_due_idx", "lockout_proof_items_leased_idx"}),
    ],
    ids=["re-encryption, from where", "re-encryption", "proof"],
)
def test_the_next_secret_comes_from_an_index(store: Store, clean_database: str, claim: str, indexes: set[str]) -> None:
    """A claim sorts nothing, and looks through nothing: of 100,000 secrets each one's claim would meet all that are
    left."""
    values = {"workspace_id": WORKSPACE, "id": uuid4(), "lease": 60.0, "cost": 0.2}
    values |= {"sources": [uuid4()], "connection_id": uuid4()}
    plan = plan_by(clean_database, indexes, claim, values)
    assert indexes <= set(plan.split())
    assert "Sort" not in plan


class TestReconcile:
    """It serves all workspaces: nothing that one of them does may stop it."""

    def test_an_event_whose_row_is_held_stops_no_other(self, store: Store, clean_database: str) -> None:
        """While one event's row is locked, the others expire and are rung for."""
        held, over, due = (store.accept(draft(WORKSPACE, name=name)).event for name in ("held", "over", "due"))
        with psycopg.connect(plain(clean_database)) as other:
            other.execute("UPDATE secret_events SET claim_expires_at = now() WHERE id = ANY(%s)", [[held.id, over.id]])
            other.execute("UPDATE secret_events SET ring_at = now() WHERE id = %s", [due.id])
            other.commit()
            other.execute("SELECT FROM secret_events WHERE id = %s FOR UPDATE", [held.id])
            done = store.reconcile(100, 900)
        assert store.event(WORKSPACE, over.id).state is EventState.EXPIRED
        assert [ring.event_id for ring in done.to_ring] == [due.id]

    def test_a_use_whose_row_is_held_stops_no_other(self, store: Store, clean_database: str) -> None:
        """While one use's row is locked, the others are closed as unknown."""
        attempts = [begun(store, store.accept(draft(WORKSPACE, name=name)).event.id) for name in ("one", "two")]
        with psycopg.connect(plain(clean_database)) as other:
            other.execute("UPDATE audit_log SET started_at = now() - interval '1 hour'")
            other.commit()
            other.execute("SELECT FROM audit_log WHERE id = %s FOR UPDATE", [attempts[0].audit_id])
            assert store.reconcile(100, 900).closed_unknown == 1


class TestAServerThatIsGone:
    """A machine that vanishes says nothing: without limits of its own TCP waits for a quarter of an hour."""

    def test_a_connection_gives_up_in_seconds(self, store: Store) -> None:
        """Each connection asks the system to give up on data that nobody acknowledges, and on a silent peer."""
        with store._database._connection() as connection:
            asked = connection.info.get_parameters()
        wanted = {
            "tcp_user_timeout": "15000",
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
        }
        assert {name: asked.get(name) for name in wanted} == wanted


def test_an_intent_of_a_neighbour_does_not_open_a_use(store: Store) -> None:
    """A use names workspace and secret together: a neighbour's workspace with this secret's id begins nothing."""
    secret_id = stored(store, WORKSPACE)
    store.put_workspace("ws_neighbour", "enterprise")
    (candidate,) = store.candidates(WORKSPACE, "agent-1", None)
    forged = Intent(uuid4(), "ws_neighbour", Purpose.INJECT, candidate.blob.cipher, secret_id=secret_id, version=1)
    assert not store.begin_uses([forged])
