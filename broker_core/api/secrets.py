"""``/broker-secrets``: what a workspace's admins do with its secrets. No answer ever holds a value."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Path, Response
from pydantic import SecretStr

from broker_core.administer import NewSecret
from broker_core.api.bodies import StrictRoute
from broker_core.api.described import problems
from broker_core.api.parameters import Admin, Cursor, Limit, OnSurface
from broker_core.api.schemas import (
    AcceptedSecretAnswer,
    CreateRequest,
    PolicyRequest,
    RotateRequest,
    SecretAnswer,
    SecretsAnswer,
)
from broker_core.intake import Receipt
from broker_core.model import SecretStatus
from broker_core.secret import Plaintext

router = APIRouter(route_class=StrictRoute, tags=["secrets"])

SecretId = Annotated[UUID, Path(alias="id", description="The secret's id.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Makes it safe to send a request again: a repeat is answered like the first time, another body"
        " under the same key is refused (422), and so is a repeat while the first is being served (409). Another value"
        " is noticed as long as the first one waits to be stored; nothing is kept by which it could be told later.",
    ),
]
_REPLAYED: dict[int | str, dict[str, Any]] = {
    202: {
        "headers": {
            "Idempotent-Replayed": {
                "description": "`true` where this key was used before, for this same request.",
                "schema": {"type": "string"},
            }
        }
    }
}


@router.post(
    "/broker-secrets",
    status_code=202,
    response_model_exclude_defaults=True,
    responses={**_REPLAYED, **problems(400, 404, 409, 413, 422)},
)
def create_secret(
    caller: Admin, surface: OnSurface, body: CreateRequest, response: Response, idempotency_key: IdempotencyKey = None
) -> AcceptedSecretAnswer:
    """Create a secret under a name that is not in use."""
    secret = NewSecret(body.name, _plaintext(body.secret), body.fields(), body.rotation_policy)
    receipt = surface.app.administer.create(caller.workspace_id, secret, idempotency_key)
    return _accepted(receipt, response)


@router.get("/broker-secrets", response_model_exclude_defaults=True, responses=problems(404, 422))
def list_secrets(
    caller: Admin,
    surface: OnSurface,
    status: SecretStatus | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> SecretsAnswer:
    """The workspace's secrets, oldest id first."""
    page = surface.app.administer.secrets(caller.workspace_id, status=status, after=cursor, limit=limit)
    return SecretsAnswer(items=[SecretAnswer.of(view) for view in page.items], next_cursor=page.next)


@router.get("/broker-secrets/{id}", response_model_exclude_defaults=True, responses=problems(404, 422))
def secret_by_id(caller: Admin, surface: OnSurface, secret_id: SecretId) -> SecretAnswer:
    """One secret's metadata."""
    return SecretAnswer.of(surface.app.administer.secret(caller.workspace_id, secret_id))


@router.post(
    "/broker-secrets/{id}/rotate",
    status_code=202,
    response_model_exclude_defaults=True,
    responses={**_REPLAYED, **problems(400, 404, 409, 413, 422)},
)
def rotate_secret(
    caller: Admin,
    surface: OnSurface,
    secret_id: SecretId,
    body: RotateRequest,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> AcceptedSecretAnswer:
    """Give a secret a new value; and new injection fields, all together, or those in place stay."""
    receipt = surface.app.administer.rotate(
        caller.workspace_id, secret_id, _plaintext(body.secret), body.fields(), idempotency_key
    )
    return _accepted(receipt, response)


@router.patch("/broker-secrets/{id}", response_model_exclude_defaults=True, responses=problems(400, 404, 413, 422))
def change_secret(caller: Admin, surface: OnSurface, secret_id: SecretId, body: PolicyRequest) -> SecretAnswer:
    """Change when a new value is due."""
    view = surface.app.administer.set_rotation_policy(caller.workspace_id, secret_id, body.rotation_policy)
    return SecretAnswer.of(view)


@router.delete(
    "/broker-secrets/{id}", status_code=202, response_model_exclude_defaults=True, responses=problems(404, 422)
)
def delete_secret(caller: Admin, surface: OnSurface, secret_id: SecretId) -> AcceptedSecretAnswer:
    """Delete a secret: its blob goes at once, and what waits for it is discarded."""
    return AcceptedSecretAnswer.of(surface.app.administer.delete(caller.workspace_id, secret_id))


def _plaintext(secret: SecretStr) -> Plaintext:
    return Plaintext(bytearray(secret.get_secret_value(), "utf-8"))


def _accepted(receipt: Receipt, response: Response) -> AcceptedSecretAnswer:
    if not receipt.is_new:
        response.headers["Idempotent-Replayed"] = "true"
    return AcceptedSecretAnswer.of(receipt)
