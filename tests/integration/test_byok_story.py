"""The whole story of a customer's own key, over HTTP, with every process of production and nobody who steps in: the
scheduler and the workers find, announce, heal and prove by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_core import proof_document
from broker_core.adapters.signing import Ed25519Signer, verified
from broker_core.dev import tokens
from broker_core.dev.aws import CustomerAccount, fresh_account_id
from broker_core.dev.stack import LocalStack
from broker_core.settings import Settings
from tests.live import AGENT, OUR_ACCOUNT
from tests.receiver import Receiver, receiving
from tests.waiting import wait_until

KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SECRETS = 50
#: seconds until something that goes on by itself is given up: the machine may be busy, and a check that finds its key
#: taken by a probe comes again after two minutes
PATIENCE = 240.0
#: what takes minutes in production
HURRIED = {
    "BROKER_SIGNING_KEY": KEY,
    "BROKER_ANNOUNCE_AFTER_SECONDS": "0",
    "BROKER_PROBE_SECONDS": "1",
    "BROKER_PROBE_UNHEALTHY_SECONDS": "1",
    "BROKER_CHECK_RPS": "1000",
}


class Platform:
    """Everybody who calls the broker for one workspace: the platform, its gateway, an owner."""

    def __init__(self, stack: LocalStack, http: httpx.Client) -> None:
        self.workspace = f"ws_{uuid4().hex}"
        self.target = f"localhost:{stack.upstream.port}"
        self._settings = Settings.from_environment(stack.environment)
        self._http = http

    def call(self, method: str, path: str, body: Any = None, *, scope: str | None = None) -> httpx.Response:
        """One request, of the owner or of a service with a scope."""
        token = tokens.mint(
            self._settings,
            self.workspace,
            scopes=[scope] if scope else [],
            role=None if scope else "owner",
            minutes=5,
            now=datetime.now(UTC),
        )
        headers = {"Authorization": f"Bearer {token}"}
        return self._http.request(method, f"/api/v1{path}", json=body, headers=headers)

    def read(self, path: str) -> Any:
        """What a GET of the owner's answers."""
        answer = self.call("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def connect(self, customer: CustomerAccount) -> str:
        """Connect a key; the connection's id."""
        given = {"roleArn": customer.role_arn, "externalId": customer.external_id, "keyArn": customer.key_arn}
        found = self.call("PUT", "/byok/connection", given).json()
        assert found["status"] == "current", found
        return str(found["id"])

    def create(self, name: str) -> str:
        """A secret for AGENT; its id."""
        fields = {"injectionKind": "bearer", "targetHost": self.target, "agentId": AGENT}
        answer = self.call("POST", "/broker-secrets", {"name": name, "secret": f"value-of-{name}", **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def inject(self, name: str) -> httpx.Response:
        """One use of a secret."""
        request = {"url": f"https://{self.target}/echo"}
        body = {"agentId": AGENT, "secret": name, "request": request}
        return self.call("POST", "/inject", body, scope="broker:inject")

    def statuses(self) -> dict[str, int]:
        """How many secrets have each status."""
        found: dict[str, int] = {}
        for secret in self.read("/broker-secrets?limit=200")["items"]:
            found[secret["status"]] = found.get(secret["status"], 0) + 1
        return found

    def affected(self) -> list[tuple[str, str, int]]:
        """Connection, state and number of secrets of each failing connection."""
        found = self.read("/byok/affected")["connections"]
        return [(each["connectionId"], each["state"], len(each["secrets"])) for each in found]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def platform(stack: LocalStack, receiver: Receiver) -> Iterator[Platform]:
    """On every process of production; notices go to the receiver."""
    stack.environment = {**stack.environment, **receiver.environment, **HURRIED}
    stack.run("web", "worker", "sweeper", "scheduler")
    with httpx.Client(base_url=stack.web_url, timeout=60, trust_env=False) as http:
        yield Platform(stack, http)


def told(receiver: Receiver) -> list[tuple[str, str]]:
    """Type and connection of each notice, once however often it came; every delivery is verified."""
    notices: dict[str, tuple[str, str]] = {}
    for request in list(receiver.requests):
        request.verify(request.at)
        notices[request.id] = (request.notice["type"], request.notice["data"]["connectionId"])
    return list(notices.values())


def soon(condition: Any, what: str) -> None:
    """Wait for what goes on by itself."""
    wait_until(condition, deadline_seconds=PATIENCE, every_seconds=0.2, what=what)


def test_the_whole_story(stack: LocalStack, platform: Platform, receiver: Receiver) -> None:
    """Connect, use, revoke, find, announce once, restore, heal; revoke again, re-provision three, prove the rest."""
    platform.call("PUT", f"/workspaces/{platform.workspace}", {"plan": "enterprise"}, scope="broker:platform")
    customer = a_customer(stack, platform)
    first = platform.connect(customer)
    ids = [platform.create(f"secret-{number:02}") for number in range(SECRETS)]
    soon(lambda: platform.statuses() == {"active": SECRETS}, "all stored")
    assert platform.read("/byok/coverage?limit=1")["currentKey"] == SECRETS
    assert platform.inject("secret-07").json()["status"] == 200

    customer.remove_role_from_key_policy()
    refused = platform.inject("secret-07")
    assert (refused.status_code, refused.json()["error"]) == (424, "secret_unavailable")
    soon(lambda: platform.affected() == [(first, "access_denied", SECRETS)], "all found")
    assert platform.statuses() == {"affected": SECRETS}
    soon(lambda: told(receiver) == [("byok.connection_failing", first)], "announced")
    (notice,) = {request.id: request.notice for request in receiver.requests}.values()
    assert (notice["data"]["secretCount"], notice["data"]["state"]) == (SECRETS, "access_denied")

    customer.restore_key_policy()
    soon(lambda: platform.affected() == [], "healed")
    soon(lambda: platform.statuses() == {"active": SECRETS}, "all checked again")
    assert platform.inject("secret-07").json()["status"] == 200
    once = [("byok.connection_failing", first), ("byok.connection_recovered", first)]
    soon(lambda: told(receiver) == once, "recovery announced, and the failure once only")

    customer.disable_key()
    assert platform.inject("secret-09").status_code == 424
    soon(lambda: platform.affected() == [(first, "key_disabled", SECRETS)], "found again")
    second = platform.connect(a_customer(stack, platform))
    for secret_id in ids[:3]:
        answer = platform.call("POST", f"/broker-secrets/{secret_id}/rotate", {"secret": f"new-value-of-{secret_id}"})
        assert answer.status_code == 202
    soon(lambda: platform.affected() == [(first, "key_disabled", SECRETS - 3)], "three re-provisioned")
    assert platform.inject("secret-00").json()["status"] == 200
    coverage = platform.read("/byok/coverage?cover=currentKey")
    assert (coverage["currentKey"], coverage["olderConnections"]) == (3, SECRETS - 3)
    assert {item["connectionId"] for item in coverage["items"]} == {second}

    started = platform.call("POST", "/byok/lockout-proof", {"connectionId": first}).json()
    assert started["total"] == SECRETS - 3
    path = f"/byok/lockout-proof/{started['id']}"
    soon(lambda: "endedAt" in platform.read(path), "proved")
    assert platform.read(path)["isLockedOut"] is True
    jws = platform.call("GET", f"{path}/document").text
    document = proof_document.read(verified(jws, Ed25519Signer(KEY).public_key, proof_document.CONTENT_TYPE))
    assert document["totals"]["locked_out"] == SECRETS - 3
    assert document["connection"]["keyArn"] == customer.key_arn
    assert platform.call("GET", f"{path}/page").text.count("locked out") >= SECRETS - 3


def a_customer(stack: LocalStack, platform: Platform) -> CustomerAccount:
    """One who made what the set-up told them to, with the external id that it proposed, or that is theirs already."""
    return CustomerAccount(
        stack.aws.account(fresh_account_id()), OUR_ACCOUNT, platform.read("/byok/setup")["externalId"]
    )
