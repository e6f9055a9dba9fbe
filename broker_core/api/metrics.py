"""Counters for /metrics, in Prometheus' format: of one process, or of all processes of a machine's ``web``.

With several processes the library keeps the numbers in files of a directory that PROMETHEUS_MULTIPROC_DIR names; it
reads that when it is imported, so it is imported only here, inside functions (``server`` sets the variable first).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Requests by route template (never a path: it holds ids), method and status."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        self._requests = Counter(
            "broker_http_requests", "answered requests", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "broker_http_seconds",
            "until the answer had ended",
            ["route", "method"],
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._under_way = Gauge(
            "broker_http_under_way", "requests being served", registry=self._registry, multiprocess_mode="livesum"
        )

    def begun(self) -> None:
        """A request came."""
        self._under_way.inc()

    def ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """It was answered, or nobody was there any more (499)."""
        method = method if method in _METHODS else "other"
        self._under_way.dec()
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The text of all processes' numbers, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        directory = os.environ.get(DIRECTORY)
        registry = self._registry
        if directory:
            _forget_the_dead(Path(directory))
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call] # the library has no types here
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _forget_the_dead(directory: Path) -> None:
    """What a killed process had under way is under way no more; its counters stay."""
    from prometheus_client.multiprocess import mark_process_dead

    pids = {int(found[1]) for file in directory.glob("*.db") if (found := re.search(r"_(\d+)\.db$", file.name))}
    for pid in pids:
        if not _lives(pid):
            mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call] # as above


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
