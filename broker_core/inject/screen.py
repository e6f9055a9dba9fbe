"""A request's body that comes in pieces, looked through while it passes.

The promise: what holds a form of the value, or a handle, does not reach the upstream whole. So many bytes are held back
that the longest form, escaped to the last byte, is complete before its first byte goes; nothing else is kept. Each
reading of ``readings`` is followed to the end, across the pieces.

What is left: NULs between the bytes of a form are no bound on its length, so its beginning may have gone before its end
is seen; and what no reading undoes (several escapes at once, compression, base64 broken into lines) passes, as it does
in a whole body. The head of the request, which holds the value, has gone to the upstream before the body is seen.
Imports only its own parts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

from broker_core.errors import BrokerError, ClientGone, Invalid
from broker_core.inject.handle import MARKER, misplaced
from broker_core.inject.readings import LONGEST_ESCAPE, READINGS, Reader, Reading
from broker_core.inject.search import Finder, Text, Texts

#: the meaning of the handle, beside those of the values
_HANDLE = -1


class Screen:
    """Looks through one body. ``close()`` drops what it looks for."""

    def __init__(self, texts: Texts, refusal: Callable[[], BrokerError]) -> None:
        """``texts``: the forms of the value; ``refusal`` makes the error for a body that holds one."""
        self._texts = Texts([*texts.all, Text(MARKER, _HANDLE)])
        self._refusal = refusal
        self._plain = Finder(self._texts)
        self._others = [_Followed(reading, self._texts) for reading in READINGS]
        self._keep = self._texts.longest - 1
        self._hold_back = LONGEST_ESCAPE * self._texts.longest
        self._held = bytearray()

    def __repr__(self) -> str:
        return "<Screen>"

    def feed(self, piece: bytes) -> bytes:
        """Take a piece; returns what may go. Raises what ``refusal`` makes, InjectionRefused (``handle_misplaced``)."""
        for other in self._others:  # before the plain one, whose data a reading begins with
            other.feed(piece, self._plain, self._keep)
        self._plain.feed(piece)
        self._judge()
        self._held += piece
        out = bytes(self._held[: max(0, len(self._held) - self._hold_back)])
        del self._held[: len(out)]
        return out

    def finish(self) -> bytes:
        """The body has ended; raises as ``feed``."""
        for other in self._others:
            other.finish()
        self._judge()
        out = bytes(self._held)
        self._held.clear()
        return out

    def close(self) -> None:
        """Forget it all. Safe more than once."""
        self._texts.close()
        self._held.clear()

    def _judge(self) -> None:
        for finder in (self._plain, *(other.finder for other in self._others)):
            for *_span, meaning in finder.spans(finder.end):
                raise misplaced() if meaning == _HANDLE else self._refusal()
            finder.let_go(max(finder.offset, finder.end - self._keep))


class _Followed:
    """One reading that is followed from its first sign on: before, it would read the data as it is."""

    def __init__(self, reading: Reading, texts: Texts) -> None:
        self.finder = Finder(texts)
        self._reader = Reader(reading)
        self._signs = reading.signs
        self._is_followed = False

    def feed(self, piece: bytes, plain: Finder, keep: int) -> None:
        """Take a piece; ``plain`` holds at least ``keep`` bytes of what came before, where so many came."""
        if not self._is_followed:
            if not any(sign in piece for sign in self._signs):
                return
            self._is_followed = True
            self.finder.feed(plain.held(max(plain.offset, plain.end - keep), plain.end))
        self.finder.feed(self._reader.read(piece))

    def finish(self) -> None:
        """The body has ended."""
        self.finder.feed(self._reader.rest())


def screened(pieces: Iterable[bytes], screen: Screen, length: int | None, most: int) -> Generator[bytes, None, None]:
    """The pieces of a body, looked through and counted: not more than ``most`` bytes, and as long as it was said to be.

    Raises as ``Screen.feed``; Invalid (``too_large``); ClientGone where the body breaks off. An exception of the
    caller's own goes no further, unless it is a BrokerError.
    """
    came, arriving = 0, iter(pieces)
    while (piece := _next(arriving)) is not None:
        came += len(piece)
        if came > (most if length is None else length):
            raise Invalid({"body": "longer than it was said to be, or than is allowed"}, code="too_large")
        if out := screen.feed(piece):
            yield out
    if length is not None and came < length:
        raise _broke_off()
    if out := screen.finish():
        yield out


def _next(pieces: Iterator[bytes]) -> bytes | None:
    try:
        return next(pieces, None)
    except BrokerError:
        raise
    except Exception:  # noqa: BLE001 - whatever ends the caller's body; its text could quote it
        fault = _broke_off()
    raise fault  # outside of the handler: the other one is no context of it


def _broke_off() -> ClientGone:
    return ClientGone("the request's body broke off")
