"""Commands of operators: migrate, worker, scheduler, dead-letters."""

from __future__ import annotations

import os

import click

from broker_core.adapters.clock import SystemClock
from broker_core.cli.common import exit_codes, settings, show
from broker_core.errors import BrokerError, Invalid, Unavailable
from broker_core.queues import CUSTODY, MAINTENANCE, QUEUES


@click.command()
@click.option("--to", "revision", default="head", show_default=True, help="The revision to bring the database to.")
@click.option("--down", is_flag=True, help="Go back to --to instead (`base` drops everything, every blob included).")
def migrate(revision: str, down: bool) -> None:
    """Bring the database's schema up to date. Safe to run twice, and from many machines at once."""
    with exit_codes():
        _migrate(settings().database_url, revision, down)
        click.echo(f"the database is at revision {revision}")


def _migrate(url: str, revision: str, down: bool) -> None:
    """Raises Unavailable, or Invalid for an unknown revision; without the library's text, which quotes SQL."""
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from migrations import runner

    try:
        (runner.downgrade if down else runner.upgrade)(url, revision)
        return
    except CommandError:
        error: BrokerError = Invalid({"--to": "no revision of this program leads there; `head` is the newest"})
    except DBAPIError as failure:
        state = getattr(failure.orig, "sqlstate", None) or "none"
        error = Unavailable(f"the database is away, a table is locked, or a statement was refused (SQLSTATE {state})")
    raise error


@click.command()
@click.option(
    "--queues",
    default=f"{CUSTODY},{MAINTENANCE}",
    show_default=True,
    help=f"Comma-separated: {', '.join(QUEUES)}.",
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--threads", default=8, show_default=True, type=click.IntRange(1, 64))
def worker(queues: str, processes: int, threads: int) -> None:
    """Run workers until SIGTERM. The sweep has a queue of its own: run one more with `--queues sweep`."""
    from workers.start import run

    with exit_codes():
        chosen = [name.strip() for name in queues.split(",")]
        if not chosen or not set(chosen) <= set(QUEUES):
            raise click.BadParameter(f"queues are {', '.join(QUEUES)}", param_hint="--queues")
        run(chosen, processes, threads)


@click.command()
def scheduler() -> None:
    """Ring for reconciling, probes and checks until SIGTERM. Two of them do not double the work."""
    from broker_core.adapters.queue import DramatiqQueue, connect_queue
    from broker_core.observability import start_process
    from workers.scheduler import run_until_signalled

    with exit_codes():
        finish = start_process("axiorank-broker-scheduler", os.environ)
        queue = DramatiqQueue(connect_queue(settings().redis_url))
        run_until_signalled(queue, SystemClock(), queue.close, finish)


@click.command("dead-letters")
@click.option(
    "--purge", is_flag=True, help="Forget them. Events' rows are untouched, and are rung for again while they wait."
)
def dead_letters(purge: bool) -> None:
    """Show the queue messages that were given up (ids only, no message holds more)."""
    from broker_core.adapters import queue

    with exit_codes():
        broker = queue.connect_queue(settings().redis_url)
        if purge:
            click.echo(f"forgot {queue.purge_dead_letters(broker)}")
        else:
            show(queue.dead_letters(broker))
