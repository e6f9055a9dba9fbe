"""How a value goes on a request: every variant of its header or parameter is removed, then it is set once (INV-7).

Injected always wins, whoever else tries to set the same thing: by case, by encoding, or by a spelling that some
server reads as the same name. Our own framing and our own headers are the only ones on the wire. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_plus

from broker_core.errors import Invalid
from broker_core.inject.call import Call
from broker_core.inject.url import Address
from broker_core.injection import Injection, Kind
from broker_core.ports import WireRequest

Headers = Sequence[tuple[str, str]]

#: of one connection only (RFC 9110 §7.6.1), in both directions
HOP_BY_HOP = frozenset(
    """connection keep-alive te trailer trailers transfer-encoding upgrade proxy-connection proxy-authorization
    proxy-authenticate proxy-authentication-info http2-settings""".split()
)
#: set by us or not at all: framing; codings, character sets and deltas (RFC 3229) in which a value would not be found;
#: and pieces of an answer (a value in two halves is not found)
_OURS = frozenset("host content-length expect accept-encoding accept-charset a-im range if-range".split())
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # RFC 9110 §5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5: nothing that ends a header
MOST_HEADERS = 100
MOST_HEADER_BYTES = 65_536


@dataclass(frozen=True)
class Prepared:
    """A caller's request, made fit for the wire but for the value."""

    method: str
    address: Address
    headers: Headers = field(repr=False)
    body: bytes | Iterable[bytes] = field(repr=False)
    length: int | None = None  # of the body, where it is known


def prepare(call: Call, address: Address, max_body: int) -> Prepared:
    """Check the caller's headers and body, and drop what steers the connection. Raises Invalid (``headers``,
    ``body``), never quoting them. A body in pieces of unknown length is bounded while it passes."""
    length = len(call.body) if isinstance(call.body, bytes) else call.body_length
    if length is not None and not 0 <= length <= max_body:
        raise Invalid({"body": f"at most {max_body} bytes"}, code="too_large")
    if (
        len(call.headers) > MOST_HEADERS
        or sum(len(name) + len(text) for name, text in call.headers) > MOST_HEADER_BYTES
    ):
        raise Invalid({"headers": f"at most {MOST_HEADERS}, and {MOST_HEADER_BYTES} bytes in all"})
    for name, text in call.headers:
        if not _TOKEN.fullmatch(name):
            raise Invalid({"headers": "a header's name is not an RFC 9110 token"})
        if not _FIELD_VALUE.fullmatch(text):
            raise Invalid({"headers": "a header's value holds a line break, a control or a non-Latin-1 character"})
    kept = [(name, text.strip(" \t")) for name, text in passing(call.headers) if _as_variable(name) not in _OURS]
    return Prepared(call.method, address, kept, call.body, length)


def passing(headers: Headers) -> list[tuple[str, str]]:
    """The headers that may cross us: not of the connection, not nominated by ``Connection``, not our own."""
    nominated = {
        _as_variable(part.strip()) for name, text in headers if name.lower() == "connection" for part in text.split(",")
    }
    dropped = HOP_BY_HOP | nominated
    return [
        (name, text)
        for name, text in headers
        if _as_variable(name) not in dropped and not _as_variable(name).startswith(("axiorank-", "proxy-"))
    ]


def _as_variable(name: str) -> str:
    """One spelling of a header's name: CGI and WSGI servers hand X_Api_Key and X-Api-Key on as one variable."""
    return name.lower().replace("_", "-")


def apply(injection: Injection, value: bytes, request: Prepared) -> WireRequest:
    """The request as it goes on the wire. ``value`` was found fit for its kind (``injection.value_problem``)."""
    headers, target = list(request.headers), request.address.target
    if injection.kind is Kind.QUERY:
        target = with_parameter(target, injection.binding_key or "", value)
    else:
        headers = _with_header(headers, *_header(injection, value))
    return WireRequest(request.method, target, _framed(request, headers), request.body)


def _header(injection: Injection, value: bytes) -> tuple[str, str]:
    text = value.decode("ascii")
    return ("Authorization", f"Bearer {text}") if injection.kind is Kind.BEARER else (injection.binding_key or "", text)


def _with_header(headers: Headers, name: str, text: str) -> list[tuple[str, str]]:
    same = _as_variable(name)
    return [*((other, kept) for other, kept in headers if _as_variable(other) != same), (name, text)]


def with_parameter(target: str, name: str, value: bytes) -> str:
    """The target with every variant of the parameter removed and one set, at the end."""
    path, _, query = target.partition("?")
    # "&" separates, and on some servers ";" does: a name that follows either could be read as the parameter
    pieces = re.split("([&;])", query)
    kept = ""
    for separator, piece in zip(["", *pieces[1::2]], pieces[0::2], strict=True):
        if piece and not _is_same_parameter(piece.partition("=")[0], name):
            kept += (separator if kept else "") + piece
    return f"{path}?{kept}{'&' if kept else ''}{name}={quote(value, safe='')}"


def _is_same_parameter(encoded: str, name: str) -> bool:
    """Whether some server reads both as one name: percent-encoding and ``+`` decoded, any case (ASP.NET), ``.`` and
    space as ``_``, a ``[…]`` suffix as the same variable, a lone ``[`` as ``_``, and cut at a NUL (PHP)."""
    decoded = unquote_plus(encoded, errors="replace").split("\0")[0]
    readings = {decoded} if "[" in name else {decoded.split("[")[0], decoded.replace("[", "_", 1)}
    return _folded(name) in map(_folded, readings)


def _folded(name: str) -> str:
    return re.sub(r"[. ]", "_", name.strip().casefold())


def _framed(request: Prepared, headers: Headers) -> list[tuple[str, str]]:
    """Our own ``Host``, encoding and length around the headers: nobody else's framing, so no request smuggling."""
    framing = [("Host", request.address.host_header), ("Accept-Encoding", "identity")]
    if request.length is None:
        framing.append(("Transfer-Encoding", "chunked"))
    elif request.length or request.method in ("POST", "PUT", "PATCH") or not isinstance(request.body, bytes):
        framing.append(("Content-Length", str(request.length)))
    if not any(name.lower() == "user-agent" for name, _ in headers):
        framing.append(("User-Agent", "AxioRank-Broker"))
    return [*framing, *headers]
