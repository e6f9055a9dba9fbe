"""The bridge between a caller's connection and the thread that serves it: what waits where, and who is told what.

The caller is played by functions in place of a server, so that every byte can be counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import to_thread

from broker_core.api import bridge
from broker_core.api.bridge import Incoming, Outgoing
from broker_core.errors import ClientGone, Invalid

GONE = {"type": "http.disconnect"}


def piece(body: bytes, *, is_more: bool = True) -> dict[str, Any]:
    """A part of a request's body."""
    return {"type": "http.request", "body": body, "more_body": is_more}


class Caller:
    """Sends these messages, and then is there or goes when it is told to."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = list(messages)
        self.given = 0
        self.leaves = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            message = self._messages.pop(0)
            self.given += len(message.get("body", b""))
            return message
        await self.leaves.wait()
        return GONE


def nobody_told() -> None:
    """The caller is not expected to go."""
    raise AssertionError("the caller has not gone")


def serve(work: Callable[[Incoming, Caller], Any], caller_of: Callable[[], Caller], **options: Any) -> Any:
    """Do ``work`` in a thread while the bridge listens."""
    told = options.pop("on_gone", nobody_told)

    async def main() -> Any:
        caller = caller_of()
        async with anyio.create_task_group() as group:
            with Incoming(caller.receive, told, **options) as incoming:  # type: ignore[arg-type]  # a MutableMapping
                group.start_soon(incoming.listen)
                done = await to_thread.run_sync(work, incoming, caller)
                group.cancel_scope.cancel()
        return done

    return anyio.run(main)


class TestBody:
    def test_in_order(self) -> None:
        """The pieces come in order, empty ones not at all."""
        sent = [piece(b"one"), piece(b""), piece(b"two"), piece(b"", is_more=False)]
        assert serve(lambda incoming, _: list(incoming.body()), lambda: Caller(*sent)) == [b"one", b"two"]

    def test_none(self) -> None:
        """A request without a body has no pieces."""
        assert serve(lambda incoming, _: list(incoming.body()), lambda: Caller(piece(b"", is_more=False))) == []

    def test_nothing_is_gathered(self) -> None:
        """However long the body, never more than three pieces have come that the thread did not ask for."""
        size, count = 1000, 200

        def work(incoming: Incoming, caller: Caller) -> int:
            ahead = taken = 0
            for each in incoming.body():
                ahead = max(ahead, caller.given - taken)
                taken += len(each)
            assert taken == size * count
            return ahead

        sent = [piece(b"x" * size, is_more=number < count - 1) for number in range(count)]
        assert serve(work, lambda: Caller(*sent)) <= 4 * size

    def test_gone_in_the_middle(self) -> None:
        """A body whose caller goes breaks off: it is no shorter body."""
        told = threading.Event()

        def work(incoming: Incoming, _: Caller) -> list[bytes]:
            got: list[bytes] = []
            with pytest.raises(ClientGone):
                got.extend(incoming.body())
            return got

        serve(work, lambda: Caller(piece(b"one"), GONE), on_gone=told.set)
        assert told.is_set()

    def test_gone_afterwards(self) -> None:
        """A caller that goes after its body is noticed while the thread does something else."""
        told = threading.Event()

        def work(incoming: Incoming, caller: Caller) -> None:
            list(incoming.body())
            anyio.from_thread.run_sync(caller.leaves.set)
            assert told.wait(20)

        serve(work, lambda: Caller(piece(b"one", is_more=False)), on_gone=told.set)

    def test_gone_before_the_body_is_asked_for(self) -> None:
        """A caller that goes while the thread has not asked for its small body yet is noticed."""
        told = threading.Event()

        def work(incoming: Incoming, caller: Caller) -> None:
            anyio.from_thread.run_sync(caller.leaves.set)
            assert told.wait(20)

        serve(work, lambda: Caller(piece(b"one", is_more=False)), on_gone=told.set)

    def test_enough(self) -> None:
        """When the upstream has answered, what is left of the body is dropped, and a caller that goes is noticed."""
        told = threading.Event()

        def work(incoming: Incoming, _: Caller) -> None:
            incoming.is_enough()
            assert told.wait(20)

        serve(work, lambda: Caller(*[piece(b"x")] * 50, GONE), on_gone=told.set)

    def test_too_slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A caller that sends nothing is given up."""
        monkeypatch.setattr(bridge, "IDLE_SECONDS", 0.0)

        def work(incoming: Incoming, _: Caller) -> None:
            with pytest.raises(Invalid):
                list(incoming.body())

        serve(work, Caller)

    def test_asked_to_go_on(self) -> None:
        """Nothing is read from a caller that waits to be told (100-continue) until the thread wants its body."""

        def work(incoming: Incoming, caller: Caller) -> tuple[int, list[bytes]]:
            before = caller.given
            return before, list(incoming.body())

        sent = piece(b"one", is_more=False)
        assert serve(work, lambda: Caller(sent), is_asked_to_go_on=True) == (0, [b"one"])


class TestWhole:
    def test_all(self) -> None:
        """A small body is read as a whole; the thread then finds no more of it."""

        async def main() -> bytes:
            caller = Caller(piece(b"one"), piece(b"two", is_more=False))
            with Incoming(caller.receive, nobody_told) as incoming:  # type: ignore[arg-type]  # a MutableMapping
                return await incoming.whole()

        assert anyio.run(main) == b"onetwo"

    def test_gone(self) -> None:
        """A caller that goes before its end has sent nothing."""

        async def main() -> None:
            caller = Caller(piece(b"one"), GONE)
            with Incoming(caller.receive, lambda: None) as incoming, pytest.raises(ClientGone):  # type: ignore[arg-type]  # a MutableMapping
                await incoming.whole()

        anyio.run(main)


class TestAnswer:
    def test_waits_for_the_caller(self) -> None:
        """A piece is not asked for before the caller took the one before it."""
        taken: list[bytes] = []

        async def send(message: Any) -> None:
            taken.append(message.get("body", b"head"))

        def work() -> list[int]:
            outgoing, counts = Outgoing(send), []
            outgoing.begin(200, [])
            for number in range(5):
                outgoing.write(b"%d" % number)
                counts.append(len(taken))
            outgoing.end()
            return counts

        async def main() -> list[int]:
            return await to_thread.run_sync(work)

        assert anyio.run(main) == [2, 3, 4, 5, 6]
        assert taken == [b"head", b"0", b"1", b"2", b"3", b"4", b""]

    def test_a_caller_that_does_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A caller that takes nothing is given up."""
        monkeypatch.setattr(bridge, "IDLE_SECONDS", 0.0)

        async def send(_: Any) -> None:
            await anyio.sleep_forever()

        def work() -> None:
            with pytest.raises(ClientGone):
                Outgoing(send).write(b"x")

        async def main() -> None:
            await to_thread.run_sync(work)

        anyio.run(main)
