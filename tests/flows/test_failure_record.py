"""The record of failures, driven at random and compared with a model of what an owner should see."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker_core.errors import Denied, KeyState
from broker_core.model import FoundBy, SecretStatus
from broker_core.ports import Failure
from broker_core.sweep import CONNECTION_WIDE, SweepLimits
from tests.customers import Customers
from tests.fakes_store_parts.rows import FailureRow

WORKSPACES = ("a", "b")
NAMES = ("one", "two", "three")
NEVER = datetime.max.replace(tzinfo=UTC)
OURS = {KeyState.INTEGRITY, KeyState.MISCONFIGURED}

workspaces = st.sampled_from(WORKSPACES)
names = st.sampled_from(NAMES)
recorded = st.sampled_from(sorted(set(KeyState) - {KeyState.TRANSIENT}))


class FailureRecord(RuleBasedStateMachine):
    """Open by what an injection or probe meets, inherit, heal, check, give a value again; in any order."""

    @initialize()
    def begin(self) -> None:
        # no brake: two connections that turn are all there are
        self.customers = Customers(SweepLimits(workers=1, brake_minimum=1000))
        self.connections = {workspace: self.customers.connect(workspace) for workspace in WORKSPACES}
        self.secrets: dict[tuple[str, str], UUID] = {
            (workspace, name): self.customers.keep(workspace, name) for workspace in WORKSPACES for name in NAMES
        }
        #: the model: what is open, and which secrets wait for a check since their connection healed
        self.on_connection: dict[str, KeyState] = {}
        self.own: dict[tuple[str, str], KeyState] = {}
        self.unchecked: set[tuple[str, str]] = set()
        self.since: dict[tuple[UUID | None, UUID | None], datetime] = {}

    @rule(workspace=workspaces, name=names, state=recorded)
    def an_injection_fails(self, workspace: str, name: str, state: KeyState) -> None:
        self.customers.clock.sleep(1)
        connection_id, secret_id = self.connections[workspace].id, self.secrets[workspace, name]
        self.customers.sweep.seen(Failure(workspace, connection_id, secret_id, state, "", None, FoundBy.INJECT))
        if state in CONNECTION_WIDE:
            self.on_connection[workspace] = state
        else:
            self.own[workspace, name] = state

    @rule(workspace=workspaces, state=st.sampled_from([KeyState.ACCESS_DENIED, KeyState.KEY_DISABLED]))
    def a_probe_is_denied(self, workspace: str, state: KeyState) -> None:
        self._probe(workspace, Denied("no", state=state))
        self.on_connection[workspace] = state

    @rule(workspace=workspaces)
    def a_probe_works(self, workspace: str) -> None:
        self._probe(workspace, None)
        if self.on_connection.pop(workspace, None) is not None:
            self.unchecked |= {(workspace, name) for name in NAMES}

    @rule()
    def checks_work(self) -> None:
        self.customers.after_a_round()
        while self.customers.sweep.checks():
            self.customers.clock.sleep(1)
        for workspace, name in self.secrets:
            if workspace not in self.on_connection:
                self.own.pop((workspace, name), None)
                self.unchecked.discard((workspace, name))

    @rule(workspace=workspaces, name=names)
    def a_value_is_given_again(self, workspace: str, name: str) -> None:
        self.customers.clock.sleep(1)
        self.customers.keep(workspace, name)
        self.own.pop((workspace, name), None)
        self.unchecked.discard((workspace, name))

    def _probe(self, workspace: str, error: Denied | None) -> None:
        """Probe one connection; the others are not due at its time, or answer with no answer of their own."""
        self.customers.clock.sleep(1)
        connection = self.connections[workspace]
        self.customers.keys.fail(error, connection)
        for row in self.customers.store._connections.values():
            is_it = row.connection.id == connection.id
            row.next_probe_at = self.customers.clock.now() if is_it else NEVER
        self.customers.sweep.probes()
        self.customers.keys.fail(None, connection)

    @invariant()
    def open_at_most_once_for_each_subject(self) -> None:
        subjects = [(row.connection_id, row.secret_id) for row in self.customers.store.failures()]
        assert len(subjects) == len(set(subjects))

    @invariant()
    def is_what_the_model_says(self) -> None:
        rows = self.customers.store.failures()
        connections = {row.workspace_id: row.state for row in rows if row.secret_id is None}
        by_id = {secret_id: subject for subject, secret_id in self.secrets.items()}
        assert connections == self.on_connection
        assert {by_id[row.secret_id]: row.state for row in rows if row.secret_id} == self.own

    @invariant()
    def first_seen_stays_while_open(self) -> None:
        rows: dict[tuple[UUID | None, UUID | None], FailureRow] = {
            (row.connection_id, row.secret_id): row for row in self.customers.store.failures()
        }
        for subject, row in rows.items():
            assert row.first_seen == self.since.get(subject, row.first_seen) <= row.last_seen
        self.since = {subject: row.first_seen for subject, row in rows.items()}

    @invariant()
    def owners_see_it(self) -> None:
        """INV-8: affected exactly when the customer's side denies the secret or its connection."""
        for subject in self.secrets:
            workspace, _ = subject
            fails = workspace in self.on_connection or self.own.get(subject, KeyState.INTEGRITY) not in OURS
            calm = SecretStatus.RECHECKING if subject in self.unchecked else SecretStatus.ACTIVE
            assert self.customers.store.status(*subject) is (SecretStatus.AFFECTED if fails else calm)

    @invariant()
    def each_affected_secret_is_listed_once(self) -> None:
        for workspace in WORKSPACES:
            affected = self.customers.byok.affected(workspace)
            listed = [name for one in affected.connections for _, name in one.secrets]
            listed += [one.name for one in affected.secrets]
            wanted = [name for name in NAMES if self.customers.store.status(workspace, name) is SecretStatus.AFFECTED]
            assert sorted(listed) == sorted(wanted)


TestFailureRecord = FailureRecord.TestCase
TestFailureRecord.settings = settings(max_examples=25, stateful_step_count=20)
