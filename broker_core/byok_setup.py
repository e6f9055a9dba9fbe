"""Use case: what a customer is to apply in their AWS account so that their key can be connected.

Checked input in, one frozen document out; it reads no database and asks no AWS, so the document proves nothing:
connecting does. Every value that a customer gives is checked by the rules that connecting has. Imports no AWS or
database library.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from broker_core.advice import warnings_for
from broker_core.aws_names import ACCOUNT_ID, SUFFIXES
from broker_core.errors import ConfigurationError, Invalid
from broker_core.injection import ID
from broker_core.model import check_connection, check_role, parse_key_arn
from broker_core.policies import Policy
from broker_core.revocation import Revocation, not_stopped, ways
from broker_core.setup_documents import (
    Blueprint,
    Format,
    cloudformation,
    commands,
    fill_in,
    how_to_apply,
    terraform,
    warnings,
)
from broker_core.setup_documents.blueprint import STAND_IN

ROLE_NAME = "axiorank-byok"

#: https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateRole.html
_ROLE_NAME = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)
#: who may stand in a key policy as an administrator; groups: partition, account
_PRINCIPAL = re.compile(r"arn:([a-z-]+):iam::([0-9]{12}):(?:root|(?:user|role)/[\x21-\x7e]{1,576})")


@dataclass(frozen=True, kw_only=True)
class SetupWish:
    """What a customer asks for. All but the workspace may be left out."""

    workspace_id: str
    #: 16 characters or more; without one, a random one is proposed
    external_id: str | None = None
    #: of the role that is to be made
    role_name: str = ROLE_NAME
    #: of a key that exists; without one, a key is to be made
    key_arn: str | None = None
    #: twelve digits; known from ``key_arn`` or ``admin_principal`` where one is given
    account_id: str | None = None
    partition: str | None = None
    #: the ARN of who may manage the key; without one the account's root
    admin_principal: str | None = None
    #: whether the key policy names the workspace too
    strict: bool = False


@dataclass(frozen=True)
class SetupDocument:
    """What to apply, and what to know before. ``revocation`` and ``not_stopped`` say how it is taken back."""

    plan: Blueprint
    revocation: tuple[Revocation, ...]
    not_stopped: tuple[str, ...]

    @property
    def trust_policy(self) -> Policy:
        """The role's trust policy."""
        return self.plan.trust_policy

    @property
    def key_policy(self) -> Policy:
        """The key's policy; its principals hold ``${ACCOUNT_ID}`` where the customer's account is not known."""
        return fill_in(self.plan)

    def warnings(self, form: Format) -> tuple[str, ...]:
        """What to know before applying one form, for people."""
        return (*warnings(self.plan, form), *(warnings_for(self.plan.key_arn) if self.plan.key_arn else ()))

    def text(self, form: Format) -> str:
        """The document in one form, ready to apply; it ends with a line break."""
        if form is Format.JSON:
            return json.dumps(self.as_json(), indent=2, ensure_ascii=True) + "\n"
        write = {Format.CLOUDFORMATION: cloudformation, Format.TERRAFORM: terraform, Format.CLI: commands}[form]
        return write(self.plan, [self.plan.description, *how_to_apply(self.plan, form), *self.warnings(form)])

    def as_json(self) -> dict[str, Any]:
        """The document as ``GET /byok/setup?format=json`` answers."""
        _, use = self.key_policy["Statement"]
        return {
            "workspaceId": self.plan.workspace_id,
            "externalId": self.plan.external_id,
            "roleName": self.plan.role_name,
            "roleArn": use["Principal"]["AWS"],
            "keyArn": self.plan.key_arn,
            "region": self.plan.region,
            "strict": self.plan.strict,
            "trustPolicy": self.trust_policy,
            "keyPolicy": self.key_policy,
            "howToApply": how_to_apply(self.plan, Format.JSON),
            "warnings": list(self.warnings(Format.JSON)),
            "revocation": [
                {
                    "way": each.way,
                    "stops": each.stops,
                    "when": each.when,
                    "undo": each.undo,
                    "seenAs": each.seen_as.value,
                }
                for each in self.revocation
            ],
            "notStopped": list(self.not_stopped),
        }


def propose(
    wish: SetupWish,
    our_account: str | None,
    *,
    reuse_seconds: int = 0,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> SetupDocument:
    """The set-up for one workspace. ``our_account`` and ``reuse_seconds`` are this installation's settings.

    Raises ConfigurationError without our account, and Invalid that names the fields.
    """
    if our_account is None:
        raise ConfigurationError("set BROKER_AWS_ACCOUNT_ID: the customer's trust policy names our AWS account")
    plan = _checked(_complete(wish, random), our_account)
    return SetupDocument(plan, ways(reuse_seconds), not_stopped())


def _complete(wish: SetupWish, random: Callable[[int], bytes]) -> SetupWish:
    """With what follows from what was given. An empty text counts as left out, as a form sends it."""
    given = replace(
        wish,
        key_arn=wish.key_arn or None,
        account_id=wish.account_id or None,
        partition=wish.partition or None,
        admin_principal=wish.admin_principal or None,
        role_name=wish.role_name or ROLE_NAME,
        # 256 random bits; letters, digits and hyphens are safe wherever it is pasted
        external_id=wish.external_id or f"axiorank-{random(32).hex()}",
    )
    partition, account = _home(given)
    return replace(given, partition=given.partition or partition or "aws", account_id=given.account_id or account)


def _home(wish: SetupWish) -> tuple[str | None, str | None]:
    """Partition and account, from the ARNs. Raises Invalid for what is none."""
    principal = None
    if wish.admin_principal is not None:
        principal = _PRINCIPAL.fullmatch(wish.admin_principal)
        # IAM's patterns and variables; and CloudFormation's dynamic references, which stand in any string
        if principal is None or any(sign in wish.admin_principal for sign in ("*", "?", "$", "{{")):
            raise Invalid(
                {"adminPrincipal": "not an IAM principal; give arn:aws:iam::ACCOUNT:role/NAME, a user or root"}
            )
    if wish.key_arn is not None:
        key = parse_key_arn(wish.key_arn)
        return key.partition, key.account
    return (principal[1], principal[2]) if principal else (None, None)


def _checked(wish: SetupWish, our_account: str) -> Blueprint:
    """Raises Invalid."""
    problems = dict(_problems(wish))
    if problems:
        raise Invalid(problems)
    plan = Blueprint(
        workspace_id=wish.workspace_id,
        external_id=wish.external_id or "",
        role_name=wish.role_name,
        our_account=our_account,
        partition=wish.partition or "",
        account_id=wish.account_id,
        region=parse_key_arn(wish.key_arn).region if wish.key_arn else None,
        key_arn=wish.key_arn,
        administrators=wish.admin_principal,
        strict=wish.strict,
    )
    # the very rules of connecting
    if plan.key_arn is None:
        check_role(plan.role_arn, plan.external_id, plan.partition, plan.account_id or STAND_IN)
    else:
        check_connection(plan.role_arn, plan.key_arn, plan.external_id)
    return plan


def _problems(wish: SetupWish) -> list[tuple[str, str]]:
    found = []
    if not ID.fullmatch(wish.workspace_id):
        found.append(("workspaceId", "1 to 64 of A-Z a-z 0-9 _ -"))
    if not _ROLE_NAME.fullmatch(wish.role_name):
        found.append(("roleName", "1 to 64 of A-Z a-z 0-9 _ + = , . @ - (as IAM allows), without a path"))
    if wish.partition not in SUFFIXES:
        found.append(("partition", f"one of {', '.join(SUFFIXES)}"))
    if wish.account_id is not None and not ACCOUNT_ID.fullmatch(wish.account_id):
        found.append(("accountId", "an AWS account id has 12 digits"))
    if wish.key_arn is not None:
        found += _elsewhere(wish, wish.key_arn)
    if wish.admin_principal is not None:
        found += _misplaced(wish, wish.admin_principal)
    return found


def _elsewhere(wish: SetupWish, key_arn: str) -> list[tuple[str, str]]:
    key = parse_key_arn(key_arn)
    found = []
    if wish.account_id != key.account:
        found.append(("accountId", "the key is in another account; leave this out, or give the key's"))
    if wish.partition != key.partition:
        found.append(("partition", f"the key is in {key.partition}; leave this out"))
    return found


def _misplaced(wish: SetupWish, principal: str) -> list[tuple[str, str]]:
    _, partition, _, _, account, name = principal.split(":", 5)
    if (partition, account) != (wish.partition, wish.account_id):
        return [("adminPrincipal", "is in another account or partition than the key; name one of the key's account")]
    if name == f"role/{wish.role_name}":
        return [("adminPrincipal", "is the role that AxioRank assumes: name somebody of yours")]
    return []
