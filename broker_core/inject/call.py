"""What a caller asks for and gets back. Neither shows a URL, a header or a body: those can hold a value.

Imports only errors and injection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from broker_core.errors import InjectionRefused, Invalid
from broker_core.injection import ID, NAME

#: TRACE reflects a request, CONNECT tunnels, OPTIONS asks about a server rather than a resource: none carries a value
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Call:
    """One injection that a caller asks for; the workspace is the caller's token's.

    ``url``, ``headers`` and ``body`` are unused for an environment. ``secret`` names one secret, instead of a handle.
    """

    workspace_id: str
    agent_id: str | None
    mcp_server_id: str | None
    method: str = "GET"
    url: str = field(repr=False, default="")
    headers: Sequence[tuple[str, str]] = field(repr=False, default=())
    body: bytes = field(repr=False, default=b"")
    secret: str | None = None
    traceparent: str | None = None

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
