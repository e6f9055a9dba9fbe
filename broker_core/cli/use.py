"""Commands that use the broker: event, inject, affected."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

import click

from broker_core import events
from broker_core.advice import what_to_do
from broker_core.cli.common import REFUSED, app, exit_codes, read, show
from broker_core.errors import Invalid
from broker_core.inject.call import Call
from broker_core.injection import ID
from broker_core.intake import Receipt
from broker_core.model import Event, EventState
from broker_core.ports import Affected, AffectedConnection, AffectedSecret

if TYPE_CHECKING:
    from broker_core.bootstrap import App

#: seconds between two looks at an event
_LOOK_EVERY = 0.1


@click.command()
@click.argument("source", type=click.File("rb"), default="-")
@click.option("--workspace", help="The workspace that the event must be of; without it, the event's own.")
@click.option(
    "--wait",
    type=click.FloatRange(0, 3600),
    default=0.0,
    help="Follow the event for so many seconds until it has ended.",
)
@click.option("--new", "must_be_new", is_flag=True, help="Refuse a name that is in use.")
def event(source: BinaryIO, workspace: str | None, wait: float, must_be_new: bool) -> None:
    """Publish one CloudEvent from the file SOURCE, or from stdin.

    \b
    {"specversion": "1.0", "id": "…", "source": "…", "type": "secret.created", "subject": "github",
     "data": {"workspaceId": "ws_1", "version": 1, "value": "…", "injectionKind": "bearer",
              "targetHost": "api.github.com", "agentId": "agent-1"}}

    Prints the id by which it can be followed. Exit code 0 means accepted; with --wait, that it was stored or
    superseded, or that a deletion took effect.
    """
    with exit_codes():
        incoming = events.parse(read(source, events.LARGEST_EVENT))
        with app() as broker:
            receipt = broker.intake.accept(
                incoming, workspace_id=workspace or incoming.workspace_id, must_be_new=must_be_new
            )
            show(_receipt_document(receipt))
            if wait and not _ended_well(_follow(broker, incoming.workspace_id, receipt.id, wait)):
                sys.exit(REFUSED)


def _receipt_document(receipt: Receipt) -> dict[str, Any]:
    """As ``POST /events`` answers."""
    return {
        "id": receipt.id,
        "status": receipt.status,
        "name": receipt.name,
        "version": receipt.version,
        "warnings": receipt.warnings,
    }


def _follow(broker: App, workspace_id: str, event_id: UUID, seconds: float) -> Event:
    over = time.monotonic() + seconds
    seen = None
    while True:
        event: Event = broker.store.event(workspace_id, event_id)
        if event.state is not seen:
            seen = event.state
            click.echo(f"{seen.value}{f' ({event.reason})' if event.reason else ''}", err=True)
        if event.state.is_end or time.monotonic() > over:
            return event
        time.sleep(_LOOK_EVERY)


def _ended_well(event: Event) -> bool:
    return event.state in (EventState.STORED, EventState.SUPERSEDED, EventState.DELETED)


@click.command()
@click.argument("url")
@click.option("--workspace", required=True)
@click.option("--agent", help="The agent that calls.")
@click.option("--mcp-server", help="The MCP server that calls.")
@click.option("--secret", help="The secret's name, where the binding leaves more than one.")
@click.option("-X", "--method", default="GET", show_default=True)
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="A request header. Never a credential."
)
@click.option("--body", type=click.File("rb"), help="The request's body, from a file or - for stdin.")
def inject(
    url: str,
    workspace: str,
    agent: str | None,
    mcp_server: str | None,
    secret: str | None,
    method: str,
    headers: Sequence[str],
    body: BinaryIO | None,
) -> None:
    """Send one request to URL with the caller's bound secret on it, and print the redacted answer as JSON."""
    with exit_codes():
        call = Call(
            workspace_id=_id(workspace, "--workspace"),
            agent_id=_id(agent, "--agent") if agent else None,
            mcp_server_id=_id(mcp_server, "--mcp-server") if mcp_server else None,
            method=method,
            url=url,
            headers=[_header(line) for line in headers],
            body=read(body, _LARGEST_BODY) if body else b"",
            secret=secret,
        )
        with app() as broker:
            answer = broker.injector.send(call)
            show(
                {
                    "status": answer.status,
                    "headers": [list(pair) for pair in answer.headers],
                    **_body(answer.body),
                    "auditId": answer.audit_id,
                }
            )


_LARGEST_BODY = 10_485_760


def _body(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode("utf-8"), "bodyEncoding": "utf-8"}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode("ascii"), "bodyEncoding": "base64"}


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise Invalid({"--header": "give NAME: VALUE"})
    return name.strip(), value.strip()


def _id(given: str, option: str) -> str:
    if not ID.fullmatch(given):
        raise Invalid({option: "1 to 64 of A-Z a-z 0-9 _ -"})
    return given


@click.command()
@click.option("--workspace", required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /byok/affected answers.")
def affected(workspace: str, as_json: bool) -> None:
    """List the secrets that cannot be decrypted for a reason on the customer's side, since when, and what to do."""
    with exit_codes(), app() as broker:
        found = broker.byok.affected(_id(workspace, "--workspace"))
        if as_json:
            show(_affected_document(found))
            return
        for connection in found.connections:
            _say(f"connection {connection.connection_id}", connection, len(connection.secrets))
            for _, name in connection.secrets:
                click.echo(f"    {name}")
        for secret in found.secrets:
            _say(secret.name, secret, 1)
        if not found.connections and not found.secrets:
            click.echo("nothing is affected")


def _say(what: str, failure: AffectedConnection | AffectedSecret, secrets: int) -> None:
    code = f", AWS said {failure.aws_code}" if failure.aws_code else ""
    click.echo(
        f"{what}: {failure.state.value}{code}; since {failure.since:%Y-%m-%d %H:%M:%S} UTC, found by "
        f"{failure.found_by.value}; {secrets} secret{'' if secrets == 1 else 's'}"
    )
    click.echo(f"    what to do: {what_to_do(failure.state)}")


def _affected_document(found: Affected) -> dict[str, Any]:
    return {
        "connections": [
            {
                "connectionId": connection.connection_id,
                **_failure(connection),
                "secrets": [{"id": secret_id, "name": name} for secret_id, name in connection.secrets],
            }
            for connection in found.connections
        ],
        "secrets": [{"id": secret.secret_id, "name": secret.name, **_failure(secret)} for secret in found.secrets],
    }


def _failure(failure: AffectedConnection | AffectedSecret) -> dict[str, Any]:
    return {
        "state": failure.state,
        "awsCode": failure.aws_code,
        "since": failure.since,
        "foundBy": failure.found_by,
        "whatToDo": what_to_do(failure.state),
    }
