"""Stand-ins for the ``aws`` and ``terraform`` commands, on the AWS double: enough of both to run what we hand out.

``aws`` turns the words of any command of a service that the double has into the one boto3 call that they mean, and
knows ``cloudformation deploy``; ``terraform`` knows ``init`` and ``apply``. Shells find them by ``stand_ins``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3
import jmespath
from botocore import xform_name

from tests.setup_readers import from_cloudformation, from_terraform, option


def stand_ins(directory: Path, endpoint: str, account: str, region: str) -> None:
    """Write both commands into a directory, for an account of the double."""
    root = Path(__file__).parents[1]
    for name in ("aws", "terraform"):
        path = directory / name
        path.write_text(
            f"#!/bin/sh\nSTAND_IN='{endpoint} {account} {region}' PYTHONPATH='{root}' "
            f"exec '{sys.executable}' -m tests.aws_cli {name} \"$@\"\n"
        )
        path.chmod(0o755)


def aws(words: list[str]) -> None:
    """One command of the AWS CLI. Raises botocore's errors, and KeyError for an option that there is not."""
    service, operation, *rest = words
    if (service, operation) == ("cloudformation", "deploy"):
        assert option(rest, "--capabilities") == "CAPABILITY_NAMED_IAM"
        _deploy(Path(option(rest, "--template-file")).read_text())
        return
    client = _client(service, option(rest, "--region") if "--region" in rest else None)
    if operation == "wait":
        waiter, *rest = rest
        client.get_waiter(waiter.replace("-", "_")).wait(**_parameters(client, "get-role", rest))
        return
    answer = getattr(client, operation.replace("-", "_"))(**_parameters(client, operation, rest))
    answer.pop("ResponseMetadata", None)
    found = jmespath.search(option(rest, "--query"), answer) if "--query" in rest else answer
    if found:
        print(found if isinstance(found, str) else json.dumps(found, default=str))


def terraform(words: list[str]) -> None:
    """One command of Terraform, in the directory that it is run in."""
    if words[0] == "init":
        return
    assert words[0] == "apply"
    text = Path("main.tf").read_text()
    _, account, _ = _where()
    role = from_terraform(text, "")["aws_iam_role.axiorank"]
    made = _role(role["name"], role["assume_role_policy"])
    key = from_terraform(text, made, account)["aws_kms_key.axiorank"]
    _client("kms").create_key(Policy=json.dumps(key["policy"]))


def _deploy(text: str) -> None:
    _, account, _ = _where()
    role = from_cloudformation(text, "", account)["Resources"]["AxioRankRole"]["Properties"]
    made = _role(role["RoleName"], role["AssumeRolePolicyDocument"])
    key = from_cloudformation(text, made, account)["Resources"]["AxioRankKey"]["Properties"]
    _client("kms").create_key(Policy=json.dumps(key["KeyPolicy"]))


def _role(name: str, trust: dict[str, Any]) -> str:
    arn: str = _client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    return arn


def _where() -> list[str]:
    return os.environ["STAND_IN"].split()


def _client(service: str, region: str | None = None) -> Any:
    endpoint, account, home = _where()
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region or home,
        aws_access_key_id=account,
        aws_secret_access_key="test",
    )


def _parameters(client: Any, operation: str, words: list[str]) -> dict[str, Any]:
    model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation.replace("-", "_")])
    names = {xform_name(member).replace("_", "-"): member for member in model.input_shape.members}
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    ours = {name: value for name, value in pairs.items() if name not in ("--region", "--query", "--output")}
    found = {}
    for name, value in ours.items():
        member = names[name.removeprefix("--")]
        text = Path(value.removeprefix("file://")).read_text() if value.startswith("file://") else value
        is_number = model.input_shape.members[member].type_name == "integer"
        found[member] = int(text) if is_number else text
    return found


if __name__ == "__main__":
    {"aws": aws, "terraform": terraform}[sys.argv[1]](sys.argv[2:])
