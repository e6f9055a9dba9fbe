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

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_core.dev import places
from broker_core.dev.aws import AwsDouble, CustomerAccount
from broker_core.dev.children import Child
from broker_core.dev.postgres import Postgres
from broker_core.dev.tokens import LocalTokens
from broker_core.dev.upstream import SampleUpstream
from broker_core.dev.valkey import Valkey
from migrations import runner

#: AxioRank's account and the customer's, in the double
OUR_ACCOUNT, CUSTOMER_ACCOUNT = "111111111111", "222222222222"
REGION = "eu-west-1"
#: until a process must have started, on a machine that may be busy
READY_SECONDS = 120.0

#: the Procfile's processes, and what each says once it works
PROGRAMS: Mapping[str, tuple[list[str], bytes]] = {
    "web": (["web", "--host", "127.0.0.1"], b"web.started"),
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
    _started: list[Child] = field(default_factory=list, repr=False)
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
            tokens = opened.enter_context(LocalTokens.start())
            runner.upgrade(postgres.url)
            environment = {**_environment(postgres, queue, claims, aws, upstream), **web_environment(tokens), **changed}
            return cls(postgres, queue, claims, aws, upstream, environment, _closing=opened.pop_all())

    @property
    def web_url(self) -> str:
        """Where ``web`` serves, once it runs."""
        return f"http://127.0.0.1:{self.environment['PORT']}"

    def run(self, *names: str) -> list[Child]:
        """Start some of ``PROGRAMS``, beside each other; returns once all of them work."""
        started = [self._start(name) for name in names]
        for child in started:
            child.wait_ready(READY_SECONDS)
        return started

    def _start(self, name: str) -> Child:
        arguments, ready = PROGRAMS[name]
        child = Child(
            [sys.executable, "-P", "-m", "broker_core.cli", *arguments],
            ready=ready,
            last_signal="TERM",
            environment=self.process_environment(),
        )
        if not self._started:
            self._closing.callback(self._stop_programs)
        self._started.append(child)
        self.programs[name] = child
        return child

    def _stop_programs(self) -> None:
        started, self._started = self._started, []
        Child.stop_together(started, "TERM")

    def customer(self, external_id: str, role_name: str = "axiorank-byok") -> CustomerAccount:
        """A role and a key in the customer's account, set up as documented."""
        return CustomerAccount(self.aws.account(CUSTOMER_ACCOUNT), OUR_ACCOUNT, external_id, role_name)

    def process_environment(self) -> dict[str, str]:
        """The environment of a process on this stack: its settings, and nothing of ours but what a process needs."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, **self.environment}

    def close(self) -> None:
        """Stop everything: the processes together, then the servers in reverse order."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def web_environment(tokens: LocalTokens) -> dict[str, str]:
    """What ``web`` needs beside the rest: keys that it trusts, and a port of its own."""
    return {**tokens.environment, "PORT": str(places.free_port())}


def webhook_environment() -> dict[str, str]:
    """A place for notices, where nobody listens until somebody wants to: `broker webhook listen` does."""
    return {
        "BROKER_WEBHOOK_URL": f"http://127.0.0.1:{places.free_port()}/",
        "BROKER_WEBHOOK_SECRET": secrets.token_hex(32),
    }


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
        "BROKER_SIGNING_KEY": _signing_key(),
        "AWS_ENDPOINT_URL": aws.endpoint,
        "AWS_ACCESS_KEY_ID": credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _signing_key() -> str:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
