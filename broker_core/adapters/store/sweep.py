"""The store's part in the sweep: ``ports.SweepStore``.

The cost of a tick grows with the connections that are due and with the budget of checks, never with the number of
secrets: each connection's oldest checks come from an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from broker_core.adapters.store.database import Database
from broker_core.adapters.store.notices import TELL_FAILING, TELL_RECOVERED
from broker_core.adapters.store.rows import CONNECTION_COLUMNS, CUSTOMER_SIDE, connection_from, new_id, steps_json
from broker_core.adapters.store.shared import BURST_SECONDS, SPEND
from broker_core.model import Blob, CipherName, Connection, StepResult
from broker_core.ports import DueCheck, DueProbe, Failure

_OPEN_FAILURE_OF = """EXISTS (
        SELECT FROM decrypt_failures f
        WHERE f.workspace_id = {c}.workspace_id AND f.connection_id = {c}.id AND f.secret_id IS NULL
            AND f.ended_at IS NULL)"""

# Connections are locked FOR NO KEY UPDATE: a blob that custody stores refers to its connection (FOR KEY SHARE), and
# custody holds the secret that a round of checks goes on to.

# Current connections, and older ones that blobs still need. 10 % of jitter spreads them. ARRAY(…), since IN (…) may be
# run for each row, and then goes past the limit.
_DUE_PROBES = f"""
    UPDATE byok_connections c
    SET last_probe_at = now(), next_probe_at = now() + make_interval(secs => (0.9 + 0.2 * random()) *
        CASE WHEN {_OPEN_FAILURE_OF.format(c="c")} THEN %(unhealthy)s ELSE %(every)s END)
    WHERE c.id = ANY(ARRAY(
        SELECT d.id FROM byok_connections d
        WHERE d.verified_at IS NOT NULL AND d.next_probe_at <= now() AND (d.status = 'current' OR EXISTS (
            SELECT FROM broker_secrets s WHERE s.workspace_id = d.workspace_id AND s.connection_id = d.id))
        ORDER BY d.next_probe_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
    RETURNING {CONNECTION_COLUMNS}, c.canary"""

# Those that are probed, too. A claim is short: what brings no answer comes again within the hour, not the next day.
_DUE_REFUSALS = f"""
    UPDATE byok_connections c SET next_refusals_at = now() + make_interval(secs => %(retry)s)
    WHERE c.id = ANY(ARRAY(
        SELECT d.id FROM byok_connections d
        WHERE d.verified_at IS NOT NULL AND d.next_refusals_at <= now() AND (d.status = 'current' OR EXISTS (
            SELECT FROM broker_secrets s WHERE s.workspace_id = d.workspace_id AND s.connection_id = d.id))
        ORDER BY d.next_refusals_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED))
    RETURNING {CONNECTION_COLUMNS}"""
# The new results stand where the old ones of the same name stood; the others stay.
_END_REFUSALS = """
    UPDATE byok_connections c
    SET next_refusals_at = now() + make_interval(secs => %(every)s * (0.9 + 0.2 * random())),
        flagged_at = CASE WHEN %(is_flagged)s THEN coalesce(c.flagged_at, now()) END,
        steps = (
            SELECT coalesce(jsonb_agg(coalesce(new.step, old.step) ORDER BY old.place NULLS LAST), '[]')
            FROM jsonb_array_elements(c.steps) WITH ORDINALITY old(step, place)
            FULL JOIN jsonb_array_elements(%(steps)s) new(step) ON new.step->>'name' = old.step->>'name')
    WHERE c.workspace_id = %(workspace_id)s AND c.id = %(connection_id)s"""

# Which connections may be asked now, and how often (a token bucket in check_ready_at, of two seconds or one check). A
# failing one waits for its probe: its secrets inherit the answer. Healed ones whose secrets were not asked since come
# first.
_BUDGETS = f"""
    SELECT {CONNECTION_COLUMNS}, c.healed_at, greatest(1, floor(extract(epoch FROM
        now() - greatest(c.check_ready_at, now() - make_interval(secs => %(burst)s))) * %(per_second)s))::int AS budget
    FROM byok_connections c
    WHERE c.verified_at IS NOT NULL AND c.check_ready_at <= now() - make_interval(secs => 1.0 / %(per_second)s)
        AND NOT {_OPEN_FAILURE_OF.format(c="c")}
        AND EXISTS (
            SELECT FROM broker_secrets s WHERE s.workspace_id = c.workspace_id AND s.connection_id = c.id)
    ORDER BY NOT EXISTS (
        SELECT FROM broker_secrets s
        WHERE s.workspace_id = c.workspace_id AND s.connection_id = c.id AND s.checked_at < c.healed_at),
        c.check_ready_at
    LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED"""
_CLAIM_CHECKS = """
    UPDATE broker_secrets u SET check_lease_until = now() + interval '2 minutes'
    WHERE u.workspace_id = %(workspace_id)s AND u.id IN (
        SELECT due.id FROM (
            (SELECT s.id, s.checked_at, 0 AS turn FROM decrypt_failures f
                JOIN broker_secrets s ON s.workspace_id = f.workspace_id AND s.id = f.secret_id
                WHERE f.workspace_id = %(workspace_id)s AND f.connection_id = %(connection_id)s
                    AND f.secret_id IS NOT NULL AND f.ended_at IS NULL AND s.connection_id = f.connection_id
                    AND (s.check_lease_until IS NULL OR s.check_lease_until < now())
                    AND (s.checked_at IS NULL OR s.checked_at < greatest(now() - interval '1 minute', %(healed_at)s))
                ORDER BY s.checked_at NULLS FIRST LIMIT %(budget)s)
            UNION ALL
            (SELECT s.id, s.checked_at, 1 AS turn FROM broker_secrets s
                WHERE s.workspace_id = %(workspace_id)s AND s.connection_id = %(connection_id)s
                    AND (s.check_lease_until IS NULL OR s.check_lease_until < now())
                    AND (s.checked_at IS NULL
                        OR s.checked_at < greatest(now() - make_interval(secs => %(round_seconds)s), %(healed_at)s))
                ORDER BY s.checked_at NULLS FIRST LIMIT %(budget)s)) due
        GROUP BY due.id ORDER BY min(due.turn), min(due.checked_at) NULLS FIRST LIMIT %(budget)s)
    RETURNING u.id, u.name, u.version, u.cipher, u.blob"""

_TURNED = f"""
    SELECT
        (SELECT count(DISTINCT f.connection_id)
            FROM decrypt_failures f
            JOIN byok_connections c ON c.workspace_id = f.workspace_id AND c.id = f.connection_id
            WHERE f.secret_id IS NULL AND f.first_seen > now() - make_interval(secs => %(within)s)
                AND c.status = 'current' AND f.state IN {CUSTOMER_SIDE}) AS turned,
        (SELECT count(*) FROM byok_connections WHERE status = 'current') AS verified"""
# A failure that is new brings the connection's probe forward, once: seeing it again does not. The second denial of a
# connection announces it: ``before`` is the first one, of its own row or of a secret's that the same trouble opened.
_OPEN_FAILURE = f"""
    WITH before AS (
        SELECT min(d.first_seen) AS first_seen FROM decrypt_failures d
        WHERE d.workspace_id = %(workspace_id)s AND d.connection_id = %(connection_id)s AND d.ended_at IS NULL
            AND d.state IN {CUSTOMER_SIDE}
            AND (d.secret_id IS NULL OR d.first_seen > now() - interval '10 minutes')),
    failing AS (
        INSERT INTO decrypt_failures
            (id, workspace_id, connection_id, secret_id, state, aws_code, request_id, found_by, announced_at)
        SELECT %(id)s::uuid, %(workspace_id)s, %(connection_id)s::uuid, %(secret_id)s::uuid, %(state)s, %(aws_code)s,
            %(request_id)s, %(found_by)s,
            CASE WHEN %(secret_id)s::uuid IS NULL AND %(state)s IN {CUSTOMER_SIDE}
                AND b.first_seen <= now() - make_interval(secs => %(announce_after)s) THEN now() END
        FROM before b
        ON CONFLICT (workspace_id, connection_id, secret_id) WHERE ended_at IS NULL
        DO UPDATE SET last_seen = now(), state = EXCLUDED.state, aws_code = EXCLUDED.aws_code,
            request_id = EXCLUDED.request_id,
            announced_at = coalesce(decrypt_failures.announced_at, EXCLUDED.announced_at)
        RETURNING *, xmax = 0 AS is_new, announced_at IS NOT DISTINCT FROM now() AS is_announced),
    {TELL_FAILING}
    UPDATE byok_connections SET next_probe_at = least(next_probe_at, now())
    WHERE workspace_id = %(workspace_id)s AND id = %(connection_id)s AND (SELECT is_new FROM failing)"""
_CLOSE_FAILURE = f"""
    WITH closed AS (
        UPDATE decrypt_failures SET ended_at = now()
        WHERE workspace_id = %(workspace_id)s AND connection_id = %(connection_id)s
            AND secret_id IS NOT DISTINCT FROM %(secret_id)s::uuid AND ended_at IS NULL
        RETURNING *),
    {TELL_RECOVERED}
    UPDATE byok_connections SET healed_at = now()
    WHERE workspace_id = %(workspace_id)s AND id = %(connection_id)s
        AND EXISTS (SELECT FROM closed WHERE secret_id IS NULL)"""


class SweepSql:
    """``ports.SweepStore`` on PostgreSQL (its batches of checks are in ``audit``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due_probes(self, limit: int, every_seconds: float, unhealthy_seconds: float) -> Sequence[DueProbe]:
        """See ``ports.SweepStore``."""
        values = {"limit": limit, "every": every_seconds, "unhealthy": unhealthy_seconds}
        rows = self._database.run("due_probes", _DUE_PROBES, values)
        return [
            DueProbe(connection, Blob(CipherName.KMS, row.canary))
            for row in rows
            if (connection := connection_from(row))
        ]

    def due_refusals(self, limit: int, retry_seconds: float) -> Sequence[Connection]:
        """See ``ports.SweepStore``."""
        rows = self._database.run("due_refusals", _DUE_REFUSALS, {"limit": limit, "retry": retry_seconds})
        return [connection for row in rows if (connection := connection_from(row))]

    def end_refusals(
        self, connection: Connection, steps: Sequence[StepResult], is_flagged: bool, every_seconds: float
    ) -> None:
        """See ``ports.SweepStore``."""
        self._database.run(
            "end_refusals",
            _END_REFUSALS,
            {
                "workspace_id": connection.workspace_id,
                "connection_id": connection.id,
                "steps": steps_json(steps),
                "is_flagged": is_flagged,
                "every": every_seconds,
            },
        )

    def due_checks(self, limit: int, round_seconds: float, per_second: float) -> Sequence[DueCheck]:
        """See ``ports.SweepStore``."""
        due: list[DueCheck] = []
        burst = {"burst": max(BURST_SECONDS, 1 / per_second)}
        with self._database.transaction("due_checks") as transaction:
            (budgets,) = transaction.batch((_BUDGETS, burst | {"limit": limit, "per_second": per_second}))
            for row in budgets:
                budget = min(row.budget, limit - len(due))
                if budget > 0:
                    values = _check_values(row, budget, round_seconds)
                    (secrets,) = transaction.batch((_CLAIM_CHECKS, values))
                    spent = {"spent": len(secrets) / per_second, "spenders": [row.connection_id]}
                    transaction.batch((SPEND, values | burst | spent))
                    due += [_due_check(row, secret) for secret in secrets]
            transaction.commit()
        return due

    def turned_share(self, within_seconds: float) -> tuple[int, int]:
        """See ``ports.SweepStore``."""
        (row,) = self._database.run("turned_share", _TURNED, {"within": within_seconds})
        return row.turned, row.verified

    def open_failure(self, failure: Failure, announce_after: float = 120.0) -> None:
        """See ``ports.SweepStore``."""
        self._database.run(
            "open_failure",
            _OPEN_FAILURE,
            {
                "id": new_id(),
                "workspace_id": failure.workspace_id,
                "connection_id": failure.connection_id,
                "secret_id": failure.secret_id,
                "state": failure.state.value,
                "aws_code": failure.aws_code,
                "request_id": failure.request_id,
                "found_by": failure.found_by.value,
                "announce_after": announce_after,
            },
        )

    def close_failure(self, workspace_id: str, connection_id: UUID, secret_id: UUID | None) -> None:
        """See ``ports.SweepStore``."""
        values = {"workspace_id": workspace_id, "connection_id": connection_id, "secret_id": secret_id}
        self._database.run("close_failure", _CLOSE_FAILURE, values)


def _check_values(row: Any, budget: int, round_seconds: float) -> dict[str, Any]:
    return {
        "workspace_id": row.connection_workspace_id,
        "connection_id": row.connection_id,
        "healed_at": row.healed_at,
        "budget": budget,
        "round_seconds": round_seconds,
    }


def _due_check(row: Any, secret: Any) -> DueCheck:
    connection = connection_from(row)
    assert connection is not None  # noqa: S101 - the statement selects connections
    return DueCheck(secret.id, secret.name, secret.version, Blob(CipherName(secret.cipher), secret.blob), connection)
