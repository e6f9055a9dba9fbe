"""What a hostile upstream answers: the credential that came, given back in every way that is known, and answers that no
correct server gives. The sample upstream serves each as ``/hostile/<name>``.

- ``ECHOES`` give the credential back where the redaction must find it, or withhold the answer;
- ``LIMITS`` give it back in ways that the redaction is known not to find, and SECURITY.md says so;
- ``BREAKING`` do not end, are too large, or are not framed as HTTP.

The credential is what ``credential`` finds: a bearer, ``X-Api-Key``, or the parameter ``api_key``. Imports
``upstream_routes``.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import quote, quote_plus

from broker_core.dev.upstream_routes import RawResponse, Received, Response, Route, as_json

#: of a bomb's body, decoded; encoded it is a thousandth of that
BOMB_BYTES = 64 * 1024 * 1024
_TEXT = [("Content-Type", "text/plain")]


def credential(request: Received) -> str:
    """What was injected; ``nothing`` if nothing was."""
    bearer = (request.header("Authorization") or "").removeprefix("Bearer ")
    return bearer or request.header("X-Api-Key") or dict(request.parameters).get("api_key") or "nothing"


def _text(write: Callable[[str], str | bytes]) -> Route:
    """A plain body made of the credential."""

    def answer(request: Received) -> Response:
        written = write(credential(request))
        return Response(200, _TEXT, b"you sent " + (written.encode() if isinstance(written, str) else written) + b".")

    return answer


def _head(*headers: tuple[str, Callable[[str], str]], status: int = 200) -> Route:
    """An answer with the credential in these headers."""

    def answer(request: Received) -> Response:
        return Response(status, [(name, write(credential(request))) for name, write in headers], b"{}")

    return answer


def _coded(coding: str, encode: Callable[[bytes], bytes], *, named: bool = True) -> Route:
    """The credential in an encoded body."""

    def answer(request: Received) -> Response:
        headers = [*_TEXT, ("Content-Encoding", coding)] if named else _TEXT
        return Response(200, headers, encode(f"you sent {credential(request)}.".encode()))

    return answer


def _raw(write: Callable[[bytes], bytes | Iterable[bytes]]) -> Route:
    """Bytes of our own, status line included, made of the credential."""

    def answer(request: Received) -> RawResponse:
        written = write(credential(request).encode())
        return RawResponse([written] if isinstance(written, bytes) else written)

    return answer


def _in_base64(before: int, encode: Callable[[bytes], bytes]) -> Route:
    return _text(lambda value: encode(b"." * before + value.encode() + b".."))


def _basic(value: str) -> str:
    return "Basic " + base64.b64encode(f"user:{value}".encode()).decode()


def _hex(value: str) -> str:
    return value.encode().hex()


def _escaped(text: str, characters: str) -> str:
    return re.sub(f"[{re.escape(characters)}]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text)[1:-1])


def _lower_percent(text: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), text)


def _pieces(request: Received, size: int) -> Response:
    text = f"data: you sent {credential(request)}\n\n".encode()
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    return Response(200, [("Content-Type", "text/event-stream")], pieces)


def _digests(request: Received) -> Response:
    """With these a guess could be checked."""
    value = credential(request).encode()
    sha, md5 = (base64.b64encode(make(value).digest()).decode() for make in (hashlib.sha256, hashlib.md5))
    headers = [("Digest", f"sha-256={sha}"), ("Content-MD5", md5), ("ETag", f'"{sha}"')]
    headers += [(name, f"sha-256=:{sha}:") for name in ("Repr-Digest", "Content-Digest")]
    return Response(200, headers, b"{}")


def _trailers(value: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Value\r\n\r\n"
    return head + b"2;x=" + value + b"\r\n{}\r\n0\r\nX-Value: " + value + b"\r\n\r\n"


def _interim(value: bytes) -> bytes:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </" + value + b">\r\n\r\n"
    return early * 2 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


ECHOES: dict[str, Route] = {
    # the head
    "status-line": _raw(lambda value: b"HTTP/1.1 200 " + value + b"\r\nContent-Length: 2\r\n\r\n{}"),
    "header": _head(("X-Echo", str), ("X-Echo", quote), ("X-Basic", _basic), ("X-Hex", _hex)),
    "header-name": lambda request: Response(200, [(f"X-{_hex(credential(request))}", "1")], b"{}"),
    "link": _head(("Link", lambda v: f'<https://api.test/items?api_key={quote(v, safe="")}&page=2>; rel="next"')),
    "location": _head(("Location", lambda v: f"https://elsewhere.test/?token={quote_plus(v)}"), status=302),
    "refresh": _head(("Refresh", lambda v: f"0; url=/?k={v}"), ("Content-Location", lambda v: f"/{quote(v)}")),
    "set-cookie": _head(("Set-Cookie", lambda v: f"session={v}; Path=/"), ("Set-Cookie2", str)),
    "challenge": _head(("WWW-Authenticate", lambda v: f'Bearer error="invalid_token", token="{v}"'), status=401),
    "digests": _digests,
    "trailers": _raw(_trailers),
    "interim": _raw(_interim),
    # the body, by encoding
    "raw": _text(str),
    "rendered": _text(lambda value: f"Authorization: Bearer {value}"),
    "json": lambda request: as_json({"token": credential(request), "next": f"/?k={quote(credential(request))}"}),
    "json-slashes": _text(lambda value: json.dumps(value).replace("/", "\\/")),
    "json-html": _text(lambda value: _escaped(value, "<>&'=")),
    "json-in-json": _text(lambda value: json.dumps(json.dumps({"v": value}))),
    "percent": _text(lambda value: quote(value, safe="")),
    "percent-lower": _text(lambda value: _lower_percent(quote(value, safe=""))),
    "percent-twice": _text(lambda value: "/login?next=" + quote(f"/?k={quote_plus(value)}", safe="")),
    "form": _text(lambda value: f"k={quote_plus(value)}"),
    "html": _text(html.escape),
    "hex": _text(_hex),
    "hex-upper": _text(lambda value: _hex(value).upper()),
    **{f"base64-{before}": _in_base64(before, base64.b64encode) for before in range(3)},
    **{f"base64-url-{before}": _in_base64(before, base64.urlsafe_b64encode) for before in range(3)},
    # the body, by coding and framing
    "gzip": _coded("gzip", gzip.compress),
    "gzip-members": _coded("gzip", lambda body: gzip.compress(body[:12]) + gzip.compress(body[12:])),
    "deflate": _coded("deflate", zlib.compress),
    "deflate-bare": _coded("deflate", lambda body: zlib.compress(body, wbits=-15)),
    "brotli-named": _coded("br", bytes),
    "gzip-twice": _coded("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    "gzip-broken": _coded("gzip", bytes),
    "byte-by-byte": lambda request: _pieces(request, 1),
    "sevens": lambda request: _pieces(request, 7),
    "events": lambda request: _pieces(request, 1000),
    "until-close": _raw(lambda value: b"HTTP/1.1 200 OK\r\n\r\nyou sent " + value),
    "partial": lambda request: Response(206, [("Content-Range", "bytes 0-8/9")], credential(request).encode()),
}


LIMITS: dict[str, Route] = {
    "base64-in-base64": _text(lambda value: base64.b64encode(base64.b64encode(value.encode()))),
    "reversed": _text(lambda value: value[::-1]),
    "halves": _text(lambda value: f"{value[: len(value) // 2]} and {value[len(value) // 2 :]}"),
    "every-character-escaped": _text(lambda value: "".join(f"\\u{ord(character):04x}" for character in value)),
    "utf-16": _text(lambda value: value.encode("utf-16-le")),
    "compressed-unsaid": _coded("", gzip.compress, named=False),
}


def _endless(_: Received) -> Response:
    return Response(200, _TEXT, itertools.repeat(b"x" * 65_536))


def _bomb(_: Received) -> Response:
    return Response(200, [("Content-Encoding", "gzip")], _zeros(zlib.compressobj(9, wbits=31)))


def _zeros(machine: zlib._Compress) -> Iterator[bytes]:
    block = bytes(1024 * 1024)
    for _ in range(BOMB_BYTES // len(block)):
        yield machine.compress(block)
    yield machine.flush()


def _ok(*lines: bytes, body: bytes = b"") -> Route:
    return _raw(lambda _: b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", body)))


def _flood(lines: Sequence[bytes]) -> Route:
    return _raw(lambda _: itertools.chain([b"HTTP/1.1 200 OK\r\n"], lines, [b"\r\n"]))


BREAKING: dict[str, Route] = {
    # too much
    "endless": _endless,
    "bomb": _bomb,
    "header-flood": _flood([b"X-%d: y\r\n" % number for number in range(5_000)]),
    "header-huge": _flood([b"X: " + b"y" * 1_000_000 + b"\r\n"]),
    "interim-endless": _raw(lambda _: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "trailers-endless": _raw(
        lambda _: itertools.chain(
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"], itertools.repeat(b"X: y\r\n" * 1000)
        )
    ),
    # not HTTP
    "no-http": _raw(lambda value: b"SSH-2.0-" + value + b"\r\n"),
    "status-of-letters": _raw(lambda value: b"HTTP/1.1 " + value + b" OK\r\n\r\n"),
    "header-without-colon": _raw(lambda value: b"HTTP/1.1 200 OK\r\n" + value + b"\r\nContent-Length: 2\r\n\r\n{}"),
    "two-lengths": _ok(b"Content-Length: 2", b"Content-Length: 30", body=b"{}"),
    "length-and-chunks": _ok(b"Content-Length: 2", b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "length-of-letters": _ok(b"Content-Length: two", body=b"{}"),
    "length-negative": _ok(b"Content-Length: -2", body=b"{}"),
    "length-too-long": _raw(lambda value: b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + value),
    "chunk-size-of-letters": _raw(
        lambda value: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + value + b"\r\n{}\r\n0\r\n\r\n"
    ),
    "chunk-size-negative": _ok(b"Transfer-Encoding: chunked", body=b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunks-cut-short": _ok(b"Transfer-Encoding: chunked", body=b"ff\r\n{}"),
    # a second answer that nobody asked for: who used the connection again would hand it to somebody else
    "two-answers": _ok(b"Content-Length: 2", body=b"{}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"),
}

HOSTILE: dict[str, Route] = {**ECHOES, **LIMITS, **BREAKING}
