"""The surface is ready before the first request comes."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from broker_core.api.main import routed


def test_no_request_waits_for_a_route_to_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI makes what a route needs at its first look at it: 0.2 s for all of them, in which nobody is served."""
    api = routed()
    made: list[Any] = []
    make = TypeAdapter.__init__

    def counted(adapter: TypeAdapter[Any], *args: Any, **kwargs: Any) -> None:
        made.append(args)
        make(adapter, *args, **kwargs)

    monkeypatch.setattr(TypeAdapter, "__init__", counted)

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://broker.test") as client:
            return (await client.get("/healthz")).status_code

    assert asyncio.run(ask()) == 200
    assert not made
