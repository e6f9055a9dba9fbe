"""The gate to PostgreSQL: every statement of the product goes through ``Database.run`` or ``Transaction.batch``.

- A wait is counted where it happens: ``run`` is one round trip (one statement, its own transaction), ``batch`` is one
  for all its statements (psycopg's pipeline), and a commit rides on the last batch.
- A foreign exception never leaves, not even as a suppressed context: PostgreSQL quotes the failing row in its messages,
  and ours hold keys and blobs. What leaves is ``Unavailable``, or ``Taken`` with the name of the constraint.
- Connections come from SQLAlchemy's pool. One that the server has closed (a restart) is noticed before use, without a
  round trip, and replaced.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import psycopg
from opentelemetry.trace import SpanKind
from psycopg.rows import namedtuple_row
from sqlalchemy import Engine, PoolProxiedConnection, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from broker_core import telemetry
from broker_core.errors import Conflict, Unavailable

Row = Any  # a named tuple whose fields are the statement's columns
Statement = tuple[str, Mapping[str, Any]]
Connection = psycopg.Connection[Any]
_Answer = TypeVar("_Answer")

#: milliseconds; a statement of ours that runs longer is wrong (but for ``shared.UNHURRIED``), and a lock that is held
#: longer belongs to a dead worker
_TIMEOUTS = "-c lock_timeout=3000 -c statement_timeout=10000 -c idle_in_transaction_session_timeout=20000"
#: a server that is gone cannot end a statement: then TCP does, after 15 s that nothing was acknowledged or is answered
_LIVENESS = {"tcp_user_timeout": 15_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


class Taken(Conflict):
    """A unique constraint said no. The store's methods answer it; one that gets out is a mistake of ours."""

    def __init__(self, constraint: str) -> None:
        super().__init__(f"taken: {constraint}")
        self.constraint = constraint


class Pool(NamedTuple):
    """How many connections one process holds, and how long it waits for one (seconds)."""

    size: int = 16
    wait: float = 5.0
    connect: int = 5


class Database:
    """A pool of connections to one database."""

    def __init__(
        self, url: str, pool: Pool | None = None, on_wait: Callable[[str], None] = lambda operation: None
    ) -> None:
        """``url`` as SQLAlchemy or psycopg write it. ``on_wait`` is told of every round trip, by operation."""
        self._engine = _engine(url, pool or Pool())
        self._on_wait = on_wait

    def run(self, operation: str, sql: str, values: Mapping[str, Any]) -> list[Row]:
        """Run one statement in its own transaction: one round trip. Raises Unavailable or Taken."""
        with self._span(operation), self._connection() as connection:
            self._on_wait(operation)
            return _translated(lambda: _fetch(connection.cursor(row_factory=namedtuple_row).execute(sql, values)))

    @contextmanager
    def transaction(self, operation: str) -> Iterator[Transaction]:
        """A transaction of batches. It is rolled back unless ``Transaction.commit`` was called."""
        with self._span(operation), self._connection() as connection:
            try:
                yield Transaction(connection, lambda: self._on_wait(operation))
            finally:
                _translated(lambda: _reset(connection))

    def close(self) -> None:
        """Close every idle connection."""
        self._engine.dispose()

    def _span(self, operation: str) -> Any:
        return telemetry.span(f"db.{operation}", SpanKind.CLIENT, db__operation=operation)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        lease = self._lease()
        connection: Connection = lease.driver_connection  # type: ignore[assignment]  # typed as Any | None
        try:
            yield connection
        finally:
            if connection.broken:
                lease.invalidate()
            lease.close()

    def _lease(self) -> PoolProxiedConnection:
        """A connection that was open a moment ago."""
        lease = _translated(self._engine.raw_connection)
        while _closed_by_server(lease.driver_connection):
            lease.invalidate()
            lease.close()
            lease = _translated(self._engine.raw_connection)
        return lease


class Transaction:
    """Statements that commit together.

    BEGIN and COMMIT are sent as statements of a batch: what psycopg would send of itself waits for its own answer.
    """

    def __init__(self, connection: Connection, on_wait: Callable[[], None]) -> None:
        self._connection = connection
        self._on_wait = on_wait
        self._is_begun = False

    def batch(self, *statements: Statement) -> list[list[Row]]:
        """Run statements in order, in one round trip; their rows in the same order."""
        return self._in_one_trip(statements, commit=False)

    def commit(self, *statements: Statement) -> list[list[Row]]:
        """The last batch, and the commit with it, in one round trip."""
        return self._in_one_trip(statements, commit=True)

    def _in_one_trip(self, statements: Sequence[Statement], *, commit: bool) -> list[list[Row]]:
        self._on_wait()
        return _translated(lambda: self._send(statements, commit=commit))

    def _send(self, statements: Sequence[Statement], *, commit: bool) -> list[list[Row]]:
        with self._connection.pipeline():
            if not self._is_begun:
                self._cursor().execute("BEGIN", prepare=False)
                self._is_begun = True
            cursors = [self._cursor().execute(sql, values) for sql, values in statements]
            if commit:
                # behind a statement that failed the server skips it, as all that follows up to the pipeline's end
                self._cursor().execute("COMMIT", prepare=False)
        return [_fetch(cursor) for cursor in cursors]

    def _cursor(self) -> psycopg.Cursor[Any]:
        return self._connection.cursor(row_factory=namedtuple_row)


def _engine(url: str, pool: Pool) -> Engine:
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        pool_size=pool.size,
        max_overflow=0,
        pool_timeout=pool.wait,
        pool_reset_on_return=None,  # every path above leaves a connection idle; the default would cost a round trip
        hide_parameters=True,
        connect_args={
            "connect_timeout": pool.connect,
            "options": _TIMEOUTS,
            "application_name": "axiorank-broker",
            **_LIVENESS,
        },
    )


#: a table, column or function of ours that the database does not have
_OTHER_SCHEMA = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedFunction)


def _fetch(cursor: psycopg.Cursor[Any]) -> list[Row]:
    return cursor.fetchall() if cursor.description else []


def _reset(connection: Connection) -> None:
    """Roll back what was not committed. What broke is thrown away instead."""
    if not connection.broken:
        connection.rollback()


def _closed_by_server(connection: Any) -> bool:
    """An idle connection has nothing to read; one that has was closed by the server, or is about to be."""
    if connection.closed:
        return True
    poll = select.poll()  # not select(): that fails above descriptor 1023
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _translated(call: Callable[[], _Answer]) -> _Answer:
    """Let no exception of the driver out: its text quotes rows. What replaces it is raised after the handler's end:
    inside it, ``from None`` would hide the driver's exception but keep it in ``__context__``."""
    try:
        return call()
    except psycopg.errors.UniqueViolation as error:
        translated: Exception = Taken(error.diag.constraint_name or "")
    except psycopg.OperationalError:
        translated = Unavailable("the database cannot be reached, does not let us in, or is too slow")
    except _OTHER_SCHEMA as error:
        translated = Unavailable(
            f"the database's schema is not this program's: broker migrate (SQLSTATE {error.sqlstate})"
        )
    except psycopg.Error as error:
        translated = Unavailable(f"the database refused a statement (SQLSTATE {error.sqlstate or 'none'})")
    except UnicodeError:
        translated = Unavailable("the database cannot hold a text that is no Unicode")
    except SQLAlchemyError:
        translated = Unavailable("the database is away, or every connection to it is in use")
    raise translated
