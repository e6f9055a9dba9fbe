"""Taking a value out of what an upstream sends back, in every form that an echo is known to have.

The promise: no form of ``forms()`` stands in what comes out, however the body was cut into chunks, and the way it is
held back tells nothing. A constant number of bytes is held back, whatever they are (holding back only what could match
would let an upstream guess byte by byte and watch the timing); they go at a line feed (no form holds one, or the line
feed does not let go) or at the end. Occurrences that overlap are masked as one.

Not found, and said so in SECURITY.md: encryption, compression inside the body, UTF-16, base64 broken into lines, one
value in several encodings at once, and pieces of a value. Values under 8 bytes are not redacted at all, in no form: so
short a target would shred ordinary text. No form of a longer value is shorter than 8 bytes.

No regular expression is made of a value: ``re`` keeps patterns in a cache that outlives the use (INV-4).
Pure; imports only injection.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from broker_core.injection import SHORTEST_REDACTED

Span = tuple[int, int, int]  # start, end, and which secret

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
_PLAIN = re.compile(rb"[A-Za-z0-9._-]+")
_UNICODE = re.compile(r"\\u[0-9a-f]{4}")
#: what begins an escape of one byte
_PERCENT_ESCAPE = re.compile(rb"%(?=[0-9a-fA-F]{2})")
_JSON_ESCAPE = re.compile(rb"\\u00(?=[0-9a-fA-F]{2})")


def forms(value: bytes) -> frozenset[bytes]:
    """Every form of a value that is looked for; none for a value under 8 bytes.

    The rendered ``Bearer <value>`` needs none of its own: any text that holds a form of it holds one of the value.
    """
    if len(value) < SHORTEST_REDACTED:
        return frozenset()
    found = {value, value.hex().encode(), value.hex().upper().encode(), *_base64(value)}
    if not _PLAIN.fullmatch(value):  # else it is the same percent-encoded, in JSON and in HTML
        found.update(_percent(value), _text(value))
    return frozenset(found)


def _percent(value: bytes) -> Iterator[bytes]:
    for table in _PERCENT_TABLES:
        yield b"".join([table[byte] for byte in value])


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
    for apostrophe, quotation in (("&#x27;", "&quot;"), ("&#39;", "&#34;"), ("&apos;", "&quot;"), ("'", '"')):
        escaped = html.escape(text, quote=False).replace("'", apostrophe).replace('"', quotation)
        yield escaped.encode("utf-8")


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


@dataclass(frozen=True)
class _Form:
    """One form; ``mark`` is a byte that it holds and most bodies do not, so that most bodies need no search."""

    text: bytes
    mark: bytes
    secret: int


def _mark(text: bytes) -> bytes:
    return next((mark for mark in (b"\\", b"%", b"&", b"\n") if mark in text), b"")


class Redactor:
    """Masks the values of one use. Holds their forms for as long as the answer lasts: ``close()`` drops them."""

    def __init__(self, values: Iterable[tuple[str, bytes]]) -> None:
        """``values``: secrets' names and values."""
        named = list(values)
        self._masks = [f"redacted:secret.{name}" for name, _ in named]
        # the longest first, so that a value that begins another does not win over it
        self._forms = sorted(
            (_Form(text, _mark(text), index) for index, (_, value) in enumerate(named) for text in forms(value)),
            key=lambda form: -len(form.text),
        )
        self.hold_back = max((len(form.text) for form in self._forms), default=1) - 1
        self.lets_go_at_line_feed = not any(b"\n" in form.text for form in self._forms)
        self.count = 0

    def __repr__(self) -> str:
        return "<Redactor>"

    def close(self) -> None:
        """Forget the forms. Safe more than once; nothing can be redacted afterwards."""
        self._forms = []

    def body(self, data: bytes) -> bytes:
        """A whole body, masked. The same as feeding it to ``stream()`` in any pieces."""
        masking = self.stream()
        return masking.feed(data) + masking.finish()

    def text(self, text: str) -> str:
        """A status line's or header's text (Latin-1), masked in ASCII."""
        masking = BodyRedactor(self, [f"[{mask}]".encode("ascii") for mask in self._masks])
        return (masking.feed(text.encode("latin-1", "replace")) + masking.finish()).decode("latin-1")

    def stream(self) -> BodyRedactor:
        """A machine for one body."""
        return BodyRedactor(self, [f"«{mask}»".encode() for mask in self._masks])

    def finds_in(self, data: bytes) -> bool:
        """Whether a form stands in ``data`` as it is, percent-decoded, or with JSON's ``\\u00XX`` undone."""
        readings = [data]
        if b"%" in data:
            readings.append(_undone(data, _PERCENT_ESCAPE))
        if b"+" in data:
            readings.append(_undone(data.replace(b"+", b" "), _PERCENT_ESCAPE))
        if b"\\u00" in data:
            readings.append(_undone(data, _JSON_ESCAPE))
        return any(form.text in reading for form in self._forms for reading in readings)

    def spans(self, data: bytes) -> list[Span]:
        """Where forms stand, by start, of one start the longest form first; overlapping ones of one form as one."""
        marked = {mark: mark in data for mark in {form.mark for form in self._forms}}
        found = [
            (start, end, form.secret)
            for form in self._forms
            if marked[form.mark]
            for start, end in _occurrences(data, form.text)
        ]
        return sorted(found, key=lambda span: span[0])  # stable: the forms come longest first


def _undone(data: bytes, escape: re.Pattern[bytes]) -> bytes:
    """The data with each escape as the byte that it stands for.

    No Python code runs for each of them, as it does in ``unquote_to_bytes``: the caller chooses the body, and ten
    megabytes of percent signs would keep every thread of a worker waiting for twenty seconds. So the escapes are
    written as those of quoted-printable, whose decoder is in C.
    """
    return binascii.a2b_qp(escape.sub(b"=", data.replace(b"=", b"=3D")))


def _occurrences(data: bytes, form: bytes) -> Iterator[tuple[int, int]]:
    """The runs of overlapping occurrences. The last one that begins inside a run is searched from its end, so that
    ``aaaa…`` costs no more than other text."""
    size = len(form)
    start = data.find(form)
    while start != -1:
        last, end = start, start + size
        while (later := data.rfind(form, last + 1, end + size - 1)) != -1:
            last, end = later, later + size
        yield start, end
        start = data.find(form, end)


class BodyRedactor:
    """The machine: ``feed`` gives what is safe to let go, ``finish`` the rest."""

    def __init__(self, redactor: Redactor, masks: Sequence[bytes]) -> None:
        self._redactor = redactor
        self._masks = masks
        self._held = b""
        self._covered = 0  # bytes at the front of what is held that a mask already stands for

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk; returns what can hold no part of an occurrence that is still to come."""
        data = self._held + chunk
        limit = max(0, len(data) - self._redactor.hold_back)
        if self._redactor.lets_go_at_line_feed:
            limit = max(limit, data.rfind(b"\n") + 1)
        return self._let_go(data, limit)

    def finish(self) -> bytes:
        """The end of the body."""
        return self._let_go(self._held, len(self._held))

    def _let_go(self, data: bytes, limit: int) -> bytes:
        out: list[bytes] = []
        covered = self._covered
        done = min(covered, limit)
        for start, end, secret in self._redactor.spans(data):
            if start >= limit:
                break
            if start >= covered:
                out += (data[done:start], self._masks[secret])
                self._redactor.count += 1
            covered = max(covered, end)
            done = min(covered, limit)
        out.append(data[done:limit])
        self._held = data[limit:]
        self._covered = max(0, covered - limit)
        return b"".join(out)
