"""What several of the store's modules ask in the same words: whether a workspace is there, time for a statement over
all of its secrets, the end of a secret's own failures, and a connection's budget of calls, which checks, proofs and
re-encryptions spend together.

Imports the gate to PostgreSQL.
"""

from __future__ import annotations

from broker_core.adapters.store.database import Database, Statement
from broker_core.errors import NotFound

WORKSPACE = "SELECT id FROM workspaces WHERE id = %(workspace_id)s AND deleted_at IS NULL"

#: before a statement that writes a row for each secret of a workspace: at 100,000 it takes 3 to 9 s, where others have
#: 10; two minutes are for ten times as many
UNHURRIED: Statement = ("SET LOCAL statement_timeout = '2min'", {})

CLOSE_SECRET_FAILURES = """
    UPDATE decrypt_failures SET ended_at = now()
    WHERE workspace_id = %(workspace_id)s AND secret_id = %(secret_id)s AND ended_at IS NULL"""

#: what a connection may save up of its budget, while nobody asks
BURST_SECONDS = 2.0
#: a token bucket: ``spent`` and ``burst`` are seconds of the budget's rate
SPEND = """
    UPDATE byok_connections
    SET check_ready_at = greatest(check_ready_at, now() - make_interval(secs => %(burst)s))
        + make_interval(secs => %(spent)s)
    WHERE workspace_id = %(workspace_id)s AND id = ANY(%(spenders)s)"""


def check_workspace(database: Database, workspace_id: str) -> None:
    """Raise NotFound unless it is there."""
    if not database.run("workspace", WORKSPACE, {"workspace_id": workspace_id}):
        raise no_workspace()


def no_workspace() -> NotFound:
    """The workspace is unknown, or deleted."""
    return NotFound("no such workspace; the platform creates workspaces")
