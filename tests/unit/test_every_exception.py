"""Pitfall 1: every exception that the libraries below us can raise around a value, holding it, is forced there; nothing
that we raise, log or trace holds any form of it.

The classes are found, not listed: what a new version of a library brings is forced too.
"""

from __future__ import annotations

import builtins
import http.client
import inspect
import logging
import socket
import ssl
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import botocore.exceptions
import botocore.parsers
import h11
import pytest
import urllib3.exceptions
from structlog.testing import capture_logs

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.kms import ask
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.adapters.upstream_line import HttpAnswer, HttpLine
from broker_core.adapters.upstream_wire import Seconds, Timing, Wire
from broker_core.errors import BrokerError, KeyServiceError, UpstreamError
from broker_core.inject import Call
from broker_core.ports import Destination, Patience, WireRequest
from tests.fakes_inject import Broker
from tests.fakes_upstream import FakeUpstream
from tests.sentinel import Search, Sentinel, text_sentinel
from tests.spans import collected

MODULES = [builtins, socket, ssl, http.client, h11, urllib3.exceptions, botocore.exceptions, botocore.parsers]
PATIENCE = Patience(20, 20, 20)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"


def classes(module: ModuleType) -> list[type[Exception]]:
    """Every exception class of a module, but warnings."""
    found = {each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, Exception)}
    return sorted((each for each in found if not issubclass(each, Warning)), key=lambda each: each.__qualname__)


@pytest.fixture(params=MODULES, ids=lambda module: module.__name__)
def kinds(request: pytest.FixtureRequest) -> list[type[Exception]]:
    """The exception classes of one library."""
    return classes(request.param)


@pytest.fixture
def sentinel() -> Sentinel:
    """A value that is found in any form."""
    return text_sentinel("value")


def holding(kind: type[Exception], value: bytes) -> Exception:
    """An instance that quotes the value wherever it can, by way of no constructor: each wants other arguments."""
    text = value.decode()
    error = kind.__new__(kind, *((text, [ValueError(value)]) if issubclass(kind, BaseExceptionGroup) else ()))
    error.args = (text, value)
    for name in ("response", "request", "kwargs", "reason", "line", "object", "pool", "url", "msg", "doc", "body"):
        try:
            setattr(error, name, {"Error": {"Code": text, "Message": text}} if name == "response" else text)
        except (AttributeError, TypeError):
            continue  # not every class lets it be set
    error.__cause__ = ValueError(value)
    error.__context__ = KeyError(text)
    error.add_note(text)
    return error


class RaisingWire:
    """A wire that raises at one step; before it, it answers."""

    def __init__(self, error: Exception, step: str) -> None:
        self._error = error
        self._step = step
        self.since = 0.0
        self._is_answered = False
        self._is_broken = False

    def write_some(self, data: memoryview) -> int:
        self._reach("send")
        return len(data)

    def read_some(self, size: int) -> bytes | None:
        return self.read(size, lambda: 1.0)

    def read(self, size: int, seconds: Seconds) -> bytes:
        self._reach("body" if self._is_answered else "head")
        self._is_answered = True
        return ANSWER

    def close(self) -> None:
        """Nothing is open."""

    def abort(self) -> None:
        """Nothing is open."""

    def _reach(self, step: str) -> None:
        self._is_broken = self._is_broken or step == self._step
        if self._is_broken:
            raise self._error


def line_with(error: Exception, step: str) -> HttpLine:
    wire = cast(Wire, RaisingWire(error, step))
    return HttpLine(wire, Timing(lambda: 0.0, PATIENCE), None, lambda _: None)


def exchange(line: HttpLine, value: bytes) -> bytes:
    headers = [("Host", "a.test"), ("Authorization", f"Bearer {value.decode()}")]
    answer: HttpAnswer = line.send(WireRequest("GET", "/x", headers))
    return b"".join(answer.chunks())


class RaisingUpstream(FakeUpstream):
    """An upstream whose lines raise; or that raises while it connects, as the real one would pass it on."""

    def __init__(self, error: Exception, step: str) -> None:
        super().__init__()
        self._failing = error, step

    def connect(self, destination: Destination, *_: Any, **__: Any) -> Any:  # type: ignore[override]  # real lines
        return line_with(*self._failing)


@contextmanager
def watched(caplog: pytest.LogCaptureFixture) -> Iterator[list[bytes]]:
    """What is logged, at DEBUG and by whatever way, and what is traced in the block."""
    caplog.set_level(logging.DEBUG)
    seen: list[bytes] = []
    with collected() as spans, capture_logs() as logs:
        yield seen
        seen += [repr(logs).encode(), caplog.text.encode()]
        seen += [(span.to_json() or "").encode() for span in spans.get_finished_spans()]


def shown(error: BaseException) -> bytes:
    """All that an error of ours shows of itself."""
    lines = traceback.format_exception(error)
    return "\n".join([*lines, repr(error), str(error), repr(vars(error)), repr(error.args)]).encode()


def found(search: Search, errors: Iterable[BaseException]) -> list[str]:
    """Where the value was found, and any exception that still hangs on one of ours."""
    hits = []
    for error in errors:
        hits += search(type(error).__name__, shown(error))
        hits += [repr(type(other)) for other in (error.__cause__, error.__context__) if other is not None]
    return hits


@pytest.mark.parametrize("step", ["send", "head", "body"])
def test_pitfall_01_around_a_line(
    kinds: list[type[Exception]], sentinel: Sentinel, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing the request, waiting for the answer, reading its body."""
    errors = []
    with watched(caplog) as seen:
        for kind in kinds:
            with pytest.raises(UpstreamError) as raised:
                exchange(line_with(holding(kind, sentinel.value), step), sentinel.value)
            errors.append(raised.value)
    search = Search([sentinel])

    assert len(errors) == len(kinds) > 0
    assert found(search, errors) == []
    assert [hit for data in seen for hit in search("log or span", data)] == []


@pytest.mark.parametrize("step", ["resolve", "connect", "tls"])
def test_pitfall_01_around_connecting(
    kinds: list[type[Exception]], sentinel: Sentinel, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver, the socket, the handshake."""
    current: list[Exception] = []
    upstream = failing(monkeypatch, current, step)
    errors = []
    for kind in kinds:
        current[:] = [holding(kind, sentinel.value)]
        with pytest.raises(UpstreamError) as raised:
            upstream.connect(Destination("a.test", 443), PATIENCE, "ws")
        errors.append(raised.value)

    assert found(Search([sentinel]), errors) == []


def failing(patch: pytest.MonkeyPatch, current: list[Exception], step: str) -> HttpsUpstream:
    """A way out that raises the current exception at one step of connecting."""

    def raising(*_: Any, **__: Any) -> Any:
        raise current[0]

    def resolve(*_: Any, **__: Any) -> Any:
        return raising() if step == "resolve" else [(2, 1, 6, "", ("8.8.8.8", 443))]

    connected = raising if step == "connect" else lambda *_: UnconnectedSocket()
    patch.setattr(socket, "create_connection", connected)
    patch.setattr(ssl.SSLContext, "wrap_socket", raising)
    return HttpsUpstream(Egress(resolve=resolve), SystemClock())


class UnconnectedSocket:
    """Takes every option."""

    def setsockopt(self, *_: Any) -> None:
        """Taken."""

    def settimeout(self, _: float) -> None:
        """Taken."""

    def close(self) -> None:
        """Closed."""


@pytest.mark.parametrize("step", ["send", "head", "body"])
def test_pitfall_01_through_an_injection(
    kinds: list[type[Exception]], sentinel: Sentinel, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole way: what the caller gets, what the log says at DEBUG, what the spans hold."""
    broker = Broker()
    broker.keep("secret", sentinel.value)
    call = Call("ws", "agent", "srv", "GET", "https://api.example.com/x")
    errors = []
    with watched(caplog) as seen:
        for kind in kinds:
            broker.injector._upstream = RaisingUpstream(holding(kind, sentinel.value), step)
            with pytest.raises(BrokerError) as raised:
                broker.injector.send(call)
            errors.append(raised.value)
    search = Search([sentinel])

    assert {type(error) for error in errors} == {UpstreamError}
    assert found(search, errors) == []
    assert [hit for data in seen for hit in search("log or span", data)] == []
    assert len([data for data in seen if b"inject" in data]) > len(kinds)  # there was something to look through


@pytest.mark.parametrize("operation", ["sts.AssumeRole", "kms.Encrypt", "kms.Decrypt"])
def test_pitfall_01_around_a_use_of_a_key(
    kinds: list[type[Exception]], sentinel: Sentinel, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    """AssumeRole, Encrypt and Decrypt: botocore's exceptions hold requests, parameters and answers."""
    errors = []
    with watched(caplog) as seen:
        for kind in kinds:
            error = holding(kind, sentinel.value)
            errors.append(reply_error(operation, error))
    search = Search([sentinel])

    assert found(search, errors) == []
    assert [hit for data in seen for hit in search("log or span", data)] == []


def reply_error(operation: str, error: Exception) -> KeyServiceError:
    def call() -> dict[str, Any]:
        raise error

    with pytest.raises(KeyServiceError) as raised:
        raise_of(ask(operation, call, {}).error)
    return raised.value


def raise_of(error: KeyServiceError | None) -> None:
    assert error is not None
    raise error
