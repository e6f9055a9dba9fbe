"""How a server may read what a caller sends: as it is, percent-decoded, with JSON's escapes undone.

A value or a handle that a caller hides in an escape is found in one of the readings; one level of escapes is undone,
not several at once. No Python code runs for each escape, as it does in ``unquote_to_bytes``: the caller chooses the
body, and ten megabytes of percent signs would keep every thread of a worker waiting for twenty seconds. So the escapes
are written as those of quoted-printable, whose decoder is in C. Pure; imports nothing of ours.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: what begins an escape of one byte
_PERCENT_ESCAPE = re.compile(rb"%(?=[0-9a-fA-F]{2})")
_JSON_ESCAPE = re.compile(rb"\\u00(?=[0-9a-fA-F]{2})")
#: an escape whose end is still to come
_PERCENT_BEGUN = re.compile(rb"%[0-9a-fA-F]?\Z")
_JSON_BEGUN = re.compile(rb"\\(?:u(?:0(?:0[0-9a-fA-F]?)?)?)?\Z")
_NEVER_BEGUN = re.compile(rb"(?!)")


@dataclass(frozen=True)
class Reading:
    """One way of reading. ``signs``: without any of these bytes it reads the data as it is."""

    signs: tuple[bytes, ...]
    read: Callable[[bytes], bytes]
    begun: re.Pattern[bytes]


def _undone(data: bytes, escape: re.Pattern[bytes]) -> bytes:
    """The data with each escape as the byte that it stands for."""
    return binascii.a2b_qp(escape.sub(b"=", data.replace(b"=", b"=3D")))


READINGS = (
    Reading((b"%",), lambda data: _undone(data, _PERCENT_ESCAPE), _PERCENT_BEGUN),
    Reading((b"+",), lambda data: _undone(data.replace(b"+", b" "), _PERCENT_ESCAPE), _PERCENT_BEGUN),
    Reading((b"\\",), lambda data: _undone(data, _JSON_ESCAPE), _JSON_BEGUN),
    Reading((b"\0",), lambda data: data.replace(b"\0", b""), _NEVER_BEGUN),  # ASCII written as UTF-16 or UTF-32
)
#: how many bytes one byte may be written as in any reading (but for any number of NULs)
LONGEST_ESCAPE = 6


def readings(data: bytes) -> Iterator[bytes]:
    """The data as it is, and every other reading that differs from it."""
    yield data
    for reading in READINGS:
        if any(sign in data for sign in reading.signs):
            yield reading.read(data)


class Reader:
    """One reading of data that comes in pieces: together the same as of the whole."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._begun = b""

    def read(self, piece: bytes) -> bytes:
        """What the piece adds."""
        data = self._begun + piece
        begun = self._reading.begun.search(data, max(0, len(data) - LONGEST_ESCAPE))
        end = begun.start() if begun else len(data)
        self._begun = data[end:]
        return self._reading.read(data[:end])

    def rest(self) -> bytes:
        """What was begun and never became an escape."""
        begun, self._begun = self._begun, b""
        return self._reading.read(begun)
