"""``broker exec``: start a stdio server, or any command, with the variables that are bound to it.

The values come from this machine's settings, as for ``inject``, or from a broker over HTTP (``--server``). A command
that is not there costs no use of a key. Everything of ours is closed before the command starts.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from broker_core.cli.common import app, exit_codes
from broker_core.cli.masked import NOT_FOUND, NOT_STARTED, NotStarted, run
from broker_core.cli.remote import LONGEST_TOKEN, RemoteBroker
from broker_core.errors import Invalid
from broker_core.inject.call import Call
from broker_core.injection import ID, SHORTEST_REDACTED

_FILE = click.Path(dir_okay=False)


@click.command("exec", context_settings={"allow_interspersed_args": False}, options_metavar="[OPTIONS] --")
@click.option("--workspace", help="The workspace. With --server it is the token's, and may be left out.")
@click.option("--agent", help="The agent that calls.")
@click.option("--mcp-server", help="The MCP server that is started.")
@click.option("--server", metavar="URL", help="Ask this broker over HTTP, instead of opening the values here.")
@click.option("--token-file", type=_FILE, help="The file that holds the token for --server.")
@click.option("--ca-file", type=_FILE, help="CAs to trust for --server, beside the system's.")
@click.option("--no-masking", is_flag=True, help="Hand the output on as it is; the command keeps its terminal then.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    workspace: str | None,
    agent: str | None,
    mcp_server: str | None,
    server: str | None,
    token_file: str | None,
    ca_file: str | None,
    no_masking: bool,
    command: Sequence[str],
) -> None:
    """Run COMMAND with the caller's variables in its environment only, and mask their values in what it prints.

    Signals go to the command, and its exit code is ours: 128 and the signal's number if a signal ended it, 127 if there
    is no such command, 126 if it cannot be run. The broker's own settings are taken out of its environment.
    """
    _keep_standard_descriptors()
    with exit_codes():
        _check_ids(workspace, agent, mcp_server)
        _find(command[0])
        if server is None:
            variables = _opened_here(workspace, agent, mcp_server, token_file or ca_file)
        else:
            remote = RemoteBroker(server, _token(token_file, workspace), ca_file)
            variables = remote.environment(agent, mcp_server)
        _warn(variables, is_masked=not no_masking)
        try:
            sys.exit(run(command, variables, masking=not no_masking))
        except NotStarted as problem:
            _leave(problem)


def _keep_standard_descriptors() -> None:
    """Where one of the three was closed by whoever started us, the next file to be opened would take its number: the
    command's output would go into our connection to PostgreSQL."""
    for number in range(3):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)


def _check_ids(workspace: str | None, agent: str | None, mcp_server: str | None) -> None:
    given = {"--workspace": workspace, "--agent": agent, "--mcp-server": mcp_server}
    wrong = {option: "1 to 64 of A-Z a-z 0-9 _ -" for option, text in given.items() if text and not ID.fullmatch(text)}
    if not agent and not mcp_server:
        wrong |= {"--mcp-server": "give --mcp-server, --agent or both: who asks"}
    if wrong:
        raise Invalid(wrong)


def _find(command: str) -> None:
    """So that a mistyped name costs no use of a key."""
    if shutil.which(command, path=os.environ.get("PATH", os.defpath)) is not None:
        return
    if "/" in command and os.path.exists(command):
        _leave(NotStarted("the command is not executable", NOT_STARTED))
    _leave(NotStarted("there is no such command", NOT_FOUND))


def _opened_here(
    workspace: str | None, agent: str | None, mcp_server: str | None, of_a_server: str | None
) -> Mapping[str, str]:
    if of_a_server is not None:
        raise Invalid({"--server": "give it with --token-file and --ca-file"})
    if workspace is None:
        raise Invalid({"--workspace": "give it, or --server with --token-file"})
    with app() as broker:
        variables: Mapping[str, str] = broker.injector.environment(Call(workspace, agent, mcp_server)).variables
        return variables


def _token(path: str | None, workspace: str | None) -> str:
    # a core file of ours would hold the token and the values; locally the process's start sees to it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if path is None:
        raise Invalid({"--token-file": "give it with --server: a token is never an argument"})
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(LONGEST_TOKEN + 2).strip()
    except (OSError, ValueError):
        raise Invalid({"--token-file": "cannot be read as text: check the path and permissions"}) from None
    if workspace is not None and _claims(token).get("workspace", workspace) != workspace:
        raise Invalid({"--workspace": "the token is for another workspace"})
    return token


def _claims(token: str) -> dict[str, Any]:
    """What a token says, unchecked: only to find a mistake early. The server checks it."""
    try:
        part = token.removeprefix("axr_tok_").split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, IndexError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _warn(variables: Mapping[str, str], *, is_masked: bool) -> None:
    short = [name for name, value in variables.items() if len(value.encode("utf-8")) < SHORTEST_REDACTED]
    if not variables:
        _say("nothing is bound to this caller: the command gets no variable from here")
    elif short and is_masked:
        _say(f"values under {SHORTEST_REDACTED} bytes are not masked: {', '.join(sorted(short))}")


def _leave(problem: NotStarted) -> NoReturn:
    _say(str(problem))
    sys.exit(problem.exit_code)


def _say(sentence: str) -> None:
    with suppress(OSError):  # nobody may be listening, and the command is to run all the same
        click.echo(f"broker: {sentence}", err=True)
