"""Commands that say what a key protects: ``broker byok coverage`` and ``drill``. They read, and ask AWS nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from broker_core.cli.common import app, exit_codes, present, show, workspace_option
from broker_core.ports import Cover, DrilledSecret
from broker_core.reports import WHAT_TO_DO, WHY, PlacedSecret
from broker_core.revocation import not_stopped, ways


@click.command()
@workspace_option
@click.option("--cover", type=click.Choice([cover.value for cover in Cover]), help="List only these.")
@click.option("--cursor", help="`nextCursor` of the page before, with the same --cover.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many are listed.")
def coverage(workspace: str, cover: str | None, cursor: str | None, limit: int) -> None:
    """Say how many secrets are under the current key, older ones, the platform's cipher, or on their way; and which.

    Each with why and what to do. Prints JSON, as GET /byok/coverage answers.
    """
    with exit_codes(), app() as broker:
        page = broker.reports.coverage(workspace, Cover(cover) if cover else None, cursor, limit)
        counts = {each.value: page.counts[each] for each in Cover}
        show({**counts, "items": [_placed_document(placed) for placed in page.items], "nextCursor": page.next})


def _placed_document(placed: PlacedSecret) -> dict[str, Any]:
    secret = placed.secret
    described = {
        "id": secret.secret_id,
        "name": secret.name,
        "version": secret.version,
        "cover": placed.cover,
        "connectionId": secret.connection_id,
        "eventId": secret.event_id,
        "heldUntil": secret.held_until,
        "why": WHY[placed.cover],
        "whatToDo": WHAT_TO_DO[placed.cover],
    }
    return present(described)


@click.command()
@workspace_option
@click.option("--connection", type=click.UUID, help="What is under this one; without it, under any.")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True, help="How many are listed.")
def drill(workspace: str, connection: UUID | None, limit: int) -> None:
    """Say what a revocation now would take away: secrets, their bindings, and their uses in the last 7 days.

    AWS is not asked and nothing changes. Prints JSON, as POST /byok/drill answers; the most used secrets come first.
    """
    with exit_codes(), app() as broker:
        since, drilled = broker.reports.drill(workspace, connection, limit)
        show(
            {
                "since": since,
                **({"connectionId": connection} if connection else {}),
                "secrets": drilled.secrets,
                "usedSecrets": drilled.used_secrets,
                "uses": drilled.uses,
                "items": [_drilled_document(secret) for secret in drilled.most_used],
                "revocation": ways(broker.settings.sts_reuse_seconds),
                "notStopped": not_stopped(),
            }
        )


def _drilled_document(secret: DrilledSecret) -> dict[str, Any]:
    injection = secret.injection
    binding = injection and {
        "injectionKind": injection.kind,
        "bindingKey": injection.binding_key,
        "targetHost": injection.target_host,
        "mcpServerId": injection.mcp_server_id,
        "agentId": injection.agent_id,
    }
    described = {
        "id": secret.secret_id,
        "name": secret.name,
        "connectionId": secret.connection_id,
        "binding": present(binding) if binding else None,
        "uses": secret.uses,
        "callers": [present({"agentId": agent, "mcpServerId": server}) for agent, server in secret.callers],
        "lastUsedAt": secret.last_used_at,
    }
    return present(described)
