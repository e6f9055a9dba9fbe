"""The command of the HTTP surface: web."""

from __future__ import annotations

import os

import click

from broker_core.cli.common import exit_codes


@click.command()
@click.option(
    "--host",
    default="0.0.0.0",  # noqa: S104 - a process of the Procfile is reached from outside of its machine or container
    show_default=True,
    help="The address to listen on; the port is the setting PORT. It speaks plain HTTP: end TLS before it.",
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--threads", default=40, show_default=True, type=click.IntRange(2, 256), help="In each process.")
def web(host: str, processes: int, threads: int) -> None:
    """Serve the HTTP surface until SIGTERM; what is under way then is finished."""
    from broker_core.api.server import run

    with exit_codes():
        run(os.environ, host, processes, threads)
