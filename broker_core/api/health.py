"""For probes and scrapers: /healthz, /readyz, /metrics. No token: they say which part is away, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from anyio import CapacityLimiter, create_task_group, to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from broker_core.api.problems import MARK
from broker_core.api.surface import Surface, surface_of
from broker_core.errors import BrokerError

router = APIRouter(include_in_schema=False)

#: a part that does not answer must not take the threads that serve requests
_ASKING = 4


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives. Asks nobody: restarting us mends no other part."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(surface: Annotated[Surface, Depends(surface_of)], request: Request) -> Response:
    """Whether every part that a request may need is there; 503 names those that are not."""
    state = request.app.state
    if not hasattr(state, "asking"):
        state.asking = CapacityLimiter(_ASKING)  # belongs to the event loop that serves
    asked = {**surface.app.parts, "token_keys": surface.tokens.keys.check}
    answers = await _ask(asked, state.asking)
    parts = {name: "ok" if answers[name] else "away" for name in asked}
    if all(answers.values()):
        return JSONResponse({"status": "ok", "parts": parts})
    return JSONResponse(
        {"error": "unavailable", "message": "a part is away", "parts": parts},
        503,
        {MARK: "true", "Retry-After": "2"},
    )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text, of every process of this machine's ``web``."""
    text, kind = request.app.state.metrics.render()
    return Response(text, headers={"Content-Type": kind})


async def _ask(asked: Mapping[str, Callable[[], object]], limiter: CapacityLimiter) -> dict[str, bool]:
    """Every part at once."""
    answers: dict[str, bool] = {}

    async def ask(name: str, question: Callable[[], object]) -> None:
        answers[name] = await to_thread.run_sync(_answers, question, limiter=limiter)

    async with create_task_group() as group:
        for name, question in asked.items():
            group.start_soon(ask, name, question)
    return answers


def _answers(question: Callable[[], object]) -> bool:
    try:
        question()
    except BrokerError:
        return False
    return True
