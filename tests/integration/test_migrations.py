"""The schema: that migrations make it, that ``tables.py`` shows it, and that the database itself refuses bad rows."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError

from broker_core.adapters.store import Database, Store
from broker_core.adapters.tables import REVISION, metadata
from broker_core.dev.postgres import create_database, drop_database
from broker_core.errors import Unavailable
from migrations.runner import downgrade, pending, upgrade
from tests.conftest import HERE
from tests.databases import plain, sibling
from tests.waiting import wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: the lock of ``migrations/env.py``
ADVISORY_LOCK = 0x41784B6579
Rows = dict[str, dict[str, Any]]
#: an order in which rows can be written
TABLES = (
    "workspaces",
    "external_ids",
    "byok_connections",
    "broker_secrets",
    "secret_events",
    "decrypt_failures",
    "audit_log",
    "lockout_proofs",
    "lockout_proof_items",
    "notifications",
    "reencryptions",
    "reencryption_items",
)
#: those that the first release had
FIRST_TABLES = TABLES[:7]


@pytest.fixture
def fresh(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    name = f"broker_migration_{secrets.token_hex(6)}"
    create_database(postgres_url, name)
    yield sibling(postgres_url, name)
    drop_database(postgres_url, name)


@pytest.fixture
def connection(clean_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to this worker's migrated database; nothing that it writes stays."""
    with psycopg.connect(plain(clean_database)) as connection:
        yield connection
        connection.rollback()


def good_rows(workspace: str) -> Rows:
    """One good row for each table, each pointing at the others."""
    connection_id, secret_id, external_id = uuid4(), uuid4(), f"external-{uuid4().hex}"
    proof_id, move_id = uuid4(), uuid4()
    return {
        "workspaces": {"id": workspace, "plan": "enterprise"},
        "external_ids": {"external_id": external_id, "workspace_id": workspace},
        "byok_connections": {
            "id": connection_id,
            "workspace_id": workspace,
            "role_arn": "role",
            "external_id": external_id,
            "key_arn": "key",
            "status": "current",
            "canary": b"canary",
            "verified_at": NOW,
        },
        "broker_secrets": {
            "id": secret_id,
            "workspace_id": workspace,
            "name": "github",
            "version": 1,
            "highest_version": 1,
            "cipher": "kms",
            "connection_id": connection_id,
            "blob": b"blob",
            "injection_kind": "bearer",
            "binding_key": None,
            "target_host": "api.example.com",
            "mcp_server_id": None,
            "agent_id": "agent-1",
            "deleted_at": None,
        },
        "secret_events": {
            "id": uuid4(),
            "workspace_id": workspace,
            "secret_id": secret_id,
            "source": "tests",
            "event_id": "1",
            "type": "secret.created",
            "name": "github",
            "version": 1,
            "state": "accepted",
            "claim_key": b"key",
            "ended_at": None,
        },
        "decrypt_failures": {
            "id": uuid4(),
            "workspace_id": workspace,
            "connection_id": connection_id,
            "secret_id": secret_id,
            "state": "access_denied",
            "aws_code": "AccessDeniedException",
            "found_by": "probe",
        },
        "audit_log": {
            "id": uuid4(),
            "workspace_id": workspace,
            "purpose": "inject",
            "cipher": "kms",
            "outcome": None,
            "ended_at": None,
        },
        "notifications": {
            "id": uuid4(),
            "workspace_id": workspace,
            "type": "byok.connection_failing",
            "cause": "cause",
            "connection_id": connection_id,
            "payload": "{}",
        },
        "lockout_proofs": {
            "id": proof_id,
            "workspace_id": workspace,
            "connection_id": connection_id,
            "asked_by": "tests",
            "ended_at": None,
            "is_locked_out": None,
            "document": None,
        },
        "lockout_proof_items": {
            "proof_id": proof_id,
            "workspace_id": workspace,
            "secret_id": secret_id,
            "name": "github",
            "version": 1,
            "outcome": None,
            "settled_at": None,
        },
        "reencryptions": {"id": move_id, "workspace_id": workspace, "ended_at": None, "stopped_by": None},
        "reencryption_items": {
            "reencryption_id": move_id,
            "workspace_id": workspace,
            "secret_id": secret_id,
            "connection_id": connection_id,
            "outcome": None,
            "settled_at": None,
        },
    }


def first_rows(workspace: str) -> Rows:
    """Those of the tables that the first release had."""
    rows = good_rows(workspace)
    return {table: rows[table] for table in FIRST_TABLES}


def insert(connection: psycopg.Connection[Any], table: str, row: dict[str, Any]) -> None:
    """Write one row."""
    names = sql.SQL(", ").join(map(sql.Identifier, row))
    values = sql.SQL(", ").join(sql.Placeholder(name) for name in row)
    connection.execute(sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(sql.Identifier(table), names, values), row)


def insert_all(connection: psycopg.Connection[Any], rows: Rows, up_to: str = "") -> None:
    """Write the rows of all tables, or of those before one."""
    for table in TABLES:
        if table == up_to:
            break
        if table in rows:
            insert(connection, table, rows[table])


def tables_of(url: str) -> set[str]:
    """The tables that are there."""
    with psycopg.connect(plain(url)) as connection:
        return {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


class TestRunning:
    """Up, down, twice, at once, and against a lock."""

    def test_from_nothing(self, fresh: str) -> None:
        """An empty database gets every table, and nothing is pending."""
        assert pending(fresh)
        upgrade(fresh)
        assert tables_of(fresh) == {*TABLES, "alembic_version"}
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (REVISION,)
        assert not pending(fresh)

    def test_a_store_wants_the_newest(self, fresh: str) -> None:
        """A database that was not migrated, or not far enough, is not ready; a newer one is."""
        with closing(Database(fresh)) as database:
            store = Store(database)
            for revision in (None, "0001", "0005"):
                if revision:
                    upgrade(fresh, revision)
                with pytest.raises(Unavailable, match="broker migrate"):
                    store.ping()
            upgrade(fresh)
            store.ping()
            with psycopg.connect(plain(fresh)) as connection:
                connection.execute("UPDATE alembic_version SET version_num = '0999'")
            store.ping()

    def test_twice_changes_nothing(self, fresh: str) -> None:
        """Running again is safe, rows included."""
        upgrade(fresh)
        with psycopg.connect(plain(fresh)) as connection:
            insert_all(connection, good_rows("ws_1"))
        upgrade(fresh)
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute("SELECT count(*) FROM secret_events").fetchone() == (1,)

    def test_down_and_up_with_rows(self, fresh: str) -> None:
        """With rows in every table it goes down to nothing, and up again."""
        upgrade(fresh)
        with psycopg.connect(plain(fresh)) as connection:
            rows = good_rows("ws_1")
            insert_all(connection, rows)
            connection.execute("UPDATE workspaces SET connection_id = %s", (rows["byok_connections"]["id"],))
        downgrade(fresh, "base")
        assert tables_of(fresh) == {"alembic_version"}
        upgrade(fresh)
        assert not pending(fresh)

    def test_down_leaves_nothing_behind(self, fresh: str) -> None:
        """Functions go, too."""
        upgrade(fresh)
        downgrade(fresh, "base")
        left = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute(left).fetchone() == (0,)

    def test_0002_keeps_the_rows_both_ways(self, fresh: str) -> None:
        """What an older release wrote is as good after it, and what a newer one wrote after going back."""
        count = "SELECT count(*) FROM broker_secrets, secret_events, decrypt_failures, audit_log"
        upgrade(fresh, "0001")
        with psycopg.connect(plain(fresh)) as connection:
            insert_all(connection, first_rows("ws_1"))
        upgrade(fresh, "0002")
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute("SELECT policy_version FROM broker_secrets").fetchall() == [(0,)]
            insert_all(connection, first_rows("ws_2"))
        downgrade(fresh, "0001")
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute(count).fetchone() == (2**4,)
        upgrade(fresh)
        assert not pending(fresh)

    def test_0004_keeps_the_rows_both_ways(self, fresh: str) -> None:
        """Failures that are open and secrets with a policy stay as they are; no notice is made of what was before."""
        count = "SELECT count(*) FROM broker_secrets, secret_events, decrypt_failures, audit_log"
        upgrade(fresh, "0003")
        with psycopg.connect(plain(fresh)) as connection:
            insert_all(connection, first_rows("ws_1"))
            connection.execute("UPDATE broker_secrets SET rotation_policy = '30d'")
        upgrade(fresh, "0004")
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute("SELECT announced_at FROM decrypt_failures").fetchall() == [(None,)]
            assert connection.execute("SELECT rotation_policy, due_noticed FROM broker_secrets").fetchall() == [
                ("30d", None)
            ]
            assert connection.execute("SELECT count(*) FROM notifications").fetchone() == (0,)
            rows = good_rows("ws_2")
            insert_all(connection, {table: rows[table] for table in FIRST_TABLES})
            insert(connection, "notifications", rows["notifications"])
        downgrade(fresh, "0003")
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute(count).fetchone() == (2**4,)
        upgrade(fresh)
        assert not pending(fresh)

    def test_0006_keeps_the_connections_both_ways(self, fresh: str) -> None:
        """None is retired by it, and one that was is there after going back."""
        upgrade(fresh, "0005")
        with psycopg.connect(plain(fresh)) as connection:
            insert_all(connection, first_rows("ws_1"))
        upgrade(fresh, "0006")
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute("SELECT retired_at FROM byok_connections").fetchall() == [(None,)]
            connection.execute("UPDATE byok_connections SET status = 'retired', retired_at = now()")
        downgrade(fresh, "0005")
        with psycopg.connect(plain(fresh)) as connection:
            assert connection.execute("SELECT status FROM byok_connections").fetchall() == [("retired",)]
        upgrade(fresh)
        assert not pending(fresh)

    def test_two_at_once(self, fresh: str) -> None:
        """Two machines that start a release both succeed."""
        program = f"from migrations.runner import upgrade; upgrade({fresh!r})"
        both = [subprocess.Popen([sys.executable, "-c", program], cwd=HERE.parent) for _ in range(2)]
        assert [one.wait(timeout=60) for one in both] == [0, 0]
        assert not pending(fresh)

    def test_a_second_one_waits_for_the_first(self, fresh: str) -> None:
        """The wait for the other migrator is not bounded by the time that a table may be waited for."""
        with psycopg.connect(plain(fresh), autocommit=True) as first, ThreadPoolExecutor(1) as pool:
            first.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
            second = pool.submit(upgrade, fresh, lock_milliseconds=40)
            waiting = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND wait_event = 'advisory' AND now() - query_start > interval '50 milliseconds'"""
            wait_until(lambda: second.done() or first.execute(waiting).fetchone() == (1,), what="the second migrator")
            assert not second.done()
            first.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK,))
            second.result(timeout=60)
        assert not pending(fresh)

    def test_a_locked_table_is_given_up(self, fresh: str) -> None:
        """A migration does not queue behind a long transaction; it has changed nothing, and can be run again."""
        upgrade(fresh)
        with psycopg.connect(plain(fresh)) as reader:
            reader.execute("SELECT count(*) FROM workspaces")
            with pytest.raises(OperationalError) as error:
                downgrade(fresh, "base", lock_milliseconds=20)
            assert isinstance(error.value.orig, psycopg.errors.LockNotAvailable)
            assert tables_of(fresh) >= {*FIRST_TABLES, "alembic_version"}  # newer ones may have gone: each by itself
        downgrade(fresh, "base")

    def test_a_failed_one_gives_the_lock_back(self, fresh: str) -> None:
        """The next migrator does not wait for one that gave up."""
        upgrade(fresh)
        with psycopg.connect(plain(fresh)) as reader:
            reader.execute("SELECT count(*) FROM workspaces")
            with pytest.raises(OperationalError):
                downgrade(fresh, "base", lock_milliseconds=20)
            free = reader.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,)).fetchone()
        assert free == (True,)


#: what is compared, each by name and full text
_CONSTRAINTS = """
    SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conrelid::regclass::text <> 'alembic_version'"""
_INDEXES = """
    SELECT tablename || '.' || indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'"""
_COLUMNS = """
    SELECT table_name || '.' || column_name, concat_ws(' ', ordinal_position, data_type, is_nullable, column_default)
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'"""


class TestTables:
    """``tables.py`` shows what the migrations make."""

    def test_alembic_sees_no_difference(self, clean_database: str) -> None:
        """Autogenerating would write an empty migration."""
        engine = create_engine(clean_database, poolclass=NullPool)
        with engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []

    @pytest.mark.parametrize("question", [_CONSTRAINTS, _INDEXES, _COLUMNS], ids=["constraints", "indexes", "columns"])
    def test_both_make_the_same(self, clean_database: str, fresh: str, question: str) -> None:
        """What alembic does not compare (checks, predicates of indexes) agrees, too."""
        metadata.create_all(create_engine(fresh, poolclass=NullPool))
        migrated, shown = _pairs(clean_database, question), _pairs(fresh, question)
        assert migrated == shown
        assert migrated


def _pairs(url: str, question: str) -> dict[str, str]:
    with psycopg.connect(plain(url)) as connection:
        return dict(connection.execute(question).fetchall())


#: constraint → rows that only it refuses, as changes to the good row
BAD_ROWS: dict[str, list[dict[str, Any]]] = {
    "workspaces_id_check": [{"id": ""}, {"id": "a b"}, {"id": "a\n"}, {"id": "é"}, {"id": "x" * 65}],
    "workspaces_plan_check": [{"plan": "gold"}, {"plan": ""}],
    "workspaces_deleted_check": [{"deleted_at": NOW, "connection_id": uuid4()}],
    "byok_connections_status_check": [{"status": "live"}],
    "byok_connections_verified_check": [
        {"canary": None},
        {"verified_at": None},
        {"status": "retired", "canary": None, "verified_at": None},
    ],
    "broker_secrets_name_check": [
        {"name": ""},
        {"name": " github"},
        {"name": "github "},
        {"name": "git\nhub"},
        {"name": "github\n"},
        {"name": "git*hub"},
        {"name": "gît"},
        {"name": "x" * 129},
    ],
    "broker_secrets_version_check": [{"version": 2}, {"version": -1}],
    "broker_secrets_cipher_check": [{"cipher": "rot13"}],
    "broker_secrets_blob_check": [{"blob": None}, {"cipher": None, "connection_id": None}],
    "broker_secrets_custody_check": [{"cipher": "platform"}, {"connection_id": None}],
    "broker_secrets_deleted_check": [{"deleted_at": NOW}],
    "broker_secrets_kind_check": [{"injection_kind": "cookie", "binding_key": "sid"}],
    "broker_secrets_injection_check": [
        {"agent_id": None},
        {"target_host": None},
        {"binding_key": "X-Key"},
        {"injection_kind": None},
        {"injection_kind": "http_header"},
        {"injection_kind": "query"},
        {"injection_kind": "stdio_env", "binding_key": "TOKEN"},
        {"injection_kind": "stdio_env", "target_host": None},
    ],
    "secret_events_version_check": [{"version": 0}],
    "secret_events_type_check": [{"type": "secret.renamed"}],
    "secret_events_state_check": [{"state": "lost", "claim_key": None, "ended_at": NOW}],
    "secret_events_claim_check": [{"claim_key": None}, {"state": "stored", "ended_at": NOW}],
    "secret_events_ended_check": [{"ended_at": NOW}, {"state": "stored", "claim_key": None}],
    "decrypt_failures_subject_check": [{"connection_id": None, "secret_id": None}],
    "decrypt_failures_found_by_check": [{"found_by": "luck"}],
    "decrypt_failures_state_check": [{"state": "transient"}, {"state": "unknown"}],
    "audit_log_purpose_check": [{"purpose": "look"}],
    "audit_log_outcome_check": [{"outcome": "ok"}, {"ended_at": NOW}],
    "broker_secrets_policy_check": [{"rotation_policy": ""}, {"rotation_policy": "90"}, {"rotation_policy": "0d"}],
    "notifications_type_check": [{"type": "byok.connection"}],
    "notifications_subject_check": [{"connection_id": None}, {"secret_id": uuid4()}],
    "notifications_end_check": [{"delivered_at": NOW, "given_up_at": NOW}],
    "byok_connections_retired_check": [{"retired_at": NOW}],
    "reencryptions_stopped_check": [{"stopped_by": "disconnected"}],
    "reencryption_items_outcome_check": [{"outcome": "lost", "settled_at": NOW}],
    "reencryption_items_settled_check": [{"outcome": "moved"}, {"settled_at": NOW}],
    "lockout_proofs_ended_check": [{"ended_at": NOW}, {"document": "x"}, {"ended_at": NOW, "document": "x"}],
    "lockout_proof_items_outcome_check": [{"outcome": "perhaps", "settled_at": NOW}],
    "lockout_proof_items_settled_check": [{"outcome": "moved"}, {"settled_at": NOW}],
}
_BAD = [(name, row) for name, rows in BAD_ROWS.items() for row in rows]


class TestRefusals:
    """The database refuses what our code must never write."""

    def test_the_good_rows_are_good(self, connection: psycopg.Connection[Any]) -> None:
        """What the bad rows differ from is accepted."""
        insert_all(connection, good_rows("ws_1"))

    def test_every_check_has_a_bad_row(self, connection: psycopg.Connection[Any]) -> None:
        """A new constraint is not forgotten here."""
        question = "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
        assert {name for (name,) in connection.execute(question)} == set(BAD_ROWS)

    @pytest.mark.parametrize(("constraint", "changes"), _BAD, ids=[f"{name}-{n}" for n, (name, _) in enumerate(_BAD)])
    def test_a_bad_row_is_refused(
        self, connection: psycopg.Connection[Any], constraint: str, changes: dict[str, Any]
    ) -> None:
        """Each by the constraint that is there for it."""
        table = next(table for table in TABLES if constraint.startswith(table))
        rows = good_rows("ws_1")
        insert_all(connection, rows, up_to=table)
        with pytest.raises(psycopg.errors.CheckViolation) as error:
            insert(connection, table, rows[table] | changes)
        assert error.value.diag.constraint_name == constraint

    @pytest.mark.parametrize("column", ["id", "workspace_id", "role_arn", "external_id", "key_arn"])
    def test_a_connection_is_immutable(self, connection: psycopg.Connection[Any], column: str) -> None:
        """Blobs point at it for ever, so what it says must stay what encrypted them."""
        insert_all(connection, good_rows("ws_1"))
        value = uuid4() if column == "id" else "changed"
        change = sql.SQL("UPDATE byok_connections SET {} = %s").format(sql.Identifier(column))
        with pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(change, (value,))

    def test_a_connections_state_may_change(self, connection: psycopg.Connection[Any]) -> None:
        """Retiring is no change of what it says."""
        insert_all(connection, good_rows("ws_1"))
        assert connection.execute("UPDATE byok_connections SET status = 'retired', key_arn = key_arn").rowcount == 1

    def test_one_current_connection(self, connection: psycopg.Connection[Any]) -> None:
        """A workspace has one setting."""
        rows = good_rows("ws_1")
        insert_all(connection, rows)
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(connection, "byok_connections", rows["byok_connections"] | {"id": uuid4()})

    @pytest.mark.parametrize("without", [None, "secret_id", "connection_id"])
    def test_one_open_failure(self, connection: psycopg.Connection[Any], without: str | None) -> None:
        """Open at most once for each (connection or none, secret or none)."""
        rows = good_rows("ws_1")
        insert_all(connection, rows, up_to="decrypt_failures")
        row = rows["decrypt_failures"] | ({without: None} if without else {})
        insert(connection, "decrypt_failures", row | {"id": uuid4(), "ended_at": NOW})
        insert(connection, "decrypt_failures", row)
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(connection, "decrypt_failures", row | {"id": uuid4()})

    def test_one_running_proof(self, connection: psycopg.Connection[Any]) -> None:
        """A workspace runs one at a time, whatever has ended."""
        rows = good_rows("ws_1")
        insert_all(connection, rows, up_to="lockout_proofs")
        row = rows["lockout_proofs"]
        insert(
            connection, "lockout_proofs", row | {"id": uuid4(), "ended_at": NOW, "is_locked_out": True, "document": ""}
        )
        insert(connection, "lockout_proofs", row)
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(connection, "lockout_proofs", row | {"id": uuid4()})

    def test_one_running_reencryption(self, connection: psycopg.Connection[Any]) -> None:
        """A workspace runs one at a time, whatever has ended."""
        rows = good_rows("ws_1")
        insert_all(connection, rows)
        row = rows["reencryptions"]
        insert(connection, "reencryptions", row | {"id": uuid4(), "ended_at": NOW})
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(connection, "reencryptions", row | {"id": uuid4()})

    @pytest.mark.parametrize(
        "change", [{"id": uuid4(), "event_id": "2"}, {"id": uuid4(), "version": 2}], ids=["version", "event id"]
    )
    def test_an_event_is_there_once(self, connection: psycopg.Connection[Any], change: dict[str, Any]) -> None:
        """By source and id, and by name and version."""
        rows = good_rows("ws_1")
        insert_all(connection, rows)
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(connection, "secret_events", rows["secret_events"] | change)


#: table and column → the table that it points at
POINTERS = [
    ("byok_connections", "external_id", "external_ids", "external_id"),
    ("broker_secrets", "connection_id", "byok_connections", "id"),
    ("secret_events", "secret_id", "broker_secrets", "id"),
    ("decrypt_failures", "connection_id", "byok_connections", "id"),
    ("decrypt_failures", "secret_id", "broker_secrets", "id"),
    ("lockout_proofs", "connection_id", "byok_connections", "id"),
    ("lockout_proof_items", "proof_id", "lockout_proofs", "id"),
    ("lockout_proof_items", "secret_id", "broker_secrets", "id"),
    ("reencryptions", "from_connection_id", "byok_connections", "id"),
    ("reencryption_items", "reencryption_id", "reencryptions", "id"),
    ("reencryption_items", "secret_id", "broker_secrets", "id"),
    ("reencryption_items", "connection_id", "byok_connections", "id"),
]


class TestTenants:
    """No row can point at another workspace's row, even if our own code were wrong (INV-10)."""

    @pytest.mark.parametrize(("table", "column", "target", "target_column"), POINTERS)
    def test_no_row_points_at_a_neighbours(
        self, connection: psycopg.Connection[Any], table: str, column: str, target: str, target_column: str
    ) -> None:
        """Each pointer carries the workspace with it."""
        ours, theirs = good_rows("ws_1"), good_rows("ws_2")
        insert_all(connection, theirs)
        insert_all(connection, ours, up_to=table)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            insert(connection, table, ours[table] | {column: theirs[target][target_column]})

    def test_no_setting_is_a_neighbours_connection(self, connection: psycopg.Connection[Any]) -> None:
        """A workspace's setting is a connection of its own."""
        theirs = good_rows("ws_2")
        insert_all(connection, theirs)
        row = {"id": "ws_1", "plan": "free", "connection_id": theirs["byok_connections"]["id"]}
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            insert(connection, "workspaces", row)

    def test_every_foreign_key_carries_the_workspace(self, connection: psycopg.Connection[Any]) -> None:
        """Of a new one, too: both its sides name the workspace."""
        question = """
            SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE contype = 'f' AND connamespace = 'public'::regnamespace"""
        for name, text in connection.execute(question).fetchall():
            here, there = text.split(" REFERENCES ")
            # the workspaces' own table calls it id
            assert "workspace_id" in here or name.startswith("workspaces_"), name
            assert "workspace_id" in there or there.startswith("workspaces(id"), name
