"""Setting up logs, traces and metrics: JSON lines with trace ids, and the OpenTelemetry SDK. Called once by each
process.

The promise (INV-1): whatever level a library logs at, and whatever it puts into its messages and exceptions, no value
gets out here. Of foreign records only the template is written, never its arguments; of foreign exceptions only the
class and the places (file:line), never their text or variables. Imports only ``errors``,
``telemetry``, structlog and the SDK.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import ExitStack
from datetime import date, datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from broker_core.errors import ConfigurationError
from broker_core.telemetry import shape_of

EventDict = MutableMapping[str, Any]

#: what each library may log at most, whatever its own level: below these they print requests, answers or parameters
FLOORS: Mapping[str, int] = {
    "botocore": logging.WARNING,  # DEBUG prints the body of KMS Decrypt
    "alembic": logging.WARNING,  # INFO is of no use as templates without arguments
    "boto3": logging.WARNING,
    "s3transfer": logging.WARNING,
    "urllib3": logging.ERROR,  # DEBUG and WARNING print URLs with their query
    "redis": logging.WARNING,
    "dramatiq": logging.INFO,  # DEBUG prints messages
    "sqlalchemy": logging.WARNING,  # INFO prints bound parameters
    "psycopg": logging.ERROR,  # WARNING prints what the server said
    "asyncio": logging.ERROR,
    "opentelemetry": logging.WARNING,
    "uvicorn": logging.WARNING,  # INFO is of no use as templates without arguments; its access log prints paths
    "fastapi": logging.ERROR,
}
#: any other library; ours (``broker`` and below) has no floor
OTHERS = logging.WARNING
OURS = "broker"


def start_process(service_name: str, environ: Mapping[str, str]) -> Callable[[], None]:
    """Set this process's logs, traces and metrics up; returns what ends them (sends what is left).

    The process leaves no core file when it crashes: its memory may hold values (INV-1).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    configure_logging(sys.stderr)
    install_exception_hooks()
    ending = ExitStack()
    ending.callback(configure_tracing(service_name, environ))
    ending.callback(configure_metrics(service_name, environ))
    return ending.close


def configure_logging(stream: TextIO, level: int | str = logging.INFO) -> None:
    """Send every logger's records to ``stream`` as JSON lines. May be called again; the last call holds."""
    first: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _trace_ids,
        _exceptions,
        _TIME,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *first, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(_is_allowed)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_foreign, *first],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _RENDER],
            use_get_message=False,  # the template alone: arguments are where libraries put what they were given
        )
    )
    logging.raiseExceptions = False  # else a full disk makes Python print the record's arguments to stderr
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, floor in FLOORS.items():
        # the filter above decides; this only spares the work of making records that it would drop
        logging.getLogger(name).setLevel(max(floor, root.level))


def install_exception_hooks() -> None:
    """Write what nobody caught, in any thread, and what nobody could (it was raised where an object is thrown away), as
    a log line without its text, instead of Python's traceback."""

    def write(error: BaseException | None) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            structlog.stdlib.get_logger(OURS).critical("process.uncaught", exc_info=error)

    sys.excepthook = lambda _, error, __: write(error)
    threading.excepthook = lambda hooked: write(hooked.exc_value)
    sys.unraisablehook = lambda hooked: write(hooked.exc_value)


# ---------------------------------------------------------------- structlog processors


def _is_allowed(record: logging.LogRecord) -> bool:
    library = record.name.partition(".")[0]
    return library == OURS or record.levelno >= FLOORS.get(library, OTHERS)


def _foreign(_: Any, __: str, event: EventDict) -> EventDict:
    """A foreign record: its logger's name, and its template only if it is text (``logger.error(exception)`` is not)."""
    record: logging.LogRecord = event["_record"]
    event["logger"] = record.name
    if not isinstance(record.msg, str):
        event["event"] = type(record.msg).__name__
    event.pop("stack_info", None)
    return event


def _trace_ids(_: Any, __: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def _exceptions(_: Any, __: str, event: EventDict) -> EventDict:
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = shape_of(error)
    return event


def _plain(value: object) -> str:
    """What JSON does not know: ids and times as text, of anything else the class alone."""
    return str(value) if isinstance(value, UUID | date | datetime | Path) else f"<{type(value).__name__}>"


_TIME = structlog.processors.TimeStamper(fmt="iso", utc=True)
_RENDER = structlog.processors.JSONRenderer(serializer=json.dumps, default=_plain)


# ---------------------------------------------------------------- traces


def configure_tracing(service_name: str, environ: Mapping[str, str]) -> Callable[[], None]:
    """Set the process's tracer up, and return what ends it (sends what is left, within the SDK's own time limit).

    The SDK's own variables hold: OTEL_SDK_DISABLED, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
    OTEL_BSP_…, OTEL_EXPORTER_OTLP_…; OTEL_TRACES_EXPORTER is ``none``, ``console`` or ``otlp`` and, where unset,
    ``otlp`` only if an endpoint is named. Raises ConfigurationError for another exporter.
    """
    provider = make_tracer_provider(service_name, environ, make_exporter(environ))
    if provider is None:
        return lambda: None
    trace.set_tracer_provider(provider)
    return provider.shutdown


def make_tracer_provider(
    service_name: str, environ: Mapping[str, str], exporter: SpanExporter | None
) -> TracerProvider | None:
    """A provider that exports in batches, or None when there is nothing to do.

    Without an exporter there still is one (unless the SDK is disabled): log lines and queue messages carry trace ids.
    """
    if _is_disabled(environ):
        return None
    provider = TracerProvider(
        resource=_resource(service_name, environ),
        span_limits=SpanLimits(max_span_attributes=32, max_span_attribute_length=256, max_events=0, max_links=8),
        shutdown_on_exit=False,  # the process's own way out calls it, in order
    )
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _is_disabled(environ: Mapping[str, str]) -> bool:
    return environ.get("OTEL_SDK_DISABLED", "").lower() == "true"


def _resource(service_name: str, environ: Mapping[str, str]) -> Resource:
    return Resource.create({} if environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service_name})


def make_exporter(environ: Mapping[str, str]) -> SpanExporter | None:
    """The exporter that the SDK's variables name. Raises ConfigurationError for one that is not built in."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    unset = "otlp" if any(environ.get(name) for name in endpoints) else "none"
    match environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or unset:
        case "none":
            return None
        case "console":
            return ConsoleSpanExporter(out=sys.stderr)
        case "otlp":
            # here: its libraries take a tenth of a second to load
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter()
        case _:
            raise ConfigurationError("OTEL_TRACES_EXPORTER must be none, console or otlp (OTLP over HTTP)")


# ---------------------------------------------------------------- metrics


def configure_metrics(service_name: str, environ: Mapping[str, str]) -> Callable[[], None]:
    """Set the process's meter up where OTEL_METRICS_EXPORTER is ``console`` or ``otlp``, and return what ends it.

    Unset or ``none``: nothing is counted. OTEL_METRIC_EXPORT_INTERVAL and OTEL_EXPORTER_OTLP_… hold as the SDK reads
    them. Raises ConfigurationError for another exporter.
    """
    exporter = make_metric_exporter(environ)
    if exporter is None or _is_disabled(environ):
        return lambda: None
    provider = MeterProvider(
        [PeriodicExportingMetricReader(exporter)],
        resource=_resource(service_name, environ),
        shutdown_on_exit=False,  # as for traces
    )
    metrics.set_meter_provider(provider)
    return provider.shutdown


def make_metric_exporter(environ: Mapping[str, str]) -> MetricExporter | None:
    """The exporter that OTEL_METRICS_EXPORTER names. Raises ConfigurationError for one that is not built in."""
    match environ.get("OTEL_METRICS_EXPORTER", "").strip().lower():
        case "" | "none":
            return None
        case "console":
            return ConsoleMetricExporter(out=sys.stderr)
        case "otlp":
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            return OTLPMetricExporter()
        case _:
            raise ConfigurationError("OTEL_METRICS_EXPORTER must be none, console or otlp (OTLP over HTTP)")
