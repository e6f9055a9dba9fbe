"""A worker process: ``dramatiq workers.main:setup`` calls ``setup`` in each; ``workers.start`` does that for us.

dramatiq's master starts the processes and, when one dies, stops all with a non-zero exit code: a supervisor restarts
it. Nothing in a process is state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import dramatiq
from dramatiq import Broker, Middleware, Worker
from dramatiq.brokers.redis import RedisBroker

from broker_core import telemetry
from broker_core.adapters.queue import connect_queue
from broker_core.bootstrap import App, build_app
from broker_core.observability import make_exporter, make_metric_exporter, start_process
from broker_core.settings import Settings
from workers.custody import register_custody
from workers.middleware import worker_middleware
from workers.notify import register_notify
from workers.start import threads_in
from workers.sweeper import register_sweeper


def setup() -> None:
    """Set this process up: logs, traces, the App, every actor. Raises ConfigurationError."""
    settings = Settings.from_environment(os.environ)
    end_traces = start_process("axiorank-worker", os.environ)
    app = build_app(settings, threads=threads_in(os.environ))
    dramatiq.set_broker(make_worker_queue(settings.redis_url, app, end_traces))
    telemetry.log().info("worker.started")


def make_worker_queue(url: str, app: App, end_traces: Callable[[], None] = lambda: None) -> RedisBroker:
    """A broker with all actors, which closes the App and ends the traces together with its worker."""
    broker = connect_queue(url, middleware=[*worker_middleware(), _Closing(app.close, end_traces)])
    register_custody(broker, app)
    register_sweeper(broker, app)
    register_notify(broker, app)
    return broker


class _Closing(Middleware):
    """Runs what closes, in order, once the worker's threads have ended."""

    def __init__(self, *closing: Callable[[], None]) -> None:
        self._closing = closing

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Close connections, send the last spans."""
        for close in self._closing:
            close()


def check(environ: Mapping[str, str]) -> None:
    """Build what each process will, and close it. Raises ConfigurationError or Unavailable."""
    for exporter in (make_exporter(environ), make_metric_exporter(environ)):
        if exporter is not None:
            exporter.shutdown()
    build_app(Settings.from_environment(environ)).close()
