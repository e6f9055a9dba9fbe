"""Notifications: the outbox of what owners are told, when a failure was announced, and of which due date an owner was
told.

The new columns have no default, so no row is rewritten. The index reads each secret once and holds those only that have
a rotation policy and whose owner was not told of the due date. The check reads each secret too; what breaks it no
release accepts.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OUTBOX = """
CREATE TABLE notifications (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    type TEXT NOT NULL,
    cause TEXT NOT NULL,
    connection_id UUID,
    secret_id UUID,
    payload JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    next_try_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    delivered_at TIMESTAMP WITH TIME ZONE,
    given_up_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT notifications_pkey PRIMARY KEY (id),
    CONSTRAINT notifications_once_key UNIQUE (workspace_id, type, cause),
    CONSTRAINT notifications_type_check CHECK (type IN ('byok.connection_failing', 'byok.connection_recovered',
        'broker_secret.needs_reprovision', 'broker_secret.rotation_due')),
    CONSTRAINT notifications_subject_check CHECK (num_nonnulls(connection_id, secret_id) = 1),
    CONSTRAINT notifications_end_check CHECK (delivered_at IS NULL OR given_up_at IS NULL)
);
CREATE INDEX notifications_due_idx ON notifications (next_try_at)
    WHERE delivered_at IS NULL AND given_up_at IS NULL;
CREATE INDEX notifications_age_idx ON notifications (created_at)
    WHERE delivered_at IS NULL AND given_up_at IS NULL;
"""
# Immutable by way of UTC: days of a zone with summer time are not.
_DUE = """timezone('UTC', timezone('UTC', coalesce(rotated_at, created_at))
    + make_interval(days => rtrim(rotation_policy, 'd')::integer))"""
_ROTATIONS = f"""
ALTER TABLE broker_secrets ADD COLUMN due_noticed TIMESTAMP WITH TIME ZONE;
ALTER TABLE broker_secrets ADD CONSTRAINT broker_secrets_policy_check CHECK (rotation_policy ~ '^[1-9][0-9]{{0,3}}d$');
CREATE INDEX broker_secrets_due_idx ON broker_secrets (({_DUE}))
    WHERE rotation_policy IS NOT NULL AND deleted_at IS NULL AND due_noticed IS DISTINCT FROM {_DUE};
"""


def upgrade() -> None:
    """Add them."""
    op.execute(_OUTBOX)
    op.execute("ALTER TABLE decrypt_failures ADD COLUMN announced_at TIMESTAMP WITH TIME ZONE")
    op.execute(_ROTATIONS)


def downgrade() -> None:
    """Take them away, and with them what was not delivered yet."""
    op.execute("DROP INDEX broker_secrets_due_idx")
    op.execute("ALTER TABLE broker_secrets DROP CONSTRAINT broker_secrets_policy_check, DROP COLUMN due_noticed")
    op.execute("ALTER TABLE decrypt_failures DROP COLUMN announced_at")
    op.execute("DROP TABLE notifications")
