"""The two wire formats: KMS speaks JSON 1.1, STS and IAM the query protocol with XML.

Promise: errors and answers have AWS's shape, status and content type, and every answer its own `x-amzn-RequestId`.
An `AwsError` carries a code and a message, never a value of the request. This module imports nothing of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

_NAMESPACES = {
    "sts": "https://sts.amazonaws.com/doc/2011-06-15/",
    "iam": "https://iam.amazonaws.com/doc/2010-05-08/",
}
_STATUS = {
    "DryRunOperationException": 412,
    "KMSInternalException": 500,
    "KeyUnavailableException": 500,
    "InternalFailure": 500,
    "InternalServiceError": 500,
    "DependencyTimeoutException": 503,
    "ServiceUnavailable": 503,
}
_FORBIDDEN_BY_QUERY = frozenset(
    "AccessDenied ExpiredToken InvalidClientTokenId MissingAuthenticationToken RegionDisabledException "
    "SignatureDoesNotMatch".split()
)
#: the same refusal has another name in each protocol: query → KMS
_IN_KMS = {
    "InvalidClientTokenId": "UnrecognizedClientException",
    "ExpiredToken": "ExpiredTokenException",
    "MissingAuthenticationToken": "MissingAuthenticationTokenException",
    "AccessDenied": "AccessDeniedException",
    "Throttling": "ThrottlingException",
    "ValidationError": "ValidationException",
}


class AwsError(Exception):
    """A refusal as AWS words it. `status` None: the usual one for the code."""

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.status = status

    def named_for(self, service: str) -> AwsError:
        """The same with the code that this service uses."""
        return AwsError(_IN_KMS.get(self.code, self.code), self.message, self.status) if service == "kms" else self


@dataclass(frozen=True)
class Answer:
    """A finished HTTP answer."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(payload: Mapping[str, Any]) -> Answer:
    return Answer(200, json.dumps(payload).encode(), "application/x-amz-json-1.1")


def xml_answer(action: str, result: str, request_id: str) -> Answer:
    """`result` is the inner XML of `<ActionResult>`, already escaped."""
    body = (
        f'<{action}Response xmlns="{_NAMESPACES["sts"]}"><{action}Result>{result}</{action}Result>'
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
    )
    return Answer(200, body.encode(), "text/xml")


def error_answer(service: str, error: AwsError, request_id: str) -> Answer:
    status = error.status or _STATUS.get(error.code) or _default_status(service, error.code)
    if service == "kms":
        body = json.dumps({"__type": error.code, "message": error.message})
        return Answer(status, body.encode(), "application/x-amz-json-1.1")
    fault = "Sender" if status < 500 else "Receiver"
    text = (
        f'<ErrorResponse xmlns="{_NAMESPACES.get(service, _NAMESPACES["sts"])}"><Error><Type>{fault}</Type>'
        f"<Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
        f"<RequestId>{request_id}</RequestId></ErrorResponse>"
    )
    return Answer(status, text.encode(), "text/xml")


def _default_status(service: str, code: str) -> int:
    return 403 if service != "kms" and code in _FORBIDDEN_BY_QUERY else 400


def tags(pairs: Mapping[str, str]) -> str:
    """Flat XML elements."""
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in pairs.items())
