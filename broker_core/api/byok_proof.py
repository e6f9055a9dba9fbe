"""``/byok/lockout-proof``: an owner starts one, follows it, and takes the signed document, as JWS or as a page.

The sweeper does the asking, whichever process started it: a proof needs nobody to wait for it.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Response

from broker_core.api.bodies import StrictRoute
from broker_core.api.byok_run_schemas import ProofAnswer, ProofRequest
from broker_core.api.described import problems
from broker_core.api.parameters import OnSurface, Owner

router = APIRouter(route_class=StrictRoute, tags=["byok"])

ProofId = Annotated[UUID, Path(alias="id", description="The proof's id.")]
#: the page fetches nothing and runs nothing; said here too, whatever stands in it
_ALONE = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


class Jws(Response):
    """A JWS in the compact form (RFC 7515, 9.2.1)."""

    media_type = "application/jose"


class Page(Response):
    """A page for people."""

    media_type = "text/html"


@router.post(
    "/byok/lockout-proof",
    status_code=202,
    response_model_exclude_defaults=True,
    responses=problems(400, 404, 409, 413, 422),
)
def start_proof(caller: Owner, surface: OnSurface, body: ProofRequest | None = None) -> ProofAnswer:
    """Begin to show, by asking AWS secret by secret, that a revoked key is closed to us. A secret that still decrypts
    is shown as such: the proof can fail. One runs at a time (409)."""
    connection_id = body.connection_id if body else None
    return ProofAnswer.of(surface.app.proofs.start(caller.workspace_id, connection_id, asked_by=caller.subject))


@router.get("/byok/lockout-proof", response_model_exclude_defaults=True, responses=problems(404))
def newest_proof(caller: Owner, surface: OnSurface) -> ProofAnswer:
    """How far the newest proof is."""
    return ProofAnswer.of(surface.app.proofs.progress(caller.workspace_id))


@router.get("/byok/lockout-proof/{id}", response_model_exclude_defaults=True, responses=problems(404, 422))
def proof_by_id(caller: Owner, surface: OnSurface, proof_id: ProofId) -> ProofAnswer:
    """How far a proof is."""
    return ProofAnswer.of(surface.app.proofs.progress(caller.workspace_id, proof_id))


@router.get(
    "/byok/lockout-proof/{id}/document",
    response_class=Jws,
    responses={200: {"description": "The signed document."}, **problems(404, 409, 422, beside_json=True)},
)
def proof_document(caller: Owner, surface: OnSurface, proof_id: ProofId) -> Jws:
    """The finished proof as a JWS, which `broker byok check-proof` verifies offline. 409 while it runs."""
    name = f'attachment; filename="lockout-proof-{proof_id}.jws"'
    return Jws(surface.app.proofs.signed(caller.workspace_id, proof_id), headers={"Content-Disposition": name})


@router.get(
    "/byok/lockout-proof/{id}/page",
    response_class=Page,
    responses={200: {"description": "The same for people."}, **problems(404, 409, 422, beside_json=True)},
)
def proof_page(caller: Owner, surface: OnSurface, proof_id: ProofId) -> Page:
    """The finished proof as one HTML page that fetches nothing. 409 while it runs."""
    page = surface.app.proofs.page(caller.workspace_id, proof_id)
    return Page(page, headers={"Content-Security-Policy": _ALONE})
