"""What a role and a key must show: each step's outcome, what it hinders, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
from structlog.testing import capture_logs

from broker_core import advice, verification
from broker_core.audit import Outcome
from broker_core.byok import Verification
from broker_core.errors import (
    Conflict,
    Denied,
    Forbidden,
    Integrity,
    KeyServiceError,
    KeyState,
    Misconfigured,
    NotFound,
    Transient,
    Unavailable,
    WrongKey,
)
from broker_core.model import Blob, ConnectionStatus, StepOutcome, StepResult
from broker_core.policies import Extra
from broker_core.ports import ConnectionView, KeyUse, Opened, Permit
from broker_core.secret import Plaintext
from tests.customers import ROLE, Customers
from tests.fakes_keys import FakeKeyService

EXTERNAL_ID = "an-external-id-of-ours"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/11111111-1111-4111-8111-111111111111"
MULTI_REGION = f"arn:aws:kms:eu-west-1:111122223333:key/mrk-{'1' * 32}"
NAMES = [step.name for step in verification.STEPS]

Lets = Callable[[str | None], bool]


@pytest.fixture
def customers() -> Customers:
    """One Enterprise workspace, ``ws``, without a key of its own."""
    made = Customers()
    made.store.put_workspace("ws", "enterprise")
    return made


def connect(customers: Customers, key_arn: str = KEY) -> Verification:
    """One attempt; whatever it shows, what it did is consistent."""
    before = customers.store.setting("ws")
    found = customers.byok.connect("ws", ROLE, EXTERNAL_ID, key_arn)
    after = customers.store.setting("ws")
    assert (after == before) is not found.is_current
    assert [step.name for step in found.steps] + list(found.not_run) == NAMES or found.failed()
    return found


def fail_at(customers: Customers, call: int, error: KeyServiceError) -> None:
    """Fail the so-manyth use of the key, counted from 1."""
    customers.keys.fail_when(lambda _: error if len(customers.keys.calls) == call else None)


def fail_from(customers: Customers, call: int, error: KeyServiceError) -> None:
    """Fail from the so-manyth use of the key on, counted from 1."""
    customers.keys.fail_when(lambda _: error if len(customers.keys.calls) >= call else None)


def outcome(found: Verification, name: str) -> StepResult:
    (step,) = [step for step in found.steps if step.name == name]
    return step


def shown(customers: Customers) -> ConnectionView:
    """The first connection in the owner's list."""
    return customers.byok.connections("ws")[0]


class TestSteps:
    """What each one finds."""

    def test_all_well(self, customers: Customers) -> None:
        """Every step is taken, in order, and each is ok with AWS's request id, but for those that ask nothing."""
        found = connect(customers)
        assert [(step.name, step.outcome) for step in found.steps] == [(name, StepOutcome.OK) for name in NAMES]
        without = {step.name for step in found.steps if step.request_id is None}
        assert without == {verification.RIGHT_KEY, verification.ONE_REGION}
        assert {step.what_to_do for step in found.steps} == {""}

    @pytest.mark.parametrize(
        ("call", "error", "name", "advice_"),
        [
            (1, Denied("no", state=KeyState.ROLE_REFUSED), verification.ACCEPTS, advice.ROLE_DOES_NOT_ACCEPT),
            (1, Transient("no"), verification.ACCEPTS, advice.NO_ANSWER),
            (4, Denied("no", state=KeyState.ROLE_REFUSED), verification.ACCEPTS_AGAIN, advice.ROLE_NO_LONGER_ACCEPTS),
            (5, Denied("no"), verification.ENCRYPT, "Let the role use kms:Encrypt on this key, in the key's policy."),
            (6, Denied("no"), verification.DECRYPT, "Let the role use kms:Decrypt on this key, in the key's policy."),
        ],
        ids=["accepts", "away", "again", "encrypt", "decrypt"],
    )
    def test_a_needed_step_that_fails_stops_the_rest(
        self, customers: Customers, call: int, error: KeyServiceError, name: str, advice_: str
    ) -> None:
        """It is the last one taken, and those that build on it are named as not taken."""
        fail_at(customers, call, error)
        found = connect(customers)
        assert (found.steps[-1].name, found.steps[-1].outcome) == (name, StepOutcome.FAILED)
        assert found.steps[-1].what_to_do == advice_
        assert list(found.not_run) == NAMES[NAMES.index(name) + 1 :]
        assert len(customers.keys.calls) == call

    @pytest.mark.parametrize(
        ("lets_in", "failing"),
        [
            (lambda external_id: external_id is None, [verification.REFUSES_NONE]),
            (lambda external_id: external_id is not None, [verification.REFUSES_WRONG]),
            (lambda external_id: True, [verification.REFUSES_NONE, verification.REFUSES_WRONG]),
        ],
        ids=["without", "wrong", "both"],
    )
    def test_a_role_that_lets_others_in_fails_there_and_hides_nothing(
        self, customers: Customers, lets_in: Lets, failing: list[str]
    ) -> None:
        """Accepted is failed; the steps after it are taken all the same."""
        customers.keys.lets_in = lets_in
        found = connect(customers)
        assert [step.name for step in found.failed()] == failing
        assert (found.not_run, found.is_current) == ([], False)

    @pytest.mark.parametrize(
        "pattern",
        [f"{EXTERNAL_ID[:10]}*", f"*{EXTERNAL_ID[-10:]}", f"{EXTERNAL_ID[:10]}*{EXTERNAL_ID[-10:]}"],
        ids=["beginning", "end", "both"],
    )
    def test_a_wildcard_is_found(self, customers: Customers, pattern: str) -> None:
        """The wrong id begins and ends as the right one: ``StringLike`` on these lets others in, and is not passed."""
        customers.keys.lets_in = lambda external_id: fnmatchcase(external_id or "", pattern)
        assert outcome(connect(customers), verification.REFUSES_WRONG).outcome is StepOutcome.FAILED

    def test_the_wrong_external_id_is_one_that_aws_looks_at(self, customers: Customers) -> None:
        """However long the right one is: AWS refuses a longer one than 1224 as no external id at all."""
        longest, tried = "e" * 1224, list[str | None]()
        customers.keys.lets_in = lambda external_id: bool(tried.append(external_id))
        customers.byok.connect("ws", ROLE, longest, KEY)
        assert [len(one) <= 1224 and one != longest for one in tried if one is not None] == [True]

    def test_the_wrong_external_id_is_another_each_time(self, customers: Customers) -> None:
        """Nobody can prepare a role for it."""
        tried: list[str | None] = []
        customers.keys.lets_in = lambda external_id: bool(tried.append(external_id))
        connect(customers)
        connect(customers)
        assert len({one for one in tried if one is not None}) == 2
        assert EXTERNAL_ID not in tried

    def test_a_key_that_gives_back_something_else(self, customers: Customers) -> None:
        """Decrypt must give back the very bytes; the operator is told."""

        class Swapped(FakeKeyService):
            def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
                return replace(super().decrypt(use, blob, seconds), value=Plaintext(b"x" * 32))

        customers.keys.__class__ = Swapped
        with capture_logs() as logs:
            found = connect(customers)
        assert [step.name for step in found.failed()] == [verification.DECRYPT]
        assert [line["event"] for line in logs] == ["byok.integrity"]

    def test_a_key_that_opens_under_another_context(self, customers: Customers) -> None:
        """What opens elsewhere is not KMS; the operator is told, and the value does not stay."""
        given: list[Plaintext] = []

        class Loose(FakeKeyService):
            def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
                if "axiorank:secret" not in use.context:
                    return super().decrypt(use, blob, seconds)
                given.append(Plaintext(b"x" * 32))
                return Opened(given[-1], self._begin("decrypt", use))

        customers.keys.__class__ = Loose
        with capture_logs() as logs:
            found = connect(customers)
        (failed,) = found.failed()
        assert (failed.name, failed.what_to_do) == (verification.OTHER_SECRET, advice.OPENED_ELSEWHERE)
        assert failed.request_id
        assert [line["event"] for line in logs] == ["byok.integrity"]
        with pytest.raises(ValueError, match="wiped"), given[0].reveal():
            pass

    def test_a_key_that_opens_under_some_contexts_only(self, customers: Customers) -> None:
        """A policy that would keep secrets from opening is found before there are any."""
        fail_at(customers, 7, Denied("no", aws_code="AccessDeniedException"))
        (failed,) = connect(customers).failed()
        assert (failed.name, failed.what_to_do) == (verification.OTHER_SECRET, advice.NOT_OPENED_ELSEWHERE)

    @pytest.mark.parametrize("call", [5, 6, 7])
    def test_another_key_than_the_named_one(self, customers: Customers, call: int) -> None:
        """Whichever use shows it, it is the configured key's step that fails; the operator is told."""
        fail_at(customers, call, WrongKey("no"))
        with capture_logs() as logs:
            found = connect(customers)
        assert found.failed()[0].name == verification.RIGHT_KEY
        assert logs[0]["event"] == "byok.integrity"

    def test_a_multi_region_key_is_a_warning(self, customers: Customers) -> None:
        """It hinders nothing."""
        found = connect(customers, MULTI_REGION)
        assert outcome(found, verification.ONE_REGION).outcome is StepOutcome.WARNING
        assert "several Regions" in outcome(found, verification.ONE_REGION).what_to_do
        assert found.is_current

    @pytest.mark.parametrize("extra", [extra for extra in Extra if extra is not Extra.CREATE_GRANT])
    def test_more_than_the_two_is_a_warning(self, customers: Customers, extra: Extra) -> None:
        """Each by its own name; the key is connected."""
        customers.keys.allowed = {extra}
        found = connect(customers)
        warned = [step for step in found.steps if step.outcome is StepOutcome.WARNING]
        assert [step.name for step in warned] == [f"denies_{extra.name.lower()}"]
        assert extra.value in warned[0].what_to_do
        assert found.is_current

    def test_grants_are_a_failure(self, customers: Customers) -> None:
        """A grant is a use that the key's policy does not show."""
        customers.keys.allowed = {Extra.CREATE_GRANT}
        found = connect(customers)
        assert [(step.name, step.what_to_do) for step in found.failed()] == [
            ("denies_create_grant", advice.GRANTS_ALLOWED)
        ]
        assert not found.is_current

    @pytest.mark.parametrize(
        ("call", "expected"), [(8, StepOutcome.FAILED), (9, StepOutcome.WARNING)], ids=["grant", "data_key"]
    )
    def test_what_could_not_be_learnt_is_not_ok(self, customers: Customers, call: int, expected: StepOutcome) -> None:
        """Not knowing counts as knowing the worst."""
        fail_at(customers, call, Transient("away", aws_code="ThrottlingException"))
        found = connect(customers)
        (step,) = [step for step in found.steps if step.outcome is not StepOutcome.OK]
        assert (step.outcome, step.aws_code) == (expected, "ThrottlingException")
        assert "could not be learnt" in step.what_to_do

    def test_a_fault_of_ours_is_told_to_the_operator(self, customers: Customers) -> None:
        """A session policy that was in the way: the owner reads that it is not theirs."""
        fail_at(customers, 5, Misconfigured("no", aws_code="AccessDeniedException"))
        with capture_logs() as logs:
            (failed,) = connect(customers).failed()
        assert "fault is ours" in failed.what_to_do
        assert [(line["event"], line["aws_code"]) for line in logs] == [("byok.misconfigured", "AccessDeniedException")]

    def test_a_wrong_key_usage_is_the_owners(self, customers: Customers) -> None:
        """Nobody is alarmed."""
        fail_at(customers, 5, Misconfigured("no", aws_code="InvalidKeyUsageException"))
        with capture_logs() as logs:
            (failed,) = connect(customers).failed()
        assert "SYMMETRIC_DEFAULT" in failed.what_to_do
        assert logs == []

    def test_takes_no_longer_than_its_time(self, customers: Customers) -> None:
        """When its time is up the next step fails as transient, and asks nothing."""
        customers.keys.fail_when(lambda _: customers.clock.sleep(60))
        found = connect(customers)
        assert [step.name for step in found.failed()] == [verification.REFUSES_NONE, *NAMES[2:4]]
        assert len(customers.keys.calls) == 1

    def test_a_refusal_that_is_wanted_is_audited_as_one(self, customers: Customers) -> None:
        """The audit log says what AWS said: refused, with the state and the code."""
        connect(customers)
        results = [result for _, result in customers.store.audit_rows() if result is not None]
        refused = [(result.code, result.aws_code) for result in results if result.outcome is Outcome.REFUSED]
        assert refused == [
            ("role_refused", "AccessDenied"),
            ("role_refused", "AccessDenied"),
            ("integrity", "InvalidCiphertextException"),
            *[("access_denied", "AccessDeniedException")] * len(Extra),
        ]


class TestAfterAFailure:
    """Nothing is enabled, and nothing is left half-done."""

    def test_the_pending_one_keeps_its_steps(self, customers: Customers) -> None:
        """The owner sees what failed until the next attempt."""
        customers.keys.fail(Denied("no"))
        found = connect(customers)
        view = shown(customers)
        assert (view.id, view.status, view.health) == (found.connection.id, ConnectionStatus.PENDING, "unverified")
        assert (view.steps, view.verified_at) == (list(found.steps), None)

    def test_the_next_attempt_takes_its_place(self, customers: Customers) -> None:
        """At most one is pending."""
        customers.keys.fail(Denied("no"))
        connect(customers)
        second = connect(customers)
        assert [view.id for view in customers.byok.connections("ws")] == [second.connection.id]

    def test_the_current_one_stays(self, customers: Customers) -> None:
        """It is listed first, and goes on encrypting."""
        current = customers.connect("ws", EXTERNAL_ID)
        customers.keys.allowed = {Extra.CREATE_GRANT}
        failed = connect(customers)
        views = customers.byok.connections("ws")
        assert [(view.id, view.status) for view in views] == [
            (current.id, ConnectionStatus.CURRENT),
            (failed.connection.id, ConnectionStatus.PENDING),
        ]

    def test_success_leaves_nothing_pending(self, customers: Customers) -> None:
        """The attempt that failed is gone with the one that did not."""
        customers.keys.fail(Denied("no"))
        connect(customers)
        customers.keys.fail(None)
        done = connect(customers)
        assert [view.id for view in customers.byok.connections("ws")] == [done.connection.id]

    def test_an_attempt_that_was_overtaken_changes_nothing(self, customers: Customers) -> None:
        """A newer attempt has replaced its row: it is told to try again, though it passed."""
        attempts: list[object] = []

        def newer(use: KeyUse) -> KeyServiceError | None:
            if not attempts:
                attempts.append(use)
                customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)
            return Denied("no") if len(customers.keys.calls) == 6 else None

        customers.keys.fail_when(newer)
        with pytest.raises(Conflict, match="try again"):
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)
        assert customers.store.setting("ws").connection is None


class TestVerify:
    """The current connection, verified again."""

    def test_takes_every_step_and_changes_nothing(self, customers: Customers) -> None:
        """The setting and the canary stay; the time moves on."""
        connection = customers.connect("ws", EXTERNAL_ID)
        before = customers.store.setting("ws")
        canary = customers.store._connections[connection.id].canary
        verified_at = shown(customers).verified_at
        found = customers.byok.verify("ws")
        assert [step.name for step in found.steps] == NAMES
        assert (found.connection, found.is_current, customers.store.setting("ws")) == (connection, True, before)
        assert customers.store._connections[connection.id].canary == canary
        assert verified_at is not None
        assert (shown(customers).verified_at or verified_at) > verified_at

    def test_a_failure_is_shown_and_the_connection_stays(self, customers: Customers) -> None:
        """What is current stays current; when it was last passed stays, too."""
        customers.connect("ws", EXTERNAL_ID)
        before = shown(customers).verified_at
        customers.keys.allowed = {Extra.CREATE_GRANT}
        found = customers.byok.verify("ws")
        view = shown(customers)
        assert (found.passed, found.is_current, view.status) == (False, True, ConnectionStatus.CURRENT)
        assert (view.steps, view.verified_at) == (list(found.steps), before)

    def test_a_role_that_lets_others_in_is_flagged(self, customers: Customers) -> None:
        """And no longer, once it refuses them again."""
        customers.connect("ws", EXTERNAL_ID)
        customers.keys.lets_in = lambda external_id: True
        customers.byok.verify("ws")
        flagged = shown(customers)
        customers.keys.lets_in = lambda external_id: False
        customers.byok.verify("ws")
        assert (flagged.health, flagged.health_since) == ("flagged", customers.clock.now())
        assert (shown(customers).health, shown(customers).health_since) == ("healthy", None)

    def test_refusals_mean_nothing_where_the_role_then_refuses_us_too(self, customers: Customers) -> None:
        """The flag stays: it may be our own credentials that were refused."""
        customers.connect("ws", EXTERNAL_ID)
        customers.keys.lets_in = lambda external_id: True
        customers.byok.verify("ws")
        flagged = shown(customers)
        customers.keys.calls.clear()
        fail_from(customers, 2, Denied("no", state=KeyState.ROLE_REFUSED))
        customers.byok.verify("ws")
        assert (shown(customers).health, shown(customers).health_since) == ("flagged", flagged.health_since)

    def test_needs_a_connection(self, customers: Customers) -> None:
        """There is nothing to verify."""
        with pytest.raises(Conflict):
            customers.byok.verify("ws")

    def test_needs_enterprise(self, customers: Customers) -> None:
        """Other plans are refused before anything is asked."""
        customers.connect("ws", EXTERNAL_ID)
        customers.store.put_workspace("ws", "team")
        with pytest.raises(Forbidden) as refused:
            customers.byok.verify("ws")
        assert (refused.value.reason, customers.keys.calls) == ("plan_required", [])

    @pytest.mark.parametrize("question", ["verify", "connections"])
    def test_an_unknown_workspace_is_not_found(self, customers: Customers, question: str) -> None:
        """INV-10: what is not there answers so."""
        with pytest.raises(NotFound):
            getattr(customers.byok, question)("nobody")


class TestDaily:
    """Each role shows once a day that it refuses others."""

    def a_day_later(self, customers: Customers) -> int:
        customers.clock.sleep(86_400 * 1.2)
        customers.keys.calls.clear()
        return customers.sweep.refusals()

    def test_only_the_role_is_asked(self, customers: Customers) -> None:
        """Two AssumeRole that must fail, one that shows what that is worth, and nothing else."""
        customers.connect("ws", EXTERNAL_ID)
        assert self.a_day_later(customers) == 1
        assert [call.method for call in customers.keys.calls] == ["may_assume"] * 3

    def test_once_a_day(self, customers: Customers) -> None:
        """Not right after connecting, and not twice."""
        customers.connect("ws", EXTERNAL_ID)
        early = customers.sweep.refusals()
        self.a_day_later(customers)
        assert (early, customers.sweep.refusals()) == (0, 0)

    def test_one_that_lets_others_in_is_flagged_and_affects_nobody(self, customers: Customers) -> None:
        """The owner sees since when and which step; the operator is told; nothing is affected (INV-8)."""
        connection = customers.connect("ws", EXTERNAL_ID)
        customers.keep()
        customers.keys.lets_in = lambda external_id: external_id is None
        with capture_logs() as logs:
            self.a_day_later(customers)
        view = shown(customers)
        assert (view.health, view.health_since) == ("flagged", customers.clock.now())
        assert [step.name for step in view.steps if step.outcome is StepOutcome.FAILED] == [verification.REFUSES_NONE]
        assert [step.name for step in view.steps] == NAMES
        expected = {"workspace_id": "ws", "connection_id": str(connection.id), "log_level": "error"}
        assert logs == [{"event": "sweep.role_lets_others_in", **expected}]
        assert (customers.byok.affected("ws").connections, customers.byok.affected("ws").secrets) == ([], [])

    def test_the_flag_keeps_its_time_and_goes(self, customers: Customers) -> None:
        """Since when is the first day's; a role that was mended loses it the day after."""
        customers.connect("ws", EXTERNAL_ID)
        customers.keys.lets_in = lambda external_id: True
        self.a_day_later(customers)
        first = shown(customers).health_since
        self.a_day_later(customers)
        second = shown(customers).health_since
        customers.keys.lets_in = lambda external_id: False
        self.a_day_later(customers)
        assert (first == second, shown(customers).health) == (True, "healthy")

    def test_what_is_not_learnt_comes_again_within_the_hour(self, customers: Customers) -> None:
        """AWS did not answer: the flag stays as it is."""
        customers.connect("ws", EXTERNAL_ID)
        customers.keys.fail(Transient("away"))
        self.a_day_later(customers)
        view = shown(customers)
        customers.clock.sleep(3601)
        assert (view.health, customers.sweep.refusals()) == ("healthy", 1)

    @pytest.mark.parametrize(
        "error", [Denied("no", state=KeyState.ROLE_REFUSED), Transient("away")], ids=["refused", "away"]
    )
    @pytest.mark.parametrize("is_flagged", [True, False])
    def test_refusals_mean_nothing_where_the_right_external_id_is_not_accepted(
        self, customers: Customers, error: KeyServiceError, is_flagged: bool
    ) -> None:
        """Our own credentials may be what is refused: flag and steps stay, and it comes again within the hour."""
        customers.connect("ws", EXTERNAL_ID)
        customers.keys.lets_in = lambda external_id: is_flagged
        self.a_day_later(customers)
        before = shown(customers)
        customers.keys.lets_in = lambda external_id: False
        fail_from(customers, 3 if isinstance(error, Transient) else 1, error)
        self.a_day_later(customers)
        customers.keys.fail(None)
        customers.clock.sleep(3601)
        assert (before.health == "flagged", shown(customers)) == (is_flagged, before)
        assert customers.sweep.refusals() == 1

    def test_a_failing_connection_shows_its_failure_first(self, customers: Customers) -> None:
        """What fails is to be mended first; the flag comes back into sight after it."""
        connection = customers.connect("ws", EXTERNAL_ID)
        customers.keys.lets_in = lambda external_id: True
        self.a_day_later(customers)
        customers.keys.fail(Denied("no", state=KeyState.KEY_DISABLED), connection)
        customers.sweep.probes()
        assert shown(customers).health == "key_disabled"

    def test_one_that_goes_wrong_stops_no_other(self, customers: Customers) -> None:
        """Each connection is on its own."""
        first, second = customers.connect("ws1"), customers.connect("ws2")

        class Away(FakeKeyService):
            def may_assume(self, use: KeyUse, external_id: str | None, seconds: float) -> Permit:
                if use.connection == first:
                    raise Unavailable("away")
                return super().may_assume(use, external_id, seconds)

        customers.keys.__class__ = Away
        with capture_logs():
            self.a_day_later(customers)
        assert {call.use.connection for call in customers.keys.calls} == {second}


def test_every_step_has_its_name() -> None:
    """Names are unique: they are how results of different days meet."""
    assert len(set(NAMES)) == len(NAMES) == 9 + len(Extra)


def test_integrity_is_never_the_customers() -> None:
    """No sentence of a verification blames an owner for what only KMS or we can do."""
    assert "operators were told" in advice.on_verifying(Integrity("no"), "kms:Decrypt")
