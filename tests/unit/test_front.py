"""The head of a request at our own door, in whatever pieces it comes."""

from __future__ import annotations

import re

import h11
import pytest

from broker_core.api import front
from broker_core.api.front import StrictConnection

LARGEST = 4096
HEAD = b"GET /healthz HTTP/1.1\r\nHost: b\r\nX-A: 1\r\n\r\n"


class Counting:
    """A pattern that counts the bytes it was to look at."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.seen = 0
        self._pattern = pattern

    def search(self, text: bytes, begin: int = 0, end: int | None = None) -> re.Match[bytes] | None:
        end = len(text) if end is None else end
        self.seen += end - begin
        return self._pattern.search(text, begin, end)


def dripped(connection: StrictConnection, sent: bytes) -> list[object]:
    """What comes of it byte by byte."""
    events = []
    for place in range(len(sent)):
        connection.receive_data(sent[place : place + 1])
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
    return events


@pytest.mark.parametrize("name", ["_END_OF_HEAD", "_TWO_READINGS"])
def test_each_byte_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A head that comes byte by byte costs what it costs in one piece, and not its square: nobody had to be let in."""
    counting = Counting(getattr(front, name))
    monkeypatch.setattr(front, name, counting)
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * (LARGEST - 100)
    assert dripped(StrictConnection(LARGEST), head) == []
    assert counting.seen <= 8 * len(head)


def test_a_good_head_in_pieces() -> None:
    """Two requests on one connection are seen, byte by byte."""
    connection = StrictConnection(LARGEST)
    for _ in range(2):
        request, end = dripped(connection, HEAD)
        assert (type(request), type(end)) == (h11.Request, h11.EndOfMessage)
        connection.send(h11.Response(status_code=204, headers=[]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()


@pytest.mark.parametrize("place", range(len(HEAD)))
@pytest.mark.parametrize("odd", [b"\n", b"\r", b"\r\n ", b"\n\t"])
def test_a_head_of_two_readings_in_pieces(place: int, odd: bytes) -> None:
    """Wherever a line could be read in two ways, a byte at a time hides it no better than all at once."""
    sent = HEAD[:place] + odd + HEAD[place:]
    assert _is_refused(sent, at_once=False) is _is_refused(sent, at_once=True)


def test_a_head_that_is_too_large_in_pieces() -> None:
    """Nor does it make more room."""
    with pytest.raises(h11.RemoteProtocolError):
        dripped(StrictConnection(LARGEST), b"GET / HTTP/1.1\r\nX: " + b"x" * LARGEST)


def _is_refused(sent: bytes, *, at_once: bool) -> bool:
    connection = StrictConnection(LARGEST)
    try:
        if at_once:
            connection.receive_data(sent)
            connection.next_event()
        else:
            dripped(connection, sent)
    except h11.RemoteProtocolError:
        return True
    return False
