"""Commands of the local stack: demo and dev. The only module that reaches into ``dev``, inside its functions: a
production install has neither the embedded servers nor the AWS double."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from broker_core.cli.common import REFUSED, show
from broker_core.observability import configure_logging

_MISSING = "this needs the `local` extra: pip install 'axiorank-secrets-broker[local]' (make demo does it for you)"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every step, instead of the story.")
def demo(as_json: bool) -> None:
    """Play the whole story on a local stack: from an event to the customer's key, out for one request, revoked.

    Needs no settings and leaves nothing behind. Exit code 0 only if every step was seen.
    """
    try:
        from broker_core.dev.demo import play
    except ModuleNotFoundError:
        raise click.ClickException(_MISSING) from None
    configure_logging(sys.stderr, "WARNING")
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
