"""An App on real servers, for tests: PostgreSQL, both Valkeys, the AWS double and the sample upstream, over real
sockets.

Custody runs where the test says so: ``work()`` does what the workers would do with what was rung for. Tests that need
worker processes start them (``broker_core.dev.stack``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

from broker_core import events
from broker_core.adapters.queue import ACTORS
from broker_core.bootstrap import App, build_app
from broker_core.canary import CANARY_BYTES
from broker_core.dev.aws import AwsDouble, CustomerAccount, fresh_account_id
from broker_core.dev.aws.account import Credentials
from broker_core.dev.wiring import clients_for
from broker_core.inject.call import BrokeredResponse, Call
from broker_core.intake import Receipt
from broker_core.model import Connection, EventState, EventType, Purpose, StepOutcome, StepResult
from broker_core.ports import Candidate
from broker_core.secret import Plaintext
from broker_core.settings import Settings
from broker_core.verification import STEPS, USE_SECONDS, Verified, Verifier

if TYPE_CHECKING:
    from broker_core.dev.upstream import SampleUpstream

OUR_ACCOUNT = "111111111111"
AGENT = "agent-1"


@dataclass
class RecordingQueue:
    """The doorbell, kept for ``Live.work`` instead of being sent."""

    rung: list[tuple[EventType, UUID]] = field(default_factory=list)

    def ring(self, event_type: EventType, event_id: UUID) -> None:
        assert event_type in ACTORS
        self.rung.append((event_type, event_id))


class Trusting(Verifier):
    """Seals the canary, and says that every step was passed."""

    def __init__(self, verifier: Verifier) -> None:
        self._canaries = verifier._canaries

    def verify(self, connection: Connection) -> Verified:
        sealed = self._canaries.seal(connection, Purpose.VERIFY, Plaintext(token_bytes(CANARY_BYTES)), USE_SECONDS)
        steps = [StepResult(step.name, StepOutcome.OK) for step in STEPS]
        return Verified(steps, (), sealed.blob, lets_others_in=False)


@dataclass
class Live:
    """One App, one workspace of its own, and shorthand for what tests do with them."""

    app: App
    aws: AwsDouble
    upstream: SampleUpstream
    environment: dict[str, str]
    queue: RecordingQueue
    workspace: str = field(default_factory=lambda: f"ws_{uuid4().hex}")

    @property
    def target(self) -> str:
        """The sample upstream, as a ``targetHost``."""
        return f"localhost:{self.upstream.port}"

    def customer(self) -> CustomerAccount:
        """A customer with a role and a key, in an account of this test's own."""
        return CustomerAccount(self.aws.account(fresh_account_id()), OUR_ACCOUNT, f"external-{uuid4().hex}")

    def connect(self, customer: CustomerAccount, *, verified: bool = False) -> Connection:
        """Connect the workspace to a customer's key. ``verified``: by every step, as an owner does; without it the key
        is taken at its word, which costs one use of it instead of a dozen."""
        byok = copy(self.app.byok)
        if not verified:
            byok._verifier = Trusting(byok._verifier)
        verification = byok.connect(self.workspace, customer.role_arn, customer.external_id, customer.key_arn)
        assert verification.is_current, verification.failed()
        return verification.connection

    def event(
        self,
        name: str = "github",
        kind: str = "secret.created",
        version: int = 1,
        value: str | bytes | None = None,
        **data: Any,
    ) -> dict[str, Any]:
        """An event as a document. Without injection fields a bearer to the sample upstream, for AGENT; ``bare=True``
        leaves them out."""
        fields: dict[str, Any] = {"workspaceId": self.workspace, "version": version}
        if isinstance(value, bytes):
            fields["valueBase64"] = base64.b64encode(value).decode()
        elif kind != "secret.deleted":
            fields["value"] = value if value is not None else f"value-of-{name}-{version}-{uuid4().hex}"
        if kind != "secret.deleted" and not data.pop("bare", False) and "injectionKind" not in data:
            fields |= {"injectionKind": "bearer", "targetHost": self.target, "agentId": AGENT}
        return {
            "specversion": "1.0",
            "id": data.pop("id", uuid4().hex),
            "source": "tests",
            "type": kind,
            "subject": name,
            "data": fields | data,
        }

    def publish(self, *args: Any, **kwargs: Any) -> Receipt:
        """Accept one event; arguments as for ``event``."""
        document = self.event(*args, **kwargs)
        return self.app.intake.accept(events.parse(json.dumps(document)), workspace_id=self.workspace)

    def work(self) -> list[EventState | None]:
        """Do what was rung for, once each, in order."""
        rung, self.queue.rung = self.queue.rung, []
        return [self.app.custody.run(event_id) for _, event_id in rung]

    def store(self, *args: Any, **kwargs: Any) -> Receipt:
        """Accept and store one event."""
        receipt = self.publish(*args, **kwargs)
        states = self.work()
        assert states[-1] is EventState.STORED, states
        return receipt

    def candidate(self, name: str = "github") -> Candidate:
        """The stored blob of a secret that AGENT may use."""
        found: Candidate = next(c for c in self.app.store.candidates(self.workspace, AGENT, None) if c.name == name)
        return found

    def send(self, name: str | None = "github", path: str = "/echo", **call: Any) -> BrokeredResponse:
        """One injection to the sample upstream."""
        fields: dict[str, Any] = {
            "workspace_id": self.workspace,
            "agent_id": AGENT,
            "mcp_server_id": None,
            "method": "GET",
            "url": f"https://{self.target}{path}",
            "headers": [],
            "body": b"",
            "secret": name,
        }
        return self.app.injector.send(Call(**(fields | call)))


def settings_for(
    database_url: str, queue_url: str, claims_url: str, aws: AwsDouble, upstream: SampleUpstream
) -> dict[str, str]:
    """The environment of a process on these servers."""
    credentials = _service_credentials(aws)
    return {
        "BROKER_DATABASE_URL": database_url,
        "BROKER_REDIS_URL": queue_url,
        "BROKER_CLAIM_REDIS_URL": claims_url,
        "BROKER_PLATFORM_KEYS": "test:" + base64.b64encode(b"p" * 32).decode(),
        "BROKER_AWS_ACCOUNT_ID": OUR_ACCOUNT,
        "BROKER_EGRESS_ALLOW": "127.0.0.0/8,::1/128",
        "BROKER_EGRESS_CA_FILE": str(upstream.ca_file),
        "AWS_ENDPOINT_URL": aws.endpoint,
        "AWS_ACCESS_KEY_ID": credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


#: of each double: to make a user takes longer than most tests
_users: WeakKeyDictionary[AwsDouble, Credentials] = WeakKeyDictionary()


def _service_credentials(aws: AwsDouble) -> Credentials:
    """What the broker's processes run with, on this double."""
    if aws not in _users:
        _users[aws] = aws.account(OUR_ACCOUNT).service_credentials(f"broker-{uuid4().hex}")
    return _users[aws]


@contextmanager
def live_app(
    environment: dict[str, str],
    aws: AwsDouble,
    upstream: SampleUpstream,
    on_wait: Callable[[str], None] = lambda operation: None,
    **ports: Any,
) -> Iterator[Live]:
    """An App with a new enterprise workspace; ``ports`` replace parts of it."""
    queue = RecordingQueue()
    ports = {"queue": queue, "clients": clients_for(environment), **ports}
    app = build_app(Settings.from_environment(environment), on_wait=on_wait, **ports)
    try:
        live = Live(app, aws, upstream, environment, queue)
        app.store.put_workspace(live.workspace, "enterprise")
        yield live
    finally:
        app.close()
