"""What owners change: a rotation policy that outlives older events, and an index to count what waits.

The column has a constant default, so no row is rewritten; the index holds waiting events only, which are few, so making
it takes a moment.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both."""
    op.execute("ALTER TABLE broker_secrets ADD COLUMN policy_version BIGINT DEFAULT 0 NOT NULL")
    op.execute(
        "CREATE INDEX secret_events_waiting_idx ON secret_events (workspace_id, secret_id) WHERE ended_at IS NULL"
    )


def downgrade() -> None:
    """Take both away; policies stay."""
    op.execute("DROP INDEX secret_events_waiting_idx")
    op.execute("ALTER TABLE broker_secrets DROP COLUMN policy_version")
