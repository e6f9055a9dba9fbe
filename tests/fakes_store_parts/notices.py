"""NoticeStore: the outbox, and rotations that have come due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from broker_core.events import NoticeType
from broker_core.model import rotation_due
from broker_core.ports import DueNotice
from tests.fakes_store_parts.rows import NoticeRow, Rows
from tests.fakes_store_parts.sweep import as_text


class NoticeRoom(Rows):
    """See ``broker_core.ports.NoticeStore``."""

    def tell_due_rotations(self, limit: int) -> int:
        with self._transaction() as now:
            dates = {
                row.id: rotation_due(row.rotation_policy, row.created_at, row.rotated_at)
                for row in self._secrets.values()
                if row.deleted_at is None
            }
            due = sorted(
                (date, secret_id)
                for secret_id, date in dates.items()
                if date is not None and date <= now and self._secrets[secret_id].due_noticed != date
            )[:limit]
            for date, secret_id in due:
                row = self._secrets[secret_id]
                row.due_noticed = date
                data = {
                    "secretId": str(row.id),
                    "name": row.name,
                    "version": row.version,
                    "rotationPolicy": row.rotation_policy,
                    "dueAt": as_text(date),
                }
                self._tell(NoticeType.ROTATION_DUE, row.workspace_id, f"{row.id} {as_text(date)}", now, data)
            return len(due)

    def claim_notice(self, lease_seconds: float) -> DueNotice | None:
        with self._transaction() as now:
            due = [row for row in self._notices.values() if _is_free(row, now) and row.next_try_at <= now]
            if not due:
                return None
            row = min(due, key=lambda row: row.next_try_at)
            row.attempts, row.lease_until = row.attempts + 1, now + timedelta(seconds=lease_seconds)
            return DueNotice(row.notice, row.attempts)

    def end_notice(self, due: DueNotice) -> None:
        with self._transaction() as now:
            row = self._notices[due.notice.id]
            if row.is_open:
                row.delivered_at, row.lease_until = now, None

    def put_off_notice(self, due: DueNotice, retry_seconds: float) -> None:
        with self._transaction() as now:
            row = self._notices[due.notice.id]
            if row.is_open and row.attempts == due.attempts:
                row.next_try_at, row.lease_until = now + timedelta(seconds=retry_seconds), None

    def give_up_notices(self, after_seconds: float, limit: int) -> Sequence[DueNotice]:
        with self._transaction() as now:
            before = now - timedelta(seconds=after_seconds)
            old = [row for row in self._notices.values() if _is_free(row, now) and row.notice.time < before]
            given_up = sorted(old, key=lambda row: row.notice.time)[:limit]
            for row in given_up:
                row.given_up_at, row.lease_until = now, None
            return [DueNotice(row.notice, row.attempts) for row in given_up]

    def forget_notices(self, after_seconds: float, limit: int) -> int:
        with self._transaction() as now:
            before = now - timedelta(seconds=after_seconds)
            oldest = [self._notices[notice_id] for notice_id in sorted(self._notices)[:limit]]
            old = [row for row in oldest if not row.is_open and row.notice.time < before]
            for row in old:
                del self._notices[row.notice.id]
            return len(old)


def _is_free(row: NoticeRow, now: datetime) -> bool:
    return row.is_open and (row.lease_until is None or row.lease_until < now)
