"""Commands of the lockout proof: ``broker byok prove``, ``check-proof`` and ``signing-key``.

``check-proof`` needs no settings, no network and nothing that the broker keeps: a file and a public key.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from broker_core import proof_document
from broker_core.cli.common import REFUSED, app, exit_codes, settings, show
from broker_core.errors import Invalid
from broker_core.ports import Proof
from broker_core.proof_document import CONTENT_TYPE, Summary

if TYPE_CHECKING:
    from broker_core.bootstrap import App

#: seconds to wait where nothing was due, or somebody else asks
_PAUSE = 0.2
#: of a file that is checked: 100,000 secrets are about 150 MB
_LARGEST = 1 << 30


@click.command()
@click.option("--workspace", required=True, help="The workspace whose secrets are asked about.")
@click.option(
    "--connection",
    type=click.UUID,
    help="The connection that was revoked; without it the current one, or else the newest that secrets still need.",
)
@click.option("--resume", is_flag=True, help="Go on with the newest proof; one that has ended is only written again.")
@click.option("--by", "asked_by", default="operator", show_default=True, help="Who asks; stands in the document.")
@click.option("--jws", "jws_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the signed document.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write it as a page.")
def prove(
    workspace: str,
    connection: UUID | None,
    resume: bool,
    asked_by: str,
    jws_file: Path | None,
    html_file: Path | None,
) -> None:
    """Show by asking AWS, secret by secret, that a revoked key is closed to this broker: a signed document.

    A secret that still decrypts is listed as such: the proof can fail. Progress goes to stderr. After ^C, `--resume`
    goes on; so does the sweeper by itself. Needs BROKER_SIGNING_KEY.

    Exit code 0 only if every secret that is still under the connection was denied by the customer's side.
    """
    with exit_codes(), app() as broker:
        if resume:
            proof = broker.proofs.progress(workspace)
        else:
            proof = broker.proofs.start(workspace, connection, asked_by=asked_by)
        try:
            _to_its_end(broker, workspace, proof, time.sleep)
        except KeyboardInterrupt:
            click.echo("stopped; --resume goes on with this proof", err=True)
            raise
        jws = broker.proofs.signed(workspace, proof.id)
        _write(jws_file, lambda: jws + "\n")
        _write(html_file, lambda: broker.proofs.page(workspace, proof.id))
        _leave(proof_document.summary(proof_document.read(proof_document.payload_of(jws))))


def _to_its_end(broker: App, workspace: str, proof: Proof, sleep: Callable[[float], None]) -> None:
    said = -1
    while True:
        if proof.done != said:
            click.echo(f"{proof.done} of {proof.total} secrets", err=True)
        if proof.ended_at is not None:
            return
        if proof.done == said:
            sleep(_PAUSE)
        said = proof.done
        proof = broker.proofs.step(workspace, proof.id)


def _write(path: Path | None, text: Callable[[], str]) -> None:
    if path is None:
        return
    try:
        path.write_text(text(), encoding="utf-8")
    except OSError:
        raise Invalid({str(path): "cannot be written; the proof is kept: try again with --resume"}) from None


def _leave(found: Summary) -> None:
    show(found)
    if not found.is_locked_out:
        click.echo("NOT locked out", err=True)
        sys.exit(REFUSED)
    click.echo("locked out", err=True)


@click.command("check-proof")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--public-key", required=True, help="A file with the public key as PEM or JWK; or the JWK itself.")
def check_proof(file: Path, public_key: str) -> None:
    """Check the signed document FILE offline: its signature, and what it says of each secret.

    Get the public key from AxioRank by a way that you trust, not together with the document. Needs no settings and
    asks nobody.

    Exit code 0 only if the signature is this key's, nothing was changed, and every secret that is still under the
    connection is locked out. `notCovered` counts what this says nothing of.
    """
    from broker_core.adapters.signing import read_public_key, verified

    with exit_codes():
        key = read_public_key(_key_text(public_key))
        token = _text_of(file).removesuffix("\n").removesuffix("\r")
        document = proof_document.read(verified(token, key, CONTENT_TYPE))
        _leave(proof_document.summary(document))


def _key_text(given: str) -> str:
    return given if given.lstrip().startswith("{") else _text_of(Path(given))


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise Invalid({str(path): "too large"})
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        raise Invalid({str(path): "cannot be read as text: check the path and permissions"}) from None


@click.command("signing-key")
def signing_key() -> None:
    """Print the public key that signed documents are checked with, as PEM and as JWK. Needs BROKER_SIGNING_KEY."""
    from broker_core.adapters.signing import Ed25519Signer, public_jwk, public_pem

    with exit_codes():
        ours = settings()
        ours.require("signing_key")
        key = Ed25519Signer(ours.signing_key or "").public_key
        click.echo(public_pem(key), nl=False)
        click.echo(json.dumps(public_jwk(key)))
