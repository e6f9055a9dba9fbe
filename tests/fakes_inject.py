"""What an Injector needs, in memory: a store of bound secrets, a record of failures, and all of it wired."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from broker_core import context
from broker_core.audit import Intent, Result
from broker_core.errors import AuditUnavailable, RateLimited, Unavailable
from broker_core.inject.injector import InjectLimits, Injector
from broker_core.inject.watch import Watch
from broker_core.injection import Injection, Kind
from broker_core.model import Blob, Connection, Purpose
from broker_core.ports import Candidate, Failure, KeyUse
from broker_core.secret import Plaintext
from tests.fakes_keys import FakeKeyService, FakePlatformCipher, ManualClock
from tests.fakes_upstream import FakeUpstream

CONNECTION = Connection(
    id=UUID(int=1),
    workspace_id="ws",
    role_arn="arn:aws:iam::111122223333:role/AxioRank",
    external_id="external-id-of-ws",
    key_arn="arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555",
)


@dataclass
class FakeInjectStore:
    """The ``InjectStore`` port over a list of candidates. ``changes`` is how often a version changes meanwhile."""

    rows: list[Candidate] = field(default_factory=list)
    note: Callable[[str], None] = lambda step: None
    changes: int = 0
    audit_is_away: bool = False
    outcomes_are_lost: bool = False
    intents: list[Intent] = field(default_factory=list)
    results: dict[UUID, Result] = field(default_factory=dict)

    def candidates(self, workspace_id: str, agent_id: str | None, mcp_server_id: str | None) -> Sequence[Candidate]:
        self.note("candidates")
        return [
            row
            for row in self.rows
            if row.workspace_id == workspace_id
            and row.injection.agent_id in (None, agent_id)
            and row.injection.mcp_server_id in (None, mcp_server_id)
        ]

    def begin_uses(self, intents: Sequence[Intent]) -> bool:
        self.note("begin")
        if self.audit_is_away:
            raise AuditUnavailable("the audit log is away")
        if self.changes:
            self.changes -= 1
            return False
        self.intents += intents
        return True

    def end_uses(self, results: Sequence[tuple[Intent, Result]]) -> None:
        self.note("end")
        if self.outcomes_are_lost:
            raise Unavailable("the database is away")
        for intent, result in results:
            assert intent.id not in self.results, "closed twice"
            self.results[intent.id] = result


@dataclass
class FakeFailureLog:
    """The ``FailureLog`` port."""

    seen_failures: list[Failure] = field(default_factory=list)
    is_braking: bool = False

    def seen(self, failure: Failure) -> bool:
        self.seen_failures.append(failure)
        return not self.is_braking

    def brakes(self) -> bool:
        return self.is_braking


@dataclass
class FakeGuessLog:
    """The ``GuessLog`` port: up to ``most`` of one caller and secret."""

    most: int = 5
    counted: Counter[tuple[str, str, UUID]] = field(default_factory=Counter)

    def look(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        if self.counted[workspace_id, caller, secret_id] >= self.most:
            raise RateLimited("too many guesses", 3600)

    def count(self, workspace_id: str, caller: str, secret_id: UUID) -> None:
        self.counted[workspace_id, caller, secret_id] += 1


class _NotedKeys(FakeKeyService):
    note: Callable[[str], None] = staticmethod(lambda step: None)

    def decrypt(self, use: KeyUse, blob: Blob, seconds: float):  # type: ignore[no-untyped-def]  # as its parent
        self.note("decrypt")
        return super().decrypt(use, blob, seconds)


class Broker:
    """An Injector on fakes, and what they saw. ``steps`` is the order of what was done outside."""

    def __init__(self, limits: InjectLimits | None = None) -> None:
        self.steps: list[str] = []
        self.store = FakeInjectStore(note=self.steps.append)
        self.keys = _NotedKeys()
        self.platform = FakePlatformCipher()
        self.upstream = FakeUpstream(note=self.steps.append)
        self.failures = FakeFailureLog()
        self.guesses = FakeGuessLog()
        self.watch = Watch(3600)  # tests look themselves
        self.clock = ManualClock()
        ids = map(UUID, (f"01900000-0000-7000-8000-{number:012x}" for number in itertools.count()))
        self.injector = Injector(
            self.store,
            self.keys,
            self.platform,
            self.upstream,
            self.failures,
            self.guesses,
            self.clock,
            lambda: next(ids),
            limits or InjectLimits(),
            self.watch,
        )

    def keep(
        self,
        name: str,
        value: bytes,
        kind: Kind = Kind.BEARER,
        key: str | None = None,
        host: str | None = "api.example.com",
        server: str | None = "srv",
        agent: str | None = None,
        *,
        platform: bool = False,
        version: int = 1,
    ) -> Candidate:
        """Store a secret, encrypted as custody would."""
        blob = self._blob(name, value, version, platform)
        injection = Injection(kind, key, None if kind is Kind.STDIO_ENV else host, server, agent)
        number = UUID(int=100 + len(self.store.rows))
        row = Candidate(number, "ws", name, version, injection, blob, None if platform else CONNECTION)
        self.store.rows.append(row)
        self.keys.calls.clear()
        self.keys.note = self.steps.append
        return row

    @property
    def result(self) -> Result:
        """How the one use ended."""
        (result,) = self.store.results.values()
        return result

    def decrypts(self) -> int:
        """How often a key was asked to decrypt."""
        return sum(call.method == "decrypt" for call in self.keys.calls)

    def _blob(self, name: str, value: bytes, version: int, platform: bool) -> Blob:
        binding = context.for_secret("ws", name, version)
        if platform:
            return self.platform.encrypt(binding, Plaintext(value))
        use = KeyUse(CONNECTION, Purpose.ENCRYPT, UUID(int=0), binding)
        return self.keys.encrypt(use, Plaintext(value), 1.0).blob


def named(headers: Iterable[tuple[str, str]], name: str) -> list[str]:
    """Every value of a header, in any case."""
    return [text for other, text in headers if other.lower() == name.lower()]
