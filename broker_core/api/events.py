"""``/events``: producers bring values, and everybody with a part in them sees where they are."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request

from broker_core import events
from broker_core.api.bodies import StrictRoute, check_parts, whole
from broker_core.api.callers import Caller, Role, allow
from broker_core.api.described import problems
from broker_core.api.parameters import Admin, OnSurface
from broker_core.api.schemas import AcceptedEventAnswer, EventAnswer

router = APIRouter(route_class=StrictRoute, tags=["events"])

EventId = Annotated[UUID, Path(alias="id", description="Our id of the event.")]
_CLOUD_EVENT = {"schema": {"$ref": "#/components/schemas/CloudEvent"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": dict.fromkeys(("application/cloudevents+json", "application/json"), _CLOUD_EVENT),
    }
}


async def _body(request: Request) -> bytes:
    """As it came: events have a parser of their own, which takes the value out of reach."""
    body = await whole(request)
    check_parts(body)
    return body


@router.post(
    "/events",
    status_code=202,
    response_model_exclude_defaults=True,
    responses=problems(400, 404, 409, 413, 422),
    openapi_extra=_BODY,
)
def accept_event(
    caller: Annotated[Caller, Depends(allow(scope="broker:events"))],
    surface: OnSurface,
    body: Annotated[bytes, Depends(_body)],
) -> AcceptedEventAnswer:
    """Accept one CloudEvent (structured mode) for the token's workspace. A repeat is answered like the first time."""
    receipt = surface.app.intake.accept(events.parse(body), workspace_id=caller.workspace_id)
    return AcceptedEventAnswer.of(receipt)


@router.get("/events/{id}", response_model_exclude_defaults=True, responses=problems(404, 422))
def event_by_id(
    caller: Annotated[Caller, Depends(allow(scope="broker:events", role=Role.ADMIN))],
    surface: OnSurface,
    event_id: EventId,
) -> EventAnswer:
    """Where an event is."""
    return EventAnswer.of(surface.app.administer.event(caller.workspace_id, event_id))


@router.delete("/events/{id}", status_code=202, response_model_exclude_defaults=True, responses=problems(404, 409, 422))
def discard_event(caller: Admin, surface: OnSurface, event_id: EventId) -> EventAnswer:
    """Discard a value that waits, such as one that is held because the key refuses it."""
    return EventAnswer.of(surface.app.administer.discard(caller.workspace_id, event_id))
