"""One call in the customer's trail, as far as it matters here: read from a record of CloudTrail's.

Pure; imports the context's names.

https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from broker_core import context

_SOURCES = {"kms.amazonaws.com", "sts.amazonaws.com"}


@dataclass(frozen=True)
class TrailCall:
    """One call in the customer's trail, as far as it matters here. ``time`` is UTC, to the second as AWS writes it.
    ``principal``: who made it, where that was not our role."""

    event_id: str
    request_id: str
    event_name: str
    time: datetime
    region: str
    session_name: str | None
    error_code: str | None
    key_arn: str | None
    encryption_context: Mapping[str, str] = field(default_factory=dict)
    principal: str | None = None


def call_of(record: Mapping[str, Any], roles: Collection[str]) -> TrailCall | None:
    """The call that a CloudTrail record shows: one of ``roles`` (ARNs) made it, or was assumed by it; or somebody else
    made it, it worked, and it was under a context of ours.

    Raises KeyError, TypeError or ValueError for a record that is not shaped as CloudTrail documents it.
    """
    if record.get("eventSource") not in _SOURCES:
        return None
    is_assume = record["eventSource"].startswith("sts") and record["eventName"] == "AssumeRole"
    asked = record.get("requestParameters") or {}
    role, session = (
        _session_of(record["userIdentity"]) if not is_assume else (asked.get("roleArn"), asked.get("roleSessionName"))
    )
    bound = _context_in(asked)
    is_ours = role in roles
    if not is_ours and (context.WORKSPACE_KEY not in bound or record.get("errorCode") is not None):
        return None
    return TrailCall(
        event_id=_text(record["eventID"]),
        request_id=_text(record.get("requestID") or ""),
        event_name=_text(record["eventName"]),
        time=_time_of(record["eventTime"]),
        region=_text(record["awsRegion"]),
        session_name=_optional(session),
        error_code=_optional(record.get("errorCode")),
        key_arn=_key_of(record),
        encryption_context=bound,
        principal=None if is_ours else _principal_of(record["userIdentity"]),
    )


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise TypeError("not a text")
    given.encode()  # half of a surrogate pair is none either
    return given


def _optional(given: object) -> str | None:
    return None if given is None else _text(given)


def _context_in(asked: Mapping[str, Any]) -> dict[str, str]:
    """The context of the call; of ReEncrypt, which has two, the one that the ciphertext is opened under."""
    found = asked.get("encryptionContext") or asked.get("sourceEncryptionContext") or {}
    return {_text(name): _text(value) for name, value in dict(found).items()}


def _principal_of(identity: Mapping[str, Any]) -> str:
    """An ARN, or what there is where CloudTrail has none: an account, or a service."""
    return _text(identity.get("arn") or identity.get("invokedBy") or identity.get("accountId") or identity["type"])


def _time_of(text: str) -> datetime:
    """As AWS writes it: UTC, to the second. (``strptime`` would take longer than all the rest.)"""
    if len(text) != 20 or not text.endswith("Z"):
        raise ValueError("not a time of CloudTrail's")
    return datetime.fromisoformat(text)


def _session_of(identity: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The role's ARN and the session's name of an AssumedRole caller."""
    if identity.get("type") != "AssumedRole":
        return None, None
    issuer = (identity.get("sessionContext") or {}).get("sessionIssuer") or {}
    return issuer.get("arn"), str(identity["arn"]).rpartition("/")[2]


def _key_of(record: Mapping[str, Any]) -> str | None:
    """The key that the call was of: CloudTrail lists it as a resource."""
    arns = [_text(resource.get("ARN") or "") for resource in record.get("resources") or ()]
    return next((arn for arn in arns if ":kms:" in arn and ":key/" in arn), None)
