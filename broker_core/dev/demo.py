"""The whole story on the local stack, over real sockets: what ``broker demo`` plays and proves.

Each step does something and then looks at what came of it, from the other side where there is one: the customer's
trail, the upstream's record, the database's row. A step that does not see what it must ends the story with a failure.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from broker_core import events
from broker_core.bootstrap import App
from broker_core.dev.aws import CustomerAccount
from broker_core.dev.stack import CUSTOMER_ACCOUNT, OUR_ACCOUNT, PROGRAMS, LocalStack
from broker_core.dev.wiring import app_on
from broker_core.errors import BrokerError, KeyServiceError
from broker_core.inject.call import BrokeredResponse, Call
from broker_core.model import Event, EventState, EventType
from broker_core.ports import Candidate, Use

WORKSPACE, AGENT = "ws_acme", "agent-7"
#: seconds until a step that waits gives up
PATIENCE = 20.0

Say = Callable[[str], None]


class NotSeen(Exception):
    """A step did not see what it must."""


@dataclass(frozen=True)
class StepResult:
    """One step, as it went."""

    name: str
    ok: bool
    detail: Mapping[str, Any]


@dataclass
class Ended:
    """The story, as it went."""

    steps: list[StepResult] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every step was seen."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def document(self) -> dict[str, Any]:
        """What ``broker demo --json`` prints."""
        return {"ok": self.ok, "steps": self.steps, "seconds": round(self.seconds, 2)}


def play(say: Say | None = None) -> Ended:
    """Play every step. ``say`` is told what happens, line by line, as it happens."""
    ended = Ended()
    began = time.monotonic()
    tell = say or (lambda line: None)
    tell("AxioRank BYOK Secrets Broker: starting PostgreSQL, two Valkeys, an AWS double and a sample upstream ...")
    with LocalStack.start(BROKER_PROBE_UNHEALTHY_SECONDS="1") as stack, app_on(stack) as app:
        story = Story(stack, app)
        for name, sentence, step in story.steps():
            tell(f"\n{sentence}")
            ended.steps.append(_take(name, step, tell))
            if not ended.steps[-1].ok:
                break
    ended.seconds = time.monotonic() - began
    tell(f"\n{'every step was seen' if ended.ok else 'THE STORY BROKE OFF'}; {ended.seconds:.1f} s")
    return ended


def _take(name: str, step: Callable[[], Mapping[str, Any]], tell: Say) -> StepResult:
    try:
        result = StepResult(name, True, step())
    except (NotSeen, BrokerError) as error:
        result = StepResult(name, False, {"error": str(error)})
    for key, value in result.detail.items():
        tell(f"    {'' if result.ok else 'FAILED '}{key}: {value}")
    return result


class Story:
    """The steps, and what they leave for each other."""

    def __init__(self, stack: LocalStack, app: App) -> None:
        self._stack = stack
        self._app = app
        self._customer = stack.customer(_external_id())
        self._values: dict[str, str] = {}
        self._held: UUID | None = None

    def steps(self) -> Iterator[tuple[str, str, Callable[[], Mapping[str, Any]]]]:
        """Name, sentence and step, in order."""
        yield "processes", "The Procfile's worker, sweeper and scheduler start.", self.processes
        yield (
            "before_byok",
            "A secret from before BYOK: it is stored under the platform cipher, and injects.",
            self.before_byok,
        )
        yield (
            "customer_account",
            "The customer made a KMS key and a role that we may assume with their external id.",
            self.customer_account,
        )
        yield "connect", "The workspace's owner connects them: a canary goes into the key and comes back.", self.connect
        yield (
            "event",
            "A secret.created event arrives; a worker encrypts the value under the customer's key.",
            self.event,
        )
        yield (
            "inject",
            "An agent's request goes out: one AssumeRole, one Decrypt, one upstream request, one redacted answer.",
            self.inject,
        )
        yield (
            "before_byok_still_injects",
            "The older secret still injects, from the platform cipher, until it is rotated.",
            self.older_still_injects,
        )
        yield "rotate_moves", "It is rotated: the new value is under the customer's key.", self.rotate_moves
        yield "rotation", "The first secret is rotated: the upstream gets the new value.", self.rotation
        for name, sentence, revoke, restore in self._revocations():
            yield (
                f"revoke_{name}",
                f"The customer revokes: {sentence}.",
                partial(self.revocation, revoke, restore),
            )
        yield "revoked", "The customer removes the role from the key policy, and leaves it so.", self.revoked
        yield (
            "fails_closed",
            "A rotation that arrives now is held as refused: nothing falls back to the platform cipher.",
            self.fails_closed,
        )
        yield "affected", "The sweep probes the connection; the owner sees what is affected.", self.affected
        yield (
            "recovery",
            "The customer gives access back: it heals by itself, and the held rotation is stored.",
            self.recovery,
        )
        yield (
            "role_deleted",
            "The customer deletes the role: a role of the same name, made again, does not help.",
            self.role_deleted,
        )
        yield "reprovision", "Re-provisioning: a new connection, and the values given again.", self.reprovision
        yield "nothing_left", "What is left of values on the way in: no claim, no file.", self.nothing_left

    # ------------------------------------------------------------ the steps

    def processes(self) -> Mapping[str, Any]:
        """Start them."""
        self._app.store.put_workspace(WORKSPACE, "enterprise")
        started = self._stack.run(*PROGRAMS)
        return {name: f"process {child.pid}" for name, child in zip(PROGRAMS, started, strict=True)}

    def before_byok(self) -> Mapping[str, Any]:
        """Platform cipher."""
        self._give("older", "secret.created")
        candidate = self._candidate("older")
        _see(
            candidate.blob.cipher == "platform" and candidate.connection is None,
            "the blob is under the platform cipher",
        )
        return {"cipher": candidate.blob.cipher.value, **self._injects("older")}

    def customer_account(self) -> Mapping[str, Any]:
        """Show it."""
        return {
            "role": self._customer.role_arn,
            "key": self._customer.key_arn,
            "trusts": f"arn:aws:iam::{OUR_ACCOUNT}:root",
        }

    def connect(self) -> Mapping[str, Any]:
        """Connect, and look at the audit rows."""
        connection = self._connect(self._customer)
        uses = self._uses("verify")
        _see(len(uses) >= 2, "the canary's Encrypt and Decrypt are in the audit log")
        return {"connection": str(connection), "sessions": [_session(use) for use in uses[-2:]]}

    def event(self) -> Mapping[str, Any]:
        """Custody, from both sides."""
        event = self._give("github", "secret.created")
        candidate = self._candidate("github")
        use = next(use for use in reversed(self._uses("encrypt")) if use.intent.event_id == event.id)
        _see(candidate.blob.cipher == "kms", "the blob is the customer's KMS's")
        seen = self._in_trail(_request_id(use))
        _see(seen["eventName"] == "Encrypt", "the customer's trail has this Encrypt")
        blob = candidate.blob.ciphertext
        return {
            "state": event.state.value,
            "blob": f"{len(blob)} bytes, beginning {blob[:8].hex(' ')}",
            "roleSessionName": _session(use),
            "kmsRequestId": _request_id(use),
            "inTheCustomersTrail": _trail_line(seen),
        }

    def inject(self) -> Mapping[str, Any]:
        """Injection, from all three sides."""
        detail = self._injects("github")
        use = self._uses("inject")[-1]
        seen = self._in_trail(_request_id(use))
        _see(seen["eventName"] == "Decrypt", "the customer's trail has this Decrypt")
        return {
            **detail,
            "roleSessionName": _session(use),
            "kmsRequestId": _request_id(use),
            "inTheCustomersTrail": _trail_line(seen),
        }

    def older_still_injects(self) -> Mapping[str, Any]:
        """The platform secret, after connecting."""
        return {"cipher": self._candidate("older").blob.cipher.value, **self._injects("older")}

    def rotate_moves(self) -> Mapping[str, Any]:
        """It moves at its rotation."""
        self._give("older", "secret.rotated")
        cipher = self._candidate("older").blob.cipher
        _see(cipher == "kms", "the rotated value is under the customer's key")
        return {"cipher": cipher.value, **self._injects("older")}

    def rotation(self) -> Mapping[str, Any]:
        """A new version of a customer-held secret."""
        before = self._candidate("github")
        self._give("github", "secret.rotated")
        after = self._candidate("github")
        _see(after.version == before.version + 1 and after.blob != before.blob, "a new version with a new blob")
        return {"version": f"{before.version} -> {after.version}", **self._injects("github")}

    def revocation(self, revoke: Callable[[], object], restore: Callable[[], object]) -> Mapping[str, Any]:
        """Revoke, see the refusal, restore, see it work."""
        revoke()
        refusal = self._refusal("github")
        restore()
        self._injects("github")
        self._eventually(self._has_healed, "the connection healed")
        return {**refusal, "afterRestoring": "injects again, and nothing is affected"}

    def revoked(self) -> Mapping[str, Any]:
        """The standing revocation."""
        self._customer.remove_role_from_key_policy()
        return self._refusal("github")

    def fails_closed(self) -> Mapping[str, Any]:
        """INV-3, seen."""
        event = self._publish("github", "secret.rotated")
        held = self._reaches(event, EventState.REFUSED)
        candidate = self._candidate("github")
        _see(candidate.version < held.version and candidate.blob.cipher == "kms", "the old blob is still in place")
        self._held = event
        return {
            "state": f"{held.state.value} ({held.reason}), held until {held.held_until:%H:%M:%S} UTC",
            "blobInPlace": f"version {candidate.version}",
        }

    def affected(self) -> Mapping[str, Any]:
        """The sweeper's process finds it; the owner's list names the secrets."""
        self._app.sweep.probes()
        found = self._eventually(lambda: self._app.byok.affected(WORKSPACE).connections, "a failing connection")
        return {
            "connection": f"{found[0].state.value}, AWS said {found[0].aws_code}, found by {found[0].found_by.value}",
            "secrets": ", ".join(name for _, name in found[0].secrets),
        }

    def recovery(self) -> Mapping[str, Any]:
        """Access comes back."""
        self._customer.restore_key_policy()
        held = self._held
        if held is None:
            raise NotSeen("no rotation is held")
        self._eventually(self._has_healed, "the connection healed")
        self._app.queue.ring(EventType.ROTATED, held)
        stored = self._reaches(held, EventState.STORED)
        return {"connection": "healed", "heldRotation": stored.state.value, **self._injects("github")}

    def role_deleted(self) -> Mapping[str, Any]:
        """Deleting the role cannot be undone."""
        self._customer.delete_role()
        refusal = self._refusal("github")
        self._customer.recreate_role()
        again = self._refusal("github")
        return {**refusal, "afterMakingTheRoleAgain": again["refused"]}

    def reprovision(self) -> Mapping[str, Any]:
        """A new key, a new role, the values again."""
        fresh = self._stack.customer(_external_id(), role_name="axiorank-byok-2")
        connection = self._connect(fresh)
        for name in ("github", "older"):
            self._give(name, "secret.rotated")
            _see(self._candidate(name).connection is not None, "the blob has a connection")
        statuses = {view.name: view.status.value for view in self._app.store.secrets(WORKSPACE)}
        _see(set(statuses.values()) == {"active"}, f"every secret is active, not {statuses}")
        return {"connection": str(connection), "statuses": statuses, **self._injects("github")}

    def nothing_left(self) -> Mapping[str, Any]:
        """The claim server, at the end."""
        files = list(self._stack.claims.directory.iterdir())
        _see(not files, "the claim server's directory is empty")
        return {"filesOfTheClaimServer": len(files)}

    # ------------------------------------------------------------ what steps are made of

    def _revocations(self) -> Iterator[tuple[str, str, Callable[[], object], Callable[[], object]]]:
        customer, old = self._customer, self._customer.external_id
        yield (
            "role_removed",
            "they remove the role from the key policy",
            customer.remove_role_from_key_policy,
            customer.restore_key_policy,
        )
        yield "key_disabled", "they disable the key", customer.disable_key, customer.enable_key
        yield (
            "key_scheduled_for_deletion",
            "they schedule the key for deletion",
            customer.schedule_deletion,
            self._undelete,
        )
        yield (
            "external_id_changed",
            "they change the external id in the role's trust policy",
            lambda: customer.change_external_id(_external_id()),
            lambda: customer.change_external_id(old),
        )

    def _undelete(self) -> None:
        self._customer.cancel_deletion()
        self._customer.enable_key()

    def _connect(self, customer: CustomerAccount) -> UUID:
        return self._app.byok.connect(WORKSPACE, customer.role_arn, customer.external_id, customer.key_arn).id

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
        _see(got == f"Bearer {self._values[name]}", "the upstream got the value")
        _see(self._values[name].encode() not in answer.body, "the caller did not get it")
        mask = f"«redacted:secret.{name}»"
        _see(mask.encode() in answer.body, "the echo is redacted")
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
            _see(not self._stack.upstream.requests, "nothing reached the upstream")
            return {
                "refused": f"{error.state.value} (AWS: {error.aws_code})",
                "requestId": error.receipt.kms_request_id or error.receipt.assume_request_id,
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
        _see(len(found) == 1, "the customer's trail has this request id")
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


def _see(fact: bool, what: str) -> None:
    if not fact:
        raise NotSeen(f"not seen: {what}")


def _external_id() -> str:
    return f"acme-{secrets.token_hex(12)}"


def _session(use: Use) -> str:
    return (use.result.receipt.session_name if use.result else None) or ""


def _request_id(use: Use) -> str:
    return (use.result.receipt.kms_request_id if use.result else None) or ""


def _trail_line(record: Mapping[str, Any]) -> str:
    context = record["requestParameters"]["encryptionContext"]
    return f"{record['eventName']} by {record['userIdentity']['arn']} under {context}"
