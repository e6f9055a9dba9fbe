"""Upgrade and downgrade a database to a revision. What ``broker migrate`` calls; imports no other part but the
tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url

#: a migration that waits this long for a table gives up: behind it every query on that table waits, too
LOCK_MILLISECONDS = 5000
_HERE = Path(__file__).parent


def upgrade(url: str, revision: str = "head", *, lock_milliseconds: int = LOCK_MILLISECONDS) -> None:
    """Bring the database at ``url`` (``postgresql://…``) up to ``revision``. Safe to run again and from many machines.

    Raises SQLAlchemy's OperationalError where a table stays locked for ``lock_milliseconds``: the migration that needs
    it has changed nothing then, those before it are done."""
    _run(url, lambda config: command.upgrade(config, revision), lock_milliseconds)


def downgrade(url: str, revision: str, *, lock_milliseconds: int = LOCK_MILLISECONDS) -> None:
    """Take the database back to ``revision``; ``base`` drops everything, every blob included. Raises as ``upgrade``."""
    _run(url, lambda config: command.downgrade(config, revision), lock_milliseconds)


def pending(url: str) -> bool:
    """Whether the database is not at the newest revision."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with _engine(url).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() != head


def _run(url: str, step: Callable[[Config], None], lock_milliseconds: int) -> None:
    with _engine(url).connect() as connection:
        step(_config(connection, lock_milliseconds))


def _config(connection: Connection | None = None, lock_milliseconds: int = LOCK_MILLISECONDS) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["lock_milliseconds"] = lock_milliseconds
    return config


def _engine(url: str) -> Engine:
    driver_url = make_url(url).set(drivername="postgresql+psycopg")
    return create_engine(driver_url, poolclass=NullPool, hide_parameters=True)
