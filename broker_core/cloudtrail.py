"""Use case: match the customer's CloudTrail with our audit log. Was every use of their key a real use?

Every call that our role made of KMS, and every AssumeRole of it, is looked for in our rows: by the request id that AWS
gave both sides, else by the session's name, which holds the audit row's id. What is left on either side is listed, and
so is what others had the key do under our encryption context: no ciphertext of ours opens without it, so nobody opens
one unseen. Both sides are read as streams into a temporary SQLite table, so that neither a year's trail nor a year's
log has to fit into memory; it holds ids, names, times and codes, which is all that either side has.

What this can and cannot show: a trail holds what AWS delivered (minutes late, of the Regions that it covers), and an
AssumeRole that was refused across accounts is written to the caller's account only, so never to the customer's. Imports
no AWS or database library of the product's.

https://docs.aws.amazon.com/kms/latest/developerguide/logging-using-cloudtrail.html
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from broker_core import context
from broker_core.audit import Outcome, audit_id_in, session_name
from broker_core.errors import Invalid
from broker_core.model import Purpose
from broker_core.ports import Use
from broker_core.trail_calls import TrailCall, call_of

#: how late CloudTrail may deliver: what is missing at the end of a trail may only be on its way
DELIVERY = timedelta(minutes=15)


class Verdict(StrEnum):
    """What one call of the customer's trail is to us."""

    MATCHED = "matched"  # the audit row holds this very request id, under this session's name, for what was done
    ATTEMPT = "attempt"  # in the session of a use that we recorded, and AWS refused it: a try before its last
    UNANSWERED = "unanswered"  # the same, and AWS says that it worked: its answer did not reach us, or was not recorded
    THEIRS_ONLY = "theirs_only"  # nothing of ours explains it
    OTHER_PRINCIPAL = "other_principal"  # it worked, under our context, and another principal than our role made it


class Missing(StrEnum):
    """Why a call that we recorded is not in the trail that was given."""

    OUTSIDE = "outside_the_trail"  # before its first call or after its last
    LATE = "may_come_late"  # so near to its end that AWS may still deliver it
    REFUSED_ROLE = "refused_assume_role"  # CloudTrail writes those to the caller's account only
    OURS_ONLY = "ours_only"


@dataclass(frozen=True)
class Finding:
    """A call that stands on one side only."""

    event_name: str
    request_id: str
    session_name: str | None
    time: datetime
    error_code: str | None
    audit_id: UUID | None = None
    key_arn: str | None = None
    principal: str | None = None
    verdict: Verdict | None = None
    why: Missing | None = None


@dataclass(frozen=True)
class Summary:
    """How many of what. ``records``: all that were read; ``calls``: those of our role."""

    records: int
    calls: int
    matched: int
    attempts: int
    unanswered: int
    theirs_only: int
    other_principals: int
    ours_only: int
    ours_outside: int
    ours_late: int
    ours_refused_roles: int
    first: datetime | None
    last: datetime | None

    @property
    def is_explained(self) -> bool:
        """Whether every use of the key for our secrets belongs to a use that we recorded. (Look at ``unanswered`` ones:
        a lost answer and a call that was kept quiet look the same.)"""
        return self.theirs_only == self.other_principals == 0


class Matching:
    """Both sides of one comparison. A context manager: its table is gone at the end."""

    def __init__(self, roles: Collection[str]) -> None:
        """``roles``: the ARNs of the workspace's roles, those of older connections too."""
        self._roles = frozenset(roles)
        self._records = 0
        # "" is SQLite's name for a temporary database that goes to disk when it grows and has no name there
        self._rows = sqlite3.connect("", isolation_level=None)
        self._rows.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._rows.close()

    def add_trail(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Read records of the customer's trail. The same record twice (files overlap) counts once. Raises Invalid for a
        record that is not CloudTrail's."""
        self._rows.execute("BEGIN")
        for record in records:
            self._records += 1
            call = _checked(record, self._roles)
            if call is not None:
                self._rows.execute(_ADD_CALL, _call_values(call))
        self._rows.execute("COMMIT")

    def add_ours(self, uses: Iterable[Use]) -> None:
        """Read rows of our audit log."""
        self._rows.execute("BEGIN")
        self._rows.executemany(_ADD_USE, (_use_values(use) for use in uses))
        self._rows.execute("COMMIT")

    def period(self) -> tuple[datetime, datetime] | None:
        """The first and the last call of our role in the trail."""
        first, last = self._one(_PERIOD)
        return None if first is None else (_moment(first), _moment(last))

    def summary(self) -> Summary:
        """The numbers."""
        period = self.period()
        theirs = dict(self._rows.execute(f"SELECT verdict, count(*) FROM ({_VERDICTS}) GROUP BY verdict"))  # noqa: S608
        ours = dict(self._rows.execute(f"SELECT why, count(*) FROM ({_MISSING}) GROUP BY why", self._bounds()))  # noqa: S608
        return Summary(
            records=self._records,
            calls=sum(count for verdict, count in theirs.items() if verdict != Verdict.OTHER_PRINCIPAL),
            matched=theirs.get(Verdict.MATCHED, 0),
            attempts=theirs.get(Verdict.ATTEMPT, 0),
            unanswered=theirs.get(Verdict.UNANSWERED, 0),
            theirs_only=theirs.get(Verdict.THEIRS_ONLY, 0),
            other_principals=theirs.get(Verdict.OTHER_PRINCIPAL, 0),
            ours_only=ours.get(Missing.OURS_ONLY, 0),
            ours_outside=ours.get(Missing.OUTSIDE, 0),
            ours_late=ours.get(Missing.LATE, 0),
            ours_refused_roles=ours.get(Missing.REFUSED_ROLE, 0),
            first=period[0] if period else None,
            last=period[1] if period else None,
        )

    def unexplained(self) -> Iterator[Finding]:
        """The calls of the trail that no row of ours holds, ``unanswered`` ones included, oldest first."""
        chosen = f"""
            SELECT * FROM ({_VERDICTS}) WHERE verdict IN ('theirs_only', 'other_principal', 'unanswered')
            ORDER BY time, request_id"""  # noqa: S608 - made of constants
        for row in self._each(chosen):
            yield Finding(
                event_name=row["event_name"],
                request_id=row["request_id"],
                session_name=row["session"],
                time=_moment(row["time"]),
                error_code=row["error"],
                audit_id=audit_id_in(row["session"] or ""),
                key_arn=row["key_arn"],
                principal=row["principal"],
                verdict=Verdict(row["verdict"]),
            )

    def ours_only(self) -> Iterator[Finding]:
        """The calls that we recorded and the trail does not hold, oldest first, each with the reason that is known."""
        for row in self._each(f"SELECT * FROM ({_MISSING}) ORDER BY time, request_id", self._bounds()):  # noqa: S608
            yield Finding(
                event_name=row["event_name"],
                request_id=row["request_id"],
                session_name=row["session"],
                time=_moment(row["time"]),
                error_code=row["error"],
                audit_id=UUID(row["audit_id"]),
                why=Missing(row["why"]),
            )

    def _bounds(self) -> dict[str, int | None]:
        first, last = self._one(_PERIOD)
        late = None if last is None else last - int(DELIVERY.total_seconds())
        return {"first": first, "last": last, "late": late}

    def _each(self, statement: str, values: Mapping[str, Any] | None = None) -> Iterator[sqlite3.Row]:
        with closing(self._rows.cursor()) as cursor:
            cursor.row_factory = sqlite3.Row
            yield from cursor.execute(statement, values or {})

    def _one(self, statement: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._rows.execute(statement).fetchone()
        return row


def _checked(record: Mapping[str, Any], roles: Collection[str]) -> TrailCall | None:
    try:
        return call_of(record, roles)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Invalid({"--cloudtrail": "a record is not shaped as CloudTrail documents it"}) from None


def _call_values(call: TrailCall) -> dict[str, Any]:
    audit = audit_id_in(call.session_name or "")
    return {
        "event_id": call.event_id,
        "request_id": call.request_id,
        "event_name": call.event_name,
        "time": int(call.time.timestamp()),
        "session": call.session_name,
        "audit_id": str(audit) if audit else None,
        "error": call.error_code,
        "key_arn": call.key_arn,
        "principal": call.principal,
        **_bound(call.encryption_context),
    }


def _use_values(use: Use) -> dict[str, Any]:
    receipt = use.result.receipt if use.result else None
    return {
        "audit_id": str(use.intent.id),
        "time": int(use.started_at.timestamp()),
        "session": receipt.session_name if receipt else None,
        "assume_id": receipt.assume_request_id if receipt else None,
        "kms_id": receipt.kms_request_id if receipt else None,
        "own_session": session_name(use.intent.purpose, use.intent.id),
        "kms_name": _kms_name(use),
        **_bound(_context_of(use)),
        "error": use.result.aws_code or None if use.result and use.result.outcome is not Outcome.OK else None,
    }


def _kms_name(use: Use) -> str:
    """What a row's one KMS call was. Probes and verifications do both, and so do re-encryptions (for ``encrypt``, and
    of no event); their rows do not say which."""
    purpose = use.intent.purpose
    if purpose in (Purpose.PROBE, Purpose.VERIFY) or (purpose is Purpose.ENCRYPT and use.intent.event_id is None):
        return "Encrypt or Decrypt"
    return "Encrypt" if purpose is Purpose.ENCRYPT else "Decrypt"


def _context_of(use: Use) -> Mapping[str, str]:
    """The context that a row's call had, if it worked; the workspace is empty where the log's lines do not name it.
    Nothing where the row does not say."""
    intent = use.intent
    if intent.secret_name is not None and intent.version is not None:
        return context.for_secret(intent.workspace_id, intent.secret_name, intent.version)
    if intent.purpose in (Purpose.PROBE, Purpose.VERIFY) and intent.connection_id is not None:
        return context.for_canary(intent.workspace_id, intent.connection_id)
    return {}


def _bound(pairs: Mapping[str, str]) -> dict[str, str | None]:
    """A context as two columns: the workspace, and the rest."""
    rest = {name: value for name, value in pairs.items() if name != context.WORKSPACE_KEY}
    return {
        "workspace": pairs.get(context.WORKSPACE_KEY) or None,
        "context": json.dumps(rest, sort_keys=True) if pairs else None,
    }


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


_TABLES = """
    CREATE TABLE trail (event_id TEXT PRIMARY KEY, request_id TEXT, event_name TEXT, time INTEGER, session TEXT,
        audit_id TEXT, error TEXT, key_arn TEXT, principal TEXT, workspace TEXT, context TEXT) WITHOUT ROWID;
    CREATE INDEX trail_request ON trail (request_id);
    CREATE TABLE ours (audit_id TEXT PRIMARY KEY, time INTEGER, session TEXT, assume_id TEXT, kms_id TEXT,
        own_session TEXT, kms_name TEXT, error TEXT, workspace TEXT, context TEXT) WITHOUT ROWID;
    CREATE INDEX ours_session ON ours (session);
"""
_ADD_CALL = """INSERT OR IGNORE INTO trail VALUES (:event_id, :request_id, :event_name, :time, :session, :audit_id,
    :error, :key_arn, :principal, :workspace, :context)"""
_ADD_USE = """INSERT OR REPLACE INTO ours VALUES (:audit_id, :time, :session, :assume_id, :kms_id, :own_session,
    :kms_name, :error, :workspace, :context)"""
_PERIOD = "SELECT min(time), max(time) FROM trail WHERE principal IS NULL"
# What worked must be what the row is about: else one secret could be written down and another one be decrypted.
_FITS = """(t.error IS NOT NULL OR t.event_name = 'AssumeRole'
    OR (t.event_name IN ('Encrypt', 'Decrypt') AND o.kms_name IN (t.event_name, 'Encrypt or Decrypt')
        AND (o.context IS NULL OR o.context = t.context) AND (o.workspace IS NULL OR o.workspace = t.workspace)))"""
# A request id alone explains nothing: the session's name must be the one that the row says. A session that was shared
# by several uses bears the first one's name, and each row of theirs has its AssumeRole's request id too. Of others only
# what they did for the workspaces that our role serves is looked at: a customer may have more, with roles of their own.
_VERDICTS = f"""
    SELECT t.*, CASE
        WHEN t.principal IS NOT NULL THEN 'other_principal'
        WHEN EXISTS (SELECT 1 FROM ours o WHERE o.session = t.session AND {_FITS}
            AND CASE t.event_name WHEN 'AssumeRole' THEN o.assume_id ELSE o.kms_id END = t.request_id) THEN 'matched'
        WHEN EXISTS (SELECT 1 FROM ours o WHERE o.audit_id = t.audit_id AND o.own_session = t.session AND {_FITS})
            OR (EXISTS (SELECT 1 FROM ours o WHERE o.audit_id = t.audit_id AND o.own_session = t.session)
                AND EXISTS (SELECT 1 FROM ours o WHERE o.session = t.session AND {_FITS}))
            THEN CASE WHEN t.error IS NULL THEN 'unanswered' ELSE 'attempt' END
        ELSE 'theirs_only' END AS verdict
    FROM trail t
    WHERE t.principal IS NULL
        OR t.workspace IN (SELECT workspace FROM trail WHERE principal IS NULL UNION SELECT workspace FROM ours)"""  # noqa: S608 - made of constants
_MISSING = """
    SELECT c.*, CASE
        WHEN :first IS NULL OR c.time < :first OR c.time > :last THEN 'outside_the_trail'
        WHEN c.event_name = 'AssumeRole' AND c.was_refused THEN 'refused_assume_role'
        WHEN c.time > :late THEN 'may_come_late'
        ELSE 'ours_only' END AS why
    FROM (
        SELECT audit_id, time, session, 'AssumeRole' AS event_name, assume_id AS request_id, error,
            kms_id IS NULL AND error IS NOT NULL AS was_refused
        FROM ours WHERE assume_id IS NOT NULL
        UNION ALL
        SELECT audit_id, time, session, kms_name, kms_id, error, 0 FROM ours WHERE kms_id IS NOT NULL) c
    WHERE NOT EXISTS (SELECT 1 FROM trail t WHERE t.request_id = c.request_id AND t.principal IS NULL)"""
