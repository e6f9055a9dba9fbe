"""What is to be made in the customer's account, before any notation.

Pure; imports ``policies`` only.

The customer's account may not be known yet. The policies are then made for a stand-in account, and each notation
puts its own expression in the place of the principals that name it: in their place in the document, never by
replacing text, since an external id may hold any digits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from broker_core.policies import Policy, account_root, key_policy, trust_policy

#: no account has this id
STAND_IN = "000000000000"


class Format(StrEnum):
    """In which form a set-up is given."""

    JSON = "json"
    CLOUDFORMATION = "cloudformation"
    TERRAFORM = "terraform"
    CLI = "cli"


@dataclass(frozen=True)
class Blueprint:
    """One role, and one key or the policy of one. Everything in it is checked."""

    workspace_id: str
    external_id: str = field(repr=False)
    role_name: str
    our_account: str
    partition: str
    #: None: not known; the notation asks AWS
    account_id: str | None
    #: None: whichever Region the document is applied in
    region: str | None
    #: None: a key is to be made
    key_arn: str | None
    #: None: the account's root
    administrators: str | None
    strict: bool

    @property
    def role_arn(self) -> str:
        """Of the stand-in account while the customer's is not known."""
        return f"arn:{self.partition}:iam::{self.account_id or STAND_IN}:role/{self.role_name}"

    @property
    def root(self) -> str:
        """The customer's account as a principal."""
        return account_root(self.account_id or STAND_IN, self.partition)

    @property
    def our_root(self) -> str:
        """Our account as a principal."""
        return account_root(self.our_account, self.partition)

    @property
    def trust_policy(self) -> Policy:
        """The role's trust policy."""
        return trust_policy(self.our_account, self.external_id, partition=self.partition)

    @property
    def key_policy(self) -> Policy:
        """The key's policy, all of it."""
        workspace = self.workspace_id if self.strict else None
        return key_policy(self.role_arn, workspace_id=workspace, administrators=self.administrators)

    @property
    def description(self) -> str:
        """Of role and key, for whoever meets them in the console."""
        return f"AxioRank BYOK, workspace {self.workspace_id}"


def with_principals(policy: Policy, expressions: Mapping[str, Any]) -> Policy:
    """The policy with principals replaced by what a notation writes for them."""
    changed = copy.deepcopy(policy)
    for statement in changed["Statement"]:
        who = statement["Principal"]
        who["AWS"] = expressions.get(who["AWS"], who["AWS"])
    return changed
