"""The forms of a value: every way in which an echo is known to write it.

Not among them, and said so in SECURITY.md: encryption, compression inside the body, UTF-16, base64 broken into lines,
one value in several encodings at once (but for JSON in JSON and percent in percent), and pieces of a value other than
its ``credentials``. Values under 8 bytes have no form at all: so short a target would shred ordinary text. No form of a
longer value is shorter than 8 bytes.

Pure; imports only injection and its own parts.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

from broker_core.inject.credentials import credentials
from broker_core.injection import SHORTEST_REDACTED

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")


def _percent_table(kept: bytes, space: bytes, digits: str) -> tuple[bytes, ...]:
    """What each byte becomes."""
    table = [
        bytes([byte]) if byte in _UNRESERVED or byte in kept else f"%{byte:{digits}}".encode() for byte in range(256)
    ]
    table[0x20] = space
    return tuple(table)


#: what encoders keep beside letters, digits and "-._", how they write a space, and the case of their digits
_PERCENT_TABLES = tuple(
    _percent_table(kept, space, digits)
    for kept, space in (
        (b"~", b"%20"),  # RFC 3986
        (b"~/", b"%20"),  # Python's quote
        (b"~!'()*", b"%20"),  # encodeURIComponent
        (b"~!#$&'()*+,/:;=?@", b"%20"),  # encodeURI
        (b"~", b"+"),  # Python's quote_plus
        (b"*", b"+"),  # HTML forms, Java
        (b"!()*", b"+"),  # .NET
    )
    for digits in ("02X", "02x")
)
#: what templates write for characters beside ``&``, ``<`` and ``>``
_ENTITIES: tuple[dict[str, str], ...] = (
    {"'": "&#x27;", '"': "&quot;"},  # Python, Django, React
    {"'": "&#39;", '"': "&#34;"},  # Jinja
    {"'": "&#39;", '"': "&#34;", "+": "&#43;"},  # Go
    {"'": "&#039;", '"': "&quot;"},  # PHP
    {"'": "&apos;", '"': "&quot;"},  # XML
    {"'": "&#39;", '"': "&quot;"},  # Ruby, lodash
    {"'": "&#x27;", '"': "&quot;", "/": "&#x2F;"},  # OWASP
    {"'": "&#39;", '"': "&quot;", "/": "&#x2F;", "`": "&#x60;", "=": "&#x3D;"},  # Mustache
    {"'": "&#x27;", '"': "&quot;", "`": "&#x60;", "=": "&#x3D;"},  # Handlebars
    {},  # between tags
)
_PLAIN = re.compile(rb"[A-Za-z0-9._-]+")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_UNICODE = re.compile(r"\\u[0-9a-f]{4}")


def forms(value: bytes) -> frozenset[bytes]:
    """Every form of a value that is looked for; none for a value under 8 bytes.

    The rendered ``Bearer <value>`` needs none of its own: any text that holds a form of it holds one of the value.
    """
    if len(value) < SHORTEST_REDACTED:
        return frozenset()
    found = {form for part in credentials(value) for form in _forms(part)}
    return frozenset(found.union(one for one in _without_controls(value) if len(one) >= SHORTEST_REDACTED))


def _forms(value: bytes) -> Iterator[bytes]:
    yield from (value, value.hex().encode(), value.hex().upper().encode(), *_base64(value))
    if not _PLAIN.fullmatch(value):  # else it is the same percent-encoded, in JSON and in HTML
        yield from (*_percent(value), *_text(value))


def _without_controls(value: bytes) -> Iterator[bytes]:
    """As a header can hold it (controls are dropped from an answer's headers before they are looked through), and as
    a shell or a page puts it on one line."""
    if _CONTROL.search(value):
        yield _CONTROL.sub(b"", value.replace(b"\t", b" "))
        yield _CONTROL.sub(b"", value)
        yield b" ".join(value.split())


def _percent(value: bytes) -> Iterator[bytes]:
    """Once; and twice, as a redirect writes it that carries the request's own URL in a parameter. Twice, an encoder
    changes what its first pass wrote and nothing that it kept; one that keeps a ``/`` is not used for parameters."""
    for table in _PERCENT_TABLES:
        once = b"".join([table[byte] for byte in value])
        yield once
        if b"/" not in once:
            yield once.replace(b"%", b"%25").replace(b"+", b"%2B" if table[0xFF] == b"%FF" else b"%2b")


def _text(value: bytes) -> Iterator[bytes]:
    """JSON and HTML; of a value that is not UTF-8 as Latin-1, the other way that servers read bytes."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
        yield text.encode("utf-8")
    for once in _json(text):
        yield once.encode("utf-8")
    yield json.dumps(json.dumps(text, ensure_ascii=False)[1:-1], ensure_ascii=False)[1:-1].encode()  # JSON in JSON
    for entities in _ENTITIES:
        table = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", **entities})
        yield text.translate(table).encode("utf-8")


def _json(text: str) -> Iterator[str]:
    """As serialisers write it: RFC 8259's least, with ``\\/``, in ASCII; Go and Rails, Gson, .NET."""
    least, in_ascii = json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]
    yield from (least, in_ascii, _upper(in_ascii), least.replace("/", "\\/"), in_ascii.replace("/", "\\/"))
    yield _escaping(least, "<>&\u2028\u2029")
    yield _escaping(least, "<>&'=\u2028\u2029")
    yield _upper(_escaping(in_ascii, "<>&'+`").replace('\\"', "\\u0022"))


def _escaping(text: str, characters: str) -> str:
    for character in characters:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _upper(text: str) -> str:
    return _UNICODE.sub(lambda found: "\\u" + found[0][2:].upper(), text)


def _base64(value: bytes) -> Iterator[bytes]:
    """The characters of a base64 text that depend on the value alone, wherever in a longer text it stands."""
    for before in range(3):
        first, last = -(-8 * before // 6), 8 * (before + len(value)) // 6
        yield base64.b64encode(bytes(before) + value)[first:last]
        yield base64.urlsafe_b64encode(bytes(before) + value)[first:last]
