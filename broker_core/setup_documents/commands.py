"""The set-up as commands for the AWS CLI, in a POSIX shell.

Every value is one quoted word. The one thing that the shell fills in is the customer's account, where it is not known.
Pure; imports ``blueprint`` and ``notation``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence

from broker_core.policies import Policy
from broker_core.setup_documents.blueprint import Blueprint, with_principals
from broker_core.setup_documents.notation import comment

#: stands in JSON for an account that is not known. Nothing that a customer may give holds a $ (see ``byok_setup``)
ACCOUNT_ID = "${ACCOUNT_ID}"


def fill_in(plan: Blueprint) -> Policy:
    """The key's policy; ``${ACCOUNT_ID}`` in its principals where the account is not known."""
    if plan.account_id is not None:
        return plan.key_policy
    role = f"arn:{plan.partition}:iam::{ACCOUNT_ID}:role/{plan.role_name}"
    return with_principals(
        plan.key_policy, {plan.role_arn: role, plan.root: f"arn:{plan.partition}:iam::{ACCOUNT_ID}:root"}
    )


def commands(plan: Blueprint, notes: Sequence[str]) -> str:
    """A script that makes the role, and the key or the policy of the one that exists. Prints both ARNs at its end."""
    return comment(notes) + "".join(f"\n{line}" for part in _parts(plan) for line in ["", *part])[1:] + "\n"


def _parts(plan: Blueprint) -> Iterator[list[str]]:
    yield ["set -eu", "export AWS_PAGER="]
    if plan.account_id is None:
        yield ["ACCOUNT_ID=$(aws sts get-caller-identity --query Account --output text)"]
    role = shlex.quote(plan.role_name)
    yield [
        f"aws iam create-role --role-name {role} \\",
        f"  --description {shlex.quote(plan.description)} \\",
        f"  --assume-role-policy-document {_quoted(plan.trust_policy)} \\",
        "  --query Role.Arn --output text",
    ]
    # a key's policy cannot name a role that AWS has not spread yet
    yield [f"aws iam wait role-exists --role-name {role}"]
    yield _new_key(plan) if plan.key_arn is None else _existing_key(plan, plan.key_arn)
    yield ['echo "$KEY_ARN"']


def _new_key(plan: Blueprint) -> list[str]:
    return [
        f"KEY_ARN=$(aws kms create-key{_region(plan)} \\",
        f"  --description {shlex.quote(plan.description)} \\",
        f"  --policy {_quoted(fill_in(plan))} \\",
        "  --query KeyMetadata.Arn --output text)",
        f'aws kms enable-key-rotation{_region(plan)} --key-id "$KEY_ARN"',
    ]


def _existing_key(plan: Blueprint, key_arn: str) -> list[str]:
    return [
        f"KEY_ARN={shlex.quote(key_arn)}",
        f'aws kms get-key-policy{_region(plan)} --key-id "$KEY_ARN" --policy-name default \\',
        "  --query Policy --output text > key-policy-before.json",
        f'aws kms put-key-policy{_region(plan)} --key-id "$KEY_ARN" --policy-name default \\',
        f"  --policy {_quoted(fill_in(plan))}",
    ]


def _region(plan: Blueprint) -> str:
    return f" --region {shlex.quote(plan.region)}" if plan.region else ""


def _quoted(policy: Policy) -> str:
    """The policy as one word, the account's variable outside the single quotes that keep everything else as it is."""
    return shlex.quote(json.dumps(policy, indent=2)).replace(ACCOUNT_ID, f"'\"{ACCOUNT_ID}\"'")
