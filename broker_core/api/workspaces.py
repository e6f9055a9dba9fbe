"""``/workspaces/{id}``: the platform makes and ends workspaces. Its token speaks for one, and so does each request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from broker_core.api.bodies import StrictRoute
from broker_core.api.callers import Caller, allow
from broker_core.api.described import problems
from broker_core.api.parameters import OnSurface
from broker_core.api.schemas import WorkspaceAnswer, WorkspaceRequest
from broker_core.errors import NotFound

router = APIRouter(route_class=StrictRoute, tags=["workspaces"])

Platform = Annotated[Caller, Depends(allow(scope="broker:platform"))]
WorkspaceId = Annotated[str, Path(alias="id", description="The token's workspace.")]


@router.put("/workspaces/{id}", responses=problems(400, 404, 409, 413, 422))
def put_workspace(
    caller: Platform, surface: OnSurface, workspace_id: WorkspaceId, body: WorkspaceRequest
) -> WorkspaceAnswer:
    """Create a workspace, or change its plan. The id of a deleted one is never used again (409)."""
    _check(caller, workspace_id)
    surface.app.administer.put_workspace(caller.workspace_id, body.plan)
    return WorkspaceAnswer(id=caller.workspace_id, plan=body.plan)


@router.delete("/workspaces/{id}", status_code=204, responses=problems(404, 422))
def delete_workspace(caller: Platform, surface: OnSurface, workspace_id: WorkspaceId) -> None:
    """End a workspace: every blob goes, and every value that waits."""
    _check(caller, workspace_id)
    surface.app.administer.delete_workspace(caller.workspace_id)


def _check(caller: Caller, workspace_id: str) -> None:
    """Another tenant's id answers like one that does not exist (INV-10)."""
    if workspace_id != caller.workspace_id:
        raise NotFound("no such workspace")
