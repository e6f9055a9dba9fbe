"""Commands of the local stack: demo, dev and token. The only module that reaches into ``dev``, inside its functions: a
production install has neither the embedded servers nor the AWS double."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from broker_core.adapters.clock import SystemClock
from broker_core.cli.common import REFUSED, exit_codes, settings, show

_MISSING = "this needs the `local` extra: pip install 'axiorank-secrets-broker[local]' (make demo does it for you)"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every step, instead of the story.")
def demo(as_json: bool) -> None:
    """Play the whole story on a local stack: from an event to the customer's key, out for one request, revoked.

    Needs no settings and leaves nothing behind. Exit code 0 only if every step was seen.
    """
    try:
        from broker_core.dev.demo import play
        from broker_core.observability import configure_logging
    except ModuleNotFoundError:
        raise click.ClickException(_MISSING) from None
    configure_logging(sys.stderr, "WARNING")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as ^C: the servers' directories go with them
    ended = play(say=None if as_json else click.echo)
    if as_json:
        show(ended.document())
    sys.exit(0 if ended.ok else REFUSED)


@click.command()
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the stack's settings, for other shells: `set -a; . FILE; set +a`. Removed at the end.",
)
def dev(env_file: Path | None) -> None:
    """Start the local stack and leave it running until ^C: servers, AWS double, sample upstream, workers, scheduler.

    Everything is on loopback and in temporary directories; nothing is kept.
    """
    try:
        from broker_core.dev.serve import serve
    except ModuleNotFoundError:
        raise click.ClickException(_MISSING) from None
    serve(env_file, say=click.echo)


@click.command()
@click.option("--workspace", required=True, help="The workspace that the token is for.")
@click.option("--scope", "scopes", multiple=True, help="A service's scope, as broker:inject; may be given again.")
@click.option("--role", type=click.Choice(["viewer", "member", "admin", "owner"]), help="A person's role.")
@click.option("--minutes", default=10, show_default=True, type=click.IntRange(1, 15))
def token(workspace: str, scopes: Sequence[str], role: str | None, minutes: int) -> None:
    """Print a token for the local stack, whose settings `broker dev --env-file FILE` wrote. Works nowhere else."""
    if not scopes and role is None:
        raise click.UsageError("name a --scope or a --role")
    try:
        from broker_core.dev.tokens import mint
    except ModuleNotFoundError:
        raise click.ClickException(_MISSING) from None
    with exit_codes():
        click.echo(mint(settings(), workspace, scopes=scopes, role=role, minutes=minutes, now=SystemClock().now()))
