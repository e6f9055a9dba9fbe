"""The claim box on Redis or Valkey: values on their way in, as ciphertext, in memory only.

The promise: nothing here ever reaches a disk or another server, so ``check_volatile`` asks the server at start-up and
refuses one that writes or replicates. Redis's own error text is never passed on: it can quote what was sent. Imports no
other adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import redis
from opentelemetry.trace import SpanKind
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_core import telemetry
from broker_core.errors import BrokerError, ConfigurationError, Unavailable

P = ParamSpec("P")
R = TypeVar("R")

_PREFIX = "axiorank:claim:"


def _asked(operation: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """One question to Redis: a span of its own, and any failure as Unavailable, without its text and without the
    exception that holds it."""

    def wrap(call: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(call)
        def asked(*args: P.args, **kwargs: P.kwargs) -> R:
            with telemetry.span(f"claims.{operation}", SpanKind.CLIENT):
                try:
                    return call(*args, **kwargs)
                except redis.RedisError:
                    pass  # raised below, outside of the except block, so that not even __context__ keeps the cause
                raise Unavailable("the claim store is away")

        return asked

    return wrap


class RedisClaimBox:
    """The port ``ClaimBox``. Safe to share between threads."""

    def __init__(self, url: str, *, seconds: float = 2.0) -> None:
        """Each connect, send and answer may take ``seconds``. Nothing is sent twice: no silent retries."""
        self._redis: redis.Redis = redis.Redis.from_url(
            url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0)
        )

    @_asked("put")
    def put(self, claim_id: str, ciphertext: bytes, ttl_seconds: int) -> None:
        """Keep a claim. An id that is already there is never overwritten: BrokerError, for ids are random."""
        if not self._redis.set(_PREFIX + claim_id, ciphertext, nx=True, ex=ttl_seconds):
            raise BrokerError("a claim id came twice; nothing was overwritten")

    @_asked("get")
    def get(self, claim_id: str) -> bytes | None:
        """The claim, or None when it is gone."""
        found = self._redis.get(_PREFIX + claim_id)
        return found if isinstance(found, bytes) else None

    @_asked("delete")
    def delete(self, claim_id: str) -> None:
        """Forget a claim. ``UNLINK`` would free the memory later, ``DEL`` does it now."""
        self._redis.delete(_PREFIX + claim_id)

    @_asked("ping")
    def ping(self) -> None:
        """Raise Unavailable unless the server answers."""
        self._redis.ping()

    @_asked("check_volatile")
    def check_volatile(self) -> None:
        """Raise ConfigurationError unless the server keeps nothing on disk and tells no other server.

        A replica that is attached later is the operator's doing and is not seen here. Raises Unavailable when the
        server does not answer.
        """
        facts = {**self._settings(), **self._state()}
        problems = [f"{fact} ({remedy})" for fact, (expected, remedy) in _VOLATILE.items() if facts[fact] != expected]
        if problems:
            raise ConfigurationError(f"BROKER_CLAIM_REDIS_URL: the server could keep values: {'; '.join(problems)}")

    def _settings(self) -> dict[str, str]:
        try:
            answers = [self._redis.config_get(name) for name in ("appendonly", "save", "maxmemory-policy")]
        except redis.ResponseError:
            raise ConfigurationError(
                "BROKER_CLAIM_REDIS_URL: the server refuses CONFIG GET, so whether it writes to disk stays open: "
                "allow the user `+config|get +info`, or use a server of your own"
            ) from None
        return {_text(name): _text(value) for answer in answers for name, value in _pairs(answer)}

    def _state(self) -> dict[str, str]:
        facts = {**self._info("replication"), **self._info("cluster")}
        return {name: str(facts.get(name)) for name in ("role", "connected_slaves", "cluster_enabled")}

    def _info(self, section: str) -> dict[str, Any]:
        answer = self._redis.info(section)
        return dict(_pairs(answer))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


#: what must be so, and what to do where it is not
_VOLATILE = {
    "appendonly": ("no", "set `appendonly no`"),
    "save": ("", 'set `save ""`'),
    "maxmemory-policy": ("noeviction", "set `maxmemory-policy noeviction`: evicting a claim loses a value"),
    "role": ("master", "it copies another server; name a server of its own"),
    "connected_slaves": ("0", "detach its replicas"),
    "cluster_enabled": ("0", "a cluster copies and moves keys; use a single server"),
}


def _pairs(answer: object) -> list[tuple[Any, Any]]:
    """redis-py types its answers for its synchronous and asynchronous clients at once; ours are dicts."""
    return list(answer.items()) if isinstance(answer, dict) else []


def _text(answer: object) -> str:
    return answer.decode("ascii", "replace") if isinstance(answer, bytes) else str(answer)
