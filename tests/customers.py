"""Customers with keys and stored secrets, on the in-memory store and key service: where tests of the sweep begin."""

from __future__ import annotations

from itertools import count
from uuid import UUID, uuid4

from broker_core import context
from broker_core.audit import Outcome, Result
from broker_core.byok import Byok
from broker_core.injection import Injection, Kind
from broker_core.model import Connection, EventType, Purpose
from broker_core.ports import Candidate, Draft, KeyUse
from broker_core.secret import Plaintext
from broker_core.sweep import Sweep, SweepLimits
from tests.fakes_keys import FakeKeyService, ManualClock
from tests.fakes_store import FakeStore

ACCOUNT = "111122223333"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/axiorank"
BEARER = Injection(Kind.BEARER, None, "api.example.com", "server", None)


class Customers:
    """Workspaces, their connections and secrets; with the use cases that look after them."""

    def __init__(self, limits: SweepLimits | None = None) -> None:
        self.clock = ManualClock()
        self.store = FakeStore(self.clock.now)
        self.keys = FakeKeyService()
        self.limits = limits or SweepLimits(workers=1)
        self.byok = Byok(self.store, self.store, self.keys, self.clock, uuid4)
        self.sweep = Sweep(self.store, self.store, self.keys, self.clock, uuid4, self.limits)
        self._numbers = count(1)

    def connect(self, workspace_id: str = "ws", external_id: str | None = None) -> Connection:
        """An Enterprise workspace whose key was verified, long enough ago that its probe is due."""
        self.store.put_workspace(workspace_id, "enterprise")
        arn = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/00000000-0000-4000-8000-{next(self._numbers):012d}"
        verification = self.byok.connect(workspace_id, ROLE, external_id or f"external-id-of-{workspace_id}", arn)
        assert verification.is_current
        self.keys.calls.clear()
        self.clock.sleep(self.limits.probe_seconds)
        return verification.connection

    def keep(self, workspace_id: str = "ws", name: str = "token") -> UUID:
        """A value stored under the workspace's current key; returns the secret's id. Its next check is due after a
        round."""
        number = next(self._numbers)
        draft = Draft(
            id=uuid4(),
            workspace_id=workspace_id,
            source="test",
            event_id=str(number),
            type=EventType.ROTATED,
            name=name,
            version=None,
            injection=BEARER,
            rotation_policy=None,
            claim_id=f"claim-{number}",
            claim_key=b"k" * 32,
        )
        event = self.store.accept(draft).event
        attempt = self.store.begin(event.id, uuid4())
        assert attempt is not None
        assert attempt.setting.connection is not None
        use = KeyUse(
            attempt.setting.connection,
            Purpose.ENCRYPT,
            attempt.audit_id,
            context.for_secret(workspace_id, name, event.version),
        )
        sealed = self.keys.encrypt(use, Plaintext(b"a value of some length"), 1.0)
        self.store.keep(attempt, sealed.blob, Result(Outcome.OK))
        self.keys.calls.clear()
        return event.secret_id

    def candidate(self, name: str = "token", workspace_id: str = "ws") -> Candidate:
        """A secret as an injection sees it."""
        found = self.store.candidates(workspace_id, None, "server")
        return next(one for one in found if one.name == name)

    def after_a_round(self) -> None:
        """Let every secret's check come due."""
        self.clock.sleep(self.limits.check_round + 1)
