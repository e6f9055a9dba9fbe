"""What a server takes out of a value and may write by itself.

A header's value is often more than the credential: ``Basic dXNlcjpw…``, ``token ghp_…``, ``session=…``. A server parses
it, and an error message or an echo shows what was parsed. So each of these counts as the value: what is left without
outer white space (a file's last newline), without the authentication scheme, without the name before a single ``=``,
and a Basic credential decoded, whole and its password alone. Of several pairs in one value (cookies) nobody can say
which are secret: they are pieces of a value. Nothing under 8 bytes is among them. Pure; imports only injection.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator

from broker_core.injection import SHORTEST_REDACTED

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 §5.6.2
_WITH_SCHEME = re.compile(rb"(" + _TOKEN + rb")[ \t]+(.+)", re.DOTALL)  # RFC 9110 §11.4
_NAMED = re.compile(_TOKEN + rb'="?([^",;\s]+?)"?')


def credentials(value: bytes) -> frozenset[bytes]:
    """The value, and what may be taken out of it, each at least 8 bytes long."""
    trimmed = value.strip()
    found = {value, trimmed, *_named(trimmed)}
    if parts := _WITH_SCHEME.fullmatch(trimmed):
        scheme, rest = parts.groups()
        found.update((rest, *_named(rest)), _basic(rest) if scheme.lower() == b"basic" else ())
    return frozenset(one for one in found if len(one) >= SHORTEST_REDACTED)


def _named(text: bytes) -> Iterator[bytes]:
    if found := _NAMED.fullmatch(text):
        yield found[1]


def _basic(encoded: bytes) -> Iterator[bytes]:
    """RFC 7617 §2: user and password."""
    try:
        decoded = binascii.a2b_base64(encoded)
    except binascii.Error:
        return
    yield from (decoded, decoded.partition(b":")[2])
