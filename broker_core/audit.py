"""What is recorded about every use of a value or a key: an intent before, an outcome after.

The rule (INV-5): the intent is committed first; where it cannot be written, nothing is assumed, decrypted or released.
A use whose outcome is missing (a crash) is closed as ``unknown`` by the reconciler, so the log never claims less than
what happened. Rows hold ids, names and codes; never a value, a header or a body.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from broker_core.errors import Receipt
from broker_core.model import CipherName, Purpose

_SESSION = re.compile(r"axiorank-[a-z]{1,16}-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")


class Outcome(StrEnum):
    """How a use ended."""

    OK = "ok"
    REFUSED = "refused"  # the key service's, or our own check's, no
    FAILED = "failed"  # something was away; may have reached AWS
    UPSTREAM_FAILED = "upstream_failed"  # released; the upstream's answer did not arrive
    WITHHELD = "withheld"  # released; the answer could not be made safe and was kept back
    ABANDONED = "abandoned"  # released; then ended by the caller, or for what the caller sent: the code says which
    UNKNOWN = "unknown"  # the process ended before it could say


@dataclass(frozen=True)
class Intent:
    """A use that is about to happen. ``id`` is in the RoleSessionName: the customer's CloudTrail leads here."""

    id: UUID
    workspace_id: str
    purpose: Purpose
    cipher: CipherName
    connection_id: UUID | None = None
    secret_id: UUID | None = None
    secret_name: str | None = None
    version: int | None = None
    event_id: UUID | None = None
    agent_id: str | None = None
    mcp_server_id: str | None = None
    method: str | None = None
    target: str | None = None  # host:port, never a path or query: those can hold a value


@dataclass(frozen=True)
class Result:
    """How it ended."""

    outcome: Outcome
    code: str = ""  # ours: a KeyState or an error code
    aws_code: str = ""
    receipt: Receipt = field(default_factory=Receipt)
    upstream_status: int | None = None
    redactions: int | None = None


def session_name(purpose: Purpose, audit_id: UUID) -> str:
    """The RoleSessionName of a use, by which the customer's CloudTrail leads to its row: at most 53 of the 64
    characters that STS allows."""
    return f"axiorank-{purpose.value}-{audit_id}"


def audit_id_in(name: str) -> UUID | None:
    """The row that such a name leads to; None for any other name."""
    found = _SESSION.fullmatch(name)
    return UUID(found[1]) if found else None
