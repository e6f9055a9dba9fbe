"""Stand-ins for the ``aws`` and ``terraform`` commands, on the AWS double: enough of both to run what we hand out.

``aws`` turns the words of any command of a service that the double has into the one boto3 call that they mean, and
knows ``cloudformation deploy``; ``terraform`` knows ``init`` and ``apply``. Shells find them by ``stand_ins``. What a
shell starts only carries the words to this process: loading boto3 for each command takes a third of a second.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import jmespath
from botocore import xform_name

from broker_core.dev.aws.account import Account
from tests.setup_readers import from_cloudformation, from_terraform, option

_CARRIER = """
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as line, line.makefile("rwb") as file:
    file.write(json.dumps([os.getcwd(), *sys.argv[2:]]).encode() + b"\\n")
    file.flush()
    status, output, error = json.loads(file.readline())
sys.stdout.write(output)
sys.stderr.write(error)
sys.exit(status)
"""


@contextmanager
def stand_ins(directory: Path, endpoint: str, account: Account) -> Iterator[None]:
    """Write both commands into a directory, for an account of the double; they work as long as this is open."""
    carrier = directory / "carrier.py"
    carrier.write_text(_CARRIER)
    clients = _Clients(endpoint, account)

    class Answering(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            answer = _answer(clients, *json.loads(self.rfile.readline()))
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Answering) as server:  # one command at a time
        for name in ("aws", "terraform"):
            path = directory / name
            path.write_text(
                f"#!/bin/sh\nexec '{sys.executable}' -I -S '{carrier}' {server.server_address[1]} {name} \"$@\"\n"
            )
            path.chmod(0o755)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="aws-cli")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            clients.close()


def _answer(clients: _Clients, directory: str, command: str, *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command that is run in a directory."""
    try:
        run = {"aws": aws, "terraform": terraform}[command]
        return 0, run(clients, Path(directory), list(words)), ""
    except Exception:  # noqa: BLE001 - as an interpreter says what ended it
        return 1, "", traceback.format_exc()


class _Clients:
    """boto3's, for an account of the double."""

    def __init__(self, endpoint: str, account: Account) -> None:
        self.account = account.account_id
        self._endpoint, self._region = endpoint, account.region
        self._made: dict[tuple[str, str], Any] = {}

    def get(self, service: str, region: str | None = None) -> Any:
        wanted = service, region or self._region
        if wanted not in self._made:
            self._made[wanted] = _session().client(
                service,
                endpoint_url=self._endpoint,
                region_name=wanted[1],
                aws_access_key_id=self.account,
                aws_secret_access_key="test",
            )
        return self._made[wanted]

    def close(self) -> None:
        for client in self._made.values():
            client.close()


@cache
def _session() -> boto3.Session:
    """One for all: it keeps the models of the services that it has read."""
    return boto3.Session()


def aws(clients: _Clients, directory: Path, words: list[str]) -> str:
    """What one command of the AWS CLI prints. Raises botocore's errors, and KeyError for an option that there is
    not."""
    service, operation, *rest = words
    if (service, operation) == ("cloudformation", "deploy"):
        assert option(rest, "--capabilities") == "CAPABILITY_NAMED_IAM"
        _deploy(clients, (directory / option(rest, "--template-file")).read_text())
        return ""
    client = clients.get(service, option(rest, "--region") if "--region" in rest else None)
    if operation == "wait":
        waiter, *rest = rest
        client.get_waiter(waiter.replace("-", "_")).wait(**_parameters(client, directory, "get-role", rest))
        return ""
    answer = getattr(client, operation.replace("-", "_"))(**_parameters(client, directory, operation, rest))
    answer.pop("ResponseMetadata", None)
    found = jmespath.search(option(rest, "--query"), answer) if "--query" in rest else answer
    if not found:
        return ""
    return (found if isinstance(found, str) else json.dumps(found, default=str)) + "\n"


def terraform(clients: _Clients, directory: Path, words: list[str]) -> str:
    """One command of Terraform, in the directory that it is run in."""
    if words[0] == "init":
        return ""
    assert words[0] == "apply"
    text = (directory / "main.tf").read_text()
    role = from_terraform(text, "")["aws_iam_role.axiorank"]
    made = _role(clients, role["name"], role["assume_role_policy"])
    key = from_terraform(text, made, clients.account)["aws_kms_key.axiorank"]
    clients.get("kms").create_key(Policy=json.dumps(key["policy"]))
    return ""


def _deploy(clients: _Clients, text: str) -> None:
    role = from_cloudformation(text, "", clients.account)["Resources"]["AxioRankRole"]["Properties"]
    made = _role(clients, role["RoleName"], role["AssumeRolePolicyDocument"])
    key = from_cloudformation(text, made, clients.account)["Resources"]["AxioRankKey"]["Properties"]
    clients.get("kms").create_key(Policy=json.dumps(key["KeyPolicy"]))


def _role(clients: _Clients, name: str, trust: dict[str, Any]) -> str:
    made = clients.get("iam").create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    arn: str = made["Role"]["Arn"]
    return arn


def _parameters(client: Any, directory: Path, operation: str, words: list[str]) -> dict[str, Any]:
    model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation.replace("-", "_")])
    names = {xform_name(member).replace("_", "-"): member for member in model.input_shape.members}
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    ours = {name: value for name, value in pairs.items() if name not in ("--region", "--query", "--output")}
    found = {}
    for name, value in ours.items():
        member = names[name.removeprefix("--")]
        is_file = value.startswith("file://")
        text = (directory / value.removeprefix("file://")).read_text() if is_file else value
        is_number = model.input_shape.members[member].type_name == "integer"
        found[member] = int(text) if is_number else text
    return found
