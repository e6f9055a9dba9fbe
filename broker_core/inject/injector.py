"""Use case: use a value once, in an order in which each step stands for a promise.

    2 read the URL    3 select the secret    4 compare the host    5 resolve, judge, connect, finish TLS
    6 commit the intent    7 decrypt    8 check the value    9 apply, send once    10 redact    11 wipe
    12 write the outcome                                    (step 1, who calls, is the surface's)

Until step 6 the cheap and the forbidden are sorted out: a wrong host costs no key call (INV-6). From step 6 on there is
an audit row, and every way out of here closes it (INV-5). Nothing is kept for a next call (INV-4). Imports no HTTP, AWS
or database library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from uuid import UUID

from opentelemetry.trace import Span, SpanKind

from broker_core import telemetry
from broker_core.audit import Intent
from broker_core.errors import BrokerError, ClientGone, InjectionRefused, Invalid, Unavailable
from broker_core.inject.binding import check_host, choose, choose_environment
from broker_core.inject.call import BrokeredEnvironment, BrokeredResponse, Call, Cancellation
from broker_core.inject.exchange import Begun, Deadlines, Sender, caller_of
from broker_core.inject.handle import take_handle
from broker_core.inject.kinds import prepare
from broker_core.inject.ledger import Ledger
from broker_core.inject.limits import InjectLimits
from broker_core.inject.opening import Opener
from broker_core.inject.stream import BrokeredStream
from broker_core.inject.url import parse_url
from broker_core.inject.uses import OneUse, describe
from broker_core.inject.watch import Watch
from broker_core.injection import HTTP_KINDS
from broker_core.model import Purpose
from broker_core.ports import (
    Candidate,
    Clock,
    Destination,
    FailureLog,
    GuessLog,
    InjectStore,
    KeyService,
    Patience,
    PlatformCipher,
    Upstream,
    UpstreamLine,
)

__all__ = ["InjectLimits", "Injector"]

#: how often a secret that changes between selecting and the intent is selected again
_MOST_SELECTIONS = 3


class Injector:
    """See the module."""

    def __init__(
        self,
        store: InjectStore,
        keys: KeyService,
        platform: PlatformCipher,
        upstream: Upstream,
        failures: FailureLog,
        guesses: GuessLog,
        clock: Clock,
        new_id: Callable[[], UUID],
        limits: InjectLimits | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._limits = limits or InjectLimits()
        self._store = store
        self._upstream = upstream
        self._guesses = guesses
        self._clock = clock
        self._new_id = new_id
        self._ledger = Ledger(store, failures)
        self._opener = Opener(keys, platform, clock, self._limits.key_seconds)
        self._sender = Sender(self._opener, guesses, clock, self._limits, watch or Watch())

    def send(self, call: Call) -> BrokeredResponse:
        """Send one request with the caller's secret on it; the whole answer, redacted. 3xx answers are handed back.

        Raises Invalid, InjectionRefused, RateLimited, KeyServiceError, UpstreamError, AuditUnavailable, Unavailable;
        BrokerError (``internal``) for a fault of ours. Only UpstreamError means that the value was sent.
        """
        with self._traced(call) as current:
            return self._send(call, current)

    def stream(self, call: Call, cancellation: Cancellation | None = None) -> BrokeredStream:
        """The same with bodies that are handed on while they come; returns once the answer's head is there.

        Raises as ``send``, and ClientGone once it is cancelled or the request's body breaks off. Where the request's
        body comes in pieces, InjectionRefused (``handle_misplaced``) and Invalid (``too_large``) may come after the
        value was sent too; the exchange was then ended before the body was whole.
        """
        with telemetry.continued(call.traceparent):
            current = _inject_span(call)  # lasts as long as the stream
        try:
            with telemetry.within(current):
                return self._stream(call, cancellation or Cancellation(), current)
        except BaseException:
            current.end()
            raise

    def environment(self, call: Call) -> BrokeredEnvironment:
        """Every variable that is bound to the caller, all or none; empty where none is bound. Raises as ``send``."""
        with self._traced(call) as current:
            return self._environment(call, current)

    @contextmanager
    def _traced(self, call: Call) -> Iterator[Span]:
        with (
            telemetry.continued(call.traceparent),
            telemetry.span(
                "inject", broker__workspace=call.workspace_id, broker__purpose=Purpose.INJECT.value
            ) as current,
        ):
            yield current

    # ------------------------------------------------------------ one request

    def _send(self, call: Call, current: Span) -> BrokeredResponse:
        if not isinstance(call.body, bytes):
            raise Invalid({"body": "send it as a whole, or use stream"})
        deadlines = self._deadlines(self._limits.upstream_seconds)
        with self._begun(call, self._limits.max_bytes, deadlines, Cancellation(), current) as begun:
            return self._ledger.closing([begun.use], partial(self._sender.whole, begun))

    def _stream(self, call: Call, cancellation: Cancellation, current: Span) -> BrokeredStream:
        deadlines = self._deadlines(self._limits.stream_seconds)
        with ExitStack() as line, cancellation.explaining():
            begun = line.enter_context(
                self._begun(call, self._limits.stream_max_bytes, deadlines, cancellation, current)
            )
            closes = partial(self._closes, begun.use, current)
            work = partial(self._sender.streamed, begun, line, closes)
            return self._ledger.closing([begun.use], work, goes_on=True)

    def _deadlines(self, seconds: float) -> Deadlines:
        now = self._clock.monotonic()
        return Deadlines(now + self._limits.upstream_seconds, now + seconds)

    @contextmanager
    def _begun(
        self, call: Call, max_body: int, deadlines: Deadlines, cancellation: Cancellation, current: Span
    ) -> Iterator[Begun]:
        call.check()
        call = take_handle(call)
        address = parse_url(call.url)  # 2
        request = prepare(call, address, max_body)
        for _ in range(_MOST_SELECTIONS):
            secret = choose(self._candidates(call), call, HTTP_KINDS)  # 3
            check_host(secret.injection, address.destination)  # 4, INV-6
            self._guesses.look(call.workspace_id, caller_of(secret), secret.secret_id)
            with self._connected(call, address.destination, deadlines, cancellation) as line:  # 5, INV-6
                intent = self._intent(call, secret, address.destination)
                if self._store.begin_uses([intent]):  # 6, INV-5
                    use = OneUse(intent, secret)
                    describe(current, use)
                    yield Begun(use, request, line, deadlines, cancellation)
                    return
        raise _changing()

    @contextmanager
    def _connected(
        self, call: Call, destination: Destination, deadlines: Deadlines, cancellation: Cancellation
    ) -> Iterator[UpstreamLine]:
        cancellation.check()
        with telemetry.span(
            "upstream.connect", SpanKind.CLIENT, server__address=destination.host, server__port=destination.port
        ):
            line = self._upstream.connect(destination, self._patience(deadlines), call.workspace_id)
        forget = cancellation.register(line.abort)
        try:
            cancellation.check()
            yield line
        finally:
            forget()
            line.close()

    def _patience(self, deadlines: Deadlines) -> Patience:
        now = self._clock.monotonic()
        total, answer = max(0.0, deadlines.all - now), max(0.0, deadlines.key - now)
        return Patience(total, answer, min(total, self._limits.stream_idle_seconds))

    def _closes(self, use: OneUse, current: Span, error: Exception | None) -> BrokerError | None:
        """A stream has ended, in whatever thread that was; returns what the caller may be told."""
        fault: BrokerError | None = None
        try:
            with telemetry.within(current):
                if error is None:
                    self._ledger.done([use])
                else:
                    fault = self._ledger.failed([use], error)
            if isinstance(fault, ClientGone):
                current.set_attribute("broker.code", fault.reason)  # how most event streams end, and no error
            elif fault is not None:
                telemetry.fail(current, fault.reason)
        finally:
            current.end()
        return fault

    # ------------------------------------------------------------ an environment

    def _environment(self, call: Call, current: Span) -> BrokeredEnvironment:
        call.check()
        if call.secret is not None:
            raise InjectionRefused("an environment is all that is bound; it takes no name", code="handle_misplaced")
        ends = self._clock.monotonic() + self._limits.upstream_seconds
        for _ in range(_MOST_SELECTIONS):
            chosen = choose_environment(self._candidates(call), call)  # 3
            uses = {variable: OneUse(self._intent(call, one), one) for variable, one in chosen.items()}
            if not uses:
                return BrokeredEnvironment({}, ())
            if self._store.begin_uses([use.intent for use in uses.values()]):  # 6, INV-5
                current.set_attribute("broker.count", len(uses))
                return self._ledger.closing(list(uses.values()), partial(self._variables, uses, ends))
        raise _changing()

    def _variables(self, uses: dict[str, OneUse], ends: float) -> BrokeredEnvironment:
        values = {variable: self._opener.value(use, ends).decode("utf-8") for variable, use in uses.items()}  # 7, 8
        return BrokeredEnvironment(values, [use.intent.id for use in uses.values()])

    # ------------------------------------------------------------ both

    def _candidates(self, call: Call) -> Sequence[Candidate]:
        return self._store.candidates(call.workspace_id, call.agent_id, call.mcp_server_id)

    def _intent(self, call: Call, secret: Candidate, destination: Destination | None = None) -> Intent:
        return Intent(
            id=self._new_id(),
            workspace_id=call.workspace_id,
            purpose=Purpose.INJECT,
            cipher=secret.blob.cipher,
            connection_id=secret.connection.id if secret.connection else None,
            secret_id=secret.secret_id,
            secret_name=secret.name,
            version=secret.version,
            agent_id=call.agent_id,
            mcp_server_id=call.mcp_server_id,
            method=call.method if destination else None,
            target=str(destination) if destination else None,
        )


def _inject_span(call: Call) -> Span:
    return telemetry.begun("inject", broker__workspace=call.workspace_id, broker__purpose=Purpose.INJECT.value)


def _changing() -> Unavailable:
    return Unavailable("the secret kept changing while it was selected; try again")
