"""``/audit``: every use of a value or key, as lines of JSON."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from broker_core.api.bodies import StrictRoute
from broker_core.api.described import problems
from broker_core.api.parameters import Admin, Limit, OnSurface
from broker_core.api.schemas import GivenMoment, UseAnswer

router = APIRouter(route_class=StrictRoute, tags=["audit"])

NEXT = "x-axiorank-next-cursor"


class Lines(Response):
    """One JSON object a line."""

    media_type = "application/x-ndjson"


@router.get(
    "/audit",
    response_class=Lines,
    responses={
        200: {
            "description": "One JSON object a line, oldest id first.",
            "model": UseAnswer,
            "headers": {
                NEXT: {
                    "description": "The cursor of the next page; not there on the last one.",
                    "schema": {"type": "string", "format": "uuid"},
                }
            },
        },
        **problems(422, beside_json=True),
    },
)
def audit_log(
    caller: Admin,
    surface: OnSurface,
    since: Annotated[GivenMoment | None, Query(alias="from", description="Begun then or later.")] = None,
    until: Annotated[GivenMoment | None, Query(alias="to", description="Begun before.")] = None,
    cursor: Annotated[UUID | None, Query(description=f"`{NEXT}` of the page before.")] = None,
    limit: Limit = 50,
) -> Lines:
    """The workspace's audit log: who used which value for what, where it went, and what came of it."""
    page = surface.app.administer.uses(caller.workspace_id, since=since, until=until, after=cursor, limit=limit)
    lines = [UseAnswer.of(use).model_dump_json(by_alias=True, exclude_defaults=True) + "\n" for use in page.items]
    headers = {NEXT: str(page.next)} if page.next else {}
    return Lines("".join(lines), headers=headers)
