"""What of an upstream's answer may be handed on: its headers without the connection's and the tell-tale ones, and its
body decoded, so that compression does not hide a value from the redaction. Pure.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from broker_core.errors import UpstreamError
from broker_core.inject.kinds import passing
from broker_core.inject.redact import Redactor

Headers = Sequence[tuple[str, str]]

#: digests of the unredacted body: with them a guess at the value could be checked; lengths and encodings are no longer
#: true of what we hand on
_NEVER = frozenset(
    "etag content-md5 digest repr-digest content-digest content-length content-encoding set-cookie2".split()
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2

#: decompressed at once
PIECE = 65_536
#: ordinary text shrinks to a tenth, and what repeats itself to far less: so much of it is not judged by its ratio
FREELY_INFLATED = 1 << 20


def handed_on(headers: Headers, redactor: Redactor) -> list[tuple[str, str]]:
    """The answer's headers for the caller, names and values redacted, without a length. A name with the mask in it is
    none any more, and goes."""
    kept = [(redactor.text(name), text) for name, text in passing(headers) if name.lower() not in _NEVER]
    return [(name, redactor.text(text)) for name, text in kept if _TOKEN.fullmatch(name)]


def decoded(chunks: Iterable[bytes], headers: Headers, max_bytes: int, max_inflation: int) -> Iterator[bytes]:
    """The body without its content coding, in pieces of any size up to ``PIECE`` where it is encoded; never more than
    ``max_bytes``, which must not come encoded either (what gives nothing costs time all the same), nor more than
    ``max_inflation`` times what came (but for the first megabyte).

    Raises UpstreamError (``response_withheld``) for more, for a coding that is not gzip or deflate, for several, and
    for a broken one: what cannot be read cannot be redacted.
    """
    arriving = iter(chunks)
    first = next(arriving, None)
    if first is None:
        return  # what has no body (an answer to HEAD) may name any coding
    coding, given = coding_of(headers), 0
    came = _Counted(chain([first], arriving), max_bytes)
    for piece in came if coding == "identity" else _inflated(came, coding == "deflate"):
        given += len(piece)
        if given > max_bytes:
            raise withheld("the answer is larger than allowed")
        if coding != "identity" and given > FREELY_INFLATED + max_inflation * came.size:
            raise withheld("the answer's compressed body inflates beyond what is allowed")
        yield piece


class _Counted:
    """Chunks, and how many bytes of them were taken; UpstreamError (``response_withheld``) above ``most``."""

    def __init__(self, chunks: Iterable[bytes], most: int) -> None:
        self._chunks = chunks
        self._most = most
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            if self.size > self._most:
                raise withheld("the answer is larger than allowed")
            yield chunk


def withheld(why: str) -> UpstreamError:
    """The answer is kept back."""
    return UpstreamError(why, code="response_withheld")


def coding_of(headers: Headers) -> str:
    """``identity``, ``gzip`` or ``deflate``. Raises UpstreamError as ``decoded``."""
    named = [text.strip().lower() for name, text in headers if name.lower() == "content-encoding"]
    codings = [part.strip() for text in named for part in text.split(",") if part.strip() not in ("", "identity")]
    if not codings:
        return "identity"
    if len(codings) > 1 or codings[0] not in ("gzip", "x-gzip", "deflate"):
        raise withheld("the answer is encoded in a way that we do not decode, although identity was asked for")
    return codings[0]


def _inflated(chunks: Iterable[bytes], is_deflate: bool) -> Iterator[bytes]:
    """Decompress step by step, so that a small bomb cannot fill the memory."""
    machine = None
    for chunk in chunks:
        is_full = False  # where the last piece was, more may be ready although all of the chunk was taken
        while chunk or is_full:
            machine = machine or (_deflate(chunk[0]) if is_deflate else _gzip())
            if machine.eof:
                if not chunk:
                    break
                if is_deflate:
                    raise withheld("something follows the answer's compressed body")
                machine = _gzip()  # a gzip body may have several members (RFC 1952 §2.2)
            try:
                piece = machine.decompress(chunk, PIECE)
            except zlib.error:
                raise withheld("the answer's compressed body is broken") from None
            if piece:
                yield piece
            is_full = len(piece) == PIECE
            chunk = machine.unconsumed_tail or machine.unused_data
    if machine is not None and not machine.eof:
        raise withheld("the answer's compressed body is cut short")


def _gzip() -> zlib._Decompress:
    return zlib.decompressobj(wbits=31)


def _deflate(first: int) -> zlib._Decompress:
    """RFC 9110 says zlib; some servers send it bare. A zlib body begins with method 8, and a bare one hardly ever."""
    return zlib.decompressobj(wbits=15 if first & 0x0F == 8 else -15)
