"""The application: routers under /api/v1, in the middleware that every request passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from broker_core.api import (
    audit,
    byok,
    byok_moves,
    byok_proof,
    byok_reports,
    byok_setup,
    events,
    health,
    inject,
    problems,
    proxy,
    secrets,
    workspaces,
)
from broker_core.api.described import ABOUT
from broker_core.api.description import Described, operation_id
from broker_core.api.metrics import Metrics
from broker_core.api.passage import VERSION, Passage
from broker_core.api.surface import Surface

#: the framework's own spans and log records hold the text of exceptions and of refused fields (INV-1), and the
#: environment could switch exporters of its own on: ours stand in ``passage``
_SILENT: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

_PARTS = (
    *(events, secrets, workspaces, audit, inject, proxy),
    *(byok, byok_setup, byok_reports, byok_moves, byok_proof),
)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_api(surface: Surface, lifespan: Lifespan | None = None) -> FastAPI:
    """An ASGI application on a surface. ``lifespan`` opens and closes what belongs to the process."""
    api = routed(lifespan)
    dress(api, surface)
    return api


def dress(api: FastAPI, surface: Surface) -> None:
    """Give what there is to call something to call it on. Before the first request."""
    api.state.surface = surface
    api.state.metrics = Metrics()
    api.add_middleware(Passage, metrics=api.state.metrics)


def routed(lifespan: Lifespan | None = None) -> FastAPI:
    """What there is to call, without anything to call it on: enough to be described."""
    api = Described(
        title="AxioRank BYOK Secrets Broker",
        version="1",
        description=ABOUT,
        openapi_url="/api/openapi.json",
        docs_url=None,  # pages that load scripts from elsewhere have no place here
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=_SILENT,
        generate_unique_id_function=operation_id,
    )
    for part in _PARTS:
        api.include_router(part.router, prefix=VERSION)
    api.include_router(health.router)
    problems.install(api)
    _prepare(api)
    return api


def _prepare(api: FastAPI) -> None:
    """Let FastAPI make what each route needs, which it does at its first look: else the first request waits for all of
    them (0.2 s), and everybody with it."""
    for route in api.router.routes:
        route.matches({"type": "http", "method": "GET", "path": f"{VERSION}/", "path_params": {}, "headers": []})
