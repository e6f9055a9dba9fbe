"""The set-up as a Terraform configuration for the AWS provider.

Role and root are written as references, as in the CloudFormation template. Pure; imports ``blueprint`` and
``notation``.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker_core.policies import Policy
from broker_core.setup_documents.blueprint import Blueprint, with_principals
from broker_core.setup_documents.notation import Expression, comment, hcl, hcl_arguments, hcl_block

_ROLE, _KEY = Expression("aws_iam_role.axiorank.arn"), Expression("aws_kms_key.axiorank.arn")
_ACCOUNT = "${data.aws_caller_identity.current.account_id}"
_PROVIDER = {"aws": {"source": "hashicorp/aws", "version": ">= 5.0"}}


def terraform(plan: Blueprint, notes: Sequence[str]) -> str:
    """A configuration with the role, and the key or the policy of the one that exists."""
    parts = (
        hcl_block("terraform", hcl_arguments({"required_version": ">= 1.3"}), _required_providers()),
        hcl_block('data "aws_caller_identity" "current"'),
        hcl_block('data "aws_partition" "current"'),
        _role(plan),
        _existing_key(plan) if plan.key_arn else _new_key(plan),
        hcl_block('output "role_arn"', hcl_arguments({"value": _ROLE})),
        hcl_block('output "key_arn"', hcl_arguments({"value": plan.key_arn or _KEY})),
        hcl_block('output "external_id"', hcl_arguments({"value": plan.external_id})),
    )
    return comment(notes) + "\n" + "\n".join(parts)


def _required_providers() -> str:
    return hcl_block("required_providers", hcl_arguments(_PROVIDER))


def _role(plan: Blueprint) -> str:
    trust = with_principals(plan.trust_policy, {plan.our_root: _root(plan.our_account)})
    arguments = {
        "name": plan.role_name,
        "description": plan.description,
        "assume_role_policy": _encoded(trust),
    }
    return hcl_block('resource "aws_iam_role" "axiorank"', hcl_arguments(arguments))


def _new_key(plan: Blueprint) -> str:
    """Not to be destroyed by a plan: what only this key can read would go with it."""
    arguments = {
        "description": plan.description,
        "enable_key_rotation": True,
        "deletion_window_in_days": 30,
        "policy": _encoded(_key_policy(plan)),
    }
    return hcl_block('resource "aws_kms_key" "axiorank"', hcl_arguments(arguments), _lasting())


def _existing_key(plan: Blueprint) -> str:
    """Not to be destroyed either: that would put AWS's usual policy on the key, with root and kms:*."""
    arguments = {"key_id": plan.key_arn, "policy": _encoded(_key_policy(plan))}
    return hcl_block('resource "aws_kms_key_policy" "axiorank"', hcl_arguments(arguments), _lasting())


def _lasting() -> str:
    return hcl_block("lifecycle", hcl_arguments({"prevent_destroy": True}))


def _key_policy(plan: Blueprint) -> Policy:
    return with_principals(plan.key_policy, {plan.role_arn: _ROLE, plan.root: _root(_ACCOUNT)})


def _root(account: str) -> Expression:
    return Expression(f'"arn:${{data.aws_partition.current.partition}}:iam::{account}:root"')


def _encoded(policy: Policy) -> Expression:
    return Expression(f"jsonencode({hcl(policy)})")
