"""Taking a value out of what an upstream sends back, in every form that an echo is known to have.

The promise: no form of ``forms()`` stands in what comes out, however the body was cut into chunks, and the way it is
held back tells nothing. A constant number of bytes is held back, whatever they are (holding back only what could match
would let an upstream guess byte by byte and watch the timing); they go at a line feed (no form holds one, or the line
feed does not let go) or at the end. Occurrences that overlap are masked as one. The cost grows with the body, whatever
the length of the value and of the chunks.

Pure; imports only its own parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker_core.inject.forms import forms
from broker_core.inject.readings import readings
from broker_core.inject.search import Finder, Text, Texts

__all__ = ["BodyRedactor", "Redactor", "forms"]


class Redactor:
    """Masks the values of one use. Holds their forms for as long as the answer lasts: ``close()`` drops them."""

    def __init__(self, values: Iterable[tuple[str, bytes]]) -> None:
        """``values``: secrets' names and values."""
        named = list(values)
        self._masks = [f"redacted:secret.{name}" for name, _ in named]
        self.texts = Texts(Text(text, index) for index, (_, value) in enumerate(named) for text in forms(value))
        self.hold_back = self.texts.longest - 1
        self.lets_go_at_line_feed = not any(b"\n" in one.text for one in self.texts.all)
        self.count = 0

    def __repr__(self) -> str:
        return "<Redactor>"

    def close(self) -> None:
        """Forget the forms. Safe more than once; redacting raises RuntimeError afterwards."""
        self.texts.close()

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
        """Whether a form stands in ``data``, in any of its readings."""
        return any(one.text in reading for reading in readings(data) for one in self.texts.all)


class BodyRedactor:
    """The machine: ``feed`` gives what is safe to let go, ``finish`` the rest."""

    def __init__(self, redactor: Redactor, masks: Sequence[bytes]) -> None:
        self._redactor = redactor
        self._masks = masks
        self._finder = Finder(redactor.texts)
        self._covered = 0  # up to here a mask stands for what comes

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk; returns what can hold no part of an occurrence that is still to come."""
        self._finder.feed(chunk)
        end = self._finder.end
        limit = max(self._finder.offset, end - self._redactor.hold_back)
        if self._redactor.lets_go_at_line_feed and (line := chunk.rfind(b"\n") + 1):
            limit = max(limit, end - len(chunk) + line)
        return self._let_go(limit)

    def finish(self) -> bytes:
        """The end of the body."""
        return self._let_go(self._finder.end)

    def _let_go(self, limit: int) -> bytes:
        out: list[bytes] = []
        done = max(self._finder.offset, min(self._covered, limit))
        for start, end, secret in self._finder.spans(limit):
            if start >= self._covered:
                out += (self._finder.held(done, start), self._masks[secret])
                self._redactor.count += 1
            self._covered = max(self._covered, end)
            done = max(done, min(self._covered, limit))
        out.append(self._finder.held(done, limit))
        self._finder.let_go(limit)
        return b"".join(out)
