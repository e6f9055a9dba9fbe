"""Use case: what is protected by the customer's key, and what a revocation would take away. Reads only, and never AWS.

The wording is the product here: each cover says exactly what it protects and what it does not. Imports no library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from broker_core.errors import Invalid
from broker_core.pages import Page, page_of
from broker_core.ports import Clock, Cover, CoveredSecret, Drilled, OverdueSecret, ReportStore

#: what a drill looks back on
PERIOD = timedelta(days=7)

WHY: Mapping[Cover, str] = {
    Cover.CURRENT_KEY: "Encrypted under the key that is connected now. Each use needs a kms:Decrypt in your account;"
    " once you revoke that, AxioRank cannot read it.",
    Cover.OLDER_CONNECTION: "Encrypted under a key of yours by a connection that was replaced or disconnected. What"
    " takes the current connection's role or key away reaches it only where both have the same: revoke each older"
    " connection too, or move it.",
    Cover.PLATFORM: "Not under a key of yours: it was stored while no key was connected, and AxioRank can read it."
    " Your revocation does not reach it.",
    Cover.HELD: "A value on its way in, not yet under your key: AxioRank holds it in memory-only storage, in two"
    " halves, until it is stored or its time is over.",
}
WHAT_TO_DO: Mapping[Cover, str] = {
    Cover.CURRENT_KEY: "Nothing.",
    Cover.OLDER_CONNECTION: "Connect a key first, if none is. Then rotate it, or let AxioRank re-encrypt it under the"
    " current key while the older key still decrypts; then the older connection can be retired.",
    Cover.PLATFORM: "Connect a key first, if none is. Then rotate it to a new credential: the new value goes under your"
    " key. Old backups keep the value that was stored before, so do not give the same one again.",
    Cover.HELD: "Nothing, if it goes away in a moment. Where your key refuses it, let the role use the key again, or"
    " discard the value (DELETE /events/{eventId}).",
}


#: what asks for something to be done comes first
ORDER = (Cover.PLATFORM, Cover.OLDER_CONNECTION, Cover.HELD, Cover.CURRENT_KEY)


@dataclass(frozen=True)
class PlacedSecret:
    """A secret, and the cover that it is under."""

    cover: Cover
    secret: CoveredSecret

    @property
    def cursor(self) -> str:
        """Where a page that ends with it goes on."""
        return f"{self.cover.value}:{self.secret.secret_id}"


@dataclass(frozen=True)
class CoveragePage:
    """How many secrets each cover has, and some of them. ``next``: the cursor of what follows, None at the end."""

    counts: Mapping[Cover, int]
    items: Sequence[PlacedSecret]
    next: str | None


class Reports:
    """Use case: coverage, the revocation drill, and what should have been rotated."""

    def __init__(self, store: ReportStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def coverage(
        self, workspace_id: str, cover: Cover | None = None, cursor: str | None = None, limit: int = 50
    ) -> CoveragePage:
        """All counts, and a page of the secrets of one cover, or of all in ``ORDER``. Raises Invalid, NotFound,
        Unavailable."""
        counts = self._store.coverage(workspace_id)
        covers, after = _after(cursor, (cover,) if cover else ORDER)
        found: list[PlacedSecret] = []
        for each in covers:
            room = limit + 1 - len(found)
            if counts[each] and room:
                secrets = self._store.covered(workspace_id, each, after=after, limit=room)
                found += [PlacedSecret(each, secret) for secret in secrets]
            after = None
        return CoveragePage(counts, found[:limit], found[limit - 1].cursor if len(found) > limit else None)

    def drill(self, workspace_id: str, connection_id: UUID | None = None, limit: int = 200) -> tuple[datetime, Drilled]:
        """Since when was looked, and what a revocation now would affect: everything under one connection, or under any.
        Raises NotFound (workspace, connection), Unavailable."""
        since = self._clock.now() - PERIOD
        return since, self._store.drill(workspace_id, connection_id, since, limit)

    def overdue(self, workspace_id: str, after: UUID | None = None, limit: int = 50) -> Page[OverdueSecret]:
        """A page of the secrets whose rotation is due, oldest id first. Raises NotFound, Unavailable."""
        found = self._store.overdue(workspace_id, after=after, limit=limit + 1)
        return page_of(found, limit, lambda secret: secret.secret_id)


def _after(cursor: str | None, covers: Sequence[Cover]) -> tuple[Sequence[Cover], UUID | None]:
    """The covers that a cursor leaves, and where it is in the first of them. Raises Invalid."""
    if cursor is None:
        return covers, None
    name, _, secret_id = cursor.partition(":")
    try:
        return covers[covers.index(Cover(name)) :], UUID(secret_id)
    except ValueError:
        raise Invalid({"cursor": "give a page's `nextCursor`, with the same `cover`"}) from None
