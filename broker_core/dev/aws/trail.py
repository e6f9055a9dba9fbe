"""What was called: the double's CloudTrail.

Promise: every call that reached the double is recorded once, with ids, names and contexts and never with a
plaintext, a ciphertext or a credential's secret half. `record` gives CloudTrail's documented shape (CloudTrail User
Guide, "CloudTrail record contents"; KMS Developer Guide, "Logging KMS API calls"), in the view of the account that
receives it. A call dropped before any work (hang, reset) is not recorded: the service never finished reading it.
This module imports `decide`.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from broker_core.dev.aws.decide import Caller

_LIMIT = 200_000
#: CloudTrail writes some codes shorter than the wire does
_TRAIL_CODES = {"AccessDeniedException": "AccessDenied"}


@dataclass
class Call:
    """One call. `time` is Unix seconds; `key_arn` is known once the key was found."""

    service: str
    event_name: str
    request_id: str
    time: float
    region: str
    access_key: str
    caller: Caller | None = None
    user_agent: str = ""
    key_arn: str | None = None
    role_arn: str | None = None
    """The role that was asked for, or whose session calls."""
    session_name: str | None = None
    """The name asked for, or of the session that calls."""
    encryption_context: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    response: Mapping[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None

    @property
    def action(self) -> str:
        """`kms:Decrypt`"""
        return f"{self.service}:{self.event_name}"

    @property
    def owner(self) -> str:
        """The account of the key or role, else the caller's."""
        arn = self.key_arn or (self.role_arn if self.event_name == "AssumeRole" else None)
        return arn.split(":")[4] if arn else (self.caller.account if self.caller else "")

    def seen_by(self, account: str) -> bool:
        """Whether that account's CloudTrail has it: the caller's, and the owner's of the key or role."""
        return self.caller is not None and account in (self.caller.account, self.owner)

    def record(self, account: str) -> dict[str, Any]:
        """The CloudTrail record that `account` receives."""
        moment = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        record: dict[str, Any] = {
            "eventVersion": "1.11",
            "userIdentity": _user_identity(self.caller, account),
            "eventTime": moment,
            "eventSource": f"{self.service}.amazonaws.com",
            "eventName": self.event_name,
            "awsRegion": self.region,
            "sourceIPAddress": "127.0.0.1",
            "userAgent": self.user_agent,
            "requestParameters": dict(self.parameters) or None,
            "responseElements": None if self.error_code or self.response is None else dict(self.response),
            "requestID": self.request_id,
            "eventID": str(uuid.uuid5(uuid.NAMESPACE_OID, self.request_id)),
            "readOnly": self.event_name.startswith(
                ("Decrypt", "Encrypt", "Generate", "Get", "List", "Describe", "Assume")
            ),
            "resources": self._resources(),
            "eventType": "AwsApiCall",
            "managementEvent": True,
            "recipientAccountId": account,
            "eventCategory": "Management",
        }
        if self.error_code:
            record["errorCode"] = _TRAIL_CODES.get(self.error_code, self.error_code)
            record["errorMessage"] = self.error_message
        return record

    def _resources(self) -> list[dict[str, str]]:
        if self.key_arn:
            return [{"accountId": self.owner, "type": "AWS::KMS::Key", "ARN": self.key_arn}]
        if self.event_name == "AssumeRole" and self.role_arn:
            return [{"accountId": self.owner, "type": "AWS::IAM::Role", "ARN": self.role_arn}]
        return []


class Trail:
    """The calls so far, oldest first; the oldest of more than 200,000 fall out."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=_LIMIT)
        self._lock = threading.Lock()

    def add(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)

    @property
    def calls(self) -> tuple[Call, ...]:
        with self._lock:
            return tuple(self._calls)

    def of(self, action: str, error: str | None = None) -> list[Call]:
        """The calls of one action (`kms:Decrypt`), if given only those that ended with `error`."""
        return [call for call in self.calls if call.action == action and error in (None, call.error_code)]

    def count(self, action: str, error: str | None = None) -> int:
        """How many `of` gives."""
        return len(self.of(action, error))

    def records(self, account: str) -> list[dict[str, Any]]:
        """That account's CloudTrail."""
        return [call.record(account) for call in self.calls if call.seen_by(account)]

    def clear(self) -> None:
        with self._lock:
            self._calls.clear()


def _user_identity(caller: Caller | None, account: str) -> dict[str, Any]:
    """Another account sees of a caller only its id and account, except for a role session."""
    if caller is None:
        return {"type": "Unknown"}
    identity: dict[str, Any] = {"type": caller.kind, "principalId": caller.unique_id, "accountId": caller.account}
    if caller.is_root:
        identity["principalId"] = caller.account
    if caller.kind == "AssumedRole":
        return identity | _session_identity(caller)
    if caller.account != account:
        return identity | {"type": "AWSAccount"}
    user = {"userName": caller.arn.rpartition("/")[2]} if caller.kind == "IAMUser" else {}
    return identity | {"arn": caller.arn, "accessKeyId": caller.access_key} | user


def _session_identity(caller: Caller) -> dict[str, Any]:
    issued = datetime.fromtimestamp(caller.issued_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "principalId": f"{caller.unique_id}:{caller.session_name}",
        "arn": caller.arn,
        "accessKeyId": caller.access_key,
        "sessionContext": {
            "sessionIssuer": {
                "type": "Role",
                "principalId": caller.unique_id,
                "arn": caller.principal_arn,
                "accountId": caller.account,
                "userName": caller.principal_arn.rpartition("/")[2],
            },
            "attributes": {"creationDate": issued, "mfaAuthenticated": "false"},
        },
    }
