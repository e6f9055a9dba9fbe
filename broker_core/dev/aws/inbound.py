"""One request to AWS, read and understood: service, Region, action, parameters.

Promise: nothing is believed before the signature was checked by `verified`; the body is kept for that and for moto,
and is never logged. This module imports `signature`, `identity`, `decide`, `conditions` and `wire`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from broker_core.dev.aws import signature
from broker_core.dev.aws.decide import Caller
from broker_core.dev.aws.identity import Identities
from broker_core.dev.aws.wire import AwsError

SERVICES = ("kms", "sts", "iam")
_TARGET = "TrentService."


@dataclass(frozen=True, repr=False)
class Inbound:
    """A signed request. `target` is the raw request target, `headers` have lower-case names."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    claim: signature.Credential
    request_id: str
    action: str
    params: Mapping[str, Any]

    @property
    def service(self) -> str:
        return self.claim.service

    @property
    def region(self) -> str:
        return self.claim.region

    def __repr__(self) -> str:
        return f"<Inbound {self.service}:{self.action}>"

    def text(self, name: str) -> str | None:
        """A parameter that must be a string if it is there. Raises AwsError."""
        value = self.params.get(name)
        if value is not None and not isinstance(value, str):
            raise AwsError("SerializationException", f"{name} is not a string.")
        return value

    def required(self, name: str) -> str:
        """The same, and it must be there."""
        value = self.text(name)
        if not value:
            raise AwsError(
                "ValidationError", f"Value at '{name}' failed to satisfy constraint: Member must not be null"
            )
        return value


def read(method: str, target: str, headers: Mapping[str, str], body: bytes, request_id: str) -> Inbound:
    """Raises AwsError for what is unsigned, for another service, or not understood."""
    claim = signature.parse(headers.get("authorization", ""))
    if claim is None:
        raise AwsError("MissingAuthenticationToken", "Request is missing Authentication Token")
    if claim.service not in SERVICES:
        raise AwsError("InvalidAction", "The double serves KMS, STS and IAM.")
    action, params = _json(headers, body) if claim.service == "kms" else _form(target, body)
    return Inbound(method, target, headers, body, claim, request_id, action, params)


def verified(inbound: Inbound, identities: Identities, now: float) -> Caller:
    """The caller. Raises AwsError for unknown keys, wrong tokens and wrong signatures."""
    caller, secret = identities.look_up(inbound.claim.access_key, inbound.headers.get("x-amz-security-token", ""))
    signature.verify(inbound.claim, secret, inbound.method, inbound.target, inbound.headers, inbound.body, now)
    return caller


def base_context(caller: Caller, region: str, now: float) -> dict[str, tuple[str, ...]]:
    """The global condition keys. `now` is in Unix seconds."""
    context: dict[str, tuple[str, ...]] = {
        "aws:principalarn": (caller.principal_arn,),
        "aws:principalaccount": (caller.account,),
        "aws:principaltype": ({"Root": "Account", "IAMUser": "User"}.get(caller.kind, "AssumedRole"),),
        "aws:userid": (f"{caller.unique_id}:{caller.session_name}" if caller.session_name else caller.unique_id,),
        "aws:currenttime": (_stamp(int(now)),),
        "aws:epochtime": (str(int(now)),),
        "aws:requestedregion": (region,),
        "aws:sourceip": ("127.0.0.1",),
        "aws:securetransport": ("false",),
    }
    if caller.issued_at:
        context["aws:tokenissuetime"] = (_stamp(int(caller.issued_at)),)
    return context


@lru_cache(maxsize=1024)
def _stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(headers: Mapping[str, str], body: bytes) -> tuple[str, Mapping[str, Any]]:
    target = headers.get("x-amz-target", "")
    try:
        params = json.loads(body or b"{}")
    except ValueError:
        raise AwsError("SerializationException", "The body is not JSON.") from None
    if not target.startswith(_TARGET) or not isinstance(params, dict):
        raise AwsError("UnknownOperationException", "The operation is not known.")
    return target.removeprefix(_TARGET), params


def _form(target: str, body: bytes) -> tuple[str, Mapping[str, Any]]:
    pairs = dict(
        parse_qsl(target.partition("?")[2]) + parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    )
    return pairs.get("Action", ""), pairs
