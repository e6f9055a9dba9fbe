"""Which assumed session a use gets: its own (the default), or one shared for seconds (``BROKER_STS_REUSE_SECONDS``).

Promise of the strict source: one AssumeRole for each use, never shared. Promise of the shared one: a session is shared
only by uses for which its policy was made, since role, external id, key, action, workspace and purpose are all in the
key; and it never outlives the shorter of the operator's seconds and its own credentials. Sharing delays the effect of
removing the trust policy, never that of disabling the key or removing the role from the key policy.

How a role is assumed comes in as a function; this module makes no call and maps no error.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from botocore.credentials import Credentials

from broker_core.context import WORKSPACE_KEY
from broker_core.errors import KeyServiceError, Receipt, Transient
from broker_core.policies import Action, Policy, session_policy, shared_session_policy
from broker_core.ports import Clock, KeyUse

#: sessions end this long before AWS would end them, so that none expires on the way
EXPIRY_MARGIN_SECONDS = 60.0


@dataclass(frozen=True)
class Assumed:
    """A session: credentials, and what the audit row keeps of it. ``expires_at`` is on the monotonic clock."""

    credentials: Credentials = field(repr=False)
    receipt: Receipt
    expires_at: float


class Assume(Protocol):
    """Assumes the role of a use's connection. Raises KeyServiceError."""

    def __call__(self, use: KeyUse, policy: Policy, deadline: float) -> Assumed: ...


class SessionSource(Protocol):
    """Where a use gets its session from."""

    def get(self, use: KeyUse, action: Action, deadline: float) -> Assumed:
        """A session for this use, by the ``deadline`` on the monotonic clock. Raises KeyServiceError."""

    def drop(self, session: Assumed) -> None:
        """AWS no longer takes this session: give it to nobody else."""


class StrictSessions:
    """Every use its own session, under its own context."""

    def __init__(self, assume: Assume) -> None:
        self._assume = assume

    def get(self, use: KeyUse, action: Action, deadline: float) -> Assumed:
        """See SessionSource."""
        return self._assume(use, session_policy(action, use.connection.key_arn, use.context), deadline)

    def drop(self, session: Assumed) -> None:
        """Nothing was kept."""


#: role, external id, key, action, workspace, purpose
_Key = tuple[str, str, str, str, str, str]


class _Flight:
    """One AssumeRole under way, and those who wait for it."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.session: Assumed | None = None
        self.error: KeyServiceError | None = None


class SharedSessions:
    """Sessions kept for up to ``seconds``, at most ``limit`` of them; misses for the same key share one AssumeRole."""

    def __init__(self, assume: Assume, clock: Clock, seconds: float, limit: int = 1024) -> None:
        self._assume = assume
        self._clock = clock
        self._seconds = seconds
        self._limit = limit
        self._sessions: OrderedDict[_Key, tuple[float, Assumed]] = OrderedDict()
        self._flights: dict[_Key, _Flight] = {}
        self._lock = threading.Lock()

    def get(self, use: KeyUse, action: Action, deadline: float) -> Assumed:
        """See SessionSource. A waiter gives up at its own deadline, whoever makes the call."""
        key = _key(use, action)
        with self._lock:
            kept = self._live(key)
            if kept is not None:
                return kept
            flight = self._flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
        if is_first:
            return self._fly(flight, key, use, action, deadline)
        return self._wait(flight, deadline)

    def drop(self, session: Assumed) -> None:
        """See SessionSource. A newer session under the same key stays."""
        with self._lock:
            for key in [key for key, (_, kept) in self._sessions.items() if kept is session]:
                del self._sessions[key]

    def _live(self, key: _Key) -> Assumed | None:
        until, session = self._sessions.get(key, (0.0, None))
        if session is None or self._clock.monotonic() >= until:
            self._sessions.pop(key, None)
            return None
        self._sessions.move_to_end(key)
        return session

    def _fly(self, flight: _Flight, key: _Key, use: KeyUse, action: Action, deadline: float) -> Assumed:
        policy = shared_session_policy(action, use.connection.key_arn, use.context)
        asked_at = self._clock.monotonic()
        try:
            session = flight.session = self._assume(use, policy, deadline)
        except KeyServiceError as error:
            flight.error = copy.copy(error)
            raise
        finally:
            with self._lock:
                self._flights.pop(key, None)
                if flight.session is not None:
                    self._keep(key, flight.session, asked_at)
            flight.landed.set()
        return session

    def _keep(self, key: _Key, session: Assumed, asked_at: float) -> None:
        until = min(asked_at + self._seconds, session.expires_at - EXPIRY_MARGIN_SECONDS)
        self._sessions[key] = (until, session)
        while len(self._sessions) > self._limit:
            self._sessions.popitem(last=False)

    def _wait(self, flight: _Flight, deadline: float) -> Assumed:
        if not flight.landed.wait(max(deadline - self._clock.monotonic(), 0.0)):
            raise Transient("the session that this use shares was not assumed in time")
        if flight.session is not None:
            return flight.session
        # each waiter raises an error of its own: an exception that many threads raise collects all their frames
        raise copy.copy(flight.error) if flight.error else Transient("the shared session could not be assumed")


def _key(use: KeyUse, action: Action) -> _Key:
    connection = use.connection
    workspace = use.context[WORKSPACE_KEY]
    return (
        connection.role_arn,
        connection.external_id,
        connection.key_arn,
        action.value,
        workspace,
        use.purpose.value,
    )


class Prove(Protocol):
    """Assumes our own control role in a Region; True when that worked."""

    def __call__(self, region: str, deadline: float) -> bool: ...


@dataclass
class _Verdict:
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = float("-inf")
    works: bool = False


class ControlRole:
    """Does our own side of AssumeRole work in a Region? Asked once for all who ask within ``memo_seconds``.

    Only while it works does a refusal of AssumeRole mean that the customer said no (INV-8).
    """

    def __init__(self, prove: Prove, clock: Clock, memo_seconds: float = 10.0) -> None:
        self._prove = prove
        self._clock = clock
        self._memo_seconds = memo_seconds
        self._verdicts: dict[str, _Verdict] = {}
        self._lock = threading.Lock()

    def works(self, region: str, deadline: float) -> bool:
        """True when it does; False when it does not, or could not be proved by the ``deadline``."""
        with self._lock:
            verdict = self._verdicts.setdefault(region, _Verdict())
        if not verdict.lock.acquire(timeout=max(deadline - self._clock.monotonic(), 0.0)):
            return False
        try:
            if self._clock.monotonic() >= verdict.until:
                verdict.works = self._prove(region, deadline)
                verdict.until = self._clock.monotonic() + self._memo_seconds
            return verdict.works
        finally:
            verdict.lock.release()
