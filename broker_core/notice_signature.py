"""The signature of a notice: made here, and checked here as receivers check it.

``Axiorank-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256(secret, "{t}.{body}")>``. The time is signed with the body,
so that a captured request is worth nothing after a few minutes; it is that of the sending, so a notice that is sent
again hours later is not too old. While a secret is exchanged there may be several ``v1``: one that fits is enough.

Pure; imports the errors only. docs/webhooks.md has the same check for receivers in Python and TypeScript.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from hashlib import sha256

from broker_core.errors import Unauthorized

#: the headers of a notice
ID_HEADER, EVENT_HEADER, SIGNATURE_HEADER = "Axiorank-Id", "Axiorank-Event", "Axiorank-Signature"
#: seconds that sender's and receiver's clocks may be apart, the way included
TOLERANCE_SECONDS = 300

_TIME = re.compile(r"[0-9]{1,12}")
_MAC = re.compile(r"[0-9a-f]{64}")
#: parts of a header that are looked at: one time, and a few signatures
_MOST_PARTS = 16


def signature(secrets: Sequence[str], seconds: int, body: bytes) -> str:
    """The header's value, one ``v1`` for each secret. ``seconds``: Unix time of the sending."""
    return ",".join([f"t={seconds}", *(f"v1={_mac(secret, str(seconds), body)}" for secret in secrets)])


def check(secrets: Sequence[str], header: str, body: bytes, now: float, tolerance: float = TOLERANCE_SECONDS) -> None:
    """Return only if the header signs this body, with one of the secrets, at about this time (Unix seconds).

    Raises Unauthorized: ``malformed_signature``, ``bad_signature`` or ``too_old`` (also for one from the future). The
    time is looked at last: who cannot sign learns nothing of our clock.
    """
    time, given = _read(header)
    fits = [hmac.compare_digest(_mac(secret, time, body), one) for secret in secrets for one in given]
    if not any(fits):
        raise Unauthorized("no signature in it is of this body under this secret", code="bad_signature")
    if abs(now - int(time)) > tolerance:
        raise Unauthorized("it was signed too long ago, or the clocks are apart", code="too_old")


def _read(header: str) -> tuple[str, list[str]]:
    """The time and the signatures; parts of another name are left alone, so that a ``v2`` may come."""
    parts = [part.strip().partition("=") for part in header.split(",", _MOST_PARTS)]
    times = [value for name, _, value in parts if name == "t"]
    given = [value for name, _, value in parts if name == "v1" and _MAC.fullmatch(value)]
    if len(times) != 1 or not _TIME.fullmatch(times[0]) or not given:
        raise Unauthorized("the header is not t=…,v1=…", code="malformed_signature")
    return times[0], given


def _mac(secret: str, time: str, body: bytes) -> str:
    return hmac.new(secret.encode(), time.encode() + b"." + body, sha256).hexdigest()
