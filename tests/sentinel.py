"""Values that cannot be mistaken for anything else, and a search that finds them in whatever form they were written.

A sentinel is made of pieces, each random and each holding characters that look different in every encoding, so that
half of a value (cut off by a limit, split over two records) is found as well. The search reads raw bytes, and knows
nothing of the product's own redaction: the two must not share a mistake.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import secrets
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import redis

_LETTERS = string.ascii_letters + string.digits
_ZEROS = re.compile(rb"\0{64,}")


@dataclass(frozen=True)
class Sentinel:
    """A value to look for. ``pieces`` are what is searched for: any of them is a hit."""

    name: str
    value: bytes = field(repr=False)
    pieces: tuple[bytes, ...] = field(repr=False)


def text_sentinel(name: str, pieces: int = 2) -> Sentinel:
    """Visible ASCII, fit for a header: 32 bytes for each piece. The first, the middle and the last are looked for."""
    made = [_piece() for _ in range(pieces)]
    return Sentinel(name, b"".join(made), tuple({made[0], made[pieces // 2], made[-1]}))


def byte_sentinel(name: str) -> Sentinel:
    """What no header could hold: a line break, a NUL and bytes that are no UTF-8 around a piece."""
    piece = b"\xff\n" + _piece() + b"\0\xfe"
    return Sentinel(name, piece, (piece[2:-2], piece))


def known(name: str, value: bytes) -> Sentinel:
    """A value that somebody else made, such as a data key."""
    return Sentinel(name, value, (value,))


def _piece() -> bytes:
    def letters(count: int) -> str:
        return "".join(secrets.choice(_LETTERS) for _ in range(count))

    return f"{letters(5)}/{letters(4)}+&{letters(4)}\"'\\{letters(4)}%<{letters(4)}={letters(2)}".encode()


def forms(piece: bytes) -> dict[bytes, str]:
    """Every way of writing a piece that is looked for, and what it is called."""
    found = {piece: "raw", piece.hex().encode(): "hex", piece.hex().upper().encode(): "HEX"}
    for shift in range(3):
        first, last = -(-8 * shift // 6), 8 * (shift + len(piece)) // 6
        for kind, encode in (("std", base64.b64encode), ("urlsafe", base64.urlsafe_b64encode)):
            found.setdefault(encode(bytes(shift) + piece)[first:last], f"base64 {kind}, {shift} before")
    for form, name in _texts(piece):
        found.setdefault(form, name)
    return found


def _texts(piece: bytes) -> Iterator[tuple[bytes, str]]:
    for name, quoted in (("all", quote(piece, safe="")), ("path", quote(piece)), ("form", quote_plus(piece))):
        yield quoted.encode(), f"percent, {name}"
        yield quote(quoted, safe="").encode(), f"percent, {name}, twice"
        yield re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), quoted).encode(), f"percent, {name}, lower"
    text = piece.decode("latin-1")
    yield text.encode("utf-16-le"), "utf-16"
    for_pages = re.sub("[<>&'=]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text)[1:-1])
    yield from ((for_pages.encode(), "json for pages"), (html.escape(text).encode(), "html"))
    written = {"json": json.dumps(text)[1:-1], "repr": repr(text)[1:-1], "repr of bytes": repr(piece)[2:-1]}
    for name, form in written.items():
        yield form.encode(), name
        yield form.replace("/", "\\/").encode(), f"{name}, slashes escaped"
        yield json.dumps(form)[1:-1].encode(), f"{name} in json"


class Search:
    """Looks for sentinels in bytes. Says which, as what and where, and never shows one."""

    def __init__(self, sentinels: Iterable[Sentinel]) -> None:
        self._needles = [
            (form, f"{sentinel.name}, {name}")
            for sentinel in sentinels
            for piece in sentinel.pieces
            for form, name in forms(piece).items()
        ]

    def __call__(self, where: str, data: bytes) -> list[str]:
        """What was found; empty for nothing."""
        data = _ZEROS.sub(bytes(64), data)  # a write-ahead log is mostly zeros, and no needle holds as many
        return [f"{name}, in {where}" for needle, name in self._needles if needle in data]

    def files(self, root: Path, unchanged: Mapping[Path, bytes]) -> list[str]:
        """What was found in the files below ``root``. Those still as in ``unchanged``, which was taken before the
        sentinels existed, cannot hold one and are passed over."""
        found = []
        for path, data in _contents(root):
            if unchanged.get(path) != _digest(data):
                found += self(str(path.relative_to(root)), data)
        return found


def digests(root: Path) -> dict[Path, bytes]:
    """Every file below ``root`` as it is now."""
    return {path: _digest(data) for path, data in _contents(root)}


def _contents(root: Path) -> Iterator[tuple[Path, bytes]]:
    # os.walk, and not rglob, passes over directories that a server removes while we look
    for path in sorted(Path(where, name) for where, _, names in os.walk(root) for name in names):
        try:
            if path.is_file() and not path.is_symlink():
                yield path, path.read_bytes()
        except FileNotFoundError:
            continue  # a server's own temporary file that was removed while we looked


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data).digest()


def keys_of(url: str) -> bytes:
    """Every key of a Redis, with all that it holds."""
    client = redis.Redis.from_url(url)
    try:
        return b"\n".join(part for key in client.scan_iter() for part in (key, *_flat(_value(client, key))))
    finally:
        client.close()


def _value(client: redis.Redis, key: bytes) -> object:
    match client.type(key):
        case b"string":
            return client.get(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"hash":
            return client.hgetall(key)
        case b"set":
            return client.smembers(key)
        case b"zset":
            return client.zrange(key, 0, -1)
        case b"none":
            return None  # it ran out, or was taken, while we looked
        case other:
            raise AssertionError(f"a key of type {other!r}, which this does not read")


def _flat(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from (part for pair in value.items() for part in pair)
    elif isinstance(value, list | set):
        yield from (part for part in value if isinstance(part, bytes))
