"""The way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Destination:
    """Where one request goes. ``host`` is in normal form; ``tls`` is False only for an allowed literal loopback."""

    host: str
    port: int
    tls: bool = True

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class WireRequest:
    """One request as it goes on the wire. Holds the value: never shown (``repr`` is off), never logged.

    ``headers`` hold the framing too. A ``body`` that comes in pieces is sent as they come: chunked where the headers
    say so, else as it is; what its iterator raises ends the exchange, and is raised by ``send``.
    """

    method: str
    target: str = field(repr=False)  # path and query
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes | Iterable[bytes] = field(repr=False, default=b"")


@dataclass(frozen=True)
class Patience:
    """Time limits of one exchange, in seconds; what comes first ends it."""

    total: float  # from the connecting to the last byte
    answer: float  # for connecting, and again from the end of the request to the answer's head
    idle: float  # between two bytes, either way


class UpstreamAnswer(Protocol):
    """An upstream's answer, not yet redacted."""

    status: int
    reason: str
    headers: Sequence[tuple[str, str]]

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, decoded of its transfer coding. Raises UpstreamError (also when over time or size)."""

    def close(self) -> None:
        """End the exchange. A connection is never used again after anything but a complete, clean answer. Safe more
        than once."""


class UpstreamLine(Protocol):
    """A connection to a pinned address, its certificate checked for the name."""

    def send(self, request: WireRequest) -> UpstreamAnswer:
        """Send once: no redirects, retries, proxies, netrc or cookies. Raises UpstreamError."""

    def abort(self) -> None:
        """End the exchange from another thread, now: what waits in ``send`` or ``chunks`` raises UpstreamError."""

    def close(self) -> None:
        """Done with it: it is closed, or kept for the pool's next exchange. Safe more than once."""


class Upstream(Protocol):
    """The way out."""

    def connect(self, destination: Destination, patience: Patience, pool: str) -> UpstreamLine:
        """Resolve, check every address against the egress table, pin one, finish TLS and check the certificate; or take
        a connection that an exchange of the same ``pool`` (a workspace) with this address and name left clean.

        Raises InjectionRefused (``destination_blocked``) or UpstreamError. ``patience`` bounds the whole exchange that
        follows on this line, not only the connecting."""
