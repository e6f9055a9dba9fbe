"""What owners and admins read about their key: coverage, what is affected or overdue, a drill, a blob to take away."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from broker_core.api.bodies import StrictRoute
from broker_core.api.byok_report_schemas import (
    AffectedAnswer,
    BlobAnswer,
    CoverageAnswer,
    DrillAnswer,
    DrillRequest,
    OverdueAnswer,
    OverdueSecretAnswer,
)
from broker_core.api.described import problems
from broker_core.api.parameters import Admin, Cursor, Limit, OnSurface, Owner
from broker_core.api.secrets import SecretId
from broker_core.ports import Cover

router = APIRouter(route_class=StrictRoute, tags=["byok"])


@router.get("/byok/coverage", response_model_exclude_defaults=True, responses=problems(404, 422))
def coverage(
    caller: Admin,
    surface: OnSurface,
    cover: Annotated[Cover | None, Query(description="Only these; the counts are always of all.")] = None,
    cursor: Annotated[
        str | None, Query(max_length=100, description="`nextCursor` of the page before, with the same `cover`.")
    ] = None,
    limit: Limit = 50,
) -> CoverageAnswer:
    """What your key protects, and what it does not yet: how many secrets, and each with why and what to do."""
    return CoverageAnswer.of(surface.app.reports.coverage(caller.workspace_id, cover, cursor, limit))


@router.get("/byok/affected", responses=problems(404))
def affected(caller: Admin, surface: OnSurface) -> AffectedAnswer:
    """What cannot be decrypted now for a reason on your side, by connection: since when, why, and what to do."""
    return AffectedAnswer.of(surface.app.byok.affected(caller.workspace_id))


@router.post("/byok/drill", response_model_exclude_defaults=True, responses=problems(400, 404, 413, 422))
def drill(caller: Owner, surface: OnSurface, body: DrillRequest | None = None) -> DrillAnswer:
    """What a revocation now would take away, as far as the last 7 days tell. AWS is not asked; nothing is changed."""
    asked = body or DrillRequest()
    since, drilled = surface.app.reports.drill(caller.workspace_id, asked.connection_id, asked.limit)
    return DrillAnswer.of(asked, since, drilled, surface.app.settings.sts_reuse_seconds)


@router.get("/rotations/overdue", response_model_exclude_defaults=True, responses=problems(404, 422))
def list_overdue_rotations(
    caller: Admin,
    surface: OnSurface,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> OverdueAnswer:
    """The secrets whose `rotationPolicy` says that a new value was due by now, oldest id first."""
    page = surface.app.reports.overdue(caller.workspace_id, cursor, limit)
    return OverdueAnswer(items=[OverdueSecretAnswer.of(each) for each in page.items], next_cursor=page.next)


@router.get("/broker-secrets/{id}/blob", tags=["secrets"], responses=problems(404, 409, 422))
def blob(caller: Owner, surface: OnSurface, secret_id: SecretId) -> BlobAnswer:
    """The escape hatch: a secret's ciphertext, and how you decrypt it in your own account, without us. 409 for a secret
    that is not under a key of yours."""
    return BlobAnswer.of(secret_id, surface.app.administer.export(caller.workspace_id, secret_id))
