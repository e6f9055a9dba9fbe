"""An AWS account of the double, seen by its root user: what a customer does in their console.

Promise: everything goes over the wire with boto3, so it works as well against a double in another process. This
module imports nothing of ours.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.credentials
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


class Signed:
    """A client whose every call is signed by one account's root user."""

    def __init__(self, client: Any, account_id: str) -> None:
        self._client = client
        self._credentials = botocore.credentials.Credentials(account_id, _ROOT_SECRET)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def signed(**parameters: Any) -> Any:
            token = _signing.set(self._credentials)
            try:
                return call(**parameters)
            finally:
                _signing.reset(token)

        return signed


_signing: ContextVar[botocore.credentials.Credentials] = ContextVar("axiorank_double_signing")


def _sign(request: Any, **_: Any) -> None:
    # read by botocore's signers.py for every request, as in adapters/aws_clients.py
    request.context.setdefault("signing", {})["request_credentials"] = _signing.get()


class Accounts:
    """Accounts by id, over two clients: one costs 50 ms and 1 MB, and a test run makes hundreds of accounts."""

    def __init__(self, endpoint: str, region: str) -> None:
        self._endpoint = endpoint
        self._region = region
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}

    def get(self, account_id: str) -> Account:
        with self._lock:
            if account_id not in self._accounts:
                signed = {service: Signed(client, account_id) for service, client in self._made().items()}
                self._accounts[account_id] = Account(account_id, self._region, signed)
            return self._accounts[account_id]

    def close(self) -> None:
        """Closes every connection."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._accounts, self._clients = {}, {}

    def _made(self) -> dict[str, Any]:
        if not self._clients:
            session = boto3.Session()
            self._clients = {service: self._client(session, service) for service in ("iam", "kms")}
        return self._clients

    def _client(self, session: Any, service: str) -> Any:
        client = session.client(
            service,
            endpoint_url=self._endpoint,
            region_name=self._region,
            aws_access_key_id="nobody",
            aws_secret_access_key="none",  # noqa: S106 - replaced for each call
            config=_CONFIG,
        )
        client.meta.events.register(f"before-sign.{service}", _sign)
        return client


class Account:
    """One account. Every method raises botocore's ClientError as AWS would. Keys are named by ARN or id."""

    def __init__(self, account_id: str, region: str, clients: Mapping[str, Signed]) -> None:
        self.account_id = account_id
        self.region = region
        self.iam = clients["iam"]
        self.kms = clients["kms"]

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
