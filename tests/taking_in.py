"""Intake, custody and the reconciler, wired on the fakes."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from broker_core import events
from broker_core.context import for_secret
from broker_core.custody import Custody, Reconciler
from broker_core.events import IncomingEvent
from broker_core.intake import Intake, Receipt
from broker_core.model import CipherName, Connection, EventState, Purpose
from broker_core.ports import KeyUse
from tests.fakes_keys import FakeKeyService, FakePlatformCipher
from tests.fakes_queue import FakeClaimBox, FakeQueue, FixedClock
from tests.fakes_store import FakeStore
from tests.store_setup import connected

WORKSPACE = "ws_1"
TTL_SECONDS = 3600
VALUE = "value-of-a-credential"


class TakingIn:
    """One workspace, and everything that takes a value in."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.store = FakeStore(self.clock.now)
        self.claims = FakeClaimBox(self.clock)
        self.queue = FakeQueue()
        self.keys = FakeKeyService()
        self.platform = FakePlatformCipher()
        self.intake = Intake(self.store, self.claims, self.queue, ttl_seconds=TTL_SECONDS, new_id=uuid4)
        self.custody = Custody(self.store, self.claims, self.keys, self.platform, new_id=uuid4)
        self.reconciler = Reconciler(self.store, self.queue, grace_seconds=900)
        self.store.put_workspace(WORKSPACE, "enterprise")

    def connect(self) -> Connection:
        """BYOK on, under a new connection."""
        return connected(self.store, WORKSPACE)

    def accept(self, **changes: Any) -> Receipt:
        """Accept one event."""
        return self.intake.accept(incoming(**changes), workspace_id=WORKSPACE)

    def take_in(self, **changes: Any) -> EventState | None:
        """Accept one event and run custody on it."""
        return self.custody.run(self.accept(**changes).id)

    def state(self, event_id: UUID) -> EventState:
        """Where an event is."""
        return self.store.event(WORKSPACE, event_id).state

    def value(self, name: str = "github") -> bytes:
        """The value in place, decrypted with whatever encrypted it."""
        row = self.store.secret_row(WORKSPACE, name)
        assert row.blob is not None
        context = for_secret(WORKSPACE, name, row.version)
        if row.blob.cipher is CipherName.PLATFORM:
            plaintext = self.platform.decrypt(context, row.blob)
        else:
            (candidate,) = [one for one in self.store.candidates(WORKSPACE, "agent-1", None) if one.name == name]
            assert candidate.connection is not None
            use = KeyUse(candidate.connection, Purpose.INJECT, uuid4(), context)
            plaintext = self.keys.decrypt(use, row.blob, 1.0).value
        with plaintext.reveal() as view:
            return bytes(view)


def incoming(**changes: Any) -> IncomingEvent:
    """A ``secret.created``; keywords change top-level attributes, or fields of the data. None leaves one out."""
    whole: dict[str, Any] = {
        "specversion": "1.0",
        "id": uuid4().hex,
        "source": "tests",
        "type": "secret.created",
        "subject": "github",
    }
    data: dict[str, Any] = {
        "workspaceId": WORKSPACE,
        "version": 1,
        "value": VALUE,
        "injectionKind": "bearer",
        "targetHost": "api.example.com",
        "agentId": "agent-1",
    }
    kind = changes.get("type")
    if kind == "secret.deleted":
        data = {name: data[name] for name in ("workspaceId", "version")}
    elif kind == "secret.rotated":
        data = {name: data[name] for name in ("workspaceId", "version", "value")}
    for name, value in changes.items():
        (whole if name in whole else data)[name] = value
    return events.from_document(whole | {"data": {name: value for name, value in data.items() if value is not None}})
