"""Spans of a test: collected in memory, and drawn as a tree as a person would read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@contextmanager
def collected() -> Iterator[InMemorySpanExporter]:
    """The spans that end within the block. The process has one provider: it is set once and shared."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def tree(spans: Iterable[ReadableSpan], root: str) -> str:
    """The trace whose topmost span is named ``root``, one span a line, children indented, in order of their start."""
    spans = list(spans)
    (top,) = (span for span in spans if span.name == root and span.parent is None)
    children: dict[int, list[ReadableSpan]] = defaultdict(list)
    for span in spans:
        if span.parent is not None and span.context is not None:
            children[span.parent.span_id].append(span)

    def drawn(span: ReadableSpan, depth: int) -> Iterator[str]:
        yield "  " * depth + span.name
        assert span.context is not None
        for child in sorted(children[span.context.span_id], key=lambda each: each.start_time or 0):
            yield from drawn(child, depth + 1)

    return "\n".join(drawn(top, 0))
