"""An AWS account of the double, seen by its root user: what a customer does in their console.

Promise: everything goes over the wire with boto3, so it works as well against a double in another process. This
module imports nothing of ours.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

Document = Mapping[str, Any]
_ROOT_SECRET = "test"  # noqa: S105 - the double's fixed word for root users
_CONFIG = Config(
    retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30, max_pool_connections=32, proxies={}
)


@dataclass(frozen=True, repr=False)
class Credentials:
    """Long-term credentials of a user."""

    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return f"<Credentials {self.access_key_id}>"


def fresh_account_id(below: Callable[[int], int] = secrets.randbelow) -> str:
    """Twelve random digits: tests that share a double do not meet."""
    return str(100_000_000_000 + below(900_000_000_000))


def statement(effect: str, action: str | list[str], **elements: Any) -> dict[str, Any]:
    """One policy statement; `elements` are Principal, Resource, Condition, Sid."""
    return {"Effect": effect, "Action": action, **elements}


def document(*statements: Document) -> dict[str, Any]:
    """A policy document."""
    return {"Version": "2012-10-17", "Statement": [dict(entry) for entry in statements]}


class Accounts:
    """Accounts by id, over one boto3 session (a session costs 50 ms, a further client of it 2 ms)."""

    def __init__(self, endpoint: str, region: str) -> None:
        self._endpoint = endpoint
        self._region = region
        self._session: Any = None
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}

    def get(self, account_id: str) -> Account:
        with self._lock:
            if account_id not in self._accounts:
                self._accounts[account_id] = Account(account_id, self._region, self._clients(account_id))
            return self._accounts[account_id]

    def close(self) -> None:
        """Closes every client's connections."""
        with self._lock:
            for account in self._accounts.values():
                account.close()
            self._accounts = {}

    def _clients(self, account_id: str) -> dict[str, Any]:
        if self._session is None:
            self._session = boto3.Session()
        return {service: self._client(service, account_id) for service in ("iam", "kms")}

    def _client(self, service: str, account_id: str) -> Any:
        """A client that keeps no idle connection: a test run makes hundreds of accounts."""
        client = self._session.client(
            service,
            endpoint_url=self._endpoint,
            region_name=self._region,
            aws_access_key_id=account_id,
            aws_secret_access_key=_ROOT_SECRET,
            config=_CONFIG,
        )
        client.meta.events.register(f"after-call.{service}", lambda **_: client.close())
        return client


class Account:
    """One account. Every method raises botocore's ClientError as AWS would. Keys are named by ARN or id."""

    def __init__(self, account_id: str, region: str, clients: Mapping[str, Any]) -> None:
        self.account_id = account_id
        self.region = region
        self.iam = clients["iam"]
        self.kms = clients["kms"]

    def close(self) -> None:
        self.iam.close()
        self.kms.close()

    # -- roles and users --------------------------------------------------------------------------------------------

    def create_role(self, name: str, trust: Document, policy: Document | None = None) -> str:
        """Its ARN. `policy` is its identity policy, if any."""
        arn: str = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
        if policy is not None:
            self.put_role_policy(name, policy)
        return arn

    def put_role_policy(self, name: str, policy: Document) -> None:
        self.iam.put_role_policy(RoleName=name, PolicyName="inline", PolicyDocument=json.dumps(policy))

    def update_trust(self, name: str, trust: Document) -> None:
        self.iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(trust))

    def delete_role(self, name: str) -> None:
        for policy in self.iam.list_role_policies(RoleName=name)["PolicyNames"]:
            self.iam.delete_role_policy(RoleName=name, PolicyName=policy)
        self.iam.delete_role(RoleName=name)

    def create_user(self, name: str, policy: Document) -> Credentials:
        """A user with that identity policy, and an access key."""
        self.iam.create_user(UserName=name)
        self.iam.put_user_policy(UserName=name, PolicyName="inline", PolicyDocument=json.dumps(policy))
        key = self.iam.create_access_key(UserName=name)["AccessKey"]
        return Credentials(key["AccessKeyId"], key["SecretAccessKey"])

    def service_credentials(self, name: str = "broker") -> Credentials:
        """A user that may assume any role that trusts it: what the broker's processes run with."""
        return self.create_user(name, document(statement("Allow", "sts:AssumeRole", Resource="*")))

    # -- keys -------------------------------------------------------------------------------------------------------

    def create_key(self, policy: Document, **parameters: Any) -> str:
        """Its ARN; `parameters` as of CreateKey."""
        arn: str = self.kms.create_key(Policy=json.dumps(policy), **parameters)["KeyMetadata"]["Arn"]
        return arn

    def put_key_policy(self, key: str, policy: Document) -> None:
        self.kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))

    def disable_key(self, key: str) -> None:
        self.kms.disable_key(KeyId=key)

    def enable_key(self, key: str) -> None:
        self.kms.enable_key(KeyId=key)

    def schedule_deletion(self, key: str, days: int = 7) -> None:
        self.kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=days)

    def cancel_deletion(self, key: str) -> None:
        """Leaves it Disabled, as AWS does."""
        self.kms.cancel_key_deletion(KeyId=key)
