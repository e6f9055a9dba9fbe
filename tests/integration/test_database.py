"""``Database``, the gate to PostgreSQL: what may leave it, and what happens when the server does not answer."""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from broker_core.adapters.store.database import Database, Pool, Taken
from broker_core.dev.postgres import Postgres
from broker_core.errors import Unavailable
from tests.databases import plain
from tests.waiting import wait_until

SENTINEL = "s3ntinel-value-9f2c"

_INSERT = "INSERT INTO workspaces (id, plan) VALUES (%(id)s, %(plan)s)"
#: statements that PostgreSQL, or the driver, refuses in words that quote the sentinel
FAILING: dict[str, tuple[str, dict[str, Any]]] = {
    "unique violation": (
        "INSERT INTO workspaces (id, plan) VALUES (%(id)s, 'free'), (%(id)s, 'free')",
        {"id": SENTINEL},
    ),
    "check violation": (_INSERT, {"id": "ws_x", "plan": SENTINEL}),
    "foreign key violation": (
        "INSERT INTO external_ids (external_id, workspace_id) VALUES ('external', %(id)s)",
        {"id": SENTINEL},
    ),
    "bad cast": ("SELECT %(text)s::text::int", {"text": SENTINEL}),
    "unknown column": (f'SELECT "{SENTINEL}"', {}),
    "a text with NUL": ("SELECT %(text)s", {"text": f"{SENTINEL}\x00"}),
    "a text that is no Unicode": ("SELECT %(text)s", {"text": f"{SENTINEL}\ud800"}),
}


def shown(error: BaseException) -> str:
    """Everything that a log, a debugger or a crash report could show of an error: the whole chain, asked for or not."""
    parts: list[str] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None:
            continue
        parts += [repr(one), str(one), repr(one.args), repr(getattr(one, "__notes__", "")), repr(vars(one))]
        parts.append("".join(traceback.format_exception(one)))
        waiting += [one.__context__, one.__cause__]
    return "\n".join(parts)


def caught(call: Callable[[], object]) -> BaseException:
    """The exception of a call."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - what is asked is which one it is
        return error
    raise AssertionError("nothing was raised")


@pytest.fixture
def database(clean_database: str) -> Iterator[Database]:
    """The gate, on this worker's database, with one connection: a leaked one would block the next call."""
    database = Database(clean_database, Pool(size=1, wait=0.5))
    yield database
    database.close()


def run(database: Database, statement: tuple[str, dict[str, Any]]) -> None:
    """In one statement."""
    database.run("test", *statement)


def batch(database: Database, statement: tuple[str, dict[str, Any]]) -> None:
    """In the middle of a batch."""
    with database.transaction("test") as transaction:
        transaction.batch(("SELECT 1", {}), statement, ("SELECT 2", {}))


def commit(database: Database, statement: tuple[str, dict[str, Any]]) -> None:
    """With the commit."""
    with database.transaction("test") as transaction:
        transaction.batch(("SELECT 1", {}))
        transaction.commit(statement, ("SELECT 2", {}))


ways = pytest.mark.parametrize("way", [run, batch, commit])


class TestWhatLeaves:
    """No exception of the driver, and no word of one."""

    @ways
    @pytest.mark.parametrize("failing", FAILING)
    def test_no_row_text_leaves(self, database: Database, way: Callable[..., None], failing: str) -> None:
        """Neither message, chain nor traceback of what leaves quotes a row or a parameter."""
        error = caught(lambda: way(database, FAILING[failing]))
        assert isinstance(error, Unavailable | Taken)
        assert SENTINEL not in shown(error)

    @ways
    @pytest.mark.parametrize("failing", FAILING)
    def test_the_driver_is_not_in_the_chain(self, database: Database, way: Callable[..., None], failing: str) -> None:
        """Not even as a suppressed context."""
        error: BaseException | None = caught(lambda: way(database, FAILING[failing]))
        while error is not None:
            assert not isinstance(error, psycopg.Error | UnicodeError)
            error = error.__cause__ or error.__context__

    @ways
    def test_a_taken_key_names_its_constraint(self, database: Database, way: Callable[..., None]) -> None:
        """``Taken`` is how callers learn of a race."""
        with pytest.raises(Taken) as error:
            way(database, FAILING["unique violation"])
        assert error.value.constraint == "workspaces_pkey"

    @ways
    def test_a_refused_statement_names_its_sqlstate(self, database: Database, way: Callable[..., None]) -> None:
        """The code is enough to look it up."""
        with pytest.raises(Unavailable, match="23514"):
            way(database, FAILING["check violation"])

    @pytest.mark.parametrize("missing", ["nothing FROM no_such_table", "no_such_column FROM workspaces"])
    def test_a_schema_that_is_not_ours_names_the_command(self, database: Database, missing: str) -> None:
        """An operator who forgot to migrate is told so."""
        with pytest.raises(Unavailable, match="broker migrate"):
            database.run("test", f"SELECT {missing}", {})

    @ways
    @pytest.mark.parametrize("failing", FAILING)
    def test_a_failure_gives_its_connection_back(
        self, database: Database, way: Callable[..., None], failing: str
    ) -> None:
        """The one connection of the pool works again, in its own transaction for each statement."""
        caught(lambda: way(database, FAILING[failing]))
        database.run("test", _INSERT, {"id": "ws_after", "plan": "free"})
        (row,) = database.run("test", "SELECT pg_current_xact_id_if_assigned() AS open", {})
        assert row.open is None

    def test_a_callers_own_exception_passes(self, database: Database) -> None:
        """What the body of a transaction raises is not ours to translate."""
        with pytest.raises(KeyError), database.transaction("test"):
            raise KeyError


class TestTransactions:
    """All or nothing."""

    def test_a_commit_is_kept(self, database: Database) -> None:
        """Batches and the commit's own statements."""
        with database.transaction("test") as transaction:
            transaction.batch((_INSERT, {"id": "ws_a", "plan": "free"}))
            transaction.commit((_INSERT, {"id": "ws_b", "plan": "free"}))
        assert _ids(database) == ["ws_a", "ws_b"]

    def test_without_a_commit_nothing_is_kept(self, database: Database) -> None:
        """Leaving the block is not committing."""
        with database.transaction("test") as transaction:
            transaction.batch((_INSERT, {"id": "ws_a", "plan": "free"}))
        assert _ids(database) == []

    def test_an_exception_keeps_nothing(self, database: Database) -> None:
        """Neither is failing."""
        with pytest.raises(KeyError), database.transaction("test") as transaction:  # noqa: PT012 - both belong to it
            transaction.batch((_INSERT, {"id": "ws_a", "plan": "free"}))
            raise KeyError
        assert _ids(database) == []

    def test_a_failing_last_batch_keeps_nothing(self, database: Database) -> None:
        """The commit behind a failed statement does not happen."""
        with pytest.raises(Unavailable), database.transaction("test") as transaction:
            transaction.commit((_INSERT, {"id": "ws_a", "plan": "free"}), (_INSERT, {"id": "ws_b", "plan": "gold"}))
        assert _ids(database) == []

    def test_rows_come_in_the_order_of_the_statements(self, database: Database) -> None:
        """A statement without rows gives an empty list."""
        with database.transaction("test") as transaction:
            one, none, two = transaction.batch(
                ("SELECT 1 AS n", {}), (_INSERT, {"id": "ws_a", "plan": "free"}), ("SELECT 2 AS n", {})
            )
        assert ([row.n for row in one], none, [row.n for row in two]) == ([1], [], [2])

    def test_a_lock_that_is_held_is_given_up(self, database: Database, clean_database: str) -> None:
        """A lock that nobody releases is ``Unavailable``, not a hang."""
        database.run("test", _INSERT, {"id": "ws_a", "plan": "free"})
        with psycopg.connect(plain(clean_database)) as other:
            other.execute("SELECT 1 FROM workspaces FOR UPDATE")
            with pytest.raises(Unavailable), database.transaction("test") as transaction:
                transaction.batch(
                    ("SELECT set_config('lock_timeout', '20', true)", {}),
                    ("SELECT 1 FROM workspaces FOR UPDATE", {}),
                )


class TestWaits:
    """``on_wait``: one call for each round trip."""

    def test_each_wait_is_told_by_operation(self, clean_database: str) -> None:
        """``run``, ``batch`` and ``commit`` are one each."""
        waits: list[str] = []
        database = Database(clean_database, Pool(size=1), on_wait=waits.append)
        database.run("one", "SELECT 1", {})
        with database.transaction("two") as transaction:
            transaction.batch(("SELECT 1", {}), ("SELECT 2", {}))
            transaction.commit(("SELECT 3", {}))
        database.close()
        assert waits == ["one", "two", "two"]


class TestAway:
    """A server that does not answer."""

    def test_nobody_there(self) -> None:
        """A database that is not there is ``Unavailable``."""
        database = Database("postgresql:///nowhere?host=/nonexistent")
        with pytest.raises(Unavailable, match="cannot be reached"):
            database.run("test", "SELECT 1", {})
        with pytest.raises(Unavailable), database.transaction("test"):
            raise AssertionError("not reached")

    def test_a_full_pool_is_unavailable(self, clean_database: str) -> None:
        """Waiting for a connection ends."""
        database = Database(clean_database, Pool(size=1, wait=0.01))
        with database.transaction("test"), pytest.raises(Unavailable):
            database.run("test", "SELECT 1", {})
        database.close()

    def test_a_connection_cut_while_idle_is_replaced(self, database: Database, clean_database: str) -> None:
        """The idle check sees it: no call fails."""
        (row,) = database.run("test", "SELECT pg_backend_pid() AS pid", {})
        _cut(clean_database, row.pid)
        assert len(database.run("test", "SELECT 1", {})) == 1

    def test_a_connection_cut_in_a_transaction_is_unavailable(self, database: Database, clean_database: str) -> None:
        """Nothing of it is kept, and the next call works."""
        with pytest.raises(Unavailable), database.transaction("test") as transaction:  # noqa: PT012 - one transaction
            ((row,),) = transaction.batch(("SELECT pg_backend_pid() AS pid", {}))
            _cut(clean_database, row.pid)
            transaction.commit((_INSERT, {"id": "ws_a", "plan": "free"}))
        assert _ids(database) == []

    def test_a_connection_is_usable_above_descriptor_1024(self, clean_database: str) -> None:
        """A process with many open files keeps its database."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        held = [os.open(os.devnull, os.O_RDONLY)]
        try:
            while held[-1] <= 1024:
                held.append(os.dup(held[0]))
            database = Database(clean_database, Pool(size=1))
            database.run("test", "SELECT 1", {})
            assert len(database.run("test", "SELECT 1", {})) == 1
            database.close()
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestRestart:
    """A server that goes away and comes back."""

    @pytest.fixture
    def server(self) -> Iterator[Postgres]:
        """A server of this test's own."""
        with Postgres.start() as server:
            yield server

    def test_killed_and_restarted(self, server: Postgres) -> None:
        """While it is away a call is ``Unavailable``; after that the next call works, whatever the pool still holds."""
        database = Database(server.url, Pool(size=4))
        for _ in range(3):
            with database.transaction("one"), database.transaction("two"):
                pass
        database.run("test", "SELECT 1", {})
        server.kill()
        with pytest.raises(Unavailable):
            database.run("test", "SELECT 1", {})
        server.restart()
        assert [len(database.run("test", "SELECT 1", {})) for _ in range(6)] == [1] * 6
        server.restart()
        assert [len(database.run("test", "SELECT 1", {})) for _ in range(6)] == [1] * 6
        database.close()


def _ids(database: Database) -> list[str]:
    return [row.id for row in database.run("test", "SELECT id FROM workspaces ORDER BY id", {})]


def _cut(url: str, pid: int) -> None:
    """End a backend, and wait until it is gone."""
    with psycopg.connect(plain(url), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
        wait_until(lambda: (other.execute(gone, (pid,)).fetchone() or (False,))[0], what="the backend to be gone")
