"""What the endpoints stand on: the use cases, the check of tokens, the limits. One for an application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import Request

from broker_core.api.tokens import TokenVerifier
from broker_core.bootstrap import App
from broker_core.rates import Rates


@dataclass(frozen=True)
class Surface:
    """Kept at ``api.state.surface``; endpoints get it by ``Depends(surface_of)``."""

    app: App
    tokens: TokenVerifier
    rates: Rates


async def surface_of(request: Request) -> Surface:
    """The surface of the application that serves a request. A coroutine: FastAPI would call a function in a thread."""
    return cast(Surface, request.app.state.surface)
