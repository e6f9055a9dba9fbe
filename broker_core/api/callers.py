"""Who may call what: the one place where scopes and roles are enforced, and where a request is counted.

An endpoint says who may call it by ``Depends(allow(…))`` and gets the ``Caller``. ``admit`` is the same for what is no
endpoint of FastAPI's. A token gates its own request and never writes anything.
"""

# no `from __future__ import annotations`: FastAPI reads the annotations of a dependency that is an object as they are

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.openapi.models import SecurityBase as SecurityModel
from fastapi.security.base import SecurityBase
from starlette.datastructures import State

from broker_core.api.surface import Surface, surface_of
from broker_core.api.tokens import Caller, Role
from broker_core.errors import Forbidden, Unauthorized

__all__ = ["Allow", "Caller", "Role", "admit", "allow", "bearer_of", "doorkeepers"]

_ADMITTED = "axiorank.admitted"
_SCHEME = HTTPBearer(
    bearerFormat="JWT", description="A short-lived token of the platform's; the prefix axr_tok_ is allowed."
)
#: more than may wait for token keys at a time
DOORKEEPERS = 8


@dataclass(frozen=True)
class Allow(SecurityBase):
    """A dependency that lets a caller in who has the scope or at least the role. Raises Unauthorized, Forbidden,
    RateLimited, Unavailable.

    Two with the same demands are equal: FastAPI reads an endpoint's annotations, and so makes this, more than once.
    """

    scope: str | None
    role: Role | None

    #: how OpenAPI describes it
    model: SecurityModel = field(default_factory=lambda: _SCHEME, init=False, compare=False, repr=False)
    scheme_name: str = field(default="token", init=False, compare=False, repr=False)

    async def __call__(self, request: Request) -> Caller:
        """The caller. Asked twice in a request (``StrictRoute`` asks before it reads the body) it counts once."""
        admitted: dict[Allow, Caller] = request.scope.setdefault(_ADMITTED, {})
        if self not in admitted:
            authorization = request.headers.getlist("authorization")
            admitted[self] = await to_thread.run_sync(
                self._admit, await surface_of(request), authorization, limiter=doorkeepers(request.app.state)
            )
        return admitted[self]

    def _admit(self, surface: Surface, authorization: Sequence[str]) -> Caller:
        return admit(surface, bearer_of(authorization), scope=self.scope, role=self.role)


def doorkeepers(state: State) -> CapacityLimiter:
    """Threads of their own: who is refused, or comes too often, is told so also while every other thread waits."""
    if not hasattr(state, "doorkeepers"):
        state.doorkeepers = CapacityLimiter(DOORKEEPERS)  # belongs to the event loop that serves
    return cast(CapacityLimiter, state.doorkeepers)


def allow(*, scope: str | None = None, role: Role | None = None) -> Allow:
    """A FastAPI dependency that returns the Caller; scope or role suffices where both are given."""
    if scope is None and role is None:
        raise ValueError("an endpoint is for a scope or a role: name one")
    return Allow(scope, role)


def bearer_of(authorization: Sequence[str]) -> str:
    """The token of an Authorization header, given as all its occurrences. Raises Unauthorized."""
    if len(authorization) != 1:
        raise Unauthorized("send the token once, as Authorization: Bearer")
    scheme, _, token = authorization[0].strip(" \t").partition(" ")
    if scheme.lower() != "bearer" or not token.strip(" "):
        raise Unauthorized("send the token as Authorization: Bearer")
    return token.strip(" ")


def admit(surface: Surface, bearer: str, *, scope: str | None = None, role: Role | None = None) -> Caller:
    """Verify a token, enforce scope or role, and count the request. Waits for the network: not for the event loop.

    Raises Unauthorized, Forbidden, RateLimited, Unavailable.
    """
    caller = surface.tokens.verify(bearer)
    by_scope = scope is not None and scope in caller.scopes
    by_role = role is not None and caller.role is not None and caller.role.covers(role)
    if not by_scope and not by_role:
        needed = [f"the scope {scope}"] * (scope is not None) + [f"the role {role} or above"] * (role is not None)
        raise Forbidden(f"this needs {' or '.join(needed)}")
    surface.rates.request(caller.workspace_id, (scope or "") if by_scope else "people")
    return caller
