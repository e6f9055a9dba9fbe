"""SweepStore: claims of probes and checks, and the record of failures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import KeyState, NotFound
from broker_core.events import NoticeType
from broker_core.model import Connection, ConnectionStatus, StepResult
from broker_core.ports import DueCheck, DueProbe, Failure
from tests.fakes_store_parts.rows import ConnectionRow, FailureRow, Rows, SecretRow

_BURST = timedelta(seconds=2)
_OWN_FAILURE_PAUSE = timedelta(minutes=1)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class SweepRoom(Rows):
    """See ``broker_core.ports.SweepStore``."""

    def due_probes(self, limit: int, every_seconds: float, unhealthy_seconds: float) -> Sequence[DueProbe]:
        with self._transaction() as now:
            due = [row for row in self._connections.values() if self._is_live(row) and row.next_probe_at <= now]
            taken = sorted(due, key=lambda row: row.next_probe_at)[:limit]
            for row in taken:
                fails = self._open_row(row.connection.workspace_id, row.connection.id, None)
                pause = unhealthy_seconds if fails else every_seconds
                row.next_probe_at = now + timedelta(seconds=pause * self._jitter())
            return [DueProbe(row.connection, row.canary) for row in taken if row.canary is not None]

    def due_refusals(self, limit: int, retry_seconds: float) -> Sequence[Connection]:
        with self._transaction() as now:
            due = [(row.next_refusals_at, row) for row in self._connections.values() if self._is_live(row)]
            taken = sorted((at, row.connection.id, row) for at, row in due if at is not None and at <= now)[:limit]
            for _, _, row in taken:
                row.next_refusals_at = now + timedelta(seconds=retry_seconds)
            return [row.connection for _, _, row in taken]

    def end_refusals(
        self, connection: Connection, steps: Sequence[StepResult], is_flagged: bool, every_seconds: float
    ) -> None:
        with self._transaction() as now:
            row = self._connection(connection.workspace_id, connection.id)
            if row is None:
                return
            row.next_refusals_at = now + timedelta(seconds=every_seconds * self._jitter())
            row.flagged_at = (row.flagged_at or now) if is_flagged else None
            row.steps = tuple(({step.name: step for step in row.steps} | {step.name: step for step in steps}).values())

    def due_checks(self, limit: int, round_seconds: float, per_second: float) -> Sequence[DueCheck]:
        with self._transaction() as now:
            due = [row for row in self._secrets.values() if self._is_due(row, now, round_seconds)]
            due.sort(key=lambda row: (self._waits_its_turn(row), row.checked_at or _EPOCH))
            taken = self._within_budget(due, now, per_second)[:limit]
            for row in taken:
                row.check_lease_until = now + timedelta(seconds=self._lease_seconds)
                bucket = self._connections[_connection_of(row)]
                ready = max(bucket.check_ready_at, now - _burst(per_second))
                bucket.check_ready_at = ready + timedelta(seconds=1 / per_second)
            return [self._due_check(row) for row in taken]

    def begin_checks(self, intents: Sequence[Intent]) -> None:
        with self._transaction(audits=True) as now:
            for intent in intents:
                self._begin_use(intent, now)

    def end_checks(self, results: Sequence[tuple[Intent, Result]]) -> None:
        with self._transaction() as now:
            for intent, result in results:
                self._end_use(intent.id, result)
                secret = self._secret(intent.workspace_id, intent.secret_id)
                answered = result.outcome in (Outcome.OK, Outcome.REFUSED)
                if answered and secret is not None and secret.version == intent.version:
                    secret.checked_at, secret.check_lease_until = now, None
                if result.outcome is Outcome.OK and secret is not None:
                    self._close_own(secret, now)

    def turned_share(self, within_seconds: float) -> tuple[int, int]:
        with self._transaction() as now:
            since = now - timedelta(seconds=within_seconds)
            current = {key for key, row in self._connections.items() if row.status is ConnectionStatus.CURRENT}
            turned = {
                row.connection_id
                for row in self._failures
                if row.secret_id is None
                and row.first_seen > since
                and row.connection_id in current
                and row.state not in (KeyState.INTEGRITY, KeyState.MISCONFIGURED)
            }
            return len(turned), len(current)

    def open_failure(self, failure: Failure, announce_after: float = 120.0) -> None:
        with self._transaction() as now:
            self._refuse_unfit(failure)
            subject = (failure.workspace_id, failure.connection_id, failure.secret_id)
            row = self._open_row(*subject)
            first = self._first_denial(failure, now)
            if row is not None:  # the newest answer is shown; when and how it was found stays
                row.state, row.aws_code, row.last_seen = failure.state, failure.aws_code, now
                row.request_id = failure.request_id or row.request_id
                self._announce(row, first, announce_after, now)
                return
            found = FailureRow(
                *subject,
                state=failure.state,
                aws_code=failure.aws_code,
                request_id=failure.request_id,
                found_by=failure.found_by,
                first_seen=now,
                last_seen=now,
            )
            self._failures.append(found)
            self._announce(found, first, announce_after, now)
            # only on opening: one that stays open would else be probed at every tick
            connection = self._connection(failure.workspace_id, failure.connection_id)
            if connection is not None:
                connection.next_probe_at = min(connection.next_probe_at, now)

    def close_failure(self, workspace_id: str, connection_id: UUID, secret_id: UUID | None) -> None:
        with self._transaction() as now:
            row = self._open_row(workspace_id, connection_id, secret_id)
            if row is None:
                return
            row.ended_at = now
            connection = self._connection(workspace_id, connection_id)
            if secret_id is None and connection is not None:
                connection.healed_at = now
                if row.announced_at is not None:
                    data = _names_of(row, connection) | {"announcedAt": as_text(row.announced_at)}
                    self._tell(NoticeType.CONNECTION_RECOVERED, workspace_id, str(row.id), now, data)

    def _first_denial(self, failure: Failure, now: datetime) -> datetime | None:
        """Of the connection itself, or a moment ago of a secret under it."""
        recent = now - timedelta(minutes=10)
        moments = [
            row.first_seen
            for row in self._failures
            if row.ended_at is None
            and (row.workspace_id, row.connection_id) == (failure.workspace_id, failure.connection_id)
            and row.blames_customer
            and (row.secret_id is None or row.first_seen > recent)
        ]
        return min(moments, default=None)

    def _announce(self, row: FailureRow, first: datetime | None, announce_after: float, now: datetime) -> None:
        is_second = first is not None and first <= now - timedelta(seconds=announce_after)
        connection = self._connection(row.workspace_id, row.connection_id)
        if row.secret_id or not row.blames_customer or row.announced_at or not is_second or connection is None:
            return
        row.announced_at = now
        under = sorted(
            (secret for secret in self._secrets.values() if secret.connection_id == row.connection_id),
            key=lambda secret: secret.id,
        )
        data = _names_of(row, connection) | {
            "state": row.state.value,
            "awsCode": row.aws_code,
            "requestId": row.request_id,
            "foundBy": row.found_by.value,
            "secretCount": len(under),
            "secrets": [{"id": str(secret.id), "name": secret.name} for secret in under[:100]],
        }
        self._tell(NoticeType.CONNECTION_FAILING, row.workspace_id, str(row.id), now, data)

    def _refuse_unfit(self, failure: Failure) -> None:
        if failure.state is KeyState.TRANSIENT:
            raise ValueError("what may work in a moment is no failure")  # INV-8
        if failure.connection_id is None and failure.secret_id is None:
            raise ValueError("a failure is a connection's or a secret's")
        strange_connection = failure.connection_id and not self._connection(failure.workspace_id, failure.connection_id)
        strange_secret = failure.secret_id and not self._secret(failure.workspace_id, failure.secret_id)
        if strange_connection or strange_secret:
            raise NotFound("no such connection or secret")

    def _is_due(self, row: SecretRow, now: datetime, round_seconds: float) -> bool:
        """Under a failing connection nothing is due: the answer is known, and the calls are on the customer's bill."""
        if row.blob is None or row.connection_id is None:
            return False
        if self._open_row(row.workspace_id, row.connection_id, None) is not None:
            return False
        if row.check_lease_until is not None and row.check_lease_until >= now:
            return False
        pause = _OWN_FAILURE_PAUSE if self._own_failure(row) else timedelta(seconds=round_seconds)
        return row.checked_at is None or row.checked_at < now - pause or self._healed_unchecked(row)

    def _waits_its_turn(self, row: SecretRow) -> bool:
        """Whether nothing says that this one should be asked before older ones."""
        return self._own_failure(row) is None and not self._healed_unchecked(row)

    def _within_budget(self, due: Sequence[SecretRow], now: datetime, per_second: float) -> list[SecretRow]:
        """A token bucket for each connection: what it saved up, at most two seconds' worth or one check."""
        left: dict[UUID, int] = {}
        taken = []
        for row in due:
            connection_id = _connection_of(row)
            saved = now - max(self._connections[connection_id].check_ready_at, now - _burst(per_second))
            if left.setdefault(connection_id, int(saved.total_seconds() * per_second + 0.001)) > 0:
                left[connection_id] -= 1
                taken.append(row)
        return taken

    def _due_check(self, row: SecretRow) -> DueCheck:
        assert row.blob is not None
        connection = self._connections[_connection_of(row)].connection
        return DueCheck(row.id, row.name, row.version, row.blob, connection)


def as_text(moment: datetime) -> str:
    """A time as notices write it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _names_of(row: FailureRow, connection: ConnectionRow) -> dict[str, Any]:
    return {
        "connectionId": str(row.connection_id),
        "failureId": str(row.id),
        "keyArn": connection.connection.key_arn,
        "since": as_text(row.first_seen),
    }


def _burst(per_second: float) -> timedelta:
    return max(_BURST, timedelta(seconds=1 / per_second))


def _connection_of(row: SecretRow) -> UUID:
    assert row.connection_id is not None
    return row.connection_id
