"""What happens around every message: trace, log line, retries. dramatiq's own middleware is chosen on purpose.

Of dramatiq's defaults none is kept:

- ``AgeLimit``: an old doorbell is still worth an answer; the event's row knows whether its time is over;
- ``TimeLimit``: raises into a running thread at any point, also after KMS answered, and cannot cut a blocking call:
  every call of ours that can wait has a deadline instead;
- ``ShutdownNotifications``: raises into running threads too; an actor ends within its own deadlines;
- ``Callbacks``, ``Pipelines``: a message could name other actors to run; ours carry an id and nothing else;
- ``Retries``: stores traceback text in the message, retries anything twenty times over days. Replaced below;
- ``Prometheus`` (not a default in this version): would listen on every address.

Exceptions leave an actor only as errors of ours (``payload_free``), since dramatiq logs them and hands them to
middleware. Imports dramatiq, telemetry and the errors.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import redis
import structlog
from dramatiq import Broker, Message, MessageProxy, Middleware
from opentelemetry.trace import SpanKind

from broker_core import telemetry
from broker_core.adapters.clock import SystemClock
from broker_core.errors import BrokerError, Busy, Transient, Unavailable
from broker_core.ports import Clock

#: worth another try within seconds; minutes are the reconciler's, anything else a person's
RETRIED = (Transient, Unavailable)
MOST_RETRIES = 3
FIRST_BACKOFF_MS = 500
LONGEST_BACKOFF_MS = 5_000


def worker_middleware(clock: Clock | None = None) -> list[Middleware]:
    """A worker's middleware. The trace is outermost: before the rest on the way in, after it on the way out."""
    return [Trace(clock or SystemClock()), Retry()]


def payload_free(run: Callable[..., None]) -> Callable[..., None]:
    """Let only errors of ours out of an actor. A foreign exception can hold a value in its text, its cause and its
    frames' variables: its class and places are logged, and a BrokerError without a way back to it is raised."""

    @functools.wraps(run)
    def actor(*args: str) -> None:
        try:
            return run(*args)
        except BrokerError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not leave as it is
            telemetry.log().error("actor.bug", exception=telemetry.shape_of(error))
            name = type(error).__name__
        raise BrokerError(f"an unexpected {name}")  # outside of the except block: without it as __context__

    return actor


class Trace(Middleware):
    """Continues the message's trace, binds its ids to every log line, and writes one canonical line when it is done."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now = threading.local()  # one message at a time in each worker thread

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Enter the consumer's span."""
        event_id = message.args[0] if message.args else None
        self._now.started = self._clock.monotonic()
        self._now.open = stack = ExitStack()
        structlog.contextvars.bind_contextvars(actor=message.actor_name, message=message.message_id, event_id=event_id)
        stack.callback(structlog.contextvars.clear_contextvars)
        stack.enter_context(telemetry.continued(message.options.get("traceparent")))
        stack.enter_context(
            telemetry.span(
                f"actor.{message.actor_name}",
                SpanKind.CONSUMER,
                messaging__operation="process",
                messaging__message=message.message_id,
                broker__event=event_id,
                broker__attempt=message.options.get("retries", 0) + 1,
            )
        )

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Write the line and leave the span, which takes the error's code."""
        telemetry.log().info(
            "actor.done",
            outcome=_outcome(message, exception),
            code=exception.reason if isinstance(exception, BrokerError) else None,
            attempt=message.options.get("retries", 0) + 1,
            seconds=round(self._clock.monotonic() - self._now.started, 4),
        )
        self._now.open.__exit__(type(exception) if exception else None, exception, None)

    after_skip_message = after_process_message


def _outcome(message: MessageProxy, exception: BaseException | None) -> str:
    if exception is None:
        return "ok"
    return "dead" if message.failed else "retry"


class Retry(Middleware):
    """Tries again by the error's class: RETRIED a few times with full jitter, anything else not at all.

    What is given up becomes a dead letter. Its event, if it still waits, is rung again by the reconciler. One whose
    connection stays busy is left to the reconciler too, but nothing went wrong with it: no dead letter.
    """

    def __init__(self, most: int = MOST_RETRIES, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._most = most
        self._uniform = uniform

    @property
    def actor_options(self) -> set[str]:
        """``throws``: the errors that dramatiq's worker does not print with a traceback."""
        return {"throws"}

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Put the message back with a delay, or mark it as failed."""
        retries = message.options.get("retries", 0)
        if exception is None:
            return
        if not isinstance(exception, RETRIED) or retries >= self._most:
            if not isinstance(exception, Busy):
                message.fail()
            return
        again: Message[Any] = message.copy(options={"retries": retries + 1})
        try:
            broker.enqueue(again, delay=self._delay_ms(retries))
        except redis.RedisError:
            # dramatiq would acknowledge it all the same: the message is lost, its event is not
            telemetry.log().warning("actor.retry_lost")

    def _delay_ms(self, retries: int) -> int:
        return int(self._uniform(0, min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2**retries)))
