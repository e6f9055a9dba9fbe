"""``Plaintext``: a value in memory, made so that showing it by accident is a type error.

A value is in our memory from the moment it is opened until the ``with`` block of ``reveal`` ends; then our buffer is
zeroed. Copies that boto3, urllib3, json and ssl make for themselves cannot be wiped from Python: they stay local to one
call and are released at once. Said so in SECURITY.md. This module imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Plaintext:
    """A value, in a buffer of its own.

    >>> repr(Plaintext(b"hunter2-hunter2"))
    '<Plaintext>'

    ``str``, ``format``, ``bytes``, iteration, ``len``, ``pickle``, ``copy``, JSON, hashing and ``==`` raise TypeError.
    The one way in is ``reveal``, once.
    """

    __slots__ = ("_buffer", "_open")

    def __init__(self, value: bytes | bytearray) -> None:
        """Take a value. A ``bytearray`` is adopted (and later zeroed), ``bytes`` are copied."""
        self._buffer = value if isinstance(value, bytearray) else bytearray(value)
        self._open = True

    @contextmanager
    def reveal(self) -> Iterator[memoryview]:
        """Give a view of the value for the length of the block, then zero the buffer.

        Raises ValueError when the value was revealed or wiped before: a value has one use (INV-4).
        """
        if not self._open:
            raise ValueError("this value was already used and wiped")
        self._open = False
        view = memoryview(self._buffer)
        try:
            yield view.toreadonly()
        finally:
            view[:] = bytes(len(view))

    def wipe(self) -> None:
        """Zero the buffer without a use. Safe to call at any time, more than once."""
        self._open = False
        memoryview(self._buffer)[:] = bytes(len(self._buffer))

    def __repr__(self) -> str:
        return "<Plaintext>"

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a Plaintext cannot be shown, copied or compared; use reveal()")

    __str__ = __format__ = __bytes__ = __iter__ = __len__ = __getitem__ = __contains__ = _refuse
    __reduce__ = __reduce_ex__ = __copy__ = __deepcopy__ = __getstate__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = _refuse

    def __bool__(self) -> bool:
        return True
