"""Steps 7 to 11 of an injection: open, apply, send once, redact, wipe. Imports no HTTP library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from opentelemetry.trace import SpanKind

from broker_core import telemetry
from broker_core.errors import BrokerError, InjectionRefused
from broker_core.inject.answer import coding_of, decoded, handed_on
from broker_core.inject.call import BrokeredResponse, Cancellation
from broker_core.inject.kinds import Prepared, apply
from broker_core.inject.limits import InjectLimits
from broker_core.inject.opening import Opener
from broker_core.inject.redact import Redactor
from broker_core.inject.screen import Screen, screened
from broker_core.inject.stream import BrokeredStream, Head, Passing
from broker_core.inject.uses import OneUse
from broker_core.inject.watch import Watch
from broker_core.ports import Candidate, Clock, GuessLog, UpstreamAnswer, UpstreamLine


@dataclass(frozen=True)
class Deadlines:
    """By the monotonic clock: of what comes before the sending, and of all of it."""

    key: float
    all: float


@dataclass(frozen=True)
class Begun:
    """A request whose secret is selected, whose line is open and whose intent is committed."""

    use: OneUse
    request: Prepared
    line: UpstreamLine
    deadlines: Deadlines
    cancellation: Cancellation


class Sender:
    """Takes a request from its intent to its answer."""

    def __init__(self, opener: Opener, guesses: GuessLog, clock: Clock, limits: InjectLimits, watch: Watch) -> None:
        self._opener = opener
        self._guesses = guesses
        self._clock = clock
        self._limits = limits
        self._watch = watch

    def whole(self, begun: Begun) -> BrokeredResponse:
        """The answer, once it is all there."""
        with ExitStack() as held:
            answer, redactor = self._answered(begun, held)
            pieces = decoded(answer.chunks(), answer.headers, self._limits.max_bytes, self._limits.max_inflation)
            body = redactor.body(b"".join(pieces))
            head = _head(begun, answer, redactor)
            length = [("Content-Length", str(len(body)))] if _may_have_body(begun, answer) else []
            return BrokeredResponse(head.status, head.reason, [*head.headers, *length], body, head.audit_id)

    def streamed(
        self, begun: Begun, line: ExitStack, closes: Callable[[Exception | None], BrokerError | None]
    ) -> BrokeredStream:
        """The answer, once its head is there. ``line`` is what gives the line back: the stream does it from then on;
        and ``closes`` closes the use."""
        with ExitStack() as held:
            answer, redactor = self._answered(begun, held)
            if _may_have_body(begun, answer):
                coding_of(answer.headers)  # what cannot be read is withheld before anything of it is handed on
            limits = self._limits
            pieces = decoded(answer.chunks(), answer.headers, limits.stream_max_bytes, limits.max_inflation)
            head, masking = _head(begun, answer, redactor), redactor.stream()
            all_held = ExitStack()
            all_held.push(line.pop_all())
            all_held.push(held.pop_all())
        is_over = partial(self._is_over, begun.deadlines.all)
        passing = Passing(pieces, masking, begun.line.abort, all_held, begun.cancellation, is_over, closes)
        return BrokeredStream(head, passing, self._watch)

    def _is_over(self, ends: float) -> bool:
        return self._clock.monotonic() >= ends

    def _answered(self, begun: Begun, held: ExitStack) -> tuple[UpstreamAnswer, Redactor]:
        """``held`` gets what is to be given back."""
        begun.cancellation.check()
        value = self._opener.value(begun.use, begun.deadlines.key)  # 7, 8
        redactor = Redactor([(begun.use.secret.name, value)])
        held.callback(_wipe, begun.use, redactor)  # 11
        # else an upstream that echoes would show, masked or not, whether a guess is right
        if _shows(begun.request, redactor):
            raise self._refusal(begun.use)
        begun.cancellation.check()
        with begun.cancellation.explaining():
            answer = self._sent(begun, value, redactor)  # 9
        held.callback(answer.close)
        return answer, redactor

    def _sent(self, begun: Begun, value: bytes, redactor: Redactor) -> UpstreamAnswer:
        use, request = begun.use, begun.request
        with (
            telemetry.span("upstream.send", SpanKind.CLIENT, http__request__method=request.method) as current,
            self._screened(begun, redactor) as fit,
        ):
            use.is_sent = True
            answer = begun.line.send(apply(use.secret.injection, value, fit))  # INV-7
            use.status = answer.status
            current.set_attribute("http.response.status_code", answer.status)
            return answer

    @contextmanager
    def _screened(self, begun: Begun, redactor: Redactor) -> Iterator[Prepared]:
        request = begun.request
        if isinstance(request.body, bytes):
            yield request  # was looked through as a whole
            return
        screen = Screen(redactor.texts, partial(self._refusal, begun.use))
        body = screened(request.body, screen, request.length, self._limits.stream_max_bytes)
        try:
            yield replace(request, body=body)
        finally:
            body.close()
            screen.close()

    def _refusal(self, use: OneUse) -> InjectionRefused:
        """The request holds the value already. Counted: each that is refused was a hit, and many are somebody who
        guesses."""
        intent = use.intent
        self._guesses.count(intent.workspace_id, caller_of(use.secret), use.secret.secret_id)
        telemetry.log().warning("inject.value_in_request", audit_id=str(intent.id))
        return InjectionRefused("the request already holds a form of the value", code="handle_misplaced")


def caller_of(secret: Candidate) -> str:
    """Who asks, as the ``GuessLog`` wants it: by the ids that the secret is bound to. Of the others a caller may give
    any, and would so begin to count anew."""
    return f"{secret.injection.agent_id or ''},{secret.injection.mcp_server_id or ''}"


def _head(begun: Begun, answer: UpstreamAnswer, redactor: Redactor) -> Head:
    headers = handed_on(answer.headers, redactor)
    return Head(answer.status, redactor.text(answer.reason), headers, begun.use.intent.id)


def _may_have_body(begun: Begun, answer: UpstreamAnswer) -> bool:
    return begun.request.method != "HEAD" and answer.status not in (204, 304)


def _wipe(use: OneUse, redactor: Redactor) -> None:
    use.redactions = redactor.count
    redactor.close()


def _shows(request: Prepared, redactor: Redactor) -> bool:
    texts = [request.address.target, *(text for pair in request.headers for text in pair)]
    parts = [text.encode("latin-1") for text in texts]
    return any(map(redactor.finds_in, [*parts, request.body] if isinstance(request.body, bytes) else parts))
