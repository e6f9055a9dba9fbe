"""Commands for changing keys: ``broker byok connections``, ``retire`` and ``reencrypt``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from broker_core.advice import what_to_do
from broker_core.cli.common import REFUSED, app, exit_codes, present, show, workspace_option
from broker_core.ports import ConnectionView, Reencryption, Stuck

if TYPE_CHECKING:
    from broker_core.bootstrap import App

#: seconds to wait where nothing was due, or the budget of calls is spent; and how often the reason is looked for
_PAUSE, _LOOK_EVERY = 0.2, 25
#: of what stayed where it is, so many are listed
_MOST_LISTED = 200


@click.command()
@workspace_option
def connections(workspace: str) -> None:
    """List a workspace's keys: the current one, a pending one, and those that were replaced.

    `neededBy` says how many secrets are still under each, `waiting` how many values on their way in go under it as
    things are. `retired` means replaced; `retiredAt` is there once it was retired for good.
    """
    with exit_codes(), app() as broker:
        show({"items": [_view_document(view) for view in broker.byok.connections(workspace)]})


def _view_document(view: ConnectionView) -> dict[str, Any]:
    described = {
        "id": view.id,
        "status": view.status,
        "roleArn": view.role_arn,
        "keyArn": view.key_arn,
        "region": view.region,
        "externalId": view.external_id,
        "createdAt": view.created_at,
        "verifiedAt": view.verified_at,
        "health": view.health,
        "healthSince": view.health_since,
        "neededBy": view.needed_by,
        "waiting": view.waiting,
        "retiredAt": view.retired_at,
    }
    return present(described)


@click.command()
@workspace_option
@click.option("--connection", required=True, type=click.UUID, help="The older connection's id.")
def retire(workspace: str, connection: UUID) -> None:
    """Retire an older key for good, once no secret is under it. Nothing asks for it any more; then its role and key
    policy can go.

    Exit code 1 while it is current or pending, or secrets need it: stderr says how many.
    """
    with exit_codes(), app() as broker:
        broker.byok.retire(workspace, connection)
        click.echo(f"retired {connection}", err=True)


@click.command()
@workspace_option
@click.option("--from", "source", type=click.UUID, help="The older connection's id; without it, all older ones.")
def reencrypt(workspace: str, source: UUID | None) -> None:
    """Move secrets from older keys to the current one, where the older key still decrypts.

    Each is decrypted and encrypted again in this process, at the pace of BROKER_CHECK_RPS; what is rotated meanwhile is
    left alone. Progress goes to stderr. After ^C the same command goes on; so does the sweeper by itself.

    Exit code 0 only if nothing stayed where it was.
    """
    with exit_codes(), app() as broker:
        move = broker.reencrypt.start(workspace, source)
        try:
            move = _to_its_end(broker, move, time.sleep)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on, and so does the sweeper", err=True)
            raise
        stuck = broker.reencrypt.stuck(workspace, move.id, limit=_MOST_LISTED)
        show({**_move_document(move), "stuck": [_stuck_document(each) for each in stuck.items]})
        if move.denied or move.failed or move.left:
            sys.exit(REFUSED)


def _to_its_end(broker: App, move: Reencryption, sleep: Callable[[float], None]) -> Reencryption:
    idle = 0
    click.echo(_line(move), err=True)
    while move.ended_at is None:
        before, move = move, broker.reencrypt.step(move.workspace_id, move.id)
        if _line(move) != _line(before):
            click.echo(_line(move), err=True)
            idle = 0
            continue
        idle += 1
        if idle % _LOOK_EVERY == 0:
            _say_why(broker, move.workspace_id)
        sleep(_PAUSE)
    return move


def _line(move: Reencryption) -> str:
    others = {"denied": move.denied, "overtaken": move.overtaken, "failed": move.failed}
    more = "".join(f", {count} {name}" for name, count in others.items() if count)
    return f"{move.moved} of {move.total} moved{more}; {move.left} left"


def _say_why(broker: App, workspace: str) -> None:
    """Nothing has moved for a while: is it the key that everything is to go under?"""
    current = next((view for view in broker.byok.connections(workspace) if view.status == "current"), None)
    if current is not None and current.health != "healthy":
        click.echo(f"waiting: the current key is {current.health}", err=True)


def _move_document(move: Reencryption) -> dict[str, Any]:
    described = {
        "id": move.id,
        "connectionId": move.from_connection_id,
        "startedAt": move.started_at,
        "endedAt": move.ended_at,
        "stoppedBy": move.stopped_by,
        "total": move.total,
        "moved": move.moved,
        "denied": move.denied,
        "overtaken": move.overtaken,
        "failed": move.failed,
        "left": move.left,
    }
    return present(described)


def _stuck_document(stuck: Stuck) -> dict[str, Any]:
    described = {
        "id": stuck.secret_id,
        "name": stuck.name,
        "connectionId": stuck.connection_id,
        "outcome": stuck.outcome,
        "state": stuck.state,
        "awsCode": stuck.aws_code or None,
        "whatToDo": what_to_do(stuck.state) if stuck.state else None,
    }
    return present(described)
