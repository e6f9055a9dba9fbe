"""Accepting an event: the one function behind both doors (HTTP, and this module for producers in Python).

What waits is split: a one-time AES-256-GCM key in the event's row, the ciphertext as a claim in memory-only Redis.
Either half alone is noise, and no file ever holds the second half.

Order: claim (random id), then the row, commit, then the doorbell. A crash at any point leaves nothing, an orphan claim
that expires, or a row that the reconciler rings for. A duplicate deletes its own claim, never the first one's.
Imports no database, Redis or HTTP library.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from uuid import UUID

from broker_core import envelope, telemetry
from broker_core.errors import Conflict, Integrity, Invalid, NotFound, RateLimited, Unavailable
from broker_core.events import IncomingEvent
from broker_core.injection import SHORTEST_REDACTED, Injection, value_problem
from broker_core.model import Event
from broker_core.ports import Accepted, ClaimBox, Draft, IntakeStore, Queue
from broker_core.secret import Plaintext

#: values of one workspace that may wait at a time. A value has at most 64 KiB, so these take at most 64 MiB of the
#: claim Redis, whose memory all workspaces share. A value waits for well under a second, so that only a flood comes
#: near, or a workspace that goes on rotating while its key refuses
MOST_WAITING = 1000


@dataclass(frozen=True)
class Receipt:
    """The answer to an accepted event: where to look for it, and what its owner should know. ``is_new`` is False for an
    event that was accepted before, which is answered like the first time: two such receipts are equal."""

    id: UUID
    status: str
    name: str
    version: int
    secret_id: UUID
    warnings: tuple[str, ...] = ()
    is_new: bool = field(default=True, compare=False)


class Intake:
    """Use case: accept an event."""

    def __init__(
        self,
        store: IntakeStore,
        claims: ClaimBox,
        queue: Queue,
        *,
        ttl_seconds: int,
        new_id: Callable[[], UUID],
        random: Callable[[int], bytes] = os.urandom,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """``ttl_seconds``: life of a claim (``BROKER_CLAIM_TTL_SECONDS``)."""
        self._store = store
        self._claims = claims
        self._queue = queue
        self._ttl_seconds = ttl_seconds
        self._new_id = new_id
        self._random = random
        self._most_waiting = most_waiting

    def accept(
        self,
        event: IncomingEvent,
        *,
        workspace_id: str,
        must_be_new: bool = False,
        must_exist: bool = False,
        is_exclusive: bool = False,
    ) -> Receipt:
        """Accept one event for the caller's workspace (``workspace_id``, from their token).

        ``must_be_new``, ``must_exist`` and ``is_exclusive`` as in ``ports.Draft``. Returns where to follow it; an event
        that was accepted before is answered like the first time.

        Raises Invalid (fields), NotFound (no such workspace, or secret), Conflict (``version_taken``, ``name_taken``,
        ``conflict``), RateLimited (too much waits already) or Unavailable (nothing was kept; send it again).
        """
        with telemetry.span("intake.accept", broker__workspace=workspace_id, broker__event_type=event.type.value):
            if event.workspace_id != workspace_id:
                _wipe(event)
                raise NotFound("no such workspace; the platform creates workspaces")
            draft = replace(
                self._draft(event), must_be_new=must_be_new, must_exist=must_exist, is_exclusive=is_exclusive
            )
            return (
                self._accept_deletion(draft) if event.value is None else self._accept_value(draft, event, event.value)
            )

    def discard(self, workspace_id: str, event_id: UUID) -> Event:
        """End a waiting event as ``deleted`` and forget its claim; the event as it is then.

        Raises NotFound, Conflict when it has ended, or Unavailable.
        """
        self._forget(self._store.discard(workspace_id, event_id))
        return self._store.event(workspace_id, event_id)

    def forget(self, claim_ids: Iterable[str]) -> None:
        """Delete claims whose events have ended. What cannot be deleted now is noise, and expires."""
        for claim_id in claim_ids:
            self._forget(claim_id)

    def _draft(self, event: IncomingEvent) -> Draft:
        return Draft(
            id=self._new_id(),
            workspace_id=event.workspace_id,
            source=event.source,
            event_id=event.id,
            type=event.type,
            name=event.name,
            version=event.version,
            injection=event.injection,
            rotation_policy=event.rotation_policy,
            claim_id=None,
            claim_key=None,
            ttl_seconds=self._ttl_seconds,
            traceparent=telemetry.traceparent(),
            most_waiting=self._most_waiting,
        )

    def _accept_deletion(self, draft: Draft) -> Receipt:
        accepted = self._store.accept(draft)
        self.forget(accepted.released_claims)
        if not accepted.is_new:
            _compare(draft, accepted.event)
        return _receipt(accepted)

    def _accept_value(self, draft: Draft, event: IncomingEvent, value: Plaintext) -> Receipt:
        injection = self._injection_for(draft, value)
        with value.reveal() as view:
            problem = value_problem(injection.kind if injection else None, view)
            if problem:
                raise Invalid({"data.value": problem})
            split = self._split(draft, view)
            accepted = self._accept_split(split)
            if not accepted.is_new:
                self._compare_repeat(split, accepted, view)
            warnings = _warnings(len(view))
        if accepted.is_new:
            self._ring(accepted.event)
        return _receipt(accepted, warnings)

    def _injection_for(self, draft: Draft, value: Plaintext) -> Injection | None:
        """The fields that the value will be used with: its own, or those in place. The workspace is checked here,
        before anything is kept."""
        try:
            in_place = self._store.injection_of(draft.workspace_id, draft.name)
        except BaseException:
            value.wipe()
            raise
        return draft.injection or in_place

    def _split(self, draft: Draft, view: memoryview) -> Draft:
        """Put the ciphertext into the claim box; the draft that comes back holds the other half."""
        key = self._random(envelope.KEY_BYTES)
        claim_id = secrets.token_urlsafe(18)
        sealed = envelope.seal(key, view, claim_binding(draft.workspace_id, draft.name, claim_id))
        self._claims.put(claim_id, sealed, self._ttl_seconds)
        return replace(draft, claim_id=claim_id, claim_key=key)

    def _accept_split(self, draft: Draft) -> Accepted:
        """Write the row. A claim without a row is deleted, unless the commit may have happened: then it expires."""
        try:
            accepted = self._store.accept(draft)
        except (NotFound, Conflict, RateLimited):
            self._forget(draft.claim_id)
            raise
        if not accepted.is_new:
            self._forget(draft.claim_id)
        return accepted

    def _compare_repeat(self, draft: Draft, accepted: Accepted, view: memoryview) -> None:
        """A repeat must say the same: all fields, and the value for as long as the first one's claim is open."""
        _compare(draft, accepted.event)
        if accepted.claim_key is None or accepted.event.claim_id is None:
            return
        sealed = self._claims.get(accepted.event.claim_id)
        if sealed is None:
            return
        binding = claim_binding(draft.workspace_id, draft.name, accepted.event.claim_id)
        try:
            opened = envelope.open_into(accepted.claim_key, sealed, binding)
        except Integrity:
            return  # somebody changed the first claim: its own custody rings the alarm, there is nothing to compare
        try:
            if not hmac.compare_digest(opened, view):
                raise _different({"data.value": "differs from the event accepted under this id"})
        finally:
            envelope.wipe(opened)

    def _ring(self, event: Event) -> None:
        """The row is the truth: a doorbell that fails is rung again by the reconciler."""
        try:
            self._queue.ring(event.type, event.id)
        except Unavailable:
            telemetry.log().warning("intake.doorbell_failed", event_id=str(event.id))

    def _forget(self, claim_id: str | None) -> None:
        try:
            if claim_id:
                self._claims.delete(claim_id)
        except Unavailable:
            telemetry.log().warning("intake.claim_left_to_expire")


def claim_binding(workspace_id: str, name: str, claim_id: str) -> bytes:
    """The associated data of a claim: it opens for this secret and this claim id only. No part can hold a newline."""
    return "\n".join(("axiorank claim 1", workspace_id, name, claim_id)).encode("ascii")


def _compare(draft: Draft, first: Event) -> None:
    same = {
        "type": draft.type is first.type,
        "subject": draft.name == first.name,
        "data.version": draft.version in (None, first.version),
        "data.injectionKind": draft.injection == first.injection,
        "data.rotationPolicy": draft.rotation_policy == first.rotation_policy,
    }
    different = {name: "differs from the event accepted under this id" for name, equal in same.items() if not equal}
    if different:
        raise _different(different)


def _different(fields: dict[str, str]) -> Invalid:
    return Invalid(fields | {"id": "was used for another event; give a new event a new id"})


def _warnings(size: int) -> tuple[str, ...]:
    if size >= SHORTEST_REDACTED:
        return ()
    return (f"the value is shorter than {SHORTEST_REDACTED} bytes, so answers of upstreams are not redacted for it",)


def _receipt(accepted: Accepted, warnings: tuple[str, ...] = ()) -> Receipt:
    event = accepted.event
    return Receipt(
        event.id, event.state.value, event.name, event.version, event.secret_id, warnings, is_new=accepted.is_new
    )


def _wipe(event: IncomingEvent) -> None:
    if event.value is not None:
        event.value.wipe()
