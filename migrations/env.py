"""How alembic runs our migrations: one connection, guarded.

- One migrator at a time: a session advisory lock. A second one waits, then finds nothing to do.
- ``lock_timeout`` and ``statement_timeout`` are set: a migration that would queue behind a long transaction, and make
  every query queue behind itself, gives up instead and can be run again. The first is set once the advisory lock is
  ours: it would end the wait for that lock, too.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from broker_core.adapters.tables import metadata

#: any constant; it only has to be ours alone in this database
ADVISORY_LOCK = 0x41784B6579


def run(connection: Connection) -> None:
    """Run what is due on this connection, under the lock."""
    connection.execute(text("SET statement_timeout = '10min'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    milliseconds = str(context.config.attributes["lock_milliseconds"])
    connection.execute(text("SELECT set_config('lock_timeout', :value, false)"), {"value": milliseconds})
    connection.commit()
    try:
        context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()


run(context.config.attributes["connection"])
