"""``/byok/setup``: what an owner applies in their AWS account, in the form that they apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from broker_core.api.bodies import StrictRoute
from broker_core.api.byok import shown
from broker_core.api.byok_schemas import SetupAnswer
from broker_core.api.described import problems
from broker_core.api.parameters import OnSurface, Owner
from broker_core.byok_setup import ROLE_NAME, SetupWish, propose
from broker_core.errors import Invalid
from broker_core.ports import ConnectionView
from broker_core.setup_documents import Format

router = APIRouter(route_class=StrictRoute, tags=["byok"])

#: YAML: RFC 9512. Terraform's language and shell scripts have no registered type
MEDIA_TYPES: Mapping[Format, str] = {
    Format.JSON: "application/json",
    Format.CLOUDFORMATION: "application/yaml",
    Format.TERRAFORM: "text/x-hcl; charset=utf-8",
    Format.CLI: "text/x-shellscript; charset=utf-8",
}
#: a schema says what a document holds: of YAML that is an object, of the others only that they are texts
_TEXTS = {
    kind.partition(";")[0]: {"schema": {"type": "object" if kind == "application/yaml" else "string"}}
    for kind in list(MEDIA_TYPES.values())[1:]
}
_Text = Annotated[str | None, Query(max_length=2048)]


@router.get(
    "/byok/setup",
    response_model=SetupAnswer,
    responses={200: {"description": "Ready to apply.", "content": _TEXTS}, **problems(404, 422)},
)
def setup(
    caller: Owner,
    surface: OnSurface,
    form: Annotated[Format, Query(alias="format")] = Format.JSON,
    external_id: Annotated[
        _Text, Query(alias="externalId", description="Without it, a random one is proposed.")
    ] = None,
    role_name: Annotated[_Text, Query(alias="roleName", description="Of the role that is to be made.")] = None,
    key_arn: Annotated[
        _Text, Query(alias="keyArn", description="A key that exists; an empty text: a key is to be made.")
    ] = None,
    account_id: Annotated[_Text, Query(alias="accountId", description="Where neither ARN tells it.")] = None,
    partition: Annotated[_Text, Query(description="Where neither ARN tells it.")] = None,
    admin_principal: Annotated[
        _Text, Query(alias="adminPrincipal", description="ARN of who may manage the key.")
    ] = None,
    strict: Annotated[bool, Query(description="Let the role use the key for this workspace's values only.")] = False,
) -> Any:
    """A role that we may assume, and a key that it may use. Nothing is stored and AWS is not asked. What is not given
    is taken from the connection, where there is one."""
    connected = shown(surface.app.byok.connections(caller.workspace_id))
    key_arn = connected.key_arn if connected and key_arn is None else key_arn
    wish = SetupWish(
        workspace_id=caller.workspace_id,
        external_id=connected.external_id if connected and external_id is None else external_id,
        role_name=_role_name(connected, key_arn) if role_name is None else role_name,
        key_arn=key_arn,
        account_id=account_id,
        partition=partition,
        admin_principal=admin_principal,
        strict=strict,
    )
    settings = surface.app.settings
    document = propose(wish, settings.aws_account_id, reuse_seconds=settings.sts_reuse_seconds)
    if form is Format.JSON:
        return document.as_json()
    return Response(document.text(form), headers={"Content-Type": MEDIA_TYPES[form]})


def _role_name(connected: ConnectionView | None, key_arn: str | None) -> str:
    """The connected role's. One under a path is not made by our documents, and a document for its key that names
    another would take the key from it: raises Invalid."""
    name = connected.role_arn.partition(":role/")[2] if connected else ""
    if connected and "/" in name and key_arn == connected.key_arn:
        why = "the connected role is under a path, which these documents do not make: name the role that is to be made"
        raise Invalid({"roleName": f"{why}; applying them takes the key from the connected one"})
    return ROLE_NAME if "/" in name or not name else name
