"""One HTTP/1.1 exchange on a wire: the request goes out whole or not at all, the answer comes in bounded.

h11 frames and parses, strictly, and does no I/O; what it leaves open is bounded here: how large a head may be, with the
interim answers before it, how many headers, and how much framing (extensions, trailers) there may be around a body. It
also knows whether both sides ended where they said, which is what ``is_clean`` rests on. Raises whatever h11, ssl and
socket raise: their texts quote headers, so whoever calls goes through ``translated``. Imports no other adapter but the
wire.
"""

from __future__ import annotations

import re
import select
import ssl
from collections.abc import Iterable

import h11

from broker_core.adapters.upstream_wire import Seconds, Timing, Wire
from broker_core.errors import UpstreamError
from broker_core.ports import WireRequest

CHUNK = 65_536
#: of an answer's head, or of one chunk's line, or of the trailers
MOST_LINES_BYTES = 65_536
#: up to the answer's head, interim answers included
MOST_HEAD_BYTES = 131_072
MOST_HEADERS = 100
#: framing beside the body: this much, and so many bytes for each of the body (a chunk of one byte takes five more)
MOST_FRAMING_BYTES = 131_072
MOST_FRAMING_RATIO = 32


class Exchange:
    """A request and its answer. ``begin``, ``push`` for each piece, ``finish``, then ``head``, then ``read``."""

    def __init__(self, wire: Wire, timing: Timing) -> None:
        self._wire = wire
        self._timing = timing
        self._machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_LINES_BYTES)
        self._early: h11.Response | None = None
        self._unsent = b""
        self._received = 0
        self._body = 0
        self._may_be_kept = True
        self._has_ended = False

    def begin(self, request: WireRequest) -> None:
        """Write the head, with the body where that is there as a whole."""
        headers = [(name.encode("ascii"), text.encode("latin-1")) for name, text in request.headers]
        names = {name.lower() for name, _ in headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.LocalProtocolError("two framings")  # one server would believe the one, the next the other
        self._may_be_kept = request.method != "HEAD"  # what a server sends after it in error would be the next answer
        self._unsent = self._framed(h11.Request(method=request.method, target=request.target, headers=headers))
        if isinstance(request.body, bytes):
            self._unsent += self._framed(h11.Data(data=request.body)) if request.body else b""
            self.finish()

    def push(self, piece: bytes) -> bool:
        """Write a piece of the body. False where the upstream has answered already, and the rest need not be sent."""
        return self._write(self._framed(h11.Data(data=piece)), looks=True)

    def finish(self) -> None:
        """The body has ended; write what ends it. Raises UpstreamError where it is shorter than was said."""
        self._write(self._framed(h11.EndOfMessage()), looks=False)

    def head(self) -> h11.Response:
        """The answer's status and headers; 1xx are passed over, and 101, which we never ask for, is none."""
        seconds = self._timing.answer()
        while self._early is None:
            if self._look() is None:
                self._receive(seconds)
        if len(self._early.headers) > MOST_HEADERS:
            raise h11.RemoteProtocolError("too many headers")
        self._may_be_kept = self._may_be_kept and _is_plainly_framed(self._early)
        self._received = 0
        return self._early

    def read(self) -> bytes:
        """Some of the answer's body, as much as has come; ``b""`` when it has ended as it said it would."""
        pieces: list[bytes] = []
        while not self._has_ended:
            event = self._machine.next_event()
            if isinstance(event, h11.Data):
                self._body += len(event.data)
                pieces.append(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._has_ended = True
            elif event is not h11.NEED_DATA:
                raise h11.RemoteProtocolError("no body")
            elif pieces:
                break
            else:
                self._receive(self._timing.idle)
        return b"".join(pieces)

    @property
    def is_clean(self) -> bool:
        """Whether the connection may carry another exchange: both messages ended by their own framing (not by the
        connection), both sides mean to go on, and not a byte is left over."""
        return (
            self._may_be_kept
            and self._machine.our_state is h11.DONE
            and self._machine.their_state is h11.DONE
            and self._machine.trailing_data == (b"", False)
        )

    def _framed(self, event: h11.Event) -> bytes:
        """h11 counts the body against its Content-Length, and refuses more and less."""
        try:
            return self._machine.send(event) or b""
        except h11.LocalProtocolError:
            if isinstance(event, h11.Request):
                raise
        raise UpstreamError("the request's body is not as long as it was said to be")

    def _write(self, data: bytes, *, looks: bool) -> bool:
        left = self._write_until_answered(memoryview(self._unsent + data))
        self._unsent = b""
        if left:
            self._may_be_kept = False  # the upstream would take the next request for the rest of this one
            return False
        return not (looks and self._has_answered())

    def _write_until_answered(self, left: memoryview) -> memoryview:
        """What was not written: nothing, but where the upstream answers first."""
        try:
            while left:
                seconds = self._timing.idle()
                sent = self._wire.write_some(left)
                left = left[sent:]
                if not sent:
                    self._wire.wait(select.POLLIN | select.POLLOUT, seconds)
                    if self._has_answered():
                        break
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # an upstream that has had enough answers, and closes: what it said may still be there to be read
            self._has_answered(must=True)
        return left

    def _has_answered(self, *, must: bool = False) -> bool:
        while self._early is None:
            if self._look() is not None:
                break
            data = self._wire.read_some(CHUNK)
            if data is None and not must:
                return False
            self._take(data or b"")
        return True

    def _look(self) -> h11.Response | None:
        event = self._machine.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = self._machine.next_event()
        if isinstance(event, h11.Response):
            self._early = event
        elif event is not h11.NEED_DATA:
            raise h11.RemoteProtocolError("no answer")
        if self._early is not None and not self._early.http_version.startswith(b"1."):
            raise h11.RemoteProtocolError("another protocol")
        return self._early

    def _receive(self, seconds: Seconds) -> None:
        self._take(self._wire.read(CHUNK, seconds))

    def _take(self, data: bytes) -> None:
        self._received += len(data)
        most = MOST_HEAD_BYTES if self._early is None else MOST_FRAMING_BYTES + MOST_FRAMING_RATIO * self._body
        if self._received - self._body > most:
            raise h11.RemoteProtocolError("more framing than body")
        self._machine.receive_data(data)


def _is_plainly_framed(answer: h11.Response) -> bool:
    """Whether no reader could see another end of this answer. 408 says that the connection is given up."""
    names = [name for name, _ in answer.headers]
    framings = names.count(b"content-length") + names.count(b"transfer-encoding")
    return framings == 1 if answer.status_code not in (204, 304, 408) else not framings and answer.status_code != 408


def pairs_of(answer: h11.Response) -> list[tuple[str, str]]:
    """The headers as they were spelt, without controls."""
    return [(name.decode("ascii"), visible(text)) for name, text in answer.headers.raw_items()]


def visible(text: bytes) -> str:
    """Without controls: some reader drops them, and what it then reads must be what was looked through."""
    return re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", "", text.decode("latin-1"))


def pieces_of(request: WireRequest) -> Iterable[bytes]:
    """What of the body is still to be pushed after ``begin``."""
    return () if isinstance(request.body, bytes) else request.body
