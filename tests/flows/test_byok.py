"""Connecting a key takes effect only when the key has shown that it works."""

from __future__ import annotations

from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from broker_core.advice import warnings_for, what_to_do
from broker_core.byok import Byok
from broker_core.errors import (
    AuditUnavailable,
    Conflict,
    Denied,
    Forbidden,
    Invalid,
    KeyState,
    NotFound,
)
from broker_core.model import ConnectionStatus, Plan, Purpose
from broker_core.policies import Extra
from broker_core.ports import KeyUse
from tests.customers import ROLE, Customers

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
        """After every step was passed the connection is the workspace's setting, one version on."""
        before = customers.store.setting("ws").version

        found = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        setting = customers.store.setting("ws")
        assert (setting.connection, setting.version) == (found.connection, before + 1)
        assert (found.is_current, found.passed, found.not_run, found.failed()) == (True, True, [], [])

    def test_tries_role_and_key_before(self, customers: Customers) -> None:
        """Role, canary and what is beyond the two are asked in order, as one audited use for ``verify`` each."""
        connection = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY).connection

        calls = [call.method for call in customers.keys.calls]
        assert calls == ["may_assume"] * 4 + ["encrypt", "decrypt", "decrypt"] + ["permits"] * len(Extra)
        assert {call.use.purpose for call in customers.keys.calls} == {Purpose.VERIFY}
        audited = customers.store.audit_rows()
        assert {intent.connection_id for intent, _ in audited} == {connection.id}
        assert [intent.id for intent, _ in audited] == [call.use.audit_id for call in customers.keys.calls]
        assert all(result is not None for _, result in audited)

    def test_a_multi_region_key_gets_a_warning(self, customers: Customers) -> None:
        """It is connected, and the log says so with ids only."""
        with capture_logs() as logs:
            connection = customers.byok.connect("ws", ROLE, EXTERNAL_ID, MULTI_REGION).connection
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
        first = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY).connection
        second = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY).connection

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

    def test_a_setting_that_changed_meanwhile_stays(self, customers: Customers) -> None:
        """Of two that connect at once one wins; the other is told to try again, and changes nothing."""
        inner: list[object] = []

        def other_connects(use: KeyUse) -> None:
            if not inner:
                inner.append(None)
                inner[0] = customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY).connection

        customers.keys.fail_when(other_connects)
        with pytest.raises(Conflict, match="try again"):
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert customers.store.setting("ws").connection == inner[0]

    def test_a_plan_that_is_lost_meanwhile_enables_nothing(self, customers: Customers) -> None:
        """A verification takes seconds: it is the plan at its end that counts, and the answer says so."""
        customers.keys.fail_when(lambda use: customers.store.put_workspace("ws", Plan.TEAM))

        with pytest.raises(Forbidden) as refused:
            customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY)

        assert refused.value.reason == "plan_required"
        assert customers.store.setting("ws").connection is None

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
    assert not customers.byok.connect("ws", ROLE, EXTERNAL_ID, KEY).is_current
    customers.clock.sleep(3600)

    assert customers.sweep.probes() == 0
    assert ConnectionStatus.PENDING in [row.status for row in customers.store._connections.values()]
