"""The schema, as one screen to read beside the migrations that make it.

``migrations/`` is what runs; a test compares the two after every migration, down to constraints. Every table of a
tenant carries ``workspace_id``, and every foreign key between them carries it too: a row cannot point at another
workspace's row even if our own code were wrong (INV-10).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

#: the migration after which the database is as below; newer ones add and take nothing away
REVISION = "0006"

metadata = MetaData()

_Type = TypeEngine[Any] | type[TypeEngine[Any]]

_now = text("now()")


def _time(name: str, *, required: bool = False, default: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not required, server_default=_now if default else None)


def _needed(name: str, type_: _Type, default: str | None = None) -> Column[object]:
    return Column(name, type_, nullable=False, server_default=text(default) if default else None)


#: the tenants. ``setting_version`` counts every change of ``connection_id``; custody stores only under the one it read
workspaces = Table(
    "workspaces",
    metadata,
    _needed("id", Text),
    _needed("plan", Text),
    _needed("setting_version", BigInteger, "0"),
    Column("connection_id", Uuid),
    _time("created_at", required=True, default=True),
    _time("deleted_at"),
    PrimaryKeyConstraint("id", name="workspaces_pkey"),
    CheckConstraint("id ~ '^[A-Za-z0-9_-]{1,64}$'", name="workspaces_id_check"),
    CheckConstraint("plan IN ('free', 'team', 'enterprise')", name="workspaces_plan_check"),
    CheckConstraint("deleted_at IS NULL OR connection_id IS NULL", name="workspaces_deleted_check"),
    ForeignKeyConstraint(
        ["id", "connection_id"],
        ["byok_connections.workspace_id", "byok_connections.id"],
        name="workspaces_connection_fkey",
        use_alter=True,
    ),
)

#: who used an external id first. It is never another workspace's, even after the connection is gone
external_ids = Table(
    "external_ids",
    metadata,
    _needed("external_id", Text),
    _needed("workspace_id", Text),
    PrimaryKeyConstraint("external_id", name="external_ids_pkey"),
    UniqueConstraint("external_id", "workspace_id", name="external_ids_owner_key"),
    ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="external_ids_workspace_fkey"),
)

#: BYOK settings. role_arn, external_id and key_arn never change (a trigger holds it). ``steps`` are what the last
#: verification showed, ``flagged_at`` since when the role lets in who must not get in. ``status`` retired: replaced;
#: ``retired_at``: when its owner retired it for good, which needs that no blob is under it
byok_connections = Table(
    "byok_connections",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    _needed("role_arn", Text),
    _needed("external_id", Text),
    _needed("key_arn", Text),
    _needed("status", Text),
    Column("canary", LargeBinary),
    _time("created_at", required=True, default=True),
    _time("verified_at"),
    _time("healed_at"),
    _time("last_probe_at"),
    _time("next_probe_at", required=True, default=True),
    _time("check_ready_at", required=True, default=True),
    _needed("steps", JSONB, "'[]'"),
    _time("flagged_at"),
    _time("next_refusals_at", required=True, default=True),
    _time("retired_at"),
    PrimaryKeyConstraint("id", name="byok_connections_pkey"),
    UniqueConstraint("workspace_id", "id", name="byok_connections_workspace_key"),
    ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="byok_connections_workspace_fkey"),
    ForeignKeyConstraint(
        ["external_id", "workspace_id"],
        ["external_ids.external_id", "external_ids.workspace_id"],
        name="byok_connections_external_id_fkey",
    ),
    CheckConstraint("status IN ('pending', 'current', 'retired')", name="byok_connections_status_check"),
    CheckConstraint(
        "status = 'pending' OR (verified_at IS NOT NULL AND canary IS NOT NULL)",
        name="byok_connections_verified_check",
    ),
    CheckConstraint("retired_at IS NULL OR status = 'retired'", name="byok_connections_retired_check"),
)
Index(
    "byok_connections_current_key",
    byok_connections.c.workspace_id,
    unique=True,
    postgresql_where=text("status = 'current'"),
)
Index(
    "byok_connections_refusals_idx",
    byok_connections.c.next_refusals_at,
    postgresql_where=text("verified_at IS NOT NULL"),
)
Index(
    "byok_connections_probe_idx",
    byok_connections.c.next_probe_at,
    postgresql_where=text("verified_at IS NOT NULL"),
)

#: when a secret's rotation is due. Immutable by way of UTC: days of a zone with summer time are not
_DUE = (
    "timezone('UTC', timezone('UTC', coalesce(rotated_at, created_at))"
    " + make_interval(days => rtrim(rotation_policy, 'd')::integer))"
)

#: metadata, and at most one current blob. ``version`` is the blob's (or the tombstone's); ``highest_version`` counts
#: every accepted event and never goes down; ``fields_version`` is the event's that last set the injection fields;
#: ``policy_version`` is the highest when an owner last set the rotation policy, which older events do not change;
#: ``due_noticed`` is the due date of its rotation that the owner was last told of
broker_secrets = Table(
    "broker_secrets",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    _needed("name", Text),
    _needed("version", BigInteger, "0"),
    _needed("highest_version", BigInteger, "0"),
    _needed("fields_version", BigInteger, "0"),
    Column("cipher", Text),
    Column("connection_id", Uuid),
    Column("blob", LargeBinary),
    Column("injection_kind", Text),
    Column("binding_key", Text),
    Column("target_host", Text),
    Column("mcp_server_id", Text),
    Column("agent_id", Text),
    Column("rotation_policy", Text),
    _time("created_at", required=True, default=True),
    _time("rotated_at"),
    _time("last_used_at"),
    _time("checked_at"),
    _time("check_lease_until"),
    _time("deleted_at"),
    _needed("policy_version", BigInteger, "0"),
    _time("due_noticed"),
    PrimaryKeyConstraint("id", name="broker_secrets_pkey"),
    UniqueConstraint("workspace_id", "id", name="broker_secrets_workspace_key"),
    UniqueConstraint("workspace_id", "name", name="broker_secrets_name_key"),
    ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="broker_secrets_workspace_fkey"),
    ForeignKeyConstraint(
        ["workspace_id", "connection_id"],
        ["byok_connections.workspace_id", "byok_connections.id"],
        name="broker_secrets_connection_fkey",
    ),
    CheckConstraint(
        "name !~ '[^A-Za-z0-9 ._:/@+=-]' AND name = btrim(name) AND length(name) BETWEEN 1 AND 128",
        name="broker_secrets_name_check",
    ),
    CheckConstraint("version >= 0 AND version <= highest_version", name="broker_secrets_version_check"),
    CheckConstraint("cipher IN ('kms', 'kms-envelope', 'platform')", name="broker_secrets_cipher_check"),
    CheckConstraint("(blob IS NULL) = (cipher IS NULL)", name="broker_secrets_blob_check"),
    CheckConstraint(
        "(coalesce(cipher, 'platform') = 'platform') = (connection_id IS NULL)", name="broker_secrets_custody_check"
    ),
    CheckConstraint("deleted_at IS NULL OR blob IS NULL", name="broker_secrets_deleted_check"),
    CheckConstraint(
        "injection_kind IN ('http_header', 'bearer', 'query', 'stdio_env')", name="broker_secrets_kind_check"
    ),
    CheckConstraint(
        "CASE WHEN injection_kind IS NULL THEN num_nonnulls(binding_key, target_host, mcp_server_id, agent_id) = 0"
        " ELSE num_nonnulls(mcp_server_id, agent_id) > 0"
        " AND (target_host IS NULL) = (injection_kind = 'stdio_env')"
        " AND (binding_key IS NULL) = (injection_kind = 'bearer') END",
        name="broker_secrets_injection_check",
    ),
    CheckConstraint("rotation_policy ~ '^[1-9][0-9]{0,3}d$'", name="broker_secrets_policy_check"),
    Index(
        "broker_secrets_due_idx",
        text(f"({_DUE})"),
        postgresql_where=text(
            f"rotation_policy IS NOT NULL AND deleted_at IS NULL AND due_noticed IS DISTINCT FROM {_DUE}"
        ),
    ),
)
Index("broker_secrets_server_idx", broker_secrets.c.workspace_id, broker_secrets.c.mcp_server_id)
Index("broker_secrets_agent_idx", broker_secrets.c.workspace_id, broker_secrets.c.agent_id)
Index(
    "broker_secrets_check_idx",
    broker_secrets.c.workspace_id,
    broker_secrets.c.connection_id,
    broker_secrets.c.checked_at,
    postgresql_where=text("connection_id IS NOT NULL"),
)

#: accepted events. ``claim_key`` is one half of the value; it is NULL in every end state
secret_events = Table(
    "secret_events",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    _needed("secret_id", Uuid),
    _needed("source", Text),
    _needed("event_id", Text),
    _needed("type", Text),
    _needed("name", Text),
    _needed("version", BigInteger),
    _needed("state", Text),
    Column("injection_kind", Text),
    Column("binding_key", Text),
    Column("target_host", Text),
    Column("mcp_server_id", Text),
    Column("agent_id", Text),
    Column("rotation_policy", Text),
    Column("claim_id", Text),
    Column("claim_key", LargeBinary),
    _time("claim_expires_at"),
    _needed("attempts", Integer, "0"),
    _time("begun_at"),
    _time("ring_at", required=True, default=True),
    Column("reason", Text),
    Column("aws_code", Text),
    Column("traceparent", Text),
    _time("accepted_at", required=True, default=True),
    _time("ended_at"),
    PrimaryKeyConstraint("id", name="secret_events_pkey"),
    UniqueConstraint("workspace_id", "source", "event_id", name="secret_events_source_key"),
    UniqueConstraint("workspace_id", "name", "version", name="secret_events_version_key"),
    ForeignKeyConstraint(
        ["workspace_id", "secret_id"],
        ["broker_secrets.workspace_id", "broker_secrets.id"],
        name="secret_events_secret_fkey",
    ),
    CheckConstraint("version >= 1", name="secret_events_version_check"),
    CheckConstraint("type IN ('secret.created', 'secret.rotated', 'secret.deleted')", name="secret_events_type_check"),
    CheckConstraint(
        "state IN ('accepted', 'refused', 'stored', 'superseded', 'expired', 'unreadable', 'deleted')",
        name="secret_events_state_check",
    ),
    CheckConstraint("(state IN ('accepted', 'refused')) = (claim_key IS NOT NULL)", name="secret_events_claim_check"),
    CheckConstraint("(state IN ('accepted', 'refused')) = (ended_at IS NULL)", name="secret_events_ended_check"),
)
Index("secret_events_secret_idx", secret_events.c.workspace_id, secret_events.c.secret_id, secret_events.c.version)
Index(
    "secret_events_waiting_idx",
    secret_events.c.workspace_id,
    secret_events.c.secret_id,
    postgresql_where=text("ended_at IS NULL"),
)
Index("secret_events_ring_idx", secret_events.c.ring_at, postgresql_where=text("ended_at IS NULL"))
Index("secret_events_expiry_idx", secret_events.c.claim_expires_at, postgresql_where=text("ended_at IS NULL"))

#: keys that could not be used; open (``ended_at`` NULL) at most once for each connection and secret-or-none.
#: ``announced_at``: when its owner was told; only of a connection's own
decrypt_failures = Table(
    "decrypt_failures",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    Column("connection_id", Uuid),
    Column("secret_id", Uuid),
    _needed("state", Text),
    _needed("aws_code", Text),
    Column("request_id", Text),
    _needed("found_by", Text),
    _time("first_seen", required=True, default=True),
    _time("last_seen", required=True, default=True),
    _time("ended_at"),
    _time("announced_at"),
    PrimaryKeyConstraint("id", name="decrypt_failures_pkey"),
    ForeignKeyConstraint(
        ["workspace_id", "connection_id"],
        ["byok_connections.workspace_id", "byok_connections.id"],
        name="decrypt_failures_connection_fkey",
    ),
    ForeignKeyConstraint(
        ["workspace_id", "secret_id"],
        ["broker_secrets.workspace_id", "broker_secrets.id"],
        name="decrypt_failures_secret_fkey",
    ),
    CheckConstraint("connection_id IS NOT NULL OR secret_id IS NOT NULL", name="decrypt_failures_subject_check"),
    CheckConstraint("found_by IN ('inject', 'probe', 'check')", name="decrypt_failures_found_by_check"),
    CheckConstraint(
        "state IN ('access_denied', 'role_refused', 'key_disabled', 'key_pending_deletion', 'key_state', 'key_gone',"
        " 'integrity', 'misconfigured')",
        name="decrypt_failures_state_check",
    ),
)
Index(
    "decrypt_failures_open_key",
    decrypt_failures.c.workspace_id,
    decrypt_failures.c.connection_id,
    decrypt_failures.c.secret_id,
    unique=True,
    postgresql_where=text("ended_at IS NULL"),
    postgresql_nulls_not_distinct=True,
)
Index(
    "decrypt_failures_secret_idx",
    decrypt_failures.c.workspace_id,
    decrypt_failures.c.secret_id,
    postgresql_where=text("ended_at IS NULL AND secret_id IS NOT NULL"),
)
Index(
    "decrypt_failures_turned_idx",
    decrypt_failures.c.first_seen,
    postgresql_where=text("secret_id IS NULL"),
)

#: the outbox: what owners are to be told, written together with what it tells of, and at most once for each ``cause``.
#: No foreign keys: checking one locks a secret, and who ends an event would lock in the wrong order
notifications = Table(
    "notifications",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    _needed("type", Text),
    _needed("cause", Text),
    Column("connection_id", Uuid),
    Column("secret_id", Uuid),
    _needed("payload", JSONB),
    _time("created_at", required=True, default=True),
    _time("next_try_at", required=True, default=True),
    _needed("attempts", Integer, "0"),
    _time("lease_until"),
    _time("delivered_at"),
    _time("given_up_at"),
    PrimaryKeyConstraint("id", name="notifications_pkey"),
    UniqueConstraint("workspace_id", "type", "cause", name="notifications_once_key"),
    CheckConstraint(
        "type IN ('byok.connection_failing', 'byok.connection_recovered', 'broker_secret.needs_reprovision',"
        " 'broker_secret.rotation_due')",
        name="notifications_type_check",
    ),
    CheckConstraint("num_nonnulls(connection_id, secret_id) = 1", name="notifications_subject_check"),
    CheckConstraint("delivered_at IS NULL OR given_up_at IS NULL", name="notifications_end_check"),
)
Index(
    "notifications_due_idx",
    notifications.c.next_try_at,
    postgresql_where=text("delivered_at IS NULL AND given_up_at IS NULL"),
)
Index(
    "notifications_age_idx",
    notifications.c.created_at,
    postgresql_where=text("delivered_at IS NULL AND given_up_at IS NULL"),
)

#: lockout proofs: at most one runs in a workspace. ``document`` is the signed one, written once at the end
lockout_proofs = Table(
    "lockout_proofs",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    _needed("connection_id", Uuid),
    _needed("asked_by", Text),
    _time("started_at", required=True, default=True),
    _time("ended_at"),
    Column("is_locked_out", Boolean),
    Column("document", Text),
    PrimaryKeyConstraint("id", name="lockout_proofs_pkey"),
    UniqueConstraint("workspace_id", "id", name="lockout_proofs_workspace_key"),
    ForeignKeyConstraint(
        ["workspace_id", "connection_id"],
        ["byok_connections.workspace_id", "byok_connections.id"],
        name="lockout_proofs_connection_fkey",
    ),
    CheckConstraint("num_nonnulls(ended_at, is_locked_out, document) IN (0, 3)", name="lockout_proofs_ended_check"),
)
Index(
    "lockout_proofs_running_key",
    lockout_proofs.c.workspace_id,
    unique=True,
    postgresql_where=text("ended_at IS NULL"),
)
Index("lockout_proofs_newest_idx", lockout_proofs.c.workspace_id, lockout_proofs.c.started_at)

#: the secrets of a proof. ``attempts`` counts every claim, and is what a claim is settled by; ``asks`` are the calls
lockout_proof_items = Table(
    "lockout_proof_items",
    metadata,
    _needed("proof_id", Uuid),
    _needed("workspace_id", Text),
    _needed("secret_id", Uuid),
    _needed("name", Text),
    _needed("version", BigInteger),
    Column("outcome", Text),
    _needed("note", Text, "''"),
    _time("settled_at"),
    _needed("attempts", Integer, "0"),
    _time("due_at", required=True, default=True),
    _time("lease_until"),
    _needed("asks", JSONB, "'[]'"),
    PrimaryKeyConstraint("proof_id", "secret_id", name="lockout_proof_items_pkey"),
    ForeignKeyConstraint(
        ["workspace_id", "proof_id"],
        ["lockout_proofs.workspace_id", "lockout_proofs.id"],
        name="lockout_proof_items_proof_fkey",
    ),
    ForeignKeyConstraint(
        ["workspace_id", "secret_id"],
        ["broker_secrets.workspace_id", "broker_secrets.id"],
        name="lockout_proof_items_secret_fkey",
    ),
    CheckConstraint(
        "outcome IN ('locked_out', 'still_decrypts', 'not_shown', 'moved', 'deleted')",
        name="lockout_proof_items_outcome_check",
    ),
    CheckConstraint("(outcome IS NULL) = (settled_at IS NULL)", name="lockout_proof_items_settled_check"),
)
Index(
    "lockout_proof_items_due_idx",
    lockout_proof_items.c.proof_id,
    lockout_proof_items.c.due_at,
    postgresql_where=text("outcome IS NULL"),
)
Index(
    "lockout_proof_items_leased_idx",
    lockout_proof_items.c.workspace_id,
    lockout_proof_items.c.proof_id,
    lockout_proof_items.c.lease_until,
    postgresql_where=text("lease_until IS NOT NULL"),
)
Index("lockout_proof_items_name_idx", lockout_proof_items.c.proof_id, lockout_proof_items.c.name)

#: re-encryptions: at most one runs in a workspace. No ``from_connection_id``: from every older connection.
#: ``stopped_by``: why it ended before all was done
reencryptions = Table(
    "reencryptions",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    Column("from_connection_id", Uuid),
    _time("started_at", required=True, default=True),
    _time("ended_at"),
    Column("stopped_by", Text),
    PrimaryKeyConstraint("id", name="reencryptions_pkey"),
    UniqueConstraint("workspace_id", "id", name="reencryptions_workspace_key"),
    ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="reencryptions_workspace_fkey"),
    ForeignKeyConstraint(
        ["workspace_id", "from_connection_id"],
        ["byok_connections.workspace_id", "byok_connections.id"],
        name="reencryptions_connection_fkey",
    ),
    CheckConstraint("stopped_by IS NULL OR ended_at IS NOT NULL", name="reencryptions_stopped_check"),
)
Index(
    "reencryptions_running_key",
    reencryptions.c.workspace_id,
    unique=True,
    postgresql_where=text("ended_at IS NULL"),
)
Index("reencryptions_newest_idx", reencryptions.c.workspace_id, reencryptions.c.started_at)

#: the secrets of a re-encryption, each with the connection that it was under. A claim moves ``due_at`` to the end of
#: its lease; ``attempts`` counts every claim, and is what a claim is settled by
reencryption_items = Table(
    "reencryption_items",
    metadata,
    _needed("reencryption_id", Uuid),
    _needed("workspace_id", Text),
    _needed("secret_id", Uuid),
    _needed("connection_id", Uuid),
    Column("outcome", Text),
    Column("state", Text),
    Column("aws_code", Text),
    _time("settled_at"),
    _needed("attempts", Integer, "0"),
    _time("due_at", required=True, default=True),
    PrimaryKeyConstraint("reencryption_id", "secret_id", name="reencryption_items_pkey"),
    ForeignKeyConstraint(
        ["workspace_id", "reencryption_id"],
        ["reencryptions.workspace_id", "reencryptions.id"],
        name="reencryption_items_reencryption_fkey",
    ),
    ForeignKeyConstraint(
        ["workspace_id", "secret_id"],
        ["broker_secrets.workspace_id", "broker_secrets.id"],
        name="reencryption_items_secret_fkey",
    ),
    ForeignKeyConstraint(
        ["workspace_id", "connection_id"],
        ["byok_connections.workspace_id", "byok_connections.id"],
        name="reencryption_items_connection_fkey",
    ),
    CheckConstraint("outcome IN ('moved', 'denied', 'overtaken', 'failed')", name="reencryption_items_outcome_check"),
    CheckConstraint("(outcome IS NULL) = (settled_at IS NULL)", name="reencryption_items_settled_check"),
)
Index(
    "reencryption_items_due_idx",
    reencryption_items.c.reencryption_id,
    reencryption_items.c.due_at,
    postgresql_where=text("outcome IS NULL"),
)
Index(
    "reencryption_items_source_idx",
    reencryption_items.c.workspace_id,
    reencryption_items.c.reencryption_id,
    reencryption_items.c.connection_id,
    reencryption_items.c.due_at,
    postgresql_where=text("outcome IS NULL"),
)

#: every use of a value or key: the intent is the row, the outcome fills it. No foreign keys: an audit row outlives all
audit_log = Table(
    "audit_log",
    metadata,
    _needed("id", Uuid),
    _needed("workspace_id", Text),
    _needed("purpose", Text),
    _needed("cipher", Text),
    Column("connection_id", Uuid),
    Column("secret_id", Uuid),
    Column("secret_name", Text),
    Column("version", BigInteger),
    Column("event_id", Uuid),
    Column("agent_id", Text),
    Column("mcp_server_id", Text),
    Column("method", Text),
    Column("target", Text),
    _time("started_at", required=True, default=True),
    Column("outcome", Text),
    Column("code", Text),
    Column("aws_code", Text),
    Column("session_name", Text),
    Column("assume_request_id", Text),
    Column("kms_request_id", Text),
    Column("upstream_status", Integer),
    Column("redactions", Integer),
    _time("ended_at"),
    PrimaryKeyConstraint("id", name="audit_log_pkey"),
    CheckConstraint(
        "purpose IN ('encrypt', 'inject', 'check', 'probe', 'verify', 'proof')", name="audit_log_purpose_check"
    ),
    CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="audit_log_outcome_check"),
)
Index("audit_log_workspace_idx", audit_log.c.workspace_id, audit_log.c.id)
Index("audit_log_open_idx", audit_log.c.started_at, postgresql_where=text("outcome IS NULL"))
