"""A customer who set BYOK up exactly as AxioRank's documentation says, and can take it back in every way there is.

The trust policy lets our account assume the role with the external id; the key policy has an administrators'
statement without Encrypt and Decrypt, and one statement that gives the role those two and nothing else; the role has
no identity policy. The documents are the product's own (`broker_core.policies`). This module imports `account`.
"""

from __future__ import annotations

from typing import Any

from broker_core import policies
from broker_core.dev.aws.account import Account, document


class CustomerAccount:
    """A role and a key in `account`, for the broker that runs in `broker_account_id`."""

    def __init__(
        self, account: Account, broker_account_id: str, external_id: str, role_name: str = "axiorank-byok"
    ) -> None:
        self.account = account
        self.broker_account_id = broker_account_id
        self.external_id = external_id
        self.role_name = role_name
        self.role_arn = account.create_role(role_name, self.trust_policy())
        self.key_arn = account.create_key(self.key_policy())

    def trust_policy(self) -> dict[str, Any]:
        """As documented to customers."""
        return policies.trust_policy(self.broker_account_id, self.external_id)

    def key_policy(
        self, *more: dict[str, Any], use: bool = True, condition: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As documented. `use` False: without the role's statement; `condition`: on it; `more`: further statements."""
        administer, _ = policies.key_policy(self.role_arn)["Statement"]
        return document(administer, *([self.use_statement(condition)] if use else []), *more)

    def use_statement(self, condition: dict[str, Any] | None = None) -> dict[str, Any]:
        """What gives the role Encrypt and Decrypt."""
        _, use = policies.key_policy(self.role_arn)["Statement"]
        return {**use, **({"Condition": condition} if condition else {})}

    # -- taking it back, and giving it again ------------------------------------------------------------------------

    def remove_role_from_key_policy(self) -> None:
        self.account.put_key_policy(self.key_arn, self.key_policy(use=False))

    def restore_key_policy(self) -> None:
        """Also after the role was made again: the statement then means the new one."""
        self.account.put_key_policy(self.key_arn, self.key_policy())

    def put_key_policy(self, policy: dict[str, Any]) -> None:
        self.account.put_key_policy(self.key_arn, policy)

    def disable_key(self) -> None:
        self.account.disable_key(self.key_arn)

    def enable_key(self) -> None:
        self.account.enable_key(self.key_arn)

    def schedule_deletion(self) -> None:
        self.account.schedule_deletion(self.key_arn)

    def cancel_deletion(self) -> None:
        """Leaves the key Disabled."""
        self.account.cancel_deletion(self.key_arn)

    def change_external_id(self, external_id: str) -> None:
        """Live sessions go on; new ones need the new id."""
        self.external_id = external_id
        self.account.update_trust(self.role_name, self.trust_policy())

    def delete_role(self) -> None:
        self.account.delete_role(self.role_name)

    def recreate_role(self) -> None:
        """The same name, but another principal: the key policy does not mean it until it is put again."""
        self.role_arn = self.account.create_role(self.role_name, self.trust_policy())

    def create_key(self) -> str:
        """A further key under the same policy; its ARN."""
        return self.account.create_key(self.key_policy())
