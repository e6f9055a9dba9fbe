"""The queue on dramatiq and Redis, as seen by those who put messages in and by operators.

A message is a doorbell: it carries an event's id and a trace context, nothing else, and may be lost or come twice; the
event's row is the truth, and the reconciler rings again. The consumer's side is in ``workers``. Imports no other
adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import redis
from dramatiq import Message, Middleware
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import DecodeError
from opentelemetry.trace import SpanKind
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_core import telemetry
from broker_core.errors import Unavailable
from broker_core.model import EventType
from broker_core.queues import CUSTODY, QUEUES

#: an event's type → its actor. ``secret.deleted`` takes effect when it is accepted and has none
ACTORS = {EventType.CREATED: "secret_created", EventType.ROTATED: "secret_rotated"}

NAMESPACE = "axiorank"
#: of a million commands: an idle consumer fetches ten times a second, so a dead worker's messages are looked for about
#: every other second instead of every other minute
MAINTENANCE_CHANCE = 50_000
#: a worker silent for so long is dead and its messages are given out again. Shorter would give out the messages of a
#: live one that is held up (or whose clock differs); the reconciler rings sooner in any case
HEARTBEAT_TIMEOUT_MS = 60_000
#: long enough to be seen after a weekend; nothing is lost with them
DEAD_MESSAGE_TTL_MS = 3 * 86_400_000


P = ParamSpec("P")
R = TypeVar("R")


def _translated(call: Callable[P, R]) -> Callable[P, R]:
    """Any failure of Redis as Unavailable, without its text and without the exception that holds it."""

    @functools.wraps(call)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except redis.RedisError:
            pass  # raised below, outside of the except block, so that not even __context__ keeps the cause
        raise Unavailable("the queue is away")

    return translated


class _Redis(redis.Redis):
    """A client whose time-outs are connection errors: that is the one failure after which dramatiq acknowledges again,
    instead of leaving the message to a restart of the worker."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        except redis.TimeoutError:
            raise redis.ConnectionError("no answer in time") from None


def connect_queue(url: str, *, middleware: Sequence[Middleware] = (), seconds: float = 2.0) -> RedisBroker:
    """dramatiq's broker with our choices; ``seconds`` bound each connect and answer.

    The client comes from a URL and retries nothing by itself: a command that is sent again after a lost answer would
    take messages that nobody processes.
    """
    client = _Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0))
    return RedisBroker(  # type: ignore[no-untyped-call]  # dramatiq leaves this constructor untyped
        client=client,
        middleware=list(middleware),  # an empty list, not None: None would bring dramatiq's defaults back
        namespace=NAMESPACE,
        maintenance_chance=MAINTENANCE_CHANCE,
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        dead_message_ttl=DEAD_MESSAGE_TTL_MS,
    )


class DramatiqQueue:
    """The port ``Queue``, and what the scheduler needs beside it."""

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker

    def ring(self, event_type: EventType, event_id: UUID) -> None:
        """Ask a worker to look at an event. Raises Unavailable; ValueError for a type that no worker looks at."""
        if event_type not in ACTORS:
            raise ValueError(f"no worker looks at {event_type.value}")
        facts = {"broker__event": str(event_id), "broker__event_type": event_type.value}
        with telemetry.span("queue.enqueue", SpanKind.PRODUCER, messaging__operation="send", **facts):
            self._send(CUSTODY, ACTORS[event_type], (str(event_id),))

    def tick(self, queue: str, actor: str) -> None:
        """Ask a worker for one round of a scheduled actor. Raises Unavailable."""
        with telemetry.span("queue.enqueue", SpanKind.PRODUCER, messaging__operation="send"):
            self._send(queue, actor, ())

    @_translated
    def claim_slot(self, name: str, slot: int, seconds: int) -> bool:
        """Claim one period of a tick; True for exactly one caller. ``seconds``: how long the claim is remembered, which
        must be more than any two schedulers' clocks differ. Raises Unavailable."""
        return bool(self._broker.client.set(f"{NAMESPACE}:tick:{name}:{slot}", b"1", nx=True, ex=seconds))

    @_translated
    def waiting(self, queue: str) -> int:
        """How many messages no worker has fetched yet. Raises Unavailable."""
        return int(self._broker.client.llen(f"{NAMESPACE}:{queue}"))

    @_translated
    def ping(self) -> None:
        """Raise Unavailable unless the server answers."""
        self._broker.client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._broker.client.close()

    @_translated
    def _send(self, queue: str, actor: str, args: tuple[str, ...]) -> None:
        parent = telemetry.traceparent()
        options = {"traceparent": parent} if parent else {}
        self._broker.enqueue(Message(queue_name=queue, actor_name=actor, args=args, kwargs={}, options=options))


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up. ``event_id`` is None for a tick, and for a message that is not one of ours."""

    queue: str
    actor: str
    event_id: UUID | None
    when: datetime


@_translated
def dead_letters(broker: RedisBroker, limit: int = 1000) -> list[DeadLetter]:
    """The dead letters of every queue, newest first, up to ``limit`` of each queue. Raises Unavailable."""
    found = [letter for queue in QUEUES for letter in _dead_letters_of(broker, queue, limit)]
    return sorted(found, key=lambda letter: letter.when, reverse=True)


@_translated
def purge_dead_letters(broker: RedisBroker) -> int:
    """Forget the dead letters of every queue; returns how many. The events' rows are untouched. Raises Unavailable."""
    pipeline = broker.client.pipeline(transaction=True)
    for queue in QUEUES:
        pipeline.zcard(_dead(queue))
    pipeline.delete(*(key for queue in QUEUES for key in (_dead(queue), f"{_dead(queue)}.msgs")))
    return int(sum(pipeline.execute()[:-1]))


def _dead(queue: str) -> str:
    """dramatiq's sorted set of dead message ids by time; ``.msgs`` beside it is a hash of the messages."""
    return f"{NAMESPACE}:{queue}.XQ"


def _dead_letters_of(broker: RedisBroker, queue: str, limit: int) -> Iterator[DeadLetter]:
    entries: Any = broker.client.zrevrange(_dead(queue), 0, limit - 1, withscores=True)
    if not entries:
        return
    bodies = broker.client.hmget(f"{_dead(queue)}.msgs", [message_id for message_id, _ in entries])
    for (_, milliseconds), body in zip(entries, bodies, strict=True):
        actor, event_id = _read(body)
        yield DeadLetter(queue, actor, event_id, datetime.fromtimestamp(milliseconds / 1000, UTC))


def _read(body: bytes | None) -> tuple[str, UUID | None]:
    """Actor and event id; what does not read as a message of ours is named so and never shown."""
    try:
        message: Message[Any] = Message.decode(body or b"")
        return message.actor_name, UUID(message.args[0]) if message.args else None
    except (DecodeError, ValueError, TypeError, AttributeError):
        return "unreadable", None
