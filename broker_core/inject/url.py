"""The one parser of an upstream's URL: text in, a destination and a request target out.

What is compared with ``targetHost``, what is resolved, what stands in ``Host`` and what is sent all come from here, so
that no two parts can read one URL in two ways. It refuses rather than repairs: whatever servers and clients are known
to read differently (user info, backslashes, encoded slashes and dots, dot segments) is an error. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from broker_core.errors import InjectionRefused, Invalid
from broker_core.injection import normalise_host
from broker_core.ports import Destination

LONGEST_URL = 16_384

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]|[^\x00-\x20\x7f:/?#@\[\]\\%]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?"
)
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/|\[\]-]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(r"(?:[!$&-;=?-\[\]-~]|%[0-9A-Fa-f]{2})*")  # visible ASCII without " # < > \
# %2e %2f %5c %25 and control characters: one server decodes them before it looks at the path, the next one after
_TWO_READINGS = re.compile(r"%(?:2[eEfF5]|5[cC]|[01][0-9A-Fa-f]|7[fF])")


@dataclass(frozen=True)
class Address:
    """A parsed URL. ``target`` is the path and query as they will be sent."""

    destination: Destination
    target: str = field(repr=False)

    @property
    def host_header(self) -> str:
        """The ``Host`` header: the normal host, and the port unless it is the scheme's own (RFC 9110 §7.2)."""
        usual = 443 if self.destination.tls else 80
        text = str(self.destination)
        return text.removesuffix(f":{usual}") if self.destination.port == usual else text


def parse_url(url: str) -> Address:
    """Parse and normalise. Raises Invalid (``url``), and InjectionRefused (``destination_blocked``) for plain http to
    anything but a literal loopback address: a value never crosses a network in the clear."""
    found = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    if found is None:
        raise _invalid("not an absolute https URL (no user info, no fragment, no spaces, no backslashes)")
    scheme = found["scheme"].lower()
    if scheme not in ("https", "http"):
        raise _invalid("https only")
    host = _host(found["host"])
    if scheme == "http" and not is_loopback_literal(host):
        raise InjectionRefused("plain http is refused; use https", code="destination_blocked")
    port = int(found["port"] or (443 if scheme == "https" else 80))
    if port > 65535:
        raise _invalid("a port is 1 to 65535")
    return Address(Destination(host, port, tls=scheme == "https"), _target(found["path"], found["query"]))


def is_loopback_literal(host: str) -> bool:
    """Whether a normal host is an address of this machine, written as an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(text: str) -> str:
    try:
        return normalise_host(text)
    except Invalid:
        raise _invalid("not a host name or address that we accept") from None


def _target(path: str | None, query: str | None) -> str:
    path, query = path or "/", query or ""
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise _invalid("percent-encode what is not allowed in a path or query (RFC 3986)")
    if _TWO_READINGS.search(path):
        raise _invalid("encoded dots, slashes, backslashes, percent signs and control characters in a path are refused")
    # servlet containers drop ";…" before they resolve dots, so "..;x" is a dot segment too
    if any(segment.split(";", 1)[0] in (".", "..") for segment in path.split("/")):
        raise _invalid("dot segments in a path are refused")
    return path + query


def _invalid(why: str) -> Invalid:
    return Invalid({"url": why})
