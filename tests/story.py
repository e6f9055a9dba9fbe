"""The whole life of a secret, told to processes of ours: what INV-1 searches afterwards.

``Story`` publishes and injects through one process without HTTP (``driver``) and lets the workers work; what goes over
HTTP is told by ``story_http``. Every step waits until it has happened, so that a search of what it left is a search of
something.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import redis

from broker_core.adapters.queue import NAMESPACE
from broker_core.dev.aws import CustomerAccount, Fault, fresh_account_id
from broker_core.dev.stack import LocalStack
from tests.databases import plain
from tests.driver import Driver
from tests.live import AGENT, OUR_ACCOUNT
from tests.sentinel import Sentinel, byte_sentinel, keys_of, text_sentinel
from tests.story_http import OverHttp
from tests.tokens import Platform
from tests.waiting import wait_until

#: what each value is, and where it goes: kind and bindingKey
VALUES: dict[str, tuple[Callable[[str], Sentinel], str, str | None]] = {
    "platform": (text_sentinel, "bearer", None),
    "bearer": (text_sentinel, "bearer", None),
    "query": (byte_sentinel, "query", "api_key"),
    "stdio": (text_sentinel, "stdio_env", "TOKEN"),
    "envelope": (lambda name: text_sentinel(name, pieces=160), "http_header", "X-Large"),
    "throttled": (text_sentinel, "bearer", None),
    "dead": (text_sentinel, "bearer", None),
    "crashed": (text_sentinel, "bearer", None),
    "refused": (text_sentinel, "bearer", None),
    "expired": (text_sentinel, "bearer", None),
}
#: said again at each look, else it is due in an hour: a check that was under way may write its time after ours, and one
#: that found the key's slots taken by a probe waits for the end of its lease
_CHECK_IS_DUE = (
    "UPDATE broker_secrets SET checked_at = NULL, check_lease_until = NULL WHERE name = 'bearer' RETURNING id"
)
_UNCHECKED_ARE_DUE = """
    UPDATE broker_secrets s SET checked_at = NULL, check_lease_until = NULL
    WHERE blob IS NOT NULL AND cipher = 'kms'
        AND NOT EXISTS (SELECT FROM audit_log WHERE secret_id = s.id AND purpose = 'check' AND outcome = 'ok')
    RETURNING id"""


class Story:
    """The whole life of a secret, told by one process of ours that publishes and injects, and by the workers."""

    def __init__(self, stack: LocalStack, driver: Driver, platform: Platform, place: Path) -> None:
        """``place``: a directory that is not searched."""
        self.stack = stack
        self.driver = driver
        self.workspace = f"ws_{uuid4().hex}"
        self.http = OverHttp(stack, self.workspace, platform, place)
        self.customer = CustomerAccount(stack.aws.account(fresh_account_id()), OUR_ACCOUNT, f"external-{uuid4().hex}")
        self.sentinels = {name: make(name) for name, (make, _, _) in VALUES.items()}
        self.rotated = text_sentinel("bearer, rotated")
        self.answers: list[bytes] = []
        self.said: list[str] = []
        self.claims = b""

    def tell(self) -> None:
        """From the workspace's beginning to a value that is lost."""
        self.http.made()
        self.stored("platform")
        self.http.connected(self.customer)
        self.crash_a_worker()
        self.made_dead()
        for name in ("bearer", "query", "stdio", "envelope", "throttled"):
            self.stored(name)
        self.http.taken_in()
        self.injected()
        self.http.used()
        self.refusals()
        self.http.misused()
        self.http.moved(self.customer)
        self.rotated_and_swept()
        self.http.commanded(self.customer)
        self.customer_refuses()
        self.http.proved()
        self.http.read()
        # before the claims are gone: what is tried after that ends as expired, and leaves no dead letter
        wait_until(lambda: self.dead_letters(), deadline_seconds=60, what="the dead letter")
        self.expired()

    def publish(self, name: str, value: bytes | None = None, version: int = 1) -> str:
        """Accept one event; its id."""
        _, kind, key = VALUES[name]
        target = {} if kind == "stdio_env" else {"targetHost": f"localhost:{self.stack.upstream.port}"}
        binding = {"bindingKey": key} if key else {}
        answer = self.driver(
            "publish",
            document={
                "specversion": "1.0",
                "id": uuid4().hex,
                "source": "tests",
                "type": "secret.created" if version == 1 else "secret.rotated",
                "subject": name,
                "data": {
                    "workspaceId": self.workspace,
                    "version": version,
                    "valueBase64": base64.b64encode(value or self.sentinels[name].value).decode(),
                    "injectionKind": kind,
                    "agentId": AGENT,
                    **target,
                    **binding,
                },
            },
        )
        return str(answer["id"])

    def state(self, event: str) -> str:
        return str(self.driver("event", workspace=self.workspace, event=event)["state"])

    def stored(self, name: str, value: bytes | None = None, version: int = 1) -> None:
        event = self.publish(name, value, version)
        wait_until(lambda: self.state(event) == "stored", every_seconds=0.05, what=f"{name} is stored")

    def send(self, name: str, path: str = "/echo", body: bytes = b"", port: int | None = None) -> dict[str, Any]:
        answer = self.driver(
            "send",
            call={
                "workspace_id": self.workspace,
                "agent_id": AGENT,
                "mcp_server_id": None,
                "method": "POST",
                "url": f"https://localhost:{port or self.stack.upstream.port}{path}",
                "body": base64.b64encode(body).decode(),
                "secret": name,
            },
        )
        self.answers += [base64.b64decode(answer.get("body", "")), repr(answer).encode()]
        return answer

    def crash_a_worker(self) -> None:
        """kill -9 while it waits for KMS with the value in its hands; the event is stored by the next worker."""
        hanging = self.stack.aws.faults.add(Fault("kms:Encrypt", context=("axiorank:secret", "crashed"), hang=True))
        event = self.publish("crashed")
        audit = wait_until(lambda: self.sql("SELECT id FROM audit_log WHERE event_id = %s", event))[0][0]
        name = f"axiorank-encrypt-{audit}"
        wait_until(lambda: any(call.session_name == name for call in self.stack.aws.trail.of("sts:AssumeRole")))
        worker = self.stack.programs["worker"]
        for process in _children_of(worker.pid):
            os.kill(process, signal.SIGKILL)
        self.stack.aws.faults.remove(hanging)
        self.stack.run("worker")
        wait_until(lambda: not worker.alive, deadline_seconds=60, what="the end of the worker's master")
        self.said.append(worker.output)
        self.sql("UPDATE secret_events SET ring_at = now() WHERE id = %s RETURNING id", event)
        self.driver("reconcile")
        wait_until(lambda: self.state(event) == "stored", every_seconds=0.05, what="what the crash left is stored")

    def made_dead(self) -> None:
        """One event that is tried until its message is given up, and one that is throttled three times."""
        aws = self.stack.aws
        aws.faults.add(Fault("kms:Encrypt", context=("axiorank:secret", "dead"), error="ThrottlingException"))
        aws.faults.add(
            Fault("kms:Encrypt", context=("axiorank:secret", "throttled"), error="KMSInternalException", count=4)
        )
        self.publish("dead")

    def dead_letters(self) -> int:
        client = redis.Redis.from_url(self.stack.queue.url)
        try:
            return int(client.zcard(f"{NAMESPACE}:custody.XQ"))
        finally:
            client.close()

    def injected(self) -> None:
        """Each kind is used, and the upstream echoes it in every part of its answer."""
        for name in ("platform", "bearer", "query", "envelope", "crashed"):
            assert self.send(name)["status"] == 200, name
        given = self.driver("environment", workspace=self.workspace, agent=AGENT)
        assert given == {"variables": {"TOKEN": self.sentinels["stdio"].value.decode()}}

    def refusals(self) -> None:
        """Refused before and after the key is asked, and failures after the value was sent."""
        assert self.send("bearer", port=1)["error"] == "host_mismatch"
        assert self.send("bearer", body=self.sentinels["bearer"].value)["error"] == "handle_misplaced"
        assert self.send("query", "/reset")["error"] == "upstream_unreachable"
        assert self.send("bearer", "/gzip")["status"] == 200

    def rotated_and_swept(self) -> None:
        """A rotation, then a probe, and a check of each secret by the sweeper."""
        self.stored("bearer", self.rotated.value, version=2)
        self.sql("UPDATE byok_connections SET next_probe_at = now() RETURNING id")  # else a minute after connecting
        wait_until(
            lambda: (
                not self.sql(_UNCHECKED_ARE_DUE)
                and self.sql("SELECT id FROM audit_log WHERE purpose = 'probe' AND outcome = 'ok'")
                and self.sql("SELECT id FROM audit_log WHERE purpose = 'check' AND outcome = 'ok'")
            ),
            deadline_seconds=60,
            every_seconds=0.2,
            what="a probe, and a check of each",
        )

    def customer_refuses(self) -> None:
        """A check of one secret is refused, then the customer takes the role out of the key policy: a use and a new
        value are refused. In this order, since a failing probe makes a connection's checks wait."""
        refusing = self.stack.aws.faults.add(
            Fault("kms:Decrypt", context=("axiorank:secret", "bearer"), error="AccessDeniedException")
        )
        assert self.send("bearer")["error"] == "access_denied"
        refused = "SELECT id FROM audit_log WHERE purpose = 'check' AND outcome = 'refused'"
        wait_until(
            lambda: self.sql(_CHECK_IS_DUE) and self.sql(refused),
            deadline_seconds=60,
            every_seconds=0.1,
            what="a check that is refused",
        )
        self.stack.aws.faults.remove(refusing)
        self.customer.remove_role_from_key_policy()
        assert self.send("bearer")["error"] == "access_denied"
        event = self.publish("refused")
        wait_until(lambda: self.state(event) == "refused", every_seconds=0.05, what="the refusal of a new value")

    def expired(self) -> None:
        """The claims' server forgets everything: what was on its way is lost, and says so."""
        self.claims = keys_of(self.stack.claims.url)
        self.stack.claims.restart()
        event = self.publish("expired")
        self.sql("UPDATE secret_events SET claim_expires_at = now() WHERE id = %s RETURNING id", event)
        # again at each look: a reconciler passes over what a worker holds at that moment
        wait_until(lambda: not self.driver("reconcile") and self.state(event) == "expired", what="the expiry")

    def sql(self, statement: str, *values: object) -> list[Any]:
        with psycopg.connect(plain(self.stack.postgres.url), autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()


def _children_of(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]
