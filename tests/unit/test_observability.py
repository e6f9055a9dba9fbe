"""Logs and traces: their shape, and that no library's message or exception brings a value out."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from broker_core import observability, telemetry
from broker_core.errors import ConfigurationError, Unavailable
from broker_core.observability import configure_logging, install_exception_hooks, make_tracer_provider
from broker_core.secret import Plaintext

SENTINEL = "hunter2-sentinel"


class Written:
    """A stream, and what was written as JSON."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self) -> list[dict[str, Any]]:
        """Every line."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def written() -> Iterator[Written]:
    """Logging as a process has it, put back afterwards."""
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in observability.FLOORS}
    handlers, level = root.handlers[:], root.level
    each = Written()
    configure_logging(each.stream, "DEBUG")
    yield each
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class TestLines:
    def test_shape(self, written: Written) -> None:
        """A line is JSON with the event, the level, an RFC 3339 time in UTC and what was bound."""
        with structlog.contextvars.bound_contextvars(actor="secret_created"):
            telemetry.log().info("actor.done", seconds=0.5)
        (line,) = written.lines()
        assert line.pop("timestamp").endswith("Z")
        assert line == {"event": "actor.done", "level": "info", "actor": "secret_created", "seconds": 0.5}

    def test_trace_ids(self, written: Written) -> None:
        """Inside a span a line carries its ids, as traceparent writes them."""
        with TracerProvider().get_tracer("t").start_as_current_span("s") as span:
            telemetry.log().info("x")
        (line,) = written.lines()
        context = span.get_span_context()
        assert (line["trace_id"], line["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")

    def test_ids_are_text_and_objects_are_not_shown(self, written: Written) -> None:
        """Of an object that is no id or time only the class is written."""
        event = uuid.uuid4()
        telemetry.log().info("x", event_id=event, value=Plaintext(SENTINEL.encode()), raw=SENTINEL.encode())
        (line,) = written.lines()
        assert (line["event_id"], line["value"], line["raw"]) == (str(event), "<Plaintext>", "<bytes>")

    def test_configured_twice_writes_once(self, written: Written) -> None:
        """A second set-up replaces the first."""
        configure_logging(written.stream, "INFO")
        telemetry.log().debug("x")
        telemetry.log().info("y")
        assert [line["event"] for line in written.lines()] == ["y"]


class TestExceptions:
    def test_foreign_exception_is_class_and_places(self, written: Written) -> None:
        """A foreign exception's text and variables are not written; its class and places are."""
        try:
            value = SENTINEL
            raise ValueError(f"bad {value}")
        except ValueError:
            telemetry.log().error("x", exc_info=True)
        (line,) = written.lines()
        (link,) = line["exception"]
        assert link["class"] == "ValueError"
        assert link["frames"][0].rpartition(":")[0] == __file__
        assert SENTINEL not in written.stream.getvalue()

    def test_own_error_speaks(self, written: Written) -> None:
        """An error of ours holds no value, and its code and message are written."""
        telemetry.log().error("x", exc_info=Unavailable("the queue is away"))
        assert written.lines()[0]["exception"][0]["error"] == "unavailable: the queue is away"

    def test_causes_are_shown_without_text(self, written: Written) -> None:
        """Causes are written the same way, unless they were cut off with ``from None``."""
        try:
            try:
                raise KeyError(SENTINEL)
            except KeyError as cause:
                raise RuntimeError(SENTINEL) from cause
        except RuntimeError as error:
            telemetry.log().error("x", exc_info=error)
        assert [link["class"] for link in written.lines()[0]["exception"]] == ["RuntimeError", "KeyError"]
        assert SENTINEL not in written.stream.getvalue()

    def test_nobody_caught_it(self, written: Written) -> None:
        """What nobody caught, in the main thread or another, is a log line without its text."""
        install_exception_hooks()

        def fail() -> None:
            raise ValueError(SENTINEL)

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        sys.excepthook(ValueError, ValueError(SENTINEL), None)
        assert [line["event"] for line in written.lines()] == ["process.uncaught"] * 2
        assert SENTINEL not in written.stream.getvalue()

    def test_nobody_could_catch_it(self, written: Written, capfd: pytest.CaptureFixture[str]) -> None:
        """What an object raises when it is thrown away is such a line too: Python would print its text."""
        install_exception_hooks()

        class Thrown:
            def __del__(self) -> None:
                raise ValueError(SENTINEL)

        Thrown()
        assert [line["event"] for line in written.lines()] == ["process.uncaught"]
        assert SENTINEL not in written.stream.getvalue() + capfd.readouterr().err


class TestLibraries:
    @pytest.mark.parametrize("name", [*observability.FLOORS, "some.other", "httpx"])
    @pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL])
    def test_arguments_are_never_written(self, written: Written, name: str, level: int) -> None:
        """Whatever its level, a library's record is at most its template, even when its own logger is opened up."""
        logger = logging.getLogger(f"{name}.part")
        logger.setLevel(logging.DEBUG)
        logger.log(level, "body: %s", SENTINEL)
        logger.setLevel(logging.NOTSET)
        assert SENTINEL not in written.stream.getvalue()
        assert all(line["event"] == "body: %s" and line["logger"] == logger.name for line in written.lines())

    @pytest.mark.parametrize("name", observability.FLOORS)
    def test_finished_text_below_the_floor_is_dropped(self, written: Written, name: str) -> None:
        """A library that builds its text itself is not written below its floor."""
        logger = logging.getLogger(f"{name}.part")
        logger.setLevel(logging.DEBUG)
        logger.log(observability.FLOORS[name] - 1, f"body: {SENTINEL}")
        logger.setLevel(logging.NOTSET)
        assert written.lines() == []

    def test_exception_as_the_message(self, written: Written) -> None:
        """``logger.error(exception)`` is written as the class."""
        logging.getLogger("dramatiq").critical(ValueError(SENTINEL), exc_info=ValueError(SENTINEL))
        (line,) = written.lines()
        assert line["event"] == "ValueError"
        assert SENTINEL not in written.stream.getvalue()


class TestTraces:
    def test_disabled(self) -> None:
        """OTEL_SDK_DISABLED leaves the process without a provider."""
        assert make_tracer_provider("web", {"OTEL_SDK_DISABLED": "true"}, None) is None

    def test_service_name_and_limits(self) -> None:
        """Spans are exported with the service's name, and long attributes are cut."""
        exporter = InMemorySpanExporter()
        provider = make_tracer_provider("worker", {}, exporter)
        assert provider is not None
        with provider.get_tracer("t").start_as_current_span("s") as span:
            span.set_attribute("broker.code", "x" * 1000)
        provider.force_flush()
        (done,) = exporter.get_finished_spans()
        provider.shutdown()
        assert done.resource.attributes["service.name"] == "worker"
        assert done.attributes == {"broker.code": "x" * 256}

    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            ({}, "NoneType"),
            ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "NoneType"),
            ({"OTEL_TRACES_EXPORTER": "console"}, ConsoleSpanExporter.__name__),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "OTLPSpanExporter"),
        ],
    )
    def test_exporter(self, environ: dict[str, str], expected: str) -> None:
        """The SDK's variables choose the exporter; without any there is none."""
        assert type(observability.make_exporter(environ)).__name__ == expected

    def test_unknown_exporter(self) -> None:
        """An exporter that we do not have stops start-up."""
        with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER"):
            observability.make_exporter({"OTEL_TRACES_EXPORTER": "zipkin"})

    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            ({}, "NoneType"),
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "NoneType"),
            ({"OTEL_METRICS_EXPORTER": "none"}, "NoneType"),
            ({"OTEL_METRICS_EXPORTER": "console"}, "ConsoleMetricExporter"),
            ({"OTEL_METRICS_EXPORTER": "otlp"}, "OTLPMetricExporter"),
        ],
    )
    def test_metric_exporter(self, environ: dict[str, str], expected: str) -> None:
        """Metrics are sent only where an operator asks for them."""
        assert type(observability.make_metric_exporter(environ)).__name__ == expected

    def test_unknown_metric_exporter(self) -> None:
        """One that we do not have stops start-up too."""
        with pytest.raises(ConfigurationError, match="OTEL_METRICS_EXPORTER"):
            observability.configure_metrics("worker", {"OTEL_METRICS_EXPORTER": "prometheus"})

    def test_without_an_exporter_nothing_is_counted(self) -> None:
        """No provider, no thread; what ends it does nothing."""
        observability.configure_metrics("worker", {})()
        assert not isinstance(metrics.get_meter_provider(), MeterProvider)

    def test_no_provider_is_set_by_importing(self) -> None:
        """Outside of a configured process there is no trace id to write."""
        assert not trace.get_current_span().get_span_context().is_valid
