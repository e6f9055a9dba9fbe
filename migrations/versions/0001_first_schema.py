"""The first schema: workspaces, connections, secrets, events, failures and the audit log.

Every table of a tenant carries ``workspace_id``, and so does every foreign key between them. What a row may look like
is held here, in the database; ``broker_core/adapters/tables.py`` shows the same on one screen, and a test compares the
two.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = r"""
CREATE TABLE workspaces (
    id TEXT NOT NULL,
    plan TEXT NOT NULL,
    setting_version BIGINT DEFAULT 0 NOT NULL,
    connection_id UUID,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT workspaces_pkey PRIMARY KEY (id),
    CONSTRAINT workspaces_id_check CHECK (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    CONSTRAINT workspaces_plan_check CHECK (plan IN ('free', 'team', 'enterprise')),
    CONSTRAINT workspaces_deleted_check CHECK (deleted_at IS NULL OR connection_id IS NULL)
);

CREATE TABLE external_ids (
    external_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    CONSTRAINT external_ids_pkey PRIMARY KEY (external_id),
    CONSTRAINT external_ids_owner_key UNIQUE (external_id, workspace_id),
    CONSTRAINT external_ids_workspace_fkey FOREIGN KEY(workspace_id) REFERENCES workspaces (id)
);

CREATE TABLE byok_connections (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    role_arn TEXT NOT NULL,
    external_id TEXT NOT NULL,
    key_arn TEXT NOT NULL,
    status TEXT NOT NULL,
    canary BYTEA,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    verified_at TIMESTAMP WITH TIME ZONE,
    healed_at TIMESTAMP WITH TIME ZONE,
    last_probe_at TIMESTAMP WITH TIME ZONE,
    next_probe_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    check_ready_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT byok_connections_pkey PRIMARY KEY (id),
    CONSTRAINT byok_connections_workspace_key UNIQUE (workspace_id, id),
    CONSTRAINT byok_connections_workspace_fkey FOREIGN KEY(workspace_id) REFERENCES workspaces (id),
    CONSTRAINT byok_connections_external_id_fkey FOREIGN KEY(external_id, workspace_id) REFERENCES external_ids
        (external_id, workspace_id),
    CONSTRAINT byok_connections_status_check CHECK (status IN ('pending', 'current', 'retired')),
    CONSTRAINT byok_connections_verified_check CHECK (status = 'pending' OR (verified_at IS NOT NULL AND canary IS
        NOT NULL))
);

CREATE UNIQUE INDEX byok_connections_current_key ON byok_connections (workspace_id) WHERE status = 'current';

CREATE INDEX byok_connections_probe_idx ON byok_connections (next_probe_at) WHERE verified_at IS NOT NULL;

CREATE TABLE broker_secrets (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    name TEXT NOT NULL,
    version BIGINT DEFAULT 0 NOT NULL,
    highest_version BIGINT DEFAULT 0 NOT NULL,
    fields_version BIGINT DEFAULT 0 NOT NULL,
    cipher TEXT,
    connection_id UUID,
    blob BYTEA,
    injection_kind TEXT,
    binding_key TEXT,
    target_host TEXT,
    mcp_server_id TEXT,
    agent_id TEXT,
    rotation_policy TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    rotated_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    checked_at TIMESTAMP WITH TIME ZONE,
    check_lease_until TIMESTAMP WITH TIME ZONE,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT broker_secrets_pkey PRIMARY KEY (id),
    CONSTRAINT broker_secrets_workspace_key UNIQUE (workspace_id, id),
    CONSTRAINT broker_secrets_name_key UNIQUE (workspace_id, name),
    CONSTRAINT broker_secrets_workspace_fkey FOREIGN KEY(workspace_id) REFERENCES workspaces (id),
    CONSTRAINT broker_secrets_connection_fkey FOREIGN KEY(workspace_id, connection_id) REFERENCES byok_connections
        (workspace_id, id),
    CONSTRAINT broker_secrets_name_check CHECK (
        name !~ '[^A-Za-z0-9 ._:/@+=-]' AND name = btrim(name) AND length(name) BETWEEN 1 AND 128),
    CONSTRAINT broker_secrets_version_check CHECK (version >= 0 AND version <= highest_version),
    CONSTRAINT broker_secrets_cipher_check CHECK (cipher IN ('kms', 'kms-envelope', 'platform')),
    CONSTRAINT broker_secrets_blob_check CHECK ((blob IS NULL) = (cipher IS NULL)),
    CONSTRAINT broker_secrets_custody_check CHECK ((coalesce(cipher, 'platform') = 'platform') = (connection_id IS
        NULL)),
    CONSTRAINT broker_secrets_deleted_check CHECK (deleted_at IS NULL OR blob IS NULL),
    CONSTRAINT broker_secrets_kind_check CHECK (injection_kind IN ('http_header', 'bearer', 'query', 'stdio_env')),
    CONSTRAINT broker_secrets_injection_check CHECK (CASE WHEN injection_kind IS NULL THEN num_nonnulls(binding_key,
        target_host, mcp_server_id, agent_id) = 0 ELSE num_nonnulls(mcp_server_id, agent_id) > 0 AND (target_host IS
        NULL) = (injection_kind = 'stdio_env') AND (binding_key IS NULL) = (injection_kind = 'bearer') END)
);

CREATE INDEX broker_secrets_agent_idx ON broker_secrets (workspace_id, agent_id);

CREATE INDEX broker_secrets_check_idx ON broker_secrets (workspace_id, connection_id, checked_at) WHERE
    connection_id IS NOT NULL;

CREATE INDEX broker_secrets_server_idx ON broker_secrets (workspace_id, mcp_server_id);

CREATE TABLE secret_events (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    secret_id UUID NOT NULL,
    source TEXT NOT NULL,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    state TEXT NOT NULL,
    injection_kind TEXT,
    binding_key TEXT,
    target_host TEXT,
    mcp_server_id TEXT,
    agent_id TEXT,
    rotation_policy TEXT,
    claim_id TEXT,
    claim_key BYTEA,
    claim_expires_at TIMESTAMP WITH TIME ZONE,
    attempts INTEGER DEFAULT 0 NOT NULL,
    begun_at TIMESTAMP WITH TIME ZONE,
    ring_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    reason TEXT,
    aws_code TEXT,
    traceparent TEXT,
    accepted_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT secret_events_pkey PRIMARY KEY (id),
    CONSTRAINT secret_events_source_key UNIQUE (workspace_id, source, event_id),
    CONSTRAINT secret_events_version_key UNIQUE (workspace_id, name, version),
    CONSTRAINT secret_events_secret_fkey FOREIGN KEY(workspace_id, secret_id) REFERENCES broker_secrets
        (workspace_id, id),
    CONSTRAINT secret_events_version_check CHECK (version >= 1),
    CONSTRAINT secret_events_type_check CHECK (type IN ('secret.created', 'secret.rotated', 'secret.deleted')),
    CONSTRAINT secret_events_state_check CHECK (state IN ('accepted', 'refused', 'stored', 'superseded', 'expired',
        'unreadable', 'deleted')),
    CONSTRAINT secret_events_claim_check CHECK ((state IN ('accepted', 'refused')) = (claim_key IS NOT NULL)),
    CONSTRAINT secret_events_ended_check CHECK ((state IN ('accepted', 'refused')) = (ended_at IS NULL))
);

CREATE INDEX secret_events_expiry_idx ON secret_events (claim_expires_at) WHERE ended_at IS NULL;

CREATE INDEX secret_events_ring_idx ON secret_events (ring_at) WHERE ended_at IS NULL;

CREATE INDEX secret_events_secret_idx ON secret_events (workspace_id, secret_id, version);

CREATE TABLE decrypt_failures (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    connection_id UUID,
    secret_id UUID,
    state TEXT NOT NULL,
    aws_code TEXT NOT NULL,
    request_id TEXT,
    found_by TEXT NOT NULL,
    first_seen TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    last_seen TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT decrypt_failures_pkey PRIMARY KEY (id),
    CONSTRAINT decrypt_failures_connection_fkey FOREIGN KEY(workspace_id, connection_id) REFERENCES byok_connections
        (workspace_id, id),
    CONSTRAINT decrypt_failures_secret_fkey FOREIGN KEY(workspace_id, secret_id) REFERENCES broker_secrets
        (workspace_id, id),
    CONSTRAINT decrypt_failures_subject_check CHECK (connection_id IS NOT NULL OR secret_id IS NOT NULL),
    CONSTRAINT decrypt_failures_found_by_check CHECK (found_by IN ('inject', 'probe', 'check')),
    CONSTRAINT decrypt_failures_state_check CHECK (state IN ('access_denied', 'role_refused', 'key_disabled',
        'key_pending_deletion', 'key_state', 'key_gone', 'integrity', 'misconfigured'))
);

CREATE UNIQUE INDEX decrypt_failures_open_key ON decrypt_failures (workspace_id, connection_id, secret_id) NULLS
    NOT DISTINCT WHERE ended_at IS NULL;

CREATE INDEX decrypt_failures_secret_idx ON decrypt_failures (workspace_id, secret_id)
    WHERE ended_at IS NULL AND secret_id IS NOT NULL;

CREATE INDEX decrypt_failures_turned_idx ON decrypt_failures (first_seen) WHERE secret_id IS NULL;

CREATE TABLE audit_log (
    id UUID NOT NULL,
    workspace_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    cipher TEXT NOT NULL,
    connection_id UUID,
    secret_id UUID,
    secret_name TEXT,
    version BIGINT,
    event_id UUID,
    agent_id TEXT,
    mcp_server_id TEXT,
    method TEXT,
    target TEXT,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    outcome TEXT,
    code TEXT,
    aws_code TEXT,
    session_name TEXT,
    assume_request_id TEXT,
    kms_request_id TEXT,
    upstream_status INTEGER,
    redactions INTEGER,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT audit_log_pkey PRIMARY KEY (id),
    CONSTRAINT audit_log_purpose_check CHECK (purpose IN ('encrypt', 'inject', 'check', 'probe', 'verify',
        'proof')),
    CONSTRAINT audit_log_outcome_check CHECK ((outcome IS NULL) = (ended_at IS NULL))
);

CREATE INDEX audit_log_open_idx ON audit_log (started_at) WHERE outcome IS NULL;

CREATE INDEX audit_log_workspace_idx ON audit_log (workspace_id, id);
"""

_CONNECTION_OF_WORKSPACE = """
ALTER TABLE workspaces ADD CONSTRAINT workspaces_connection_fkey
    FOREIGN KEY (id, connection_id) REFERENCES byok_connections (workspace_id, id)
"""

# A connection is immutable: blobs point at it for ever, so what it says about role and key must stay what encrypted
# them.
_IMMUTABLE = """
CREATE FUNCTION byok_connections_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a connection is immutable: make a new one' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER byok_connections_immutable
    BEFORE UPDATE OF id, workspace_id, role_arn, external_id, key_arn ON byok_connections
    FOR EACH ROW
    WHEN ((OLD.id, OLD.workspace_id, OLD.role_arn, OLD.external_id, OLD.key_arn)
        IS DISTINCT FROM (NEW.id, NEW.workspace_id, NEW.role_arn, NEW.external_id, NEW.key_arn))
    EXECUTE FUNCTION byok_connections_refuse_change();
"""


def upgrade() -> None:
    """Make everything."""
    op.execute(_TABLES)
    op.execute(_CONNECTION_OF_WORKSPACE)
    op.execute(_IMMUTABLE)


def downgrade() -> None:
    """Drop everything, and with it every blob: meant for a database that nobody uses."""
    op.execute("ALTER TABLE workspaces DROP CONSTRAINT workspaces_connection_fkey")
    for table in (
        "audit_log",
        "decrypt_failures",
        "secret_events",
        "broker_secrets",
        "byok_connections",
        "external_ids",
        "workspaces",
    ):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION byok_connections_refuse_change()")
