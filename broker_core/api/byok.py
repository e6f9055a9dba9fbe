"""``/byok/connection``: an owner connects a key, has it verified again, and disconnects it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from fastapi import APIRouter, Depends, Request

from broker_core.api.bodies import StrictRoute
from broker_core.api.byok_schemas import ConnectionAnswer, ConnectRequest
from broker_core.api.callers import Caller
from broker_core.api.described import problems
from broker_core.api.parameters import Admin, OnSurface, Owner
from broker_core.api.surface import Surface
from broker_core.errors import Conflict, NotFound, RateLimited
from broker_core.model import ConnectionStatus
from broker_core.ports import ConnectionView

router = APIRouter(route_class=StrictRoute, tags=["byok"])


async def _one_at_a_time(caller: Owner, request: Request) -> AsyncIterator[None]:
    """A verification asks AWS some twenty times, and where AWS is slow it holds a thread for 45 seconds: a workspace
    gets one of a process's threads for that, and the others stay for everybody else. Raises RateLimited."""
    state = request.app.state
    if not hasattr(state, "verifying"):
        state.verifying = set()  # used on one event loop only, so nothing is locked
    if caller.workspace_id in state.verifying:
        raise RateLimited("a key of this workspace is being tried: wait for its answer", _AGAIN)
    state.verifying.add(caller.workspace_id)
    try:
        yield
    finally:
        state.verifying.remove(caller.workspace_id)


#: before the answer is sent: whoever has it may ask again
_ALONE = [Depends(_one_at_a_time, scope="function")]
#: seconds
_AGAIN = 5
_SHOWN = (ConnectionStatus.CURRENT, ConnectionStatus.PENDING)


@router.get("/byok/connection", response_model_exclude_defaults=True, responses=problems(404))
def connection(caller: Admin, surface: OnSurface) -> ConnectionAnswer:
    """The current connection; where there is none, the pending one, with the steps that failed."""
    view = shown(surface.app.byok.connections(caller.workspace_id))
    if view is None:
        raise NotFound("BYOK is not connected")
    return ConnectionAnswer.of(view)


@router.put(
    "/byok/connection",
    dependencies=_ALONE,
    response_model_exclude_defaults=True,
    responses=problems(400, 404, 409, 413, 422),
)
def connect(caller: Owner, surface: OnSurface, body: ConnectRequest) -> ConnectionAnswer:
    """Make a key the one that encrypts every new and rotated secret, once it has passed every step.

    `status` says what came of it: `current`, or `pending` where a step failed; then nothing was enabled, and whatever
    encrypted before still does. Takes seconds. Needs the Enterprise plan (403 `plan_required`).
    """
    done = surface.app.byok.connect(caller.workspace_id, body.role_arn, body.external_id, body.key_arn)
    return _answer(surface, caller, done.connection.id)


@router.delete("/byok/connection", response_model_exclude_defaults=True, responses=problems(404, 409))
def disconnect(caller: Owner, surface: OnSurface) -> ConnectionAnswer:
    """Let the platform cipher encrypt what comes. What is stored stays under its key, and this connection, `retired`
    now, stays for it. On every plan."""
    surface.app.byok.disconnect(caller.workspace_id)
    views = surface.app.byok.connections(caller.workspace_id)
    # newest first: the one that was current a moment ago
    return ConnectionAnswer.of(next(view for view in views if view.status is ConnectionStatus.RETIRED))


@router.post(
    "/byok/connection/verify",
    dependencies=_ALONE,
    response_model_exclude_defaults=True,
    responses=problems(404, 409),
)
def verify_connection(caller: Owner, surface: OnSurface) -> ConnectionAnswer:
    """Take every step again with the current connection, which stays what it is, whatever they show. Needs the
    Enterprise plan (403 `plan_required`)."""
    done = surface.app.byok.verify(caller.workspace_id)
    return _answer(surface, caller, done.connection.id)


def shown(views: Sequence[ConnectionView]) -> ConnectionView | None:
    """The current connection, or else the pending one."""
    return next((view for status in _SHOWN for view in views if view.status is status), None)


def _answer(surface: Surface, caller: Caller, connection_id: UUID) -> ConnectionAnswer:
    """Raises Conflict."""
    views = surface.app.byok.connections(caller.workspace_id)
    found = next((view for view in views if view.id == connection_id), None)
    if found is None:
        raise Conflict("another attempt to connect has taken this one's place")
    return ConnectionAnswer.of(found)
