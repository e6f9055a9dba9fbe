"""Reads set-up documents as their tools do, so that tests compare what is meant and not how it is written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

ACCOUNT = "222222222222"


def from_cloudformation(text: str, role_arn: str, account: str = ACCOUNT, partition: str = "aws") -> dict[str, Any]:
    """The template as CloudFormation has it once its functions are worked out."""
    pseudo = {"${AWS::Partition}": partition, "${AWS::AccountId}": account}

    def resolved(given: Any) -> Any:
        if isinstance(given, list):
            return [resolved(entry) for entry in given]
        if not isinstance(given, dict):
            return given
        if list(given) == ["Fn::GetAtt"]:
            return {"AxioRankRole": role_arn, "AxioRankKey": "the new key"}[given["Fn::GetAtt"][0]]
        if list(given) == ["Fn::Sub"]:
            return _replaced(given["Fn::Sub"], pseudo)
        return {name: resolved(value) for name, value in given.items()}

    template: dict[str, Any] = resolved(yaml.safe_load(text))
    return template


def _hcl(text: str) -> dict[str, Any]:
    import hcl2  # here: a tenth of a second, for Terraform's documents alone

    parsed: dict[str, Any] = hcl2.loads(text)
    return parsed


def from_terraform(text: str, role_arn: str, account: str = ACCOUNT, partition: str = "aws") -> dict[str, Any]:
    """Resources and outputs by their addresses, arguments worked out."""
    known = {
        "${aws_iam_role.axiorank.arn}": role_arn,
        "${aws_kms_key.axiorank.arn}": "the new key",
        "${data.aws_partition.current.partition}": partition,
        "${data.aws_caller_identity.current.account_id}": account,
    }
    parsed = _hcl(text)
    found: dict[str, Any] = {}
    for entry in parsed["resource"]:
        for kind, named in entry.items():
            for name, arguments in named.items():
                found[f"{_string(kind, {})}.{_string(name, {})}"] = _evaluated(arguments, known)
    for entry in parsed["output"]:
        for name, arguments in entry.items():
            found[f"output.{_string(name, {})}"] = _evaluated(arguments, known)["value"]
    return found


def _evaluated(given: Any, known: Mapping[str, str]) -> Any:
    if isinstance(given, list):
        return [_evaluated(entry, known) for entry in given]
    if isinstance(given, dict):
        pairs = {name: value for name, value in given.items() if name != "__is_block__"}
        return {_string(name, {}): _evaluated(value, known) for name, value in pairs.items()}
    if not isinstance(given, str):
        return given
    if given.startswith("${jsonencode("):
        (argument,) = _hcl(f"x = {given.removeprefix('${jsonencode(').removesuffix(')}')}\n").values()
        return _evaluated(argument, known)
    return known[given] if given in known else _string(given, known)


def _string(given: str, known: Mapping[str, str]) -> str:
    """A quoted string with its templates filled in; other text as it is."""
    if not given.startswith('"'):
        return given
    # what was escaped is put aside first: it is no template
    text = given.replace("$${", "\0").replace("%%{", "\1")
    read: str = json.loads(_replaced(text, known), strict=False)
    assert "${" not in read
    assert "%{" not in read
    return read.replace("\0", "${").replace("\1", "%{")


def from_shell(text: str, account: str = ACCOUNT) -> list[list[str]]:
    """Every ``aws`` command of a script, in order, as the words that it is given."""
    script = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    found: list[list[str]] = []
    words = shlex.split(script.replace("$(", " ").replace("--output text)", "--output text "))
    for word in words:
        if word == "aws":
            found.append([])
        elif found:
            found[-1].append(word.replace("${ACCOUNT_ID}", account))
    return found


def option(command: list[str], name: str) -> str:
    """The word after an option."""
    return command[command.index(name) + 1]


def _replaced(text: str, pairs: Mapping[str, str]) -> str:
    for name, value in pairs.items():
        text = text.replace(name, value)
    return text
