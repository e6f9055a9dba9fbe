"""Spans of a test: collected in memory, and drawn as a tree as a person would read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class _ToWhoeverCollects(SpanExporter):
    """Hands spans to the tests that collect them now. A processor cannot be taken off a provider again: with one for
    each test, every span of the later ones would pass them all."""

    def __init__(self) -> None:
        self.collecting: list[InMemorySpanExporter] = []
        self._provider: TracerProvider | None = None

    def see_to_it(self) -> None:
        """Be on the process's provider. It is set once: by us, or by a test that sets a process up."""
        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider):
            provider = TracerProvider()
            trace.set_tracer_provider(provider)
        if provider is not self._provider:
            provider.add_span_processor(SimpleSpanProcessor(self))
            self._provider = provider

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for exporter in tuple(self.collecting):
            exporter.export(spans)
        return SpanExportResult.SUCCESS


_ours = _ToWhoeverCollects()


@contextmanager
def collected() -> Iterator[InMemorySpanExporter]:
    """The spans that end within the block."""
    _ours.see_to_it()
    exporter = InMemorySpanExporter()
    _ours.collecting.append(exporter)
    try:
        yield exporter
    finally:
        _ours.collecting.remove(exporter)


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
