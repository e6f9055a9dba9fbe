"""``broker byok reconcile``: was every use of the customer's key a real use?

With ``--workspace`` our rows come from the database. With ``--audit`` they come from the lines that ``GET /audit``
gives, and then nothing of ours is needed: no settings, no database, no network. Everything is a stream, what is read
and what is printed: neither has to fit into memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker_core.adapters.audit_lines import read_audit
from broker_core.adapters.trail_files import read_trail
from broker_core.aws_names import ROLE_ARN
from broker_core.cli.common import REFUSED, app, as_json, exit_codes, present
from broker_core.cloudtrail import Finding, Matching, Summary
from broker_core.errors import Invalid
from broker_core.ports import Use

if TYPE_CHECKING:
    from broker_core.bootstrap import App

#: our rows are looked for so far around the trail's first and last call: a use takes less, clocks differ by less
MARGIN = timedelta(hours=1)
#: of what only we have, so many are listed without ``--all``: most of it is outside of the trail's time, or late
MOST_LISTED = 100
_PAGE = 1000

_File = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("more", nargs=-1, type=_File, metavar="[FILE]...")
@click.option(
    "--cloudtrail",
    "trail",
    multiple=True,
    required=True,
    type=_File,
    metavar="FILE",
    help="CloudTrail's own files, plain or gzip, or a folder of them. More may follow: --cloudtrail a.json b.json",
)
@click.option("--workspace", help="Compare with this workspace's audit log in the database.")
@click.option(
    "--audit",
    "lines",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare with these lines of GET /audit instead; needs --role-arn, and no settings.",
)
@click.option("--role-arn", "roles", multiple=True, help="A role that we were given, beside those of the connections.")
@click.option("--all", "everything", is_flag=True, help=f"List all that only we have, not the first {MOST_LISTED}.")
def reconcile(
    more: Sequence[Path],
    trail: Sequence[Path],
    workspace: str | None,
    lines: Sequence[Path],
    roles: Sequence[str],
    everything: bool,
) -> None:
    """Match a customer's CloudTrail with our audit log: each Encrypt, Decrypt and AssumeRole of our role.

    Prints one JSON object: `summary`; `unexplained`, the calls that no row of ours holds, and what others did with the
    key under our encryption context; `oursOnly`, the calls that we recorded and the trail does not hold, each with the
    reason that is known.

    Exit code 0 only if the trail has calls of these roles, each belongs to a use that we recorded, and nobody else used
    the key for what is ours.
    """
    with exit_codes(), ExitStack() as opened:
        if bool(workspace) == bool(lines):
            raise click.UsageError("give either --workspace or --audit")
        broker = opened.enter_context(app()) if workspace else None
        chosen = _roles(broker, workspace, roles)
        with Matching(chosen) as matching:
            matching.add_trail(read_trail([*trail, *more]))
            period = matching.period()
            if period is not None:
                ours = _rows(broker, workspace, period) if broker and workspace else _within(read_audit(lines), period)
                matching.add_ours(ours)
            _leave(_report(matching, everything))


def _roles(broker: App | None, workspace: str | None, given: Collection[str]) -> set[str]:
    for role in given:
        if not ROLE_ARN.fullmatch(role):
            raise Invalid({"--role-arn": "not an IAM role ARN; give arn:aws:iam::ACCOUNT:role/NAME"})
    known = {view.role_arn for view in broker.byok.connections(workspace)} if broker and workspace else set()
    if not known and not given:
        where = "name the role with --role-arn" if broker is None else "this workspace has no connection; name a role"
        raise Invalid({"--role-arn": where})
    return {*known, *given}


def _rows(broker: App, workspace: str, period: tuple[datetime, datetime]) -> Iterator[Use]:
    after, since, until = None, period[0] - MARGIN, period[1] + MARGIN
    while page := broker.store.uses(workspace, after=after, limit=_PAGE, since=since, until=until):
        yield from page
        after = page[-1].intent.id


def _within(uses: Iterable[Use], period: tuple[datetime, datetime]) -> Iterator[Use]:
    return (use for use in uses if period[0] - MARGIN <= use.started_at < period[1] + MARGIN)


def _report(matching: Matching, everything: bool) -> Summary:
    """Print it piece by piece."""
    summary = matching.summary()
    numbers = json.dumps({**json.loads(as_json(summary)), "isExplained": summary.is_explained})
    click.echo(f'{{\n  "summary": {numbers},')
    _list("unexplained", matching.unexplained())
    click.echo(",")
    _list("oursOnly", islice(matching.ours_only(), None if everything else MOST_LISTED))
    missing = summary.ours_only + summary.ours_late + summary.ours_outside + summary.ours_refused_roles
    left_out = 0 if everything else max(missing - MOST_LISTED, 0)
    click.echo(f',\n  "oursOnlyLeftOut": {left_out}\n}}')
    return summary


def _list(name: str, findings: Iterable[Finding]) -> None:
    click.echo(f'  "{name}": [', nl=False)
    is_first = True
    for finding in findings:
        click.echo(("" if is_first else ",") + "\n    " + _line(finding), nl=False)
        is_first = False
    click.echo("]" if is_first else "\n  ]", nl=False)


def _line(finding: Finding) -> str:
    """One call on one line."""
    return json.dumps(present(json.loads(as_json(finding))), ensure_ascii=False)


def _leave(summary: Summary) -> None:
    if not summary.calls:
        click.echo("no call of these roles is in this trail: wrong files, or a wrong role", err=True)
    elif summary.theirs_only:
        click.echo(f"{summary.theirs_only} calls are not explained", err=True)
    if summary.other_principals:
        click.echo(f"{summary.other_principals} calls under our context are of other principals", err=True)
    if summary.unanswered:
        click.echo(f"{summary.unanswered} calls worked, and no row of ours says so: look at them", err=True)
    if not summary.calls or not summary.is_explained:
        sys.exit(REFUSED)
