"""The databases of a test run: one template with all migrations, one copy per worker, emptied between tests. And the
connections that a worker keeps from test to test.

Emptying by DELETE takes 0.6 ms, TRUNCATE 13 ms, a new copy of the template 23 ms (measured); so a test gets its
worker's database, emptied. The template is made by whoever needs it first; the others wait at a lock. A new connection
costs more than all that a usual test asks of the server (10 ms of its time): Apps of one worker share theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import psycopg
import redis
from psycopg import sql
from sqlalchemy import make_url

from broker_core.adapters.claims import RedisClaimBox
from broker_core.adapters.store import Database
from broker_core.dev.postgres import create_database, drop_database

#: any constant, ours alone on the maintenance database
_TEMPLATE_LOCK = 0x746D706C


def plain(url: str) -> str:
    """The URL as psycopg reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def sibling(url: str, database: str) -> str:
    """The URL of another database on the same server."""
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def template_name(run: str) -> str:
    """The name of this run's template; other runs may use the same server."""
    return f"broker_template_{run}"


def ensure_template(url: str, run: str) -> str:
    """Make the run's template unless it is there; ``url`` is any database of the server. Returns its name."""
    name = template_name(run)
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (_TEMPLATE_LOCK,))
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            _make_template(connection, url, name)
    return name


class KeptDatabase(Database):
    """A worker's pool of connections: it outlives the Apps that are built on it."""

    def close(self) -> None:
        """Keep the connections for the next App."""

    def end(self) -> None:
        """Close every idle connection."""
        super().close()


class KeptClaims(RedisClaimBox):
    """A worker's connections to its claim Redis, as ``KeptDatabase``."""

    def close(self) -> None:
        """Keep the connections for the next App."""

    def end(self) -> None:
        """Close the connections."""
        super().close()


class KeptRedis:
    """One of a worker's Redis servers, and a connection to empty it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = redis.Redis.from_url(url)

    def emptied(self) -> str:
        """Delete everything in it. Its URL."""
        self._client.flushdb()
        return self.url

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Emptier:
    """Deletes every row of every table (but alembic's), again and again, over one connection."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(plain(url), autocommit=True)

    def __call__(self) -> None:
        """In the role of a replica: without triggers and foreign keys."""
        self._connection.execute(_EMPTY)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


#: a transaction that an earlier test left open shows here, by name, instead of hanging the run
_EMPTY = """
DO $$
DECLARE
    name text;
BEGIN
    SET LOCAL lock_timeout = '10s';
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
END $$
"""


def _make_template(connection: psycopg.Connection[tuple[object, ...]], url: str, name: str) -> None:
    from migrations.runner import upgrade

    building = f"{name}_building"
    drop_database(url, building)
    create_database(url, building)
    upgrade(sibling(url, building))
    # only a finished template gets the name that the others look for
    connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(building), sql.Identifier(name)))


def plan_by(url: str, indexes: Collection[str], statement: str, values: Mapping[str, Any]) -> str:
    """How PostgreSQL would run a statement with these indexes of their tables alone, without looking through a table
    and, where an index gives the order, without sorting. In a table that is empty it would take any of them, by what it
    remembers of rows that are gone."""
    with psycopg.connect(plain(url)) as connection, connection.transaction(force_rollback=True):
        connection.execute(
            "UPDATE pg_index SET indisvalid = indexrelid = ANY(%(these)s::regclass[]) WHERE indrelid IN"
            " (SELECT indrelid FROM pg_index WHERE indexrelid = ANY(%(these)s::regclass[]))",
            {"these": list(indexes)},
        )
        for detour in ("seqscan", "bitmapscan", "sort"):
            connection.execute(f"SET LOCAL enable_{detour} = off")
        return "\n".join(line for (line,) in connection.execute(f"EXPLAIN {statement}", values).fetchall())
