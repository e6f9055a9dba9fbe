"""Changing keys: a workspace's connections, retiring one that is needed no more, and moving secrets to the current
one."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path

from broker_core.api.bodies import StrictRoute
from broker_core.api.byok_run_schemas import ReencryptionAnswer, ReencryptRequest, StuckAnswer, StuckPageAnswer
from broker_core.api.byok_schemas import ConnectionsAnswer, ListedConnectionAnswer
from broker_core.api.described import problems
from broker_core.api.parameters import Admin, Cursor, Limit, OnSurface, Owner
from broker_core.errors import NotFound

router = APIRouter(route_class=StrictRoute, tags=["byok"])

ConnectionId = Annotated[UUID, Path(alias="id", description="The connection's id.")]
MoveId = Annotated[UUID, Path(alias="id", description="The re-encryption's id.")]


@router.get("/byok/connections", response_model_exclude_defaults=True, responses=problems(404))
def list_connections(caller: Admin, surface: OnSurface) -> ConnectionsAnswer:
    """Every connection of the workspace, with how many secrets still need it."""
    views = surface.app.byok.connections(caller.workspace_id)
    return ConnectionsAnswer(items=[ListedConnectionAnswer.of(view) for view in views])


@router.delete("/byok/connections/{id}", response_model_exclude_defaults=True, responses=problems(404, 409, 422))
def retire_connection(caller: Owner, surface: OnSurface, connection_id: ConnectionId) -> ListedConnectionAnswer:
    """Retire an older connection for good. 409 while it is current or pending, or secrets are under it. On every
    plan."""
    surface.app.byok.retire(caller.workspace_id, connection_id)
    views = surface.app.byok.connections(caller.workspace_id)
    view = next((view for view in views if view.id == connection_id), None)
    if view is None:
        raise NotFound("no such connection")
    return ListedConnectionAnswer.of(view)


@router.post(
    "/byok/reencrypt",
    status_code=202,
    response_model_exclude_defaults=True,
    responses=problems(400, 404, 409, 413, 422),
)
def reencrypt(caller: Owner, surface: OnSurface, body: ReencryptRequest | None = None) -> ReencryptionAnswer:
    """Begin to move secrets from older connections to the current one, where the older key still decrypts; the sweeper
    does it, paced. Asked again while it runs it goes on. Needs the Enterprise plan (403 `plan_required`)."""
    return ReencryptionAnswer.of(surface.app.reencrypt.start(caller.workspace_id, body.connection_id if body else None))


@router.get("/byok/reencrypt", response_model_exclude_defaults=True, responses=problems(404))
def newest_reencryption(caller: Owner, surface: OnSurface) -> ReencryptionAnswer:
    """How far the newest re-encryption is."""
    return ReencryptionAnswer.of(surface.app.reencrypt.progress(caller.workspace_id))


@router.get("/byok/reencrypt/{id}", response_model_exclude_defaults=True, responses=problems(404, 422))
def reencryption_by_id(caller: Owner, surface: OnSurface, move_id: MoveId) -> ReencryptionAnswer:
    """How far a re-encryption is."""
    return ReencryptionAnswer.of(surface.app.reencrypt.progress(caller.workspace_id, move_id))


@router.get("/byok/reencrypt/{id}/stuck", response_model_exclude_defaults=True, responses=problems(404, 422))
def list_stuck(
    caller: Owner,
    surface: OnSurface,
    move_id: MoveId,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> StuckPageAnswer:
    """What it left where it is, and why."""
    page = surface.app.reencrypt.stuck(caller.workspace_id, move_id, after=cursor, limit=limit)
    return StuckPageAnswer(items=[StuckAnswer.of(each) for each in page.items], next_cursor=page.next)
