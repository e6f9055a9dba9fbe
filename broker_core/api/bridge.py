"""Between the event loop, where the caller's connection lives, and the one thread that serves an exchange.

The promise: nothing is gathered. Of the caller's body two pieces wait until the thread takes them, an answer's piece
waits until the caller took the one before; who stops reading or writing is given up after ``IDLE_SECONDS``. That the
caller has gone is noticed while the thread waits for anybody, and told. An answer that broke off ends broken off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import anyio
from anyio import from_thread
from starlette.types import Receive, Send

from broker_core.errors import ClientGone, Invalid

#: seconds that a caller may neither send the next piece of its body nor take the next one of the answer
IDLE_SECONDS = 60.0

Headers = Sequence[tuple[bytes, bytes]]


class Incoming:
    """What comes from the caller: its body in pieces, and that it has gone."""

    def __init__(self, receive: Receive, on_gone: Callable[[], None], *, is_asked_to_go_on: bool = False) -> None:
        """``on_gone`` is called on the event loop, once. ``is_asked_to_go_on``: the caller waits to be told before it
        sends its body (``Expect: 100-continue``), which reading from it does."""
        self.is_gone = False
        self._receive = receive
        self._on_gone = on_gone
        self._has_ended = False
        self._pieces, self._taken = anyio.create_memory_object_stream[bytes](1)
        self._wanted = anyio.Event()
        if not is_asked_to_go_on:
            self._wanted.set()

    async def whole(self) -> bytes:
        """All of the body, which is known to be small. Raises Invalid for a caller who is too slow, ClientGone."""
        body = b""
        with anyio.move_on_after(IDLE_SECONDS):
            while not self._has_ended and not self.is_gone:
                body += await self._next()
            if self.is_gone:
                raise ClientGone("the caller went away")
            return body
        raise _too_slow()

    async def listen(self) -> None:
        """Hand the body over, and then wait for the caller to go. Ends when it has, or when it is cancelled."""
        await self._wanted.wait()
        async with self._pieces:
            while not self._has_ended and not self.is_gone:
                await self._hand_over(await self._next())
        while not self.is_gone:
            await self._next()

    def body(self) -> Iterator[bytes]:
        """For the thread: the pieces as they come. Raises Invalid for a caller who is too slow, ClientGone."""
        while piece := from_thread.run(self._take):
            yield piece

    def is_enough(self) -> None:
        """For the thread: no more of the body is wanted; what still comes is dropped."""
        from_thread.run_sync(self._taken.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.close()
        self._taken.close()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = True
            self._on_gone()
            return b""
        self._has_ended = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _hand_over(self, piece: bytes) -> None:
        try:
            if piece:
                await self._pieces.send(piece)
        except anyio.BrokenResourceError:
            return  # enough

    async def _take(self) -> bytes:
        """The next piece, empty at the end."""
        self._wanted.set()
        try:
            with anyio.fail_after(IDLE_SECONDS):
                return await self._taken.receive()
        except anyio.EndOfStream:
            pass
        except TimeoutError:
            raise _too_slow() from None
        if self.is_gone:
            raise ClientGone("the caller went away")
        return b""


class Outgoing:
    """The answer, for the thread. What it is given after the caller has gone goes nowhere."""

    def __init__(self, send: Send) -> None:
        self.has_begun = False
        self._send = send

    def begin(self, status: int, headers: Headers) -> None:
        """Send the head; the server says how the body is framed."""
        from_thread.run(self._begin, status, headers)

    def write(self, piece: bytes) -> None:
        """Send a piece of the body, once those before it are on their way. Raises ClientGone for a caller who does not
        take them."""
        from_thread.run(self._write, piece, True)

    def end(self) -> None:
        """End the answer in order: without that the caller sees that it broke off."""
        from_thread.run(self._write, b"", False)

    async def _begin(self, status: int, headers: Headers) -> None:
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def _write(self, piece: bytes, is_more: bool) -> None:
        with anyio.move_on_after(IDLE_SECONDS):
            await self._send({"type": "http.response.body", "body": piece, "more_body": is_more})
            return
        raise ClientGone("the caller went away")


def _too_slow() -> Invalid:
    return Invalid({"body": f"nothing of it came for {IDLE_SECONDS:g} s"})
