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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from opentelemetry.trace import Span, SpanKind

from broker_core import context, telemetry
from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import (
    BrokerError,
    InjectionRefused,
    Integrity,
    KeyServiceError,
    Misconfigured,
    Receipt,
    Transient,
    Unavailable,
)
from broker_core.inject.answer import decoded, handed_on
from broker_core.inject.binding import check_host, choose, choose_environment, take_handle
from broker_core.inject.call import BrokeredEnvironment, BrokeredResponse, Call
from broker_core.inject.kinds import Prepared, apply, prepare
from broker_core.inject.redact import Redactor
from broker_core.inject.url import parse_url
from broker_core.inject.uses import OneUse, describe, failure_of, taken_for_ours
from broker_core.injection import HTTP_KINDS, value_problem
from broker_core.model import CipherName, Purpose
from broker_core.ports import (
    Candidate,
    Clock,
    Destination,
    FailureLog,
    InjectStore,
    KeyService,
    KeyUse,
    Opened,
    PlatformCipher,
    Upstream,
    UpstreamAnswer,
    UpstreamLine,
)

_Done = TypeVar("_Done")

#: how often a secret that changes between selecting and the intent is selected again
_MOST_SELECTIONS = 3


@dataclass(frozen=True)
class InjectLimits:
    """How long and how much. ``upstream_seconds`` bounds a whole injection, from the connecting to the last byte."""

    upstream_seconds: float = 30.0
    key_seconds: float = 10.0  # of it, at most so many for one use of a key
    max_bytes: int = 10 * 1024 * 1024  # of a request's body, and of an answer's, decoded


class Injector:
    """See the module."""

    def __init__(
        self,
        store: InjectStore,
        keys: KeyService,
        platform: PlatformCipher,
        upstream: Upstream,
        failures: FailureLog,
        clock: Clock,
        new_id: Callable[[], UUID],
        limits: InjectLimits | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._platform = platform
        self._upstream = upstream
        self._failures = failures
        self._clock = clock
        self._new_id = new_id
        self._limits = limits or InjectLimits()

    def send(self, call: Call) -> BrokeredResponse:
        """Send one request with the caller's secret on it; the whole answer, redacted. 3xx answers are handed back.

        Raises Invalid, InjectionRefused, KeyServiceError, UpstreamError, AuditUnavailable, Unavailable; BrokerError
        (``internal``) for a fault of ours. Only UpstreamError means that the value was sent.
        """
        with self._traced(call) as current:
            return self._send(call, current)

    def environment(self, call: Call) -> BrokeredEnvironment:
        """Every variable that is bound to the caller, all or none; empty where none is bound. Raises as ``send``."""
        with self._traced(call) as current:
            return self._environment(call, current)

    @contextmanager
    def _traced(self, call: Call) -> Iterator[Span]:
        with (
            telemetry.continued(call.traceparent),
            telemetry.span("inject", broker__workspace=call.workspace_id, broker__purpose="inject") as current,
        ):
            yield current

    # ------------------------------------------------------------ one request

    def _send(self, call: Call, current: Span) -> BrokeredResponse:
        call.check()
        call = take_handle(call)
        address = parse_url(call.url)  # 2
        request = prepare(call, address, self._limits.max_bytes)
        ends = self._clock.monotonic() + self._limits.upstream_seconds
        for _ in range(_MOST_SELECTIONS):
            secret = choose(self._candidates(call), call, HTTP_KINDS)  # 3
            check_host(secret.injection, address.destination)  # 4, INV-6
            with self._connected(address.destination, ends) as line:  # 5, INV-6
                intent = self._intent(call, secret, address.destination)
                if self._store.begin_uses([intent]):  # 6, INV-5
                    use = OneUse(intent, secret)
                    describe(current, use)
                    return self._closing([use], partial(self._exchange, use, request, line, ends))
        raise _changing()

    @contextmanager
    def _connected(self, destination: Destination, ends: float) -> Iterator[UpstreamLine]:
        with telemetry.span(
            "upstream.connect", SpanKind.CLIENT, server__address=destination.host, server__port=destination.port
        ):
            line = self._upstream.connect(destination, max(0.0, ends - self._clock.monotonic()))
        try:
            yield line
        finally:
            line.close()

    def _exchange(self, use: OneUse, request: Prepared, line: UpstreamLine, ends: float) -> BrokeredResponse:
        value = self._value(use, ends)  # 7, 8
        redactor = Redactor([(use.secret.name, value)])
        try:
            # else an upstream that echoes would show, masked or not, whether a guess is right
            if _shows(request, redactor):
                # many of these in a row are somebody guessing: each one that is refused was a hit
                telemetry.log().warning("inject.value_in_request", audit_id=str(use.intent.id))
                raise InjectionRefused("the request already holds a form of the value", code="handle_misplaced")
            answer = self._sent(use, line, request, value)  # 9
            try:
                return self._redacted(use, request, answer, redactor)  # 10
            finally:
                answer.close()
        finally:  # 11
            use.redactions = redactor.count
            redactor.close()

    def _sent(self, use: OneUse, line: UpstreamLine, request: Prepared, value: bytes) -> UpstreamAnswer:
        with telemetry.span("upstream.send", SpanKind.CLIENT, http__request__method=request.method) as current:
            answer = line.send(apply(use.secret.injection, value, request))  # INV-7
            use.status = answer.status
            current.set_attribute("http.response.status_code", answer.status)
            return answer

    def _redacted(self, use: OneUse, request: Prepared, answer: UpstreamAnswer, redactor: Redactor) -> BrokeredResponse:
        whole = b"".join(decoded(answer.chunks(), answer.headers, self._limits.max_bytes))
        body = redactor.body(whole)
        headers = handed_on(answer.headers, redactor)
        if request.method != "HEAD" and answer.status not in (204, 304):
            headers.append(("Content-Length", str(len(body))))
        return BrokeredResponse(answer.status, redactor.text(answer.reason), headers, body, use.intent.id)

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
                return self._closing(list(uses.values()), partial(self._variables, uses, ends))
        raise _changing()

    def _variables(self, uses: dict[str, OneUse], ends: float) -> BrokeredEnvironment:
        values = {variable: self._value(use, ends).decode("utf-8") for variable, use in uses.items()}  # 7, 8
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

    def _value(self, use: OneUse, ends: float) -> bytes:
        """Decrypt, check, and give a copy: the libraries below us take nothing else. It lives as long as this call."""
        opened = self._opened(use, ends)  # 7
        use.receipt = opened.receipt
        with opened.value.reveal() as view:  # our own buffer is wiped here, before anything is sent
            if value_problem(use.secret.injection.kind, view) is not None:  # 8
                raise Misconfigured("the value does not fit its injectionKind; rotate it", receipt=opened.receipt)
            return bytes(view)

    def _opened(self, use: OneUse, ends: float) -> Opened:
        """Being listed as affected never refuses: every call asks the key."""
        use.is_begun = True
        secret, left = use.secret, ends - self._clock.monotonic()
        binding = context.for_secret(secret.workspace_id, secret.name, secret.version)
        if left <= 0:
            raise Transient("no time was left to use the key")
        if secret.blob.cipher is CipherName.PLATFORM:
            return Opened(self._platform.decrypt(binding, secret.blob), Receipt())
        if secret.connection is None:
            raise Integrity("a blob under a customer's key has no connection")
        key_use = KeyUse(secret.connection, Purpose.INJECT, use.intent.id, binding)
        return self._keys.decrypt(key_use, secret.blob, min(left, self._limits.key_seconds))

    def _closing(self, uses: Sequence[OneUse], work: Callable[[], _Done]) -> _Done:
        """Do it, and close the audit rows whatever happens (INV-5). A foreign exception can hold the value in its text:
        it is let go before ours is raised."""
        try:
            done = work()
        except BrokerError as error:
            if self._fail(uses, error):
                raise
            fault: BrokerError = taken_for_ours(error)
        except Exception:  # noqa: BLE001 - a fault of ours, of any kind
            fault = BrokerError("a fault of the broker's; its audit row says how far it got")
            self._fail(uses, fault)
        else:
            self._end([(use, use.result(Outcome.OK)) for use in uses])  # 12
            return done
        raise fault

    def _fail(self, uses: Sequence[OneUse], error: BrokerError) -> bool:
        """Close the rows: the last one that was begun is the one that failed; what was decrypted before it is dropped,
        what would have come after it was never asked. False where the error is taken for a fault of ours (INV-8)."""
        failed = [use for use in uses if use.is_begun][-1]
        self._end([(use, use.failed(error) if use is failed else use.abandoned()) for use in uses])
        return not isinstance(error, KeyServiceError) or self._failures.seen(failure_of(failed, error))

    def _end(self, results: Sequence[tuple[OneUse, Result]]) -> None:
        """Write the outcomes. What is done is done: where they cannot be written the answer stands, and the reconciler
        closes the rows as ``unknown``, so that the log never claims less than what happened."""
        try:
            self._store.end_uses([(use.intent, result) for use, result in results])
        except Exception:  # noqa: BLE001 - whatever it is, it must not take the answer away
            telemetry.log().error("inject.outcome_lost", audit_ids=[str(use.intent.id) for use, _ in results])
        for use, result in results:
            telemetry.log().info(
                "inject.done",
                audit_id=str(use.intent.id),
                workspace_id=use.intent.workspace_id,
                secret_id=str(use.intent.secret_id),
                version=use.intent.version,
                kind=use.secret.injection.kind.value,
                outcome=result.outcome.value,
                code=result.code,
                status=result.upstream_status,
            )


def _shows(request: Prepared, redactor: Redactor) -> bool:
    texts = [request.address.target, *(text for pair in request.headers for text in pair)]
    return any(redactor.finds_in(part) for part in (*(text.encode("latin-1") for text in texts), request.body))


def _changing() -> Unavailable:
    return Unavailable("the secret kept changing while it was selected; try again")
