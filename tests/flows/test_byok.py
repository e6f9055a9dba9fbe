"""Connecting a key takes effect only when the key has shown that it works."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from broker_core.audit import Outcome
from broker_core.byok import Byok, warnings_for, what_to_do
from broker_core.errors import (
    AuditUnavailable,
    Conflict,
    Denied,
    Forbidden,
    Integrity,
    Invalid,
    KeyServiceError,
    KeyState,
    Misconfigured,
    NotFound,
    Transient,
)
from broker_core.model import Blob, ConnectionStatus, Plan, Purpose
from broker_core.ports import KeyUse, Opened
from broker_core.secret import Plaintext
from tests.customers import ROLE, Customers
from tests.fakes_keys import FakeKeyService

EXTERNAL_ID = "an-external-id-of-ours"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/11111111-1111-4111-8111-111111111111"
MULTI_REGION = f"arn:aws:kms:eu-west-1:111122223333:key/mrk-{'1' * 32}"


@pytest.fixture
def customers() -> Customers:
    """One Enterprise workspace, ``ws``, without a key of its own."""
    made = Customers()
    made.store.put_workspace("ws", "enterprise")
    return made


class TestConnect:
    def test_makes_a_working_key_current(self, customers: Customers) -> None:
        """After one round trip of a canary the connection is the workspace's setting, one version on."""
        before = customers.store.setting("ws").version

        connection = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        setting = customers.store.setting("ws")
        assert (setting.connection, setting.version) == (connection, before + 1)

    def test_tries_the_key_before(self, customers: Customers) -> None:
        """The key encrypts a canary and gives it back, as two audited uses for ``verify``."""
        connection = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        calls = [(call.method, call.use.purpose) for call in customers.keys.calls]
        assert calls == [("encrypt", Purpose.VERIFY), ("decrypt", Purpose.VERIFY)]
        audited = [(intent.connection_id, result and result.outcome) for intent, result in customers.store.audit_rows()]
        assert audited == [(connection.id, Outcome.OK)] * 2

    def test_a_multi_region_key_gets_a_warning(self, customers: Customers) -> None:
        """It is connected, and the log says so with ids only."""
        with capture_logs() as logs:
            connection = customers.byok.connect("ws", ROLE, EXTERNAL_ID, MULTI_REGION)
        expected = {"workspace_id": "ws", "connection_id": str(connection.id), "log_level": "warning"}
        assert logs == [{"event": "byok.multi_region_key", **expected}]

    def test_any_other_key_gets_none(self, customers: Customers) -> None:
        """There is nothing to say."""
        with capture_logs() as logs:
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)
        assert (logs, warnings_for(KEY)) == ([], ())

    def test_the_warning_says_what_revoking_takes(self) -> None:
        """Several Regions, disabling one leaves the others, and which one is used."""
        (warning,) = warnings_for(MULTI_REGION)
        for part in ("several Regions", "disabling it in one leaves", "only the one in eu-west-1"):
            assert part in warning

    def test_replacing_retires_the_old_one(self, customers: Customers) -> None:
        """The old connection stays for its blobs, and the new one encrypts."""
        first = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)
        second = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert first.id != second.id
        assert customers.store.setting("ws").connection == second

    @pytest.mark.parametrize("plan", [Plan.FREE, Plan.TEAM])
    def test_needs_enterprise(self, customers: Customers, plan: Plan) -> None:
        """Other plans are refused before anything is written or asked."""
        customers.store.put_workspace("ws", plan)

        with pytest.raises(Forbidden) as refused:
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert refused.value.reason == "plan_required"
        assert customers.keys.calls == []

    def test_an_unknown_workspace_is_not_found(self, customers: Customers) -> None:
        """INV-10: what is not there answers so."""
        with pytest.raises(NotFound):
            customers.byok.connect("nobody", ROLE, EXTERNAL_ID, KEY)

    def test_an_alias_is_refused(self, customers: Customers) -> None:
        """What an alias points at can change unseen."""
        with pytest.raises(Invalid) as invalid:
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, "arn:aws:kms:eu-west-1:111122223333:alias/mine")

        assert set(invalid.value.fields) == {"keyArn"}

    def test_anothers_external_id_is_refused(self, customers: Customers) -> None:
        """An external id that was ever used by another workspace is not to be had."""
        customers.connect("other", EXTERNAL_ID)

        with pytest.raises(Conflict):
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert customers.keys.calls == []

    @pytest.mark.parametrize(
        "error",
        [
            Denied("no", state=KeyState.ROLE_REFUSED, aws_code="AccessDenied"),
            Denied("no", state=KeyState.KEY_DISABLED, aws_code="DisabledException"),
            Misconfigured("no", aws_code="InvalidKeyUsageException"),
            Integrity("no", aws_code="InvalidCiphertextException"),
            Transient("no", aws_code="ThrottlingException"),
        ],
        ids=lambda error: error.state.value,
    )
    @pytest.mark.parametrize("step", [1, 2])
    def test_a_key_that_does_not_work_enables_nothing(
        self, customers: Customers, error: KeyServiceError, step: int
    ) -> None:
        """At whichever step it fails, the setting stays, and the error says why and what to do."""
        customers.keys.fail_when(lambda _: error if len(customers.keys.calls) == step else None)
        before = customers.store.setting("ws")

        with pytest.raises(type(error)) as raised:
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert customers.store.setting("ws") == before
        told = raised.value
        assert (told.state, told.aws_code, told.message) == (error.state, error.aws_code, what_to_do(error.state))
        assert told.receipt.kms_request_id

    def test_a_key_that_gives_back_something_else_is_integrity(self, customers: Customers) -> None:
        """Decrypt must give back the very bytes; anything else enables nothing."""

        class Swapped(FakeKeyService):
            def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
                return replace(
                    super().decrypt(use, blob, seconds), value=Plaintext(b"something else of 32 bytes' size")
                )

        customers.keys.__class__ = Swapped
        with pytest.raises(Integrity):
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert customers.store.setting("ws").connection is None

    def test_a_setting_that_changed_meanwhile_stays(self, customers: Customers) -> None:
        """Of two that connect at once one wins; the other is told to try again, and changes nothing."""
        inner: list[object] = []

        def other_connects(use: KeyUse) -> None:
            if not inner:
                inner.append(None)
                inner[0] = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        customers.keys.fail_when(other_connects)
        with pytest.raises(Conflict, match="try again"):
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert customers.store.setting("ws").connection == inner[0]

    def test_asks_nothing_when_the_intent_cannot_be_written(self, customers: Customers) -> None:
        """INV-5 holds for verification too."""

        class NoAudit:
            def begin_use(self, intent: object) -> None:
                raise AuditUnavailable("away")

            def end_use(self, intent: object, result: object) -> None:
                raise AssertionError("no use was begun")

        byok = Byok(customers.store, NoAudit(), customers.keys, customers.clock, uuid4)
        with pytest.raises(AuditUnavailable):
            byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert customers.keys.calls == []
        assert customers.store.setting("ws").connection is None

    def test_takes_no_longer_than_its_time(self, customers: Customers) -> None:
        """A verification whose time is up ends as transient, before the next use of the key."""
        customers.keys.fail_when(lambda _: customers.clock.sleep(60))

        with pytest.raises(Transient):
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert len(customers.keys.calls) == 1


class TestDisconnect:
    def test_goes_back_to_the_platform_and_keeps_old_blobs(self, customers: Customers) -> None:
        """New values follow the platform cipher; what is stored stays under its key."""
        connection = customers.connect()
        customers.keep()

        customers.byok.disconnect("ws")

        assert customers.store.setting("ws").connection is None
        assert customers.candidate().connection == connection

    def test_is_allowed_on_every_plan(self, customers: Customers) -> None:
        """Losing Enterprise never keeps anyone in."""
        customers.connect()
        customers.store.put_workspace("ws", "free")

        customers.byok.disconnect("ws")

        assert customers.store.setting("ws").connection is None

    def test_counts_the_settings_version_up(self, customers: Customers) -> None:
        """Custody that encrypted under the key meanwhile has to start over."""
        customers.connect()
        before = customers.store.setting("ws").version

        customers.byok.disconnect("ws")

        assert customers.store.setting("ws").version == before + 1


class TestAffected:
    def test_re_provisioning_under_a_new_key_ends_it(self, customers: Customers) -> None:
        """After a revocation a new connection and a new value leave nothing affected."""
        old = customers.connect()
        customers.keep()
        customers.keys.fail(Denied("no", state=KeyState.KEY_DISABLED), old)
        customers.sweep.probes()
        during = customers.byok.affected("ws")
        customers.connect()

        customers.keep()

        assert [one.connection_id for one in during.connections] == [old.id]
        assert (customers.byok.affected("ws").connections, customers.byok.affected("ws").secrets) == ([], [])

    def test_shows_only_the_workspaces_own(self, customers: Customers) -> None:
        """INV-10: one workspace's failures are not another's."""
        customers.connect("other")
        customers.keep("other")
        customers.keys.fail(Denied("no", state=KeyState.KEY_DISABLED))
        customers.sweep.probes()

        assert customers.byok.affected("ws").connections == []


def test_every_state_says_what_to_do() -> None:
    """For each state of a key there is one plain sentence."""
    sentences = [what_to_do(state) for state in KeyState]

    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in sentences)
    assert len(set(sentences)) == len(KeyState)


def test_a_pending_connection_is_not_probed(customers: Customers) -> None:
    """What was never verified has no canary and blames nobody."""
    customers.keys.fail(Denied("no"))
    with pytest.raises(Denied):
        customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)
    customers.clock.sleep(3600)

    assert customers.sweep.probes() == 0
    assert ConnectionStatus.PENDING in [row.status for row in customers.store._connections.values()]
