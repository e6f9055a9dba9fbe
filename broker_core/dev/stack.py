"""The local stack: every server that the product needs, real, on loopback, and the product's own processes on top.

PostgreSQL and two Valkeys come from wheels, AWS from the double in ``dev.aws``, the upstream from ``dev.upstream``. The
processes are started as the Procfile starts them. Nothing outlives this process, and nothing is kept.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from broker_core.dev.aws import AwsDouble, CustomerAccount
from broker_core.dev.children import Child
from broker_core.dev.postgres import Postgres
from broker_core.dev.upstream import SampleUpstream
from broker_core.dev.valkey import Valkey
from migrations import runner

#: AxioRank's account and the customer's, in the double
OUR_ACCOUNT, CUSTOMER_ACCOUNT = "111111111111", "222222222222"
REGION = "eu-west-1"

#: the Procfile's processes, and what each says once it works
PROGRAMS: Mapping[str, tuple[list[str], bytes]] = {
    "worker": (["worker"], b"worker.started"),
    "sweeper": (["worker", "--queues", "sweep", "--threads", "2"], b"worker.started"),
    "scheduler": (["scheduler"], b"scheduler.started"),
}


@dataclass
class LocalStack:
    """The servers, and the settings that lead to them."""

    postgres: Postgres
    queue: Valkey
    claims: Valkey
    aws: AwsDouble
    upstream: SampleUpstream
    environment: Mapping[str, str]
    programs: dict[str, Child] = field(default_factory=dict)
    _closing: ExitStack = field(default_factory=ExitStack, repr=False)

    @classmethod
    def start(cls, **changed: str) -> Self:
        """Start the servers, migrated and empty. ``changed`` settings are laid over those of the stack."""
        with ExitStack() as opened:
            postgres = opened.enter_context(Postgres.start())
            queue = opened.enter_context(Valkey.start(persistent=True))
            claims = opened.enter_context(Valkey.start(persistent=False))
            aws = opened.enter_context(AwsDouble())
            upstream = opened.enter_context(SampleUpstream.start())
            runner.upgrade(postgres.url)
            environment = {**_environment(postgres, queue, claims, aws, upstream), **changed}
            return cls(postgres, queue, claims, aws, upstream, environment, _closing=opened.pop_all())

    def run(self, *names: str) -> list[Child]:
        """Start some of ``PROGRAMS``, beside each other; returns once all of them work."""
        started = [self._start(name) for name in names]
        for child in started:
            child.wait_ready()
        return started

    def _start(self, name: str) -> Child:
        arguments, ready = PROGRAMS[name]
        child = Child(
            [sys.executable, "-P", "-m", "broker_core.cli", *arguments],
            ready=ready,
            last_signal="TERM",
            environment=self.process_environment(),
        )
        self._closing.callback(child.stop, "TERM")
        self.programs[name] = child
        return child

    def customer(self, external_id: str, role_name: str = "axiorank-byok") -> CustomerAccount:
        """A role and a key in the customer's account, set up as documented."""
        return CustomerAccount(self.aws.account(CUSTOMER_ACCOUNT), OUR_ACCOUNT, external_id, role_name)

    def process_environment(self) -> dict[str, str]:
        """The environment of a process on this stack: its settings, and nothing of ours but what a process needs."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, **self.environment}

    def close(self) -> None:
        """Stop everything, in reverse order."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _environment(
    postgres: Postgres, queue: Valkey, claims: Valkey, aws: AwsDouble, upstream: SampleUpstream
) -> dict[str, str]:
    credentials = aws.account(OUR_ACCOUNT).service_credentials()
    return {
        "BROKER_DATABASE_URL": postgres.url,
        "BROKER_REDIS_URL": queue.url,
        "BROKER_CLAIM_REDIS_URL": claims.url,
        "BROKER_PLATFORM_KEYS": f"local:{base64.b64encode(secrets.token_bytes(32)).decode()}",
        "BROKER_AWS_ACCOUNT_ID": OUR_ACCOUNT,
        "BROKER_EGRESS_ALLOW": "127.0.0.0/8,::1/128",
        "BROKER_EGRESS_CA_FILE": str(upstream.ca_file),
        "BROKER_ANNOUNCE_AFTER_SECONDS": "0",
        "AWS_ENDPOINT_URL": aws.endpoint,
        "AWS_ACCESS_KEY_ID": credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
