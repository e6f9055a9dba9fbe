"""What a verification has shown, kept with its connection; and when its role is to show again that it refuses others.

The columns have constant defaults (``now()`` is one for the statement), so no row is rewritten. Connections that are
there already are due at once, twenty in a round.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    op.execute("""
        ALTER TABLE byok_connections
            ADD COLUMN steps JSONB DEFAULT '[]' NOT NULL,
            ADD COLUMN flagged_at TIMESTAMP WITH TIME ZONE,
            ADD COLUMN next_refusals_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL""")
    op.execute(
        "CREATE INDEX byok_connections_refusals_idx ON byok_connections (next_refusals_at)"
        " WHERE verified_at IS NOT NULL"
    )


def downgrade() -> None:
    """Take them away."""
    op.execute("DROP INDEX byok_connections_refusals_idx")
    op.execute("ALTER TABLE byok_connections DROP COLUMN steps, DROP COLUMN flagged_at, DROP COLUMN next_refusals_at")
