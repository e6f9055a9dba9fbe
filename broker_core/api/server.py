"""The ``web`` process: uvicorn, configured on purpose, around one application for each process.

It speaks HTTP/1.1 without TLS: what stands before it ends TLS. It prints no access log of its own (ours has no paths),
names no product and no version, and on SIGTERM finishes what is under way within ``GRACE_SECONDS``.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from broker_core import telemetry
from broker_core.adapters.clock import SystemClock
from broker_core.api import jwks
from broker_core.api.front import StrictProtocol
from broker_core.api.main import Lifespan, make_api
from broker_core.api.metrics import DIRECTORY
from broker_core.api.surface import Surface
from broker_core.api.tokens import TokenVerifier
from broker_core.bootstrap import App, build_app
from broker_core.errors import ConfigurationError
from broker_core.observability import configure_logging, start_process
from broker_core.settings import WEB, Settings

#: threads of one process: a buffered injection holds one while it waits for AWS and for the upstream
THREADS = 40
#: seconds for what is under way when SIGTERM comes; less than the 60 s that a supervisor waits
GRACE_SECONDS = 45
#: seconds; longer than load balancers keep an idle connection (60): else we close one just as a request comes
KEEP_ALIVE_SECONDS = 75
#: seconds in which a process must answer its supervisor, or it is killed with all that is under way: long enough for
#: a machine that is short of processor time
HEALTH_SECONDS = 30
#: bytes of a request's line and headers
LARGEST_HEAD = 32 * 1024
#: connections that wait to be taken
BACKLOG = 2048

#: tells each process how many threads it was given
THREADS_VARIABLE = "AXIORANK_WEB_THREADS"


def make_surface(app: App, clock: SystemClock | None = None) -> Surface:
    """The surface of an App, with the token keys that its settings name. Raises ConfigurationError."""
    settings = app.settings
    settings.require(*WEB)
    clock = clock or SystemClock()
    keys = jwks.from_setting(settings.token_jwks or "", clock, settings.egress_ca_file)
    tokens = TokenVerifier(
        keys, issuer=settings.token_issuer or "", audience=settings.token_audience or "", clock=clock
    )
    return Surface(app, tokens, app.rates)


def application() -> FastAPI:
    """This process's application: what uvicorn calls in each process. Raises ConfigurationError, Unavailable."""
    threads = int(os.environ.get(THREADS_VARIABLE) or THREADS)
    settings = Settings.from_environment(os.environ)
    closing = ExitStack()
    closing.callback(start_process("axiorank-broker-web", os.environ))
    app = build_app(settings, threads=threads)
    closing.callback(app.close)
    api = make_api(make_surface(app), _lifespan(threads, closing))
    # what was imported and made stays: a full collection went through it for 0.1 s, while every request waited
    gc.collect()
    gc.freeze()
    return api


def _lifespan(threads: int, closing: ExitStack) -> Lifespan:
    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        # endpoints run in these threads: as many as the App was told of
        to_thread.current_default_thread_limiter().total_tokens = threads
        telemetry.log().info("web.started")
        try:
            yield
        finally:
            telemetry.log().info("web.stopped")
            closing.close()

    return lifespan


def run(environ: Mapping[str, str], host: str, processes: int, threads: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError or Unavailable before anything is started."""
    configure_logging(sys.stderr)
    settings = Settings.from_environment(environ)
    # what each process will do first, done here too: here an operator reads why it cannot work
    with ExitStack() as opened:
        app = build_app(settings)
        opened.callback(app.close)
        make_api(make_surface(app))
    os.environ[THREADS_VARIABLE] = str(threads)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on them, and raises them once more when it has: that it has is all we wanted
        signal.signal(number, lambda *_: None)
    config = configuration("broker_core.api.server:application", factory=True, workers=processes)
    with listening(host, settings.port) as bound:
        if processes == 1:
            uvicorn.Server(config).run([bound])
        else:
            _run_processes(config, bound)


def _run_processes(config: uvicorn.Config, bound: socket.socket) -> None:
    """Several processes on one socket; one that dies is started again. Their metrics meet in a directory."""
    directory = Path(tempfile.mkdtemp(prefix="broker-metrics-"))
    os.environ[DIRECTORY] = str(directory)
    try:
        Multiprocess(config, sockets=[bound]).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def configuration(app: Any, **changed: Any) -> uvicorn.Config:
    """How an application is served; ``app`` as uvicorn takes it."""
    chosen: dict[str, Any] = {
        "http": StrictProtocol,
        "ws": "none",
        "backlog": BACKLOG,
        "loop": "asyncio",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,  # nothing here depends on who the peer is
        "h11_max_incomplete_event_size": LARGEST_HEAD,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "timeout_worker_healthcheck": HEALTH_SECONDS,
    }
    return uvicorn.Config(app, **{**chosen, **changed})


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 is any. Raises ConfigurationError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise ConfigurationError(f"cannot listen on {host}, PORT {port}: is it taken, or not this machine's?") from None
    # from here on connections wait for the application, and are not refused: it says that it has started just before
    bound.listen(BACKLOG)
    bound.set_inheritable(True)
    return bound
