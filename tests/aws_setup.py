"""The broker's side and a customer's side on the AWS double, wired to the real key service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import botocore.session

from broker_core.adapters.aws_clients import AwsClients, AwsOptions
from broker_core.adapters.clock import SystemClock
from broker_core.adapters.key_service import KmsKeyService
from broker_core.context import EncryptionContext, for_secret
from broker_core.dev.aws import AwsDouble, Credentials, CustomerAccount, fresh_account_id
from broker_core.model import Connection, Purpose
from broker_core.ports import KeyUse


@dataclass
class Customer:
    """A workspace with BYOK: its account on the double, and our connection to it."""

    account: CustomerAccount
    connection: Connection

    def use(
        self, purpose: Purpose = Purpose.INJECT, context: EncryptionContext | None = None, audit_id: UUID | None = None
    ) -> KeyUse:
        """One use of this customer's key."""
        workspace = self.connection.workspace_id
        return KeyUse(self.connection, purpose, audit_id or uuid4(), context or for_secret(workspace, "api", 1))


class BrokerSide:
    """Our account on the double, with base credentials that may assume roles."""

    def __init__(self, double: AwsDouble) -> None:
        self.double = double
        self.account_id = fresh_account_id()
        self.account = double.account(self.account_id)
        self.credentials = self.account.service_credentials()
        self.clients = self.clients_of(self.credentials)

    def clients_of(self, credentials: Credentials) -> AwsClients:
        session = botocore.session.Session()
        session.set_credentials(credentials.access_key_id, credentials.secret_access_key)
        return AwsClients(self.options(), session)

    def options(self, **options: Any) -> AwsOptions:
        return AwsOptions(endpoint_kms=self.double.endpoint, endpoint_sts=self.double.endpoint, **options)

    def key_service(self, credentials: Credentials | None = None, **options: Any) -> KmsKeyService:
        """The real adapter against the double; it does not wait between attempts."""
        clients = self.clients if credentials is None else self.clients_of(credentials)
        return KmsKeyService(clients, self.options(**options), SystemClock(), sleep=lambda _: None)

    def customer(self) -> Customer:
        """A new customer, set up as documented."""
        account = CustomerAccount(
            self.double.account(fresh_account_id()), self.account_id, external_id=f"external-{uuid4().hex}"
        )
        return Customer(
            account,
            Connection(uuid4(), f"ws_{uuid4().hex[:12]}", account.role_arn, account.external_id, account.key_arn),
        )
