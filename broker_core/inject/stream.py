"""An answer that is handed on while it comes: redacted, bounded, and over exactly once.

However it ends (whole, broken off, over its time or size, given up by the caller), the connection is given back or
closed, the forms of the value are dropped, and then the audit row is closed. Imports only its own parts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from uuid import UUID

from broker_core.errors import BrokerError, ClientGone, UpstreamError
from broker_core.inject.answer import Headers
from broker_core.inject.call import Cancellation
from broker_core.inject.redact import BodyRedactor
from broker_core.inject.watch import Watch


@dataclass(frozen=True)
class Head:
    """What stands before the body, redacted. No length: what is handed on is as long as it turns out."""

    status: int
    reason: str = field(repr=False)
    headers: Headers = field(repr=False)
    audit_id: UUID


@dataclass(repr=False)
class Passing:
    """What a stream works with until it ends."""

    pieces: Iterator[bytes]  # the body, decoded and bounded in size
    masking: BodyRedactor
    abort: Callable[[], None]  # ends the exchange, from any thread
    held: ExitStack  # what is given back at the end: the answer, the line, the forms
    cancellation: Cancellation
    is_over: Callable[[], bool]  # whether the time is up
    closes: Callable[[Exception | None], BrokerError | None]  # closes the row; what the caller may be told


class BrokeredStream:
    """The upstream's answer, redacted while it passes.

    Read ``chunks()`` to its end, then ``close()``; from any thread, one at a time. An object that is dropped instead
    gives back its connection and forgets the value; its audit row is then closed as ``unknown`` by the reconciler.
    """

    def __init__(self, head: Head, passing: Passing, watch: Watch) -> None:
        """For the Injector."""
        self.status, self.reason, self.headers = head.status, head.reason, head.headers
        self.audit_id = head.audit_id
        self._passing = passing
        self._watch = watch
        self._turn = threading.RLock()  # nothing is dropped under who works with it
        self._has_ended = False
        self._fault: BrokerError | None = None
        watch.add(self)

    def __repr__(self) -> str:
        return f"<BrokeredStream {self.audit_id}>"

    def __del__(self) -> None:
        self._drop()  # and not the row: this may run in the middle of anything, a query of the same thread's too

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, none of it empty.

        All but the hold-back is let go at each step; all of it at a line feed (unless a form of the value holds one)
        and at the end. Raises UpstreamError (``upstream_timeout``, ``response_withheld``, …), ClientGone once it was
        cancelled or closed, BrokerError (``internal``); after any of them what was handed out is not the whole answer.
        """
        while piece := self._next():
            yield piece

    def close(self) -> None:
        """Give the rest up, if there is any. Safe more than once, also when nothing was read."""
        if not self._turn.acquire(blocking=False):
            self._passing.cancellation.cancel()  # somebody is reading: they are to stop
            self._turn.acquire()
        try:
            if not self._has_ended:
                self._end(ClientGone("the caller gave the answer up"))
        finally:
            self._turn.release()

    def expire(self) -> None:
        """For the watch: once the time is up, forget the value. The row is left to who reads or closes."""
        if not self._passing.is_over():
            return
        self._passing.abort()
        if self._turn.acquire(blocking=False):  # else somebody reads, and is just being told
            try:
                self._drop()
            finally:
                self._turn.release()
            self._watch.remove(self)

    def _next(self) -> bytes:
        with self._turn:
            if self._fault is not None:
                raise self._fault
            if self._has_ended:
                return b""
            try:
                return self._masked()
            except Exception as error:  # noqa: BLE001 - of any kind: it ends the use
                fault = self._end(self._cause(error))
        raise fault or BrokerError("an error that ended nothing")  # outside of the handler: no context but ours

    def _masked(self) -> bytes:
        passing = self._passing
        self._check()
        for piece in passing.pieces:
            if out := passing.masking.feed(piece):
                return out
            self._check()
        out = passing.masking.finish()
        self._end(None)
        return out

    def _check(self) -> None:
        self._passing.cancellation.check()
        if self._passing.is_over():
            raise UpstreamError("the answer took longer than is allowed", code="upstream_timeout")

    def _cause(self, error: Exception) -> Exception:
        """An exchange that was ended from outside breaks off like one that fails: what counts is why."""
        try:
            if isinstance(error, UpstreamError):
                self._check()
        except BrokerError as cause:
            return cause
        return error

    def _end(self, error: Exception | None) -> BrokerError | None:
        self._has_ended = True
        try:
            self._drop()
        except Exception as problem:  # noqa: BLE001 - of any kind: the row is closed all the same, and once
            error = error or problem
        self._watch.remove(self)
        self._fault = self._passing.closes(error)
        return self._fault

    def _drop(self) -> None:
        self._passing.held.close()
