"""Signature Version 4: is this request signed with that secret?

Promise: the check of the AWS General Reference ("Create a signed AWS API request") for header signatures, which is
what boto3 and the AWS CLI send to KMS, STS and IAM: scope, signed headers, body hash and a clock within 15 minutes.
Presigned URLs and SigV4A are refused as unsigned. This module imports nothing of ours but `wire`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from broker_core.dev.aws.wire import AwsError

_MAX_SKEW_SECONDS = 15 * 60
_HEADER = re.compile(
    r"AWS4-HMAC-SHA256 +Credential=([^/ ,]+)/([0-9]{8})/([^/ ,]+)/([^/ ,]+)/aws4_request, *"
    r"SignedHeaders=([a-z0-9;_-]+), *Signature=([0-9a-f]{64})"
)


@dataclass(frozen=True)
class Credential:
    """What the Authorization header claims."""

    access_key: str
    day: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


def parse(authorization: str) -> Credential | None:
    """The claim, or None if the request is not signed in the way we know."""
    match = _HEADER.fullmatch(authorization.strip())
    if match is None:
        return None
    access_key, day, region, service, names, signature = match.groups()
    return Credential(access_key, day, region, service, tuple(names.split(";")), signature)


def verify(
    claim: Credential, secret: str, method: str, target: str, headers: Mapping[str, str], body: bytes, now: float
) -> None:
    """Returns if the signature is right. `target` is the raw request target, `headers` have lower-case names.

    Raises AwsError with the code of the service that was asked.
    """
    code = "InvalidSignatureException" if claim.service == "kms" else "SignatureDoesNotMatch"
    stamp = headers.get("x-amz-date", "")
    if not stamp.startswith(claim.day) or abs(_seconds(stamp) - now) > _MAX_SKEW_SECONDS:
        raise AwsError(code, "Signature expired: the request's time is not within 15 minutes of ours.")
    if "host" not in claim.signed_headers:
        raise AwsError(code, "'Host' must be a 'SignedHeader' in the AWS Authorization.")
    expected = _signature(claim, secret, stamp, _canonical(claim, method, target, headers, body))
    if not hmac.compare_digest(expected, claim.signature):
        raise AwsError(
            code,
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method. Consult the service documentation for details.",
        )


def _canonical(claim: Credential, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    path, _, query = target.partition("?")
    lines = [f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in claim.signed_headers]
    digest = hashlib.sha256(body).hexdigest()
    ordered = "&".join(sorted(query.split("&"))) if query else ""
    return f"{method}\n{path}\n{ordered}\n{''.join(lines)}\n{';'.join(claim.signed_headers)}\n{digest}".encode()


def _signature(claim: Credential, secret: str, stamp: str, canonical: bytes) -> str:
    scope = f"{claim.day}/{claim.region}/{claim.service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
    return _mac(_key(secret, claim.day, claim.region, claim.service), text).hex()


@lru_cache(maxsize=256)
def _key(secret: str, day: str, region: str, service: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (day, region, service, "aws4_request"):
        key = _mac(key, part)
    return key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


@lru_cache(maxsize=256)
def _seconds(stamp: str) -> float:
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
