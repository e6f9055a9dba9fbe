"""Commands for owners of a workspace: ``broker byok …``."""

from __future__ import annotations

import click

from broker_core.byok_setup import ROLE_NAME, SetupWish, propose
from broker_core.cli.common import exit_codes, settings
from broker_core.cli.moves import connections, reencrypt, retire
from broker_core.cli.proof import check_proof, prove, signing_key
from broker_core.cli.reports import coverage, drill
from broker_core.cli.trail import reconcile
from broker_core.setup_documents import Format


@click.group()
def byok() -> None:
    """A workspace's own key: set up, connect, prove."""


for _command in (connections, coverage, drill, reencrypt, retire, reconcile, prove, check_proof, signing_key):
    byok.add_command(_command)


@byok.command()
@click.option("--workspace", required=True, help="The workspace that is to be connected.")
@click.option("--external-id", help="16 characters or more; without it, a random one is proposed.")
@click.option("--key-arn", help="A key that exists. Without it, the document makes one.")
@click.option("--role-name", default=ROLE_NAME, show_default=True, help="The role that the document makes.")
@click.option("--admin-principal", help="ARN of who may manage the key; without it, the account's root.")
@click.option("--account-id", help="The customer's AWS account, where neither ARN tells it.")
@click.option("--partition", help="The customer's AWS partition, where neither ARN tells it.  [default: aws]")
@click.option("--strict", is_flag=True, help="Let the role use the key for this workspace's values only.")
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in Format]),
    default=Format.JSON.value,
    show_default=True,
    help="cloudformation: a YAML template; cli: AWS CLI commands for a shell.",
)
def setup(form: str, workspace: str, **wish: str | bool | None) -> None:
    """Print what a customer applies in their AWS account: a role that we may assume, and a key that it may use.

    The document goes to stdout, what to know before applying it to stderr. Nothing is asked of AWS and nothing is
    stored; needs BROKER_AWS_ACCOUNT_ID. Afterwards, connect the role's ARN, the key's ARN and the external id.
    """
    with exit_codes():
        ours = settings()
        document = propose(
            SetupWish(workspace_id=workspace, **wish),  # type: ignore[arg-type]  # click gives what the options say
            ours.aws_account_id,
            reuse_seconds=ours.sts_reuse_seconds,
        )
        click.echo(document.text(Format(form)), nl=False)
        for warning in document.warnings(Format(form)):
            click.echo(f"warning: {warning}", err=True)
