"""The sweep finds what fails, says whose it is, and sees it heal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import (
    AuditUnavailable,
    Denied,
    Integrity,
    KeyServiceError,
    KeyState,
    Misconfigured,
    Transient,
)
from broker_core.model import CipherName, Connection, FoundBy, Purpose, SecretStatus
from broker_core.ports import Failure, KeyUse, Opened
from broker_core.sweep import CONNECTION_WIDE, Sweep, SweepLimits
from tests.customers import Customers
from tests.fakes_keys import FakeKeyService
from tests.fakes_store import FakeStore

DISABLED = Denied("disabled", state=KeyState.KEY_DISABLED, aws_code="DisabledException")
NO_ACCESS = Denied("denied", aws_code="AccessDeniedException")


def denied(state: KeyState) -> Denied:
    return Denied("no", state=state)


def methods(keys: FakeKeyService) -> list[str]:
    return [call.method for call in keys.calls]


def for_purpose(error: Exception, *purposes: Purpose) -> Callable[[KeyUse], KeyServiceError | None]:
    def decide(use: KeyUse) -> KeyServiceError | None:
        if use.purpose in purposes:
            raise error
        return None

    return decide


class TestProbe:
    def test_opens_the_canary_and_seals_a_fresh_one(self) -> None:
        """A probe is one decrypt and one encrypt, each a use of its own."""
        customers = Customers()
        customers.connect()

        assert customers.sweep.probes() == 1

        assert methods(customers.keys) == ["decrypt", "encrypt"]
        assert len({call.use.audit_id for call in customers.keys.calls}) == 2

    def test_writes_an_intent_and_an_outcome_for_each_use(self) -> None:
        """Both uses of a probe stand in the audit log, with the request ids of AWS."""
        customers = Customers()
        connection = customers.connect()

        customers.sweep.probes()

        uses = [(intent, result) for intent, result in customers.store.audit_rows() if intent.purpose is Purpose.PROBE]
        assert [intent.connection_id for intent, _ in uses] == [connection.id] * 2
        assert all(result and result.outcome is Outcome.OK and result.receipt.kms_request_id for _, result in uses)

    def test_asks_nothing_when_the_intent_cannot_be_written(self) -> None:
        """INV-5: without a committed intent no key is used, and nothing is recorded."""
        customers = Customers()
        customers.connect()

        class NoAudit(FakeStore):
            def begin_use(self, intent: Intent) -> None:
                raise AuditUnavailable("away")

        audit = NoAudit(customers.clock.now)
        Sweep(customers.store, audit, customers.keys, customers.clock, uuid4, customers.limits).probes()

        assert customers.keys.calls == []
        assert customers.store.failures() == []

    def test_never_reads_the_opened_canary(self) -> None:
        """The opened canary is wiped unread."""
        opened: list[Opened] = []

        class Watched(FakeKeyService):
            def decrypt(self, *args, **kwargs):  # type: ignore[no-untyped-def] # passes all on
                opened.append(super().decrypt(*args, **kwargs))
                return opened[-1]

        customers = Customers()
        customers.keys.__class__ = Watched
        customers.connect()
        opened.clear()

        customers.sweep.probes()

        with pytest.raises(ValueError, match="wiped"), opened[0].value.reveal():
            pass

    @pytest.mark.parametrize("state", [KeyState.ACCESS_DENIED, *sorted(CONNECTION_WIDE)])
    def test_a_denial_is_the_connections(self, state: KeyState) -> None:
        """Whatever the customer's side says no with, the connection fails and its secrets inherit it."""
        customers = Customers()
        connection = customers.connect()
        secret_id = customers.keep()
        customers.keys.fail(denied(state))

        customers.sweep.probes()

        (affected,) = customers.byok.affected("ws").connections
        assert (affected.connection_id, affected.state, affected.found_by) == (connection.id, state, FoundBy.PROBE)
        assert affected.secrets == [(secret_id, "token")]
        assert customers.store.status("ws", "token") is SecretStatus.AFFECTED

    def test_a_denied_encrypt_is_found_too(self) -> None:
        """A key that still decrypts and does not encrypt fails."""
        customers = Customers()
        connection = customers.connect()
        customers.keys.fail_when(lambda _: NO_ACCESS if methods(customers.keys)[-1] == "encrypt" else None)

        customers.sweep.probes()

        assert [row.connection_id for row in customers.store.failures()] == [connection.id]

    def test_a_healed_connection_closes_and_its_secrets_are_checked_again(self) -> None:
        """After healing, a secret shows ``rechecking`` until its own check has worked."""
        customers = Customers()
        connection = customers.connect()
        customers.keep()
        customers.keys.fail(DISABLED, connection)
        customers.sweep.probes()
        customers.keys.fail(None, connection)
        customers.clock.sleep(customers.limits.probe_seconds)

        customers.sweep.probes()
        between = customers.store.status("ws", "token")
        customers.clock.sleep(1)
        customers.sweep.checks()

        assert customers.store.failures() == []
        assert (between, customers.store.status("ws", "token")) == (SecretStatus.RECHECKING, SecretStatus.ACTIVE)

    def test_a_transient_error_is_no_failure(self) -> None:
        """INV-8: what may work in a moment is written as a failed use and blames nobody."""
        customers = Customers()
        customers.connect()
        customers.keep()
        customers.keys.fail(Transient("throttled", aws_code="ThrottlingException"))

        customers.sweep.probes()

        assert customers.store.failures() == []
        assert customers.store.status("ws", "token") is SecretStatus.ACTIVE
        assert [result.outcome for _, result in customers.store.audit_rows()[-1:] if result] == [Outcome.FAILED]

    def test_a_transient_error_heals_nothing(self) -> None:
        """A failing connection goes on failing while AWS gives no answer."""
        customers = Customers()
        customers.connect()
        customers.keys.fail(DISABLED)
        customers.sweep.probes()
        customers.keys.fail(Transient("throttled"))
        customers.clock.sleep(customers.limits.unhealthy)

        customers.sweep.probes()

        assert len(customers.store.failures()) == 1

    @pytest.mark.parametrize(
        ("error", "event"), [(Integrity("x"), "sweep.integrity"), (Misconfigured("x"), "sweep.misconfigured")]
    )
    def test_our_own_faults_tell_the_operator_and_blame_nobody(self, error: KeyServiceError, event: str) -> None:
        """INV-8: integrity and misconfiguration are recorded, logged, and make no secret affected."""
        customers = Customers()
        customers.connect()
        customers.keep()
        customers.keys.fail(error)

        with capture_logs() as logs:
            customers.sweep.probes()

        assert [row.state for row in customers.store.failures()] == [error.state]
        assert event in [line["event"] for line in logs]
        assert customers.store.status("ws", "token") is SecretStatus.ACTIVE
        assert customers.byok.affected("ws").connections == []

    @pytest.mark.parametrize("workers", [1, 4])
    @pytest.mark.parametrize("error", [DISABLED, RuntimeError("a fault of ours")])
    def test_one_connections_trouble_stops_no_other(self, workers: int, error: Exception) -> None:
        """Every due connection is probed, whatever happens to one of them."""
        customers = Customers(SweepLimits(workers=workers))
        broken, *others = [customers.connect(f"ws{number}") for number in range(4)]
        customers.keys.fail_when(for_purpose(error, Purpose.PROBE), broken)

        customers.sweep.probes()

        probed = {call.use.connection.id for call in customers.keys.calls if call.method == "encrypt"}
        assert probed == {connection.id for connection in others}

    def test_a_fault_of_ours_logs_no_text(self) -> None:
        """INV-1: an unknown exception's text may hold anything, so the log has none of it."""
        customers = Customers()
        customers.keys.fail_when(for_purpose(RuntimeError("sentinel"), Purpose.PROBE), customers.connect())

        with capture_logs() as logs:
            customers.sweep.probes()

        assert [(line["event"], line["fault"][0]["class"]) for line in logs] == [("sweep.failed", "RuntimeError")]
        assert "sentinel" not in str(logs)

    def test_a_failing_connection_is_probed_more_often(self) -> None:
        """While a connection fails, its probe is due after ``unhealthy`` seconds."""
        customers = Customers()
        customers.connect()
        customers.keys.fail(DISABLED)
        customers.sweep.probes()
        customers.clock.sleep(customers.limits.unhealthy)
        customers.sweep.probes()  # the first one after opening is at once, from then on every minute
        customers.clock.sleep(customers.limits.unhealthy - 1)

        too_early = customers.sweep.probes()
        customers.clock.sleep(1)

        assert (too_early, customers.sweep.probes()) == (0, 1)


class TestCheck:
    def test_asks_by_dry_run_and_notes_it(self) -> None:
        """A check is one dry run under the secret's own context; no value is decrypted."""
        customers = Customers()
        customers.connect()
        customers.keep()
        customers.after_a_round()

        assert customers.sweep.checks() == 1

        (call,) = customers.keys.calls
        assert (call.method, call.use.purpose) == ("check", Purpose.CHECK)
        assert call.use.context["axiorank:secret"] == "token"
        assert customers.store.secret_row("ws", "token").checked_at == customers.clock.now()

    def test_a_batchs_intents_are_one_statement_before_the_first_call(self) -> None:
        """INV-5: all intents of a batch are committed at once, before any key is used."""
        customers = Customers()
        customers.connect()
        asked_before: list[tuple[int, int]] = []

        class Watched(FakeStore):
            def begin_checks(self, intents: Sequence[Intent]) -> None:
                asked_before.append((len(intents), len(customers.keys.calls)))
                super().begin_checks(intents)

        customers.store.__class__ = Watched
        for number in range(3):
            customers.keep(name=f"token-{number}")
        customers.after_a_round()

        customers.sweep.checks()

        assert asked_before == [(3, 0)]

    def test_asks_nothing_when_the_intents_cannot_be_written(self) -> None:
        """INV-5: no audit, no dry run."""
        customers = Customers()
        customers.connect()
        customers.keep()
        customers.after_a_round()

        class NoAudit(FakeStore):
            def begin_checks(self, intents: Sequence[Intent]) -> None:
                raise AuditUnavailable("away")

        customers.store.__class__ = NoAudit
        with pytest.raises(AuditUnavailable):
            customers.sweep.checks()

        assert customers.keys.calls == []

    def test_a_refusal_for_one_secret_is_its_own(self) -> None:
        """Access denied under one secret's context affects that secret alone."""
        customers = Customers()
        customers.connect()
        secret_id = customers.keep(name="one")
        customers.keep(name="other")
        customers.after_a_round()
        customers.keys.fail_when(lambda use: NO_ACCESS if use.context["axiorank:secret"] == "one" else None)

        customers.sweep.checks()

        affected = customers.byok.affected("ws")
        assert affected.connections == []
        assert [(one.secret_id, one.found_by) for one in affected.secrets] == [(secret_id, FoundBy.CHECK)]
        assert customers.store.status("ws", "other") is SecretStatus.ACTIVE

    def test_a_later_success_closes_a_secrets_own_failure(self) -> None:
        """The check that works again ends what an earlier one began."""
        customers = Customers()
        connection = customers.connect()
        customers.keep()
        customers.after_a_round()
        customers.keys.fail(NO_ACCESS, connection)
        customers.sweep.checks()
        customers.keys.fail(None, connection)
        customers.clock.sleep(61)

        customers.sweep.checks()

        assert customers.store.failures() == []
        assert customers.store.status("ws", "token") is SecretStatus.ACTIVE

    @pytest.mark.parametrize("state", sorted(CONNECTION_WIDE))
    def test_what_is_wrong_with_the_key_is_the_connections(self, state: KeyState) -> None:
        """A state of the role or key is recorded once, for the connection."""
        customers = Customers()
        connection = customers.connect()
        for number in range(3):
            customers.keep(name=f"token-{number}")
        customers.after_a_round()
        customers.keys.fail(denied(state))

        customers.sweep.checks()

        (row,) = customers.store.failures()
        assert (row.connection_id, row.secret_id, row.found_by) == (connection.id, None, FoundBy.CHECK)

    def test_the_rest_of_a_failing_connections_batch_is_left(self) -> None:
        """After one connection-wide denial no more of the customer's quota is used, and the log says so."""
        customers = Customers()
        customers.connect()
        for number in range(3):
            customers.keep(name=f"token-{number}")
        customers.after_a_round()
        customers.keys.fail(DISABLED)

        customers.sweep.checks()

        assert methods(customers.keys) == ["check"]
        codes = [result and result.code for _, result in customers.store.audit_rows()[-3:]]
        assert codes == ["key_disabled", "not_asked", "not_asked"]

    def test_two_silences_in_a_row_leave_the_rest_for_later(self) -> None:
        """A key service that does not answer costs a batch two waits, and blames nobody."""
        customers = Customers()
        customers.connect()
        for number in range(4):
            customers.keep(name=f"token-{number}")
        customers.after_a_round()
        customers.keys.fail(Transient("timeout"))

        customers.sweep.checks()

        assert methods(customers.keys) == ["check", "check"]
        assert customers.store.failures() == []

    def test_one_failing_connection_leaves_anothers_checks_alone(self) -> None:
        """What is left is the failing connection's only."""
        customers = Customers(SweepLimits(workers=4))
        broken, well = customers.connect("broken"), customers.connect("well")
        for workspace_id in ("broken", "well"):
            for number in range(2):
                customers.keep(workspace_id, f"token-{number}")
        customers.after_a_round()
        customers.keys.fail(DISABLED, broken)

        customers.sweep.checks()

        asked = [call.use.connection.id for call in customers.keys.calls]
        assert (asked.count(broken.id), asked.count(well.id)) == (1, 2)

    def test_a_failing_connections_secrets_are_not_claimed(self) -> None:
        """They inherit the answer, which is known."""
        customers = Customers()
        customers.connect()
        customers.keep()
        customers.after_a_round()
        customers.keys.fail(DISABLED)
        customers.sweep.probes()

        assert customers.sweep.checks() == 0

    def test_a_blob_on_anothers_row_is_integrity_and_affects_nobody(self) -> None:
        """A moved blob is found by the check, told to the operator, and never blamed on the customer."""
        customers = Customers()
        customers.connect()
        customers.keep(name="one")
        customers.keep(name="other")
        customers.store.secret_row("ws", "one").blob = customers.store.secret_row("ws", "other").blob
        customers.after_a_round()

        with capture_logs() as logs:
            customers.sweep.checks()

        assert [row.state for row in customers.store.failures()] == [KeyState.INTEGRITY]
        assert [line["event"] for line in logs] == ["sweep.integrity"]
        assert customers.byok.affected("ws").secrets == []


class TestSeen:
    def failure(self, customers: Customers, state: KeyState) -> Failure:
        candidate = customers.candidate()
        assert candidate.connection is not None
        return Failure("ws", candidate.connection.id, candidate.secret_id, state, "Aws", "req-1", FoundBy.INJECT)

    def stored(self) -> Customers:
        customers = Customers()
        customers.connect()
        customers.keep()
        return customers

    def test_a_refusal_is_the_secrets_own(self) -> None:
        """An injection that was denied access marks its secret at once."""
        customers = self.stored()

        customers.sweep.seen(self.failure(customers, KeyState.ACCESS_DENIED))

        (own,) = customers.byok.affected("ws").secrets
        assert (own.name, own.found_by) == ("token", FoundBy.INJECT)

    def test_a_keys_state_is_the_connections(self) -> None:
        """An injection that met a disabled key marks the connection, without naming a secret."""
        customers = self.stored()

        customers.sweep.seen(self.failure(customers, KeyState.KEY_DISABLED))

        (row,) = customers.store.failures()
        assert row.secret_id is None

    def test_brings_the_probe_forward(self) -> None:
        """A failure that an injection met has the canary asked at the next tick, not in five minutes."""
        customers = self.stored()
        customers.sweep.probes()

        customers.sweep.seen(self.failure(customers, KeyState.ACCESS_DENIED))

        assert customers.sweep.probes() == 1

    def test_ignores_what_may_work_in_a_moment(self) -> None:
        """A transient error of an injection is no failure."""
        customers = self.stored()

        customers.sweep.seen(self.failure(customers, KeyState.TRANSIENT))

        assert customers.store.failures() == []

    def test_never_raises(self) -> None:
        """A record that cannot be written does not change the injector's answer; it is logged."""
        customers = self.stored()
        failure = self.failure(customers, KeyState.ACCESS_DENIED)
        customers.store.is_away = True

        with capture_logs() as logs:
            customers.sweep.seen(failure)

        assert [line["event"] for line in logs] == ["sweep.record_failed"]

    def test_another_workspaces_connection_is_not_recorded(self) -> None:
        """INV-10: a failure cannot be put on what belongs to someone else."""
        customers = self.stored()
        customers.connect("other")
        failure = replace(self.failure(customers, KeyState.KEY_DISABLED), workspace_id="other")

        customers.sweep.seen(failure)

        assert customers.store.failures() == []

    def test_a_successful_injection_closes_it(self) -> None:
        """A use that worked ends the secret's own failure."""
        customers = self.stored()
        customers.sweep.seen(self.failure(customers, KeyState.ACCESS_DENIED))
        candidate = customers.candidate()
        intent = Intent(
            uuid4(), "ws", Purpose.INJECT, CipherName.KMS, secret_id=candidate.secret_id, version=candidate.version
        )

        customers.store.begin_uses([intent])
        customers.store.end_uses([(intent, Result(Outcome.OK))])

        assert customers.store.failures() == []


class TestBrake:
    """Many connections that turn at once point at a fault of ours."""

    def many(self, number: int) -> tuple[Customers, list[Connection]]:
        customers = Customers()
        return customers, [customers.connect(f"ws{index}") for index in range(number)]

    def test_stops_recording_when_many_turn_at_once(self) -> None:
        """Once more than the share and the minimum have turned, no further connection is called failing."""
        customers, _ = self.many(12)
        customers.keys.fail(denied(KeyState.ROLE_REFUSED))

        customers.sweep.probes()

        assert len(customers.store.failures()) == customers.limits.brake_minimum

    def test_alarms_once_in_a_run(self) -> None:
        """The operator is told once, however many connections are denied."""
        customers, _ = self.many(12)
        customers.keys.fail(denied(KeyState.ROLE_REFUSED))

        with capture_logs() as logs:
            customers.sweep.probes()

        alarms = [line for line in logs if line["event"] == "sweep.brake"]
        assert [(line["turned"], line["verified"]) for line in alarms] == [(5, 12)]

    def test_holds_for_checks_and_injections_too(self) -> None:
        """Whoever finds it, a connection's failure meets the brake."""
        customers, connections = self.many(6)
        for connection in connections:
            failure = Failure(
                connection.workspace_id, connection.id, None, KeyState.KEY_DISABLED, "", None, FoundBy.INJECT
            )
            customers.sweep.seen(failure)

        assert len(customers.store.failures()) == customers.limits.brake_minimum

    def test_says_so_to_who_asks(self) -> None:
        """An injection that found a refusal, and custody before it blames, learn that the brake is on."""
        customers, connections = self.many(6)
        answers = [
            customers.sweep.seen(
                Failure(each.workspace_id, each.id, None, KeyState.KEY_DISABLED, "", None, FoundBy.INJECT)
            )
            for each in connections
        ]
        assert answers == [True] * 5 + [False]
        assert customers.sweep.brakes()

    def test_is_off_while_nobody_can_tell(self) -> None:
        """With the database away the brake is off: it changes who is blamed, and blames nobody by itself."""
        customers, _ = self.many(6)
        customers.store.is_away = True
        assert not customers.sweep.brakes()

    def test_a_few_of_a_few_are_believed(self) -> None:
        """Below the minimum the share says nothing: four customers of four may have revoked."""
        customers, _ = self.many(4)
        customers.keys.fail(DISABLED)

        customers.sweep.probes()

        assert len(customers.store.failures()) == 4

    def test_a_small_share_is_believed(self) -> None:
        """Six of thirty are no more than a fifth: each is recorded."""
        customers, connections = self.many(30)
        for connection in connections[:6]:
            customers.keys.fail(DISABLED, connection)

        customers.sweep.probes()

        assert len(customers.store.failures()) == 6

    def test_forgets_what_turned_long_ago(self) -> None:
        """Only what turned within the time counts."""
        customers, connections = self.many(8)
        for connection in connections[:5]:
            customers.keys.fail(DISABLED, connection)
        customers.sweep.probes()
        customers.clock.sleep(customers.limits.brake_within + 1)
        customers.keys.fail(DISABLED, connections[5])

        customers.sweep.probes()

        assert len(customers.store.failures()) == 6

    def test_lets_healing_through(self) -> None:
        """What works again is closed while the brake holds."""
        customers, _ = self.many(12)
        customers.keys.fail(DISABLED)
        customers.sweep.probes()
        customers.keys.fail(None)
        customers.clock.sleep(customers.limits.unhealthy)

        customers.sweep.probes()

        assert customers.store.failures() == []
