"""What owners read in several places is the same fact: reports of one workspace agree, whatever happened to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID, uuid4

import pytest

from broker_core.adapters.store import Database, Store
from broker_core.errors import Conflict, KeyState
from broker_core.model import (
    Blob,
    CipherName,
    Connection,
    ConnectionStatus,
    EventType,
    Purpose,
    SecretStatus,
    rotation_due,
)
from broker_core.ports import ConnectionView, Cover, SecretView
from tests.store_setup import (
    DENIED,
    OK,
    age_connection,
    age_secret,
    connected,
    draft,
    failure,
    intent,
    stored,
)

HAPPENINGS = 80
LONG_AGO = 40 * 86_400


@dataclass
class History:
    """One workspace to which things happen by chance."""

    store: Store
    workspace: str
    chance: Random
    connections: list[Connection] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)

    def goes_on(self) -> None:
        happening = self.chance.choice(
            [
                self.connect,
                self.disconnect,
                *[self.keep] * 6,
                *[self.hold] * 2,
                self.delete,
                *[self.connection_fails] * 2,
                *[self.secret_fails] * 3,
                self.connection_heals,
                self.check,
                self.move,
                self.retire,
                *[self.use] * 3,
            ]
        )
        happening()

    def connect(self) -> None:
        self.connections.append(connected(self.store, self.workspace))

    def disconnect(self) -> None:
        if self.store.setting(self.workspace).connection:
            self.store.disconnect(self.workspace)

    def keep(self) -> None:
        policy = self.chance.choice([None, "30d", "90d"])
        changes = {"rotation_policy": policy} if policy else {}
        secret_id = stored(self.store, self.workspace, **self._next(), **changes)
        if self.chance.random() < 0.5:
            column = "created_at" if self.store.secret(self.workspace, secret_id).rotated_at is None else "rotated_at"
            age_secret(self.store, secret_id, column, LONG_AGO)

    def hold(self) -> None:
        self.store.accept(draft(self.workspace, **self._next()))

    def delete(self) -> None:
        if self.versions:
            name = self.chance.choice(sorted(self.versions))
            self.versions[name] += 1
            self.store.accept(draft(self.workspace, name=name, version=self.versions[name], type=EventType.DELETED))

    def connection_fails(self) -> None:
        if self.connections:
            state = self.chance.choice([KeyState.KEY_DISABLED, KeyState.ACCESS_DENIED, KeyState.MISCONFIGURED])
            self.store.open_failure(failure(self.chance.choice(self.connections), state=state))

    def secret_fails(self) -> None:
        """Also late: of a connection that the secret is not under any more."""
        secrets = self._under_a_key()
        if secrets:
            secret = self.chance.choice(secrets)
            by = self.chance.choice(self.connections)
            state = self.chance.choice([KeyState.ACCESS_DENIED, KeyState.ACCESS_DENIED, KeyState.INTEGRITY])
            self.store.open_failure(failure(by, secret.id, state=state))

    def connection_heals(self) -> None:
        for connection in self.connections:
            if self.chance.random() < 0.5:
                self.store.close_failure(self.workspace, connection.id, None)

    def check(self) -> None:
        for secret in self._under_a_key():
            asked = intent(
                self.workspace,
                purpose=Purpose.CHECK,
                secret_id=secret.id,
                version=secret.version,
                connection_id=secret.connection_id,
            )
            self.store.begin_checks([asked])
            self.store.end_checks([(asked, self.chance.choice([OK, DENIED]))])

    def use(self) -> None:
        for secret in self._under_a_key()[:3]:
            asked = intent(self.workspace, secret_id=secret.id, version=secret.version)
            self.store.begin_uses([asked])
            self.store.end_uses([(asked, OK)])

    def move(self) -> None:
        current = self.store.setting(self.workspace).connection
        if current is None:
            return
        move = self.store.start_move(self.workspace, uuid4(), None)
        for _ in range(3):
            for connection in self.connections:
                age_connection(self.store, connection, "check_ready_at", 60)
            due = self.store.claim_move(move, 1000.0, 60)
            if due is None:
                break
            asked = intent(self.workspace, purpose=Purpose.ENCRYPT, secret_id=due.secret_id, version=due.version)
            self.store.begin_use(asked)
            self.store.keep_move(move, due, Blob(CipherName.KMS, b"moved"), asked, OK)
        self.store.end_move(move, "disconnected")

    def retire(self) -> None:
        if self.connections:
            try:
                self.store.retire(self.workspace, self.chance.choice(self.connections).id)
            except Conflict:
                return

    def _next(self) -> dict[str, object]:
        name = self.chance.choice("abcdefghijkl")
        self.versions[name] = self.versions.get(name, 0) + 1
        return {"name": name, "version": self.versions[name], "event_id": uuid4().hex}

    def _under_a_key(self) -> list[SecretView]:
        return [secret for secret in self.secrets() if secret.connection_id is not None]

    def secrets(self, status: SecretStatus | None = None) -> Sequence[SecretView]:
        return self.store.secrets(self.workspace, limit=200, status=status)

    def views(self) -> Sequence[ConnectionView]:
        return self.store.connections(self.workspace)

    def covered(self, cover: Cover) -> list[UUID]:
        """All pages of two."""
        found: list[UUID] = []
        while page := self.store.covered(self.workspace, cover, after=found[-1] if found else None, limit=2):
            found += [each.secret_id for each in page]
        return found


@pytest.fixture(params=range(3))
def history(request: pytest.FixtureRequest, clean_database: str, kept_database: Database) -> History:
    store = Store(kept_database)
    workspace = f"ws_{uuid4().hex}"
    store.put_workspace(workspace, "enterprise")
    return History(store, workspace, Random(request.param))


def test_reports_agree(history: History) -> None:
    """Coverage, the connections' needs, the drill, what is affected and what is overdue say the same of every secret,
    again and again while things happen."""
    for _ in range(HAPPENINGS // 2):
        history.goes_on()
        history.goes_on()
        _coverage_is_what_connections_need(history)
        _a_drill_takes_away_what_connections_need(history)
        _affected_are_those_with_that_status(history)
        _overdue_are_those_that_were_due(history)


def _coverage_is_what_connections_need(history: History) -> None:
    counts = history.store.coverage(history.workspace)
    views, secrets = history.views(), history.secrets()
    current = {view.id for view in views if view.status is ConnectionStatus.CURRENT}
    needed = {view.id: view.needed_by for view in views}
    assert counts[Cover.CURRENT_KEY] == sum(needed[each] for each in current)
    assert counts[Cover.OLDER_CONNECTION] == sum(needed[each] for each in needed if each not in current)
    listed = {cover: history.covered(cover) for cover in Cover}
    assert {cover: len(found) for cover, found in listed.items()} == dict(counts)
    stored_ones = [each for cover, found in listed.items() if cover is not Cover.HELD for each in found]
    assert sorted(stored_ones) == sorted(secret.id for secret in secrets if secret.cipher)
    assert set(listed[Cover.PLATFORM]) == {secret.id for secret in secrets if secret.cipher is CipherName.PLATFORM}
    if current:
        (waiting,) = [view.waiting for view in views if view.id in current]
        assert (waiting > 0, waiting >= counts[Cover.HELD]) == (counts[Cover.HELD] > 0, True)


def _a_drill_takes_away_what_connections_need(history: History) -> None:
    since = datetime.now(UTC) - timedelta(days=7)
    views = history.views()
    drilled = history.store.drill(history.workspace, None, since, 1000)
    assert drilled.secrets == len(drilled.most_used) == sum(view.needed_by for view in views)
    assert drilled.uses == sum(each.uses for each in drilled.most_used)
    assert drilled.used_secrets == sum(each.uses > 0 for each in drilled.most_used)
    for view in views:
        assert history.store.drill(history.workspace, view.id, since, 1).secrets == view.needed_by


def _affected_are_those_with_that_status(history: History) -> None:
    affected = history.store.affected(history.workspace)
    named = [secret_id for each in affected.connections for secret_id, _ in each.secrets]
    named += [each.secret_id for each in affected.secrets]
    assert sorted(named) == sorted(secret.id for secret in history.secrets(SecretStatus.AFFECTED))
    health = {view.id: (view.health, view.health_since) for view in history.views()}
    assert all(health[each.connection_id] == (each.state, each.since) for each in affected.connections)


def _overdue_are_those_that_were_due(history: History) -> None:
    now = datetime.now(UTC)
    due = {s.id: rotation_due(s.rotation_policy, s.created_at, s.rotated_at) for s in history.secrets()}
    assert {each.secret_id: each.due_at for each in history.store.overdue(history.workspace, limit=200)} == {
        secret_id: at for secret_id, at in due.items() if at is not None and at <= now
    }
