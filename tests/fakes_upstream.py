"""An upstream in memory: answers by a function, keeps what it was sent, and can be told to fail at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from broker_core.errors import BrokerError, UpstreamError
from broker_core.ports import Destination, WireRequest


@dataclass
class FakeAnswer:
    """An ``UpstreamAnswer``. ``error`` is raised after the last chunk."""

    status: int = 200
    reason: str = "OK"
    headers: Sequence[tuple[str, str]] = ()
    pieces: Iterable[bytes] = ()
    error: Exception | None = None
    is_closed: bool = False

    def chunks(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.is_closed = True


Answering = Callable[[WireRequest], FakeAnswer]


def echo(request: WireRequest) -> FakeAnswer:
    """An answer that shows the whole request, as debugging endpoints and careless error pages do."""
    lines = [f"{request.method} {request.target}", *(f"{name}: {text}" for name, text in request.headers)]
    return FakeAnswer(pieces=["\r\n".join(lines).encode("latin-1"), b"\r\n\r\n", request.body])


@dataclass
class FakeLine:
    """An ``UpstreamLine`` of the fake."""

    upstream: FakeUpstream
    destination: Destination
    is_closed: bool = False

    def send(self, request: WireRequest) -> FakeAnswer:
        if self.is_closed:
            raise UpstreamError("the line is closed")
        self.upstream.note("send")
        if self.upstream.send_error is not None:
            raise self.upstream.send_error
        self.upstream.sent.append((self.destination, request))
        answer = self.upstream.answering(request)
        self.upstream.answers.append(answer)
        return answer

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeUpstream:
    """The ``Upstream`` port. ``note`` is told of each step, so that a test can see the order."""

    answering: Answering = echo
    connect_error: BrokerError | None = None
    send_error: Exception | None = None
    note: Callable[[str], None] = lambda step: None
    lines: list[FakeLine] = field(default_factory=list)
    sent: list[tuple[Destination, WireRequest]] = field(default_factory=list)
    answers: list[FakeAnswer] = field(default_factory=list)

    def connect(self, destination: Destination, seconds: float) -> FakeLine:
        self.note("connect")
        if self.connect_error is not None:
            raise self.connect_error
        line = FakeLine(self, destination)
        self.lines.append(line)
        return line
