"""What a caller asks for and gets back, and how it says that it waits no longer. None of it shows a URL, a header or a
body: those can hold a value.

Imports only errors and injection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from broker_core.errors import ClientGone, InjectionRefused, Invalid, UpstreamError
from broker_core.injection import ID, NAME

#: TRACE reflects a request, CONNECT tunnels, OPTIONS asks about a server rather than a resource: none carries a value
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Call:
    """One injection that a caller asks for; the workspace is the caller's token's.

    ``url``, ``headers`` and ``body`` are unused for an environment. ``secret`` names one secret, instead of a handle.

    A ``body`` in pieces is for ``stream`` alone. It is read once, from the thread that calls ``stream``, while it is
    sent; its waits are its own to bound, and what it raises ends the exchange: a BrokerError as it is, anything else as
    ClientGone. ``body_length``: how long it is, None where that is not known.
    """

    workspace_id: str
    agent_id: str | None
    mcp_server_id: str | None
    method: str = "GET"
    url: str = field(repr=False, default="")
    headers: Sequence[tuple[str, str]] = field(repr=False, default=())
    body: bytes | Iterable[bytes] = field(repr=False, default=b"")
    secret: str | None = None
    traceparent: str | None = None
    body_length: int | None = None

    def check(self) -> None:
        """Check the ids and the method. Raises Invalid, InjectionRefused (``method_refused``)."""
        given = {"workspaceId": self.workspace_id, "agentId": self.agent_id, "mcpServerId": self.mcp_server_id}
        wrong = {
            name: "1 to 64 of A-Z a-z 0-9 _ -"
            for name, value in given.items()
            if value is not None and not ID.fullmatch(value)
        }
        if self.agent_id is None and self.mcp_server_id is None:
            wrong["mcpServerId"] = "give mcpServerId, agentId or both: who asks"
        if self.secret is not None and not NAME.fullmatch(self.secret):
            wrong |= {"secret": "not a secret's name"}
        if wrong:
            raise Invalid(wrong)
        if self.method not in METHODS:
            raise InjectionRefused(f"use one of {', '.join(sorted(METHODS))}", code="method_refused")


@dataclass(frozen=True)
class BrokeredResponse:
    """The upstream's answer, redacted."""

    status: int
    reason: str = field(repr=False)  # with the headers and body: values under 8 bytes are not redacted
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    audit_id: UUID


@dataclass(frozen=True)
class BrokeredEnvironment:
    """Variables for one stdio server, and the audit row of each."""

    variables: Mapping[str, str] = field(repr=False)
    audit_ids: Sequence[UUID]


class Cancellation:
    """How a caller says, from any thread and at any moment, that nobody waits any more."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_cancelled = False
        self._reactions: dict[object, Callable[[], None]] = {}

    def cancel(self) -> None:
        """End what is under way: at once where it waits for the upstream, else at its next step. Never blocks, never
        raises; safe more than once."""
        with self._lock:
            self._is_cancelled = True
            reactions, self._reactions = list(self._reactions.values()), {}
        for react in reactions:
            react()

    def register(self, react: Callable[[], None]) -> Callable[[], None]:
        """Call ``react`` when it is cancelled, at once if it is already; returns what takes that back."""
        key = object()
        with self._lock:
            if not self._is_cancelled:
                self._reactions[key] = react
                return lambda: self._forget(key)
        react()
        return lambda: None

    def check(self) -> None:
        """Raise ClientGone when it is cancelled."""
        if self._is_cancelled:
            raise ClientGone("the caller went away")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """An exchange that breaks off because it was cancelled is the caller's doing, not the upstream's."""
        try:
            yield
        except UpstreamError:
            self.check()
            raise

    def _forget(self, key: object) -> None:
        with self._lock:
            self._reactions.pop(key, None)
