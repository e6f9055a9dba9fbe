"""Lockout proofs: who asked for one, each secret that it asks KMS about, and the signed document at its end.

New tables only: nothing that is there is touched.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = """
CREATE TABLE lockout_proofs (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    connection_id UUID NOT NULL,
    asked_by TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    is_locked_out BOOLEAN,
    document TEXT,
    CONSTRAINT lockout_proofs_pkey PRIMARY KEY (id),
    CONSTRAINT lockout_proofs_workspace_key UNIQUE (workspace_id, id),
    CONSTRAINT lockout_proofs_connection_fkey FOREIGN KEY(workspace_id, connection_id) REFERENCES byok_connections
        (workspace_id, id),
    CONSTRAINT lockout_proofs_ended_check CHECK (
        num_nonnulls(ended_at, is_locked_out, document) IN (0, 3))
);
CREATE UNIQUE INDEX lockout_proofs_running_key ON lockout_proofs (workspace_id) WHERE ended_at IS NULL;
CREATE INDEX lockout_proofs_newest_idx ON lockout_proofs (workspace_id, started_at);

CREATE TABLE lockout_proof_items (
    proof_id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    secret_id UUID NOT NULL,
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    outcome TEXT,
    note TEXT DEFAULT '' NOT NULL,
    settled_at TIMESTAMP WITH TIME ZONE,
    attempts INTEGER DEFAULT 0 NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    asks JSONB DEFAULT '[]' NOT NULL,
    CONSTRAINT lockout_proof_items_pkey PRIMARY KEY (proof_id, secret_id),
    CONSTRAINT lockout_proof_items_proof_fkey FOREIGN KEY(workspace_id, proof_id) REFERENCES lockout_proofs
        (workspace_id, id),
    CONSTRAINT lockout_proof_items_secret_fkey FOREIGN KEY(workspace_id, secret_id) REFERENCES broker_secrets
        (workspace_id, id),
    CONSTRAINT lockout_proof_items_outcome_check CHECK (outcome IN ('locked_out', 'still_decrypts', 'not_shown',
        'moved', 'deleted')),
    CONSTRAINT lockout_proof_items_settled_check CHECK ((outcome IS NULL) = (settled_at IS NULL))
);
CREATE INDEX lockout_proof_items_due_idx ON lockout_proof_items (proof_id, due_at) WHERE outcome IS NULL;
CREATE INDEX lockout_proof_items_leased_idx ON lockout_proof_items (workspace_id, proof_id, lease_until) WHERE
    lease_until IS NOT NULL;
CREATE INDEX lockout_proof_items_name_idx ON lockout_proof_items (proof_id, name);
"""


def upgrade() -> None:
    """Create the tables and their indexes."""
    op.execute(_TABLES)


def downgrade() -> None:
    """Drop them, and with them every proof that was made."""
    op.execute("DROP TABLE lockout_proof_items, lockout_proofs")
