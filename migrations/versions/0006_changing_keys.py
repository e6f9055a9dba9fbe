"""Changing keys: re-encryptions and their secrets, and when an owner retired an older connection.

The new column has no default, so no row is rewritten; the check reads the connections, which are few.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE reencryptions (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    from_connection_id UUID,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    stopped_by TEXT,
    CONSTRAINT reencryptions_pkey PRIMARY KEY (id),
    CONSTRAINT reencryptions_workspace_key UNIQUE (workspace_id, id),
    CONSTRAINT reencryptions_workspace_fkey FOREIGN KEY(workspace_id) REFERENCES workspaces (id),
    CONSTRAINT reencryptions_connection_fkey FOREIGN KEY(workspace_id, from_connection_id) REFERENCES byok_connections
        (workspace_id, id),
    CONSTRAINT reencryptions_stopped_check CHECK (stopped_by IS NULL OR ended_at IS NOT NULL)
);
CREATE UNIQUE INDEX reencryptions_running_key ON reencryptions (workspace_id) WHERE ended_at IS NULL;
CREATE INDEX reencryptions_newest_idx ON reencryptions (workspace_id, started_at);

CREATE TABLE reencryption_items (
    reencryption_id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    secret_id UUID NOT NULL,
    connection_id UUID NOT NULL,
    outcome TEXT,
    state TEXT,
    aws_code TEXT,
    settled_at TIMESTAMP WITH TIME ZONE,
    attempts INTEGER DEFAULT 0 NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT reencryption_items_pkey PRIMARY KEY (reencryption_id, secret_id),
    CONSTRAINT reencryption_items_reencryption_fkey FOREIGN KEY(workspace_id, reencryption_id) REFERENCES reencryptions
        (workspace_id, id),
    CONSTRAINT reencryption_items_secret_fkey FOREIGN KEY(workspace_id, secret_id) REFERENCES broker_secrets
        (workspace_id, id),
    CONSTRAINT reencryption_items_connection_fkey FOREIGN KEY(workspace_id, connection_id) REFERENCES byok_connections
        (workspace_id, id),
    CONSTRAINT reencryption_items_outcome_check CHECK (outcome IN ('moved', 'denied', 'overtaken', 'failed')),
    CONSTRAINT reencryption_items_settled_check CHECK ((outcome IS NULL) = (settled_at IS NULL))
);
CREATE INDEX reencryption_items_due_idx ON reencryption_items (reencryption_id, due_at) WHERE outcome IS NULL;
CREATE INDEX reencryption_items_source_idx ON reencryption_items (workspace_id, reencryption_id, connection_id, due_at)
    WHERE outcome IS NULL;
"""


def upgrade() -> None:
    """Add them."""
    op.execute(_TABLES)
    op.execute("ALTER TABLE byok_connections ADD COLUMN retired_at TIMESTAMP WITH TIME ZONE")
    op.execute(
        "ALTER TABLE byok_connections ADD CONSTRAINT byok_connections_retired_check"
        " CHECK (retired_at IS NULL OR status = 'retired')"
    )


def downgrade() -> None:
    """Take them away; what was moved stays where it is."""
    op.execute("DROP TABLE reencryption_items, reencryptions")
    op.execute("ALTER TABLE byok_connections DROP CONSTRAINT byok_connections_retired_check, DROP COLUMN retired_at")
