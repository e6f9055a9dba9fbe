"""Finding many long texts at once in data that comes in pieces, in time that grows with the data and no faster.

How the data is cut changes nothing but the cost: what is found where is the same for a whole body and for single bytes.
Each piece is looked at once, together with as much before it as the longest text has. Small pieces are compared at each
of their ends (looking through all that is held back for each byte would take a day for a megabyte); larger ones are
searched.

No regular expression is made of a text: ``re`` keeps patterns in a cache that outlives the use (INV-4). Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from broker_core.injection import SHORTEST_REDACTED

#: how much of a text's end is looked up before the whole of it is compared; none is shorter
_TAIL = SHORTEST_REDACTED
#: so many bytes are searched for a text in the time in which one more end is looked at
_SEARCHED = 256
#: CPython's ``find`` compares at each of so few places byte by byte, however far a text that repeats itself goes on to
#: match: 45 ms where a text of 64 KiB could stand at 2,000 places. Ends are compared in a tenth of that
_FOUND_SLOWLY = 2048
_LONG = 16_384


@dataclass(frozen=True)
class Text:
    """One text that is looked for, at least 8 bytes long, and what it stands for."""

    text: bytes = field(repr=False)
    meaning: int

    @property
    def mark(self) -> bytes:
        """A byte that it holds and most data does not, so that most data need not be searched for it."""
        return next((mark for mark in (b"\\", b"%", b"&", b"\n") if mark in self.text), b"")


class Texts:
    """The texts that are looked for, the longest first. ``close()`` drops them."""

    def __init__(self, texts: Iterable[Text]) -> None:
        self.all: Sequence[Text] = sorted(texts, key=lambda one: -len(one.text))
        self.longest = max((len(one.text) for one in self.all), default=1)
        self.marks = [one.mark for one in self.all]
        #: up to so many bytes at once are cheaper looked at one by one
        cheap = sum(len(one.text) for one in self.all) // _SEARCHED + len(self.all)
        self.few = max(cheap, _FOUND_SLOWLY) if self.longest >= _LONG else cheap
        self.by_tail: defaultdict[bytes, list[int]] = defaultdict(list)
        for rank, one in enumerate(self.all):
            self.by_tail[one.text[-_TAIL:]].append(rank)
        self.is_closed = False

    def __repr__(self) -> str:
        return "<Texts>"

    def close(self) -> None:
        """Forget them. Safe more than once; nothing can be looked for afterwards."""
        self.is_closed = True
        self.all = ()
        self.by_tail = defaultdict(list)


class Finder:
    """Looks through one stream of data. Positions count from its first byte."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._data = bytearray()  # taking from its front moves no bytes
        self._found: list[list[int]] = []  # a heap of [start, rank, end]
        self._last: dict[int, list[int]] = {}
        self.offset = 0  # of the first byte that is held

    @property
    def end(self) -> int:
        """How much has come."""
        return self.offset + len(self._data)

    def feed(self, piece: bytes) -> None:
        """Take a piece, and find what ends in it. Raises RuntimeError once the texts are closed: what is not looked
        through must not pass."""
        if self._texts.is_closed:
            raise RuntimeError("the texts were closed")
        self._data += piece
        if len(piece) <= self._texts.few:
            self._look_at_ends(len(piece))
        else:
            self._search(len(piece))

    def spans(self, limit: int) -> Iterator[tuple[int, int, int]]:
        """Start, end and meaning of what was found, once each, up to those that begin at ``limit``; by start, of one
        start the longest first. Overlapping occurrences of one text may come as one."""
        while self._found and self._found[0][0] < limit:
            start, rank, end = heappop(self._found)
            yield start, end, self._texts.all[rank].meaning

    def held(self, start: int, end: int) -> bytes:
        """What is held of the data between two positions."""
        return bytes(self._data[start - self.offset : end - self.offset])

    def let_go(self, limit: int) -> None:
        """Hold no more of what comes before ``limit``."""
        del self._data[: limit - self.offset]
        self.offset = limit

    def _look_at_ends(self, new: int) -> None:
        data, by_tail = self._data, self._texts.by_tail
        size = len(data)
        first = max(0, size - new - _TAIL + 1)
        recent = bytes(data[first:])
        for at in range(len(recent) - _TAIL + 1):
            for rank in by_tail.get(recent[at : at + _TAIL], ()):
                end = first + at + _TAIL
                start = end - len(self._texts.all[rank].text)
                if start >= 0 and data.startswith(self._texts.all[rank].text, start):
                    self._note(rank, start, end)

    def _search(self, new: int) -> None:
        data, old = self._data, len(self._data) - new
        lowest = max(0, old - self._texts.longest + 1)
        marked = {mark: data.find(mark, lowest) != -1 for mark in set(self._texts.marks)}
        for rank, one in enumerate(self._texts.all):
            if marked[self._texts.marks[rank]]:
                for start, end in _occurrences(data, one.text, max(0, old - len(one.text) + 1)):
                    self._note(rank, start, end)

    def _note(self, rank: int, start: int, end: int) -> None:
        start, end = start + self.offset, end + self.offset
        run = self._last.get(rank)
        if run is not None and self.offset <= run[0] and start < run[2]:  # still held, and overlapping: one run
            run[2] = end
            return
        self._last[rank] = run = [start, rank, end]
        heappush(self._found, run)


def _occurrences(data: bytearray, text: bytes, start: int) -> Iterator[tuple[int, int]]:
    """The runs of overlapping occurrences. Where the data repeats with the distance of two of them, all that follow
    are known, so that ``aaaa…`` costs no more than other data."""
    size = len(text)
    at = data.find(text, start)
    while at != -1:
        first = at
        while (later := data.find(text, at + 1, at + 2 * size - 1)) != -1:
            distance = later - at
            at = later + _repeats(data, later + size, distance) // distance * distance
        yield first, at + size
        at = data.find(text, at + size)


def _repeats(data: bytearray, start: int, distance: int) -> int:
    """For how many bytes from ``start`` on each is the same as the one ``distance`` before it."""
    at, step = start, 64
    while step:
        step = min(step, len(data) - at)
        if step and data[at : at + step] == data[at - distance : at - distance + step]:
            at, step = at + step, step * 2
        else:
            step //= 2
    return at - start
