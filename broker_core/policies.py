"""IAM and KMS policies: the two that a customer applies, and the session policies that we bind ourselves with.

Dicts, ready for ``to_json``. Pure; imports the model (for ARNs), the context's names and the errors.

IAM expands ``${…}`` in condition values and ``*`` and ``?`` in resources. Ids, names and key ARNs hold none of them;
this module refuses them all the same, since a policy that says more than it seems to is worse than none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from broker_core.aws_names import ACCOUNT_ID
from broker_core.context import WORKSPACE_KEY, EncryptionContext, workspace_part
from broker_core.errors import Invalid
from broker_core.model import parse_key_arn

Policy = dict[str, Any]

#: the limit of a session policy's plain text
#: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
SESSION_POLICY_MAX = 2048

#: what administrators of the key may do: everything but use it. ``kms:*`` would let any IAM policy of the account
#: decrypt after our role was removed. No CreateGrant and no ReplicateKey: a grant is a use that a key policy does not
#: show. (PutKeyPolicy remains: whoever may change the policy can always give a use back, and CloudTrail shows that.)
ADMINISTRATION = (
    "kms:CancelKeyDeletion",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListResourceTags",
    "kms:ListRetirableGrants",
    "kms:PutKeyPolicy",
    "kms:RetireGrant",
    "kms:RevokeGrant",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateKeyDescription",
)


class Action(StrEnum):
    """The only two things that we ever do with a customer's key."""

    ENCRYPT = "kms:Encrypt"
    DECRYPT = "kms:Decrypt"


class Extra(StrEnum):
    """What a symmetric key could be used for beyond the two, as far as KMS answers dry runs about it.

    ``kms:ReEncryptTo`` alone is not among them: KMS asks about the source first, and it gives no more than Encrypt.
    """

    CREATE_GRANT = "kms:CreateGrant"
    GENERATE_DATA_KEY = "kms:GenerateDataKey"
    GENERATE_DATA_KEY_WITHOUT_PLAINTEXT = "kms:GenerateDataKeyWithoutPlaintext"
    GENERATE_DATA_KEY_PAIR = "kms:GenerateDataKeyPair"
    GENERATE_DATA_KEY_PAIR_WITHOUT_PLAINTEXT = "kms:GenerateDataKeyPairWithoutPlaintext"
    RE_ENCRYPT_FROM = "kms:ReEncryptFrom"


def trust_policy(our_account: str, external_id: str, *, partition: str = "aws") -> Policy:
    """The customer's role: our account may assume it, with the external id and not without."""
    return _policy(
        {
            "Sid": "AxioRankMayAssume",
            "Effect": "Allow",
            "Principal": {"AWS": account_root(our_account, partition)},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": _literal(external_id, "externalId")}},
        }
    )


def key_policy(role_arn: str, *, workspace_id: str | None = None, administrators: str | None = None) -> Policy:
    """The customer's key: administrators of their account who cannot use it, and the role, which can do two things.

    ``workspace_id`` gives the stricter variant: the role can use the key only for values of that workspace.
    ``administrators`` is the ARN of who may manage the key; without it their account's root, by which the account's own
    IAM policies say who. Raises Invalid (``roleArn``, ``adminPrincipal``) for what IAM would read as a pattern.
    """
    _, partition, _, _, account, _ = _literal(role_arn, "roleArn").split(":", 5)
    use: Policy = {
        "Sid": "AxioRankMayUse",
        "Effect": "Allow",
        "Principal": {"AWS": role_arn},
        "Action": [Action.ENCRYPT.value, Action.DECRYPT.value],
        "Resource": "*",
    }
    if workspace_id is not None:
        use["Condition"] = _context_equals({WORKSPACE_KEY: workspace_id})
    who = account_root(account, partition) if administrators is None else _literal(administrators, "adminPrincipal")
    manage: Policy = {
        "Sid": "AdministratorsMayManage",
        "Effect": "Allow",
        "Principal": {"AWS": who},
        "Action": list(ADMINISTRATION),
        "Resource": "*",
    }
    return _policy(manage, use)


def session_policy(action: Action, key_arn: str, context: EncryptionContext) -> Policy:
    """What one session may do: one action, with one key, under every pair of one context.

    Raises Invalid for a key ARN or a context value that a policy would read as a pattern.
    """
    parse_key_arn(key_arn)
    return _policy(
        {"Effect": "Allow", "Action": action.value, "Resource": key_arn, "Condition": _context_equals(context)}
    )


def shared_session_policy(action: Action, key_arn: str, context: EncryptionContext) -> Policy:
    """What a session that is shared by a workspace's uses may do: as above, but any context of that workspace.

    A session shared under one use's whole context would deny every other use, and look like the customer's doing.
    """
    return session_policy(action, key_arn, workspace_part(context))


def extra_policy(extra: Extra, key_arn: str) -> Policy:
    """For a session that asks by dry run whether more is allowed than the two: this policy does not stand in the way,
    so that the customer's own decide."""
    parse_key_arn(key_arn)
    actions = [extra.value, "kms:ReEncryptTo"] if extra is Extra.RE_ENCRYPT_FROM else [extra.value]
    return _policy({"Effect": "Allow", "Action": actions, "Resource": key_arn})


def deny_all() -> Policy:
    """For sessions that only prove that they can be had."""
    return _policy({"Effect": "Deny", "Action": "*", "Resource": "*"})


def to_json(policy: Policy) -> str:
    """The policy as compact JSON: STS counts its characters."""
    return json.dumps(policy, separators=(",", ":"), ensure_ascii=True)


def account_root(account: str, partition: str = "aws") -> str:
    """The principal that stands for a whole account. Raises Invalid (``account``) for what is no account id."""
    if not ACCOUNT_ID.fullmatch(account):
        raise Invalid({"account": "an AWS account id has 12 digits"})
    return f"arn:{partition}:iam::{account}:root"


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _context_equals(pairs: Mapping[str, str]) -> Policy:
    named = {f"kms:EncryptionContext:{key}": _literal(value, key) for key, value in pairs.items()}
    return {"StringEquals": named}


def _literal(value: str, name: str) -> str:
    if any(sign in value for sign in "*?$"):
        raise Invalid({name: "must not contain * ? or $, which IAM reads as patterns"})
    return value
