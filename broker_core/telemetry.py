"""Names of spans, metrics and log events, and the one way to open a span. The shape is fixed: no caller adds
text of its own.

Spans carry ids, codes and counts. They never record an exception's text or stack (it can hold a value): a failed span
has status ERROR and our own code as ``broker.code``. Imports the OpenTelemetry API only; the SDK is set up in
``observability``.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from broker_core.errors import BrokerError

AttributeValue = str | int | float | bool

#: every attribute that a span of ours may have; a test compares the two sets
ATTRIBUTES = frozenset(
    """broker.workspace broker.event broker.event_type broker.event_state broker.secret broker.version broker.connection
    broker.audit broker.purpose broker.cipher broker.code broker.aws_code broker.kind broker.attempt broker.count
    broker.redactions aws.request_id aws.region db.operation messaging.operation messaging.message
    server.address server.port http.request.method http.response.status_code""".split()
)

#: of a logged exception: links of its chain, and places of each
_MOST_LINKS, _MOST_FRAMES = 5, 20


@contextmanager
def span(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: AttributeValue | None) -> Iterator[Span]:
    """Open a span named from this project's fixed names. Attribute keywords are written with ``__`` for the dot:
    ``broker__workspace="ws_1"``. None values are left out.

    A BrokerError sets the span's status and code; any other exception sets ``broker.code`` to ``internal``.
    """
    current = begun(name, kind, **attributes)
    try:
        with within(current):
            yield current
    finally:
        current.end()


def begun(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: AttributeValue | None) -> Span:
    """Begin a span that lasts longer than a block: whoever asked for it ends it."""
    given = {key.replace("__", "."): value for key, value in attributes.items() if value is not None}
    return trace.get_tracer("axiorank.broker").start_span(name, kind=kind, attributes=given)


@contextmanager
def within(current: Span) -> Iterator[None]:
    """Run the block in a span, from whatever thread; an error is noted as ``span`` notes it. The span is not ended."""
    with trace.use_span(current, end_on_exit=False, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BrokerError as error:
            fail(current, error.reason)
            raise
        except Exception:
            fail(current, "internal")
            raise


def fail(current: Span, code: str) -> None:
    """Mark a span as failed with a code of ours."""
    current.set_attribute("broker.code", code)
    current.set_status(Status(StatusCode.ERROR))


def traceparent() -> str | None:
    """The W3C ``traceparent`` of the current span, None outside of one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def continued(parent: str | None) -> Iterator[None]:
    """Run the block as a child of a ``traceparent`` that came from outside; malformed ones start a new trace."""
    token = otel_context.attach(propagate.extract({"traceparent": parent} if parent else {}))
    try:
        yield
    finally:
        otel_context.detach(token)


def count_unmapped(aws_code: str) -> None:
    """Count an answer of AWS's whose code our table does not know; a metric only where a process set metrics up."""
    # made anew each time, which is rare: an instrument that is kept would belong to whoever's meter was first
    counter = metrics.get_meter("axiorank.broker").create_counter(
        "broker.kms.unmapped", description="answers of AWS's that were taken as transient because nobody knows them"
    )
    counter.add(1, {"broker.aws_code": aws_code})


def log() -> structlog.stdlib.BoundLogger:
    """The broker's logger. Event names are constants in dotted form; keyword values are ids, codes and counts."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("broker")
    return logger


def shape_of(error: BaseException) -> list[dict[str, Any]]:
    """An exception and its shown causes as classes and places, for a log line. Only errors of ours speak: they hold no
    value."""
    return [
        {
            "class": type(link).__name__,
            **({"error": str(link)} if isinstance(link, BrokerError) else {}),
            "frames": list(_frames(link.__traceback__)),
        }
        for link in _chain(error)
    ]


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(_MOST_LINKS):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _frames(traceback: types.TracebackType | None) -> list[str]:
    places = []
    while traceback is not None:
        places.append(f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return places[-_MOST_FRAMES:]
