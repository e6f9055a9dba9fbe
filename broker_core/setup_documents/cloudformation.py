"""The set-up as a CloudFormation template, in YAML.

Role and root are written as references, so that the key's policy means the role of this very stack, in whichever
account and partition it is made. Pure; imports ``blueprint`` and ``notation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker_core.setup_documents.blueprint import Blueprint, with_principals
from broker_core.setup_documents.notation import comment, yaml

_ROLE, _KEY = "AxioRankRole", "AxioRankKey"


def cloudformation(plan: Blueprint, notes: Sequence[str]) -> str:
    """A template with the role, and with the key where one is to be made.

    CloudFormation cannot change a key that it did not make: the policy of a key that exists stands in the metadata, to
    be put by hand.
    """
    document: dict[str, Any] = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": plan.description,
    }
    if plan.key_arn is not None:
        document["Metadata"] = {"AxioRank": {"KeyArn": plan.key_arn, "KeyPolicy": plan.key_policy}}
    resources = {_ROLE: _role(plan)} | ({} if plan.key_arn else {_KEY: _key(plan)})
    document |= {"Resources": resources, "Outputs": _outputs(plan)}
    return comment(notes) + yaml(document)


def _role(plan: Blueprint) -> dict[str, Any]:
    trust = with_principals(plan.trust_policy, {plan.our_root: _root(plan.our_account)})
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "RoleName": plan.role_name,
            "Description": plan.description,
            "AssumeRolePolicyDocument": trust,
        },
    }


def _key(plan: Blueprint) -> dict[str, Any]:
    """Retained: a stack that is deleted must not take what only this key can read with it."""
    principals = {plan.role_arn: {"Fn::GetAtt": [_ROLE, "Arn"]}, plan.root: _root("${AWS::AccountId}")}
    return {
        "Type": "AWS::KMS::Key",
        "DeletionPolicy": "Retain",
        "UpdateReplacePolicy": "Retain",
        "Properties": {
            "Description": plan.description,
            "EnableKeyRotation": True,
            "KeyPolicy": with_principals(plan.key_policy, principals),
        },
    }


def _root(account: str) -> dict[str, str]:
    return {"Fn::Sub": f"arn:${{AWS::Partition}}:iam::{account}:root"}


def _outputs(plan: Blueprint) -> dict[str, Any]:
    key = plan.key_arn or {"Fn::GetAtt": [_KEY, "Arn"]}
    return {
        "RoleArn": {"Value": {"Fn::GetAtt": [_ROLE, "Arn"]}},
        "KeyArn": {"Value": key},
        "ExternalId": {"Value": plan.external_id},
    }
