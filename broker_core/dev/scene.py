"""What the demo's steps are made of: acting on the local stack, and looking at what came of it from the other side.

A look that does not see what it must raises ``NotSeen``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

from broker_core import events
from broker_core.bootstrap import App
from broker_core.byok import Verification
from broker_core.dev.aws import CustomerAccount
from broker_core.dev.stack import CUSTOMER_ACCOUNT, LocalStack
from broker_core.errors import KeyServiceError
from broker_core.inject.call import BrokeredResponse, Call
from broker_core.model import Event, EventState
from broker_core.ports import Candidate, Use

WORKSPACE, AGENT = "ws_acme", "agent-7"
#: seconds until a look that waits gives up: the machine may be busy
PATIENCE = 60.0


class NotSeen(Exception):
    """A step did not see what it must."""


class Scene:
    """The stack, the App on it, a customer, and the values that were given."""

    def __init__(self, stack: LocalStack, app: App) -> None:
        self._stack = stack
        self._app = app
        self._customer = stack.customer(external_id())
        self._values: dict[str, str] = {}
        self._held: UUID | None = None

    def _connect(self, customer: CustomerAccount) -> Verification:
        found = self._app.byok.connect(WORKSPACE, customer.role_arn, customer.external_id, customer.key_arn)
        see(found.is_current, f"every step is passed, and not {[step.name for step in found.failed()]} failed")
        return found

    def _publish(self, name: str, event_type: str) -> UUID:
        """One event with a new random value."""
        self._values[name] = f"sk-{name}-{secrets.token_hex(12)}"
        version = max((view.version for view in self._app.store.secrets(WORKSPACE) if view.name == name), default=0) + 1
        document = {
            "specversion": "1.0",
            "id": str(uuid4()),
            "source": "demo",
            "type": event_type,
            "subject": name,
            "data": {
                "workspaceId": WORKSPACE,
                "version": version,
                "value": self._values[name],
                "injectionKind": "bearer",
                "targetHost": f"localhost:{self._stack.upstream.port}",
                "agentId": AGENT,
            },
        }
        return self._app.intake.accept(events.parse(json.dumps(document)), workspace_id=WORKSPACE).id

    def _give(self, name: str, event_type: str) -> Event:
        return self._reaches(self._publish(name, event_type), EventState.STORED)

    def _reaches(self, event_id: UUID, state: EventState) -> Event:
        def reached() -> Event | None:
            event: Event = self._app.store.event(WORKSPACE, event_id)
            return event if event.state is state else None

        event: Event = self._eventually(reached, f"the event is {state.value}")
        return event

    def _send(self, name: str) -> BrokeredResponse:
        return self._app.injector.send(
            Call(
                workspace_id=WORKSPACE,
                agent_id=AGENT,
                mcp_server_id=None,
                method="GET",
                url=f"{self._stack.upstream.url}/echo",
                headers=[("Accept", "application/json")],
                body=b"",
                secret=name,
            )
        )

    def _injects(self, name: str) -> Mapping[str, Any]:
        """Inject once; the upstream must have got the value, and the caller must not."""
        self._stack.upstream.clear()
        answer = self._send(name)
        (received,) = self._stack.upstream.wait_for(1)
        got = {key.lower(): value for key, value in received.headers}.get("authorization", "")
        see(got == f"Bearer {self._values[name]}", "the upstream got the value")
        see(self._values[name].encode() not in answer.body, "the caller did not get it")
        mask = f"«redacted:secret.{name}»"
        see(mask.encode() in answer.body, "the echo is redacted")
        return {
            "upstreamGot": f"Authorization: {got[:12]}… ({len(got)} characters)",
            "callerGot": f"{answer.status}, {mask}",
        }

    def _refusal(self, name: str) -> Mapping[str, Any]:
        """Inject once; it must be refused by the key, and nothing may reach the upstream."""
        self._stack.upstream.clear()
        try:
            self._send(name)
        except KeyServiceError as error:
            see(not self._stack.upstream.requests, "nothing reached the upstream")
            return {
                "refused": f"{error.state.value} (AWS: {error.aws_code})",
                "requestId": error.receipt.request_id,
            }
        raise NotSeen("the injection was not refused")

    def _candidate(self, name: str) -> Candidate:
        found: Candidate = next(c for c in self._app.store.candidates(WORKSPACE, AGENT, None) if c.name == name)
        return found

    def _uses(self, purpose: str) -> list[Use]:
        return [
            use for use in self._app.store.uses(WORKSPACE, limit=200) if use.intent.purpose == purpose and use.result
        ]

    def _in_trail(self, request_id: str) -> Mapping[str, Any]:
        found = [
            record for record in self._stack.aws.trail.records(CUSTOMER_ACCOUNT) if record["requestID"] == request_id
        ]
        see(len(found) == 1, "the customer's trail has this request id")
        record: Mapping[str, Any] = found[0]
        return record

    def _has_healed(self) -> bool:
        """Probe what is due now, instead of waiting for the scheduler's next tick."""
        self._app.sweep.probes()
        return not self._app.byok.affected(WORKSPACE).connections

    def _eventually(self, look: Callable[[], Any], what: str) -> Any:
        over = time.monotonic() + PATIENCE
        while time.monotonic() < over:
            seen = look()
            if seen:
                return seen
            time.sleep(0.05)
        raise NotSeen(f"not seen within {PATIENCE:.0f} s: {what}")


def see(fact: bool, what: str) -> None:
    if not fact:
        raise NotSeen(f"not seen: {what}")


def external_id() -> str:
    return f"acme-{secrets.token_hex(12)}"


def session_name(use: Use) -> str:
    return (use.result.receipt.session_name if use.result else None) or ""


def request_id(use: Use) -> str:
    return (use.result.receipt.kms_request_id if use.result else None) or ""


def trail_line(record: Mapping[str, Any]) -> str:
    context = record["requestParameters"]["encryptionContext"]
    return f"{record['eventName']} by {record['userIdentity']['arn']} under {context}"
