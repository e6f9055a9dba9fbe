"""An upstream in memory: answers by a function, keeps what it was sent, and can be told to fail at each step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from broker_core.errors import BrokerError, UpstreamError
from broker_core.ports import Destination, Patience, WireRequest


@dataclass
class FakeAnswer:
    """An ``UpstreamAnswer``. ``error`` is raised after the last chunk. With ``hangs`` nothing comes after the last
    chunk until the line is aborted."""

    status: int = 200
    reason: str = "OK"
    headers: Sequence[tuple[str, str]] = ()
    pieces: Iterable[bytes] = ()
    error: Exception | None = None
    hangs: bool = False
    is_closed: bool = False
    aborted: threading.Event = field(default_factory=threading.Event)

    def chunks(self) -> Iterator[bytes]:
        for piece in self.pieces:
            self._check()
            yield piece
        if self.hangs:
            self.aborted.wait(20)
        self._check()
        if self.error is not None:
            raise self.error

    def _check(self) -> None:
        if self.aborted.is_set() or self.is_closed:
            raise UpstreamError("aborted")

    def close(self) -> None:
        self.is_closed = True


Answering = Callable[[WireRequest], FakeAnswer]


def echo(request: WireRequest) -> FakeAnswer:
    """An answer that shows the whole request, as debugging endpoints and careless error pages do."""
    assert isinstance(request.body, bytes)
    lines = [f"{request.method} {request.target}", *(f"{name}: {text}" for name, text in request.headers)]
    return FakeAnswer(pieces=["\r\n".join(lines).encode("latin-1"), b"\r\n\r\n", request.body])


@dataclass
class FakeLine:
    """An ``UpstreamLine`` of the fake. A body in pieces is read to its end before the answer comes; what was read of it
    stands in ``upstream.arrived``, also where it broke off."""

    upstream: FakeUpstream
    destination: Destination
    is_closed: bool = False
    aborted: threading.Event = field(default_factory=threading.Event)

    def send(self, request: WireRequest) -> FakeAnswer:
        if self.is_closed or self.aborted.is_set():
            raise UpstreamError("the line is closed")
        self.upstream.note("send")
        if self.upstream.send_error is not None:
            raise self.upstream.send_error
        if not isinstance(request.body, bytes):
            request = replace(request, body=self._read(request.body))
        self.upstream.sent.append((self.destination, request))
        if self.upstream.hangs:
            self.aborted.wait(20)
        if self.aborted.is_set():
            raise UpstreamError("aborted")
        answer = self.upstream.answering(request)
        answer.aborted = self.aborted
        self.upstream.answers.append(answer)
        return answer

    def _read(self, pieces: Iterable[bytes]) -> bytes:
        for piece in pieces:
            if self.aborted.is_set():
                raise UpstreamError("aborted")
            self.upstream.arrived += piece
        return bytes(self.upstream.arrived)

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeUpstream:
    """The ``Upstream`` port. ``note`` is told of each step, so that a test can see the order. With ``hangs`` a request
    is not answered until its line is aborted."""

    answering: Answering = echo
    connect_error: BrokerError | None = None
    send_error: Exception | None = None
    hangs: bool = False
    note: Callable[[str], None] = lambda step: None
    lines: list[FakeLine] = field(default_factory=list)
    patience: list[Patience] = field(default_factory=list)
    pools: list[str] = field(default_factory=list)
    sent: list[tuple[Destination, WireRequest]] = field(default_factory=list)
    answers: list[FakeAnswer] = field(default_factory=list)
    arrived: bytearray = field(default_factory=bytearray)

    def connect(self, destination: Destination, patience: Patience, pool: str) -> FakeLine:
        self.note("connect")
        if self.connect_error is not None:
            raise self.connect_error
        self.patience.append(patience)
        self.pools.append(pool)
        line = FakeLine(self, destination)
        self.lines.append(line)
        return line
