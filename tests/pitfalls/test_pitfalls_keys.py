"""Pitfalls 30 to 46: customer keys, on an AWS that enforces. Time is moved in rows, not waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from uuid import uuid4

import psycopg
import pytest
import redis

from broker_core import context, policies
from broker_core.advice import warnings_for
from broker_core.dev.aws import Call, CustomerAccount, Fault, document, statement
from broker_core.dev.wiring import clients_for
from broker_core.errors import BrokerError, ConfigurationError, Conflict, Integrity, Misconfigured, Transient
from broker_core.model import EventState
from broker_core.settings import Settings
from tests.databases import plain
from tests.live import OUR_ACCOUNT, Live
from tests.pitfalls.agent import NAME
from tests.sentinel import Search, keys_of, text_sentinel
from tests.waiting import wait_until

USED = ["sts:AssumeRole", "kms:Decrypt"]


@pytest.fixture
def customer(live: Live) -> CustomerAccount:
    """The workspace's customer, connected, with one secret under their key; calls before that are forgotten."""
    customer = live.customer()
    live.connect(customer)
    live.store(NAME, value="a-value-under-their-key")
    live.aws.trail.clear()
    return customer


def actions(live: Live) -> list[str]:
    """What AWS was asked."""
    return [call.action for call in live.aws.trail.calls]


def probe_now(live: Live) -> None:
    """Let the sweep come round to every connection."""
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
        connection.execute("UPDATE byok_connections SET next_probe_at = now()")
    live.app.sweep.probes()


def affected(live: Live) -> int:
    """How many connections and secrets the owner sees as affected."""
    found = live.app.byok.affected(live.workspace)
    return len(found.connections) + len(found.secrets)


def steps_of(live: Live, customer: CustomerAccount) -> Mapping[str, str]:
    """What an attempt to connect shows, step by step."""
    shown = live.app.byok.connect(live.workspace, customer.role_arn, customer.external_id, customer.key_arn)
    return {step.name: step.outcome.value for step in shown.steps}


class TestContext:
    def test_pitfall_30_one_for_each_secret_and_version(self, live: Live, customer: CustomerAccount) -> None:
        """Every call to KMS names workspace, secret and version."""
        live.store("gitlab")
        live.store(NAME, "secret.rotated", 2, bare=True)
        live.send(NAME)
        asked = [dict(call.encryption_context) for call in live.aws.trail.calls if call.service == "kms"]
        names = ("axiorank:workspace", "axiorank:secret", "axiorank:version")
        expected = [("gitlab", "1"), (NAME, "2"), (NAME, "2")]
        assert asked == [dict(zip(names, (live.workspace, *one), strict=True)) for one in expected]

    def test_pitfall_37_it_is_derived_from_the_row(self, live: Live, customer: CustomerAccount) -> None:
        """What stands in the row alone makes the context: a row that was renamed does not decrypt, and the fault is
        named ours, not the customer's."""
        with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
            connection.execute("UPDATE broker_secrets SET name = 'renamed' WHERE name = %s", (NAME,))
        with pytest.raises(Integrity):
            live.send("renamed")
        assert affected(live) == 0

    def test_pitfall_37_its_form_is_frozen(self) -> None:
        """The keys and texts of a context never change: every stored blob was made under them."""
        assert dict(context.for_secret("ws_1", "github", 7)) == {
            "axiorank:workspace": "ws_1",
            "axiorank:secret": "github",
            "axiorank:version": "7",
        }


class TestNoSecondDoor:
    def test_pitfall_31_nothing_falls_back(self, live: Live, customer: CustomerAccount) -> None:
        """While the customer says no, a new value waits; no blob is made with another key, and the old one stays."""
        before = live.candidate(NAME).blob
        customer.disable_key()
        live.publish(NAME, "secret.rotated", 2, bare=True)
        assert live.work() == [EventState.REFUSED]
        assert (live.candidate(NAME).blob, live.candidate(NAME).version) == (before, 1)

    def test_pitfall_31_a_wrong_context_is_not_tried_another_way(self, live: Live, customer: CustomerAccount) -> None:
        """Where the context does not match, one Decrypt was asked and no other cipher tried."""
        with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
            connection.execute("UPDATE broker_secrets SET name = 'renamed' WHERE name = %s", (NAME,))
        with pytest.raises(Integrity):
            live.send("renamed")
        assert actions(live) == USED

    def test_pitfall_45_claims_touch_no_disk(self, live: Live, claims_valkey: str) -> None:
        """A waiting value's ciphertext is in a server that writes no file, and its key is not there."""
        live.publish(NAME)
        client = redis.Redis.from_url(claims_valkey)
        assert client.dbsize() == 1
        assert (client.config_get("save"), client.config_get("appendonly")) == ({"save": ""}, {"appendonly": "no"})
        client.close()

    def test_pitfall_45_no_half_is_a_value(self, live: Live, claims_valkey: str) -> None:
        """Neither the claim nor the event's row holds a form of the waiting value."""
        value = text_sentinel("waiting", pieces=1)
        live.publish(NAME, value=value.value.decode())
        with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
            rows = connection.execute("SELECT secret_events::text FROM secret_events").fetchall()
        halves = keys_of(claims_valkey) + repr(rows).encode()
        assert Search([value])("both halves", halves) == []


class TestExternalId:
    def test_pitfall_32_a_role_that_takes_any_is_refused(self, live: Live) -> None:
        """A role that can be assumed without the external id, or with a wrong one, does not get connected."""
        customer = live.customer()
        principal = {"AWS": f"arn:aws:iam::{OUR_ACCOUNT}:root"}
        open_to_all = document(statement("Allow", "sts:AssumeRole", Principal=principal))
        customer.account.update_trust(customer.role_name, open_to_all)
        steps = steps_of(live, customer)
        assert steps["role_refuses_no_external_id"] == steps["role_refuses_wrong_external_id"] == "failed"
        assert live.app.store.setting(live.workspace).connection is None

    def test_pitfall_32_anothers_is_refused(self, live: Live, customer: CustomerAccount) -> None:
        """An external id that a workspace has used is never another's, whoever names it."""
        live.workspace = f"{live.workspace}_2"
        live.app.store.put_workspace(live.workspace, "enterprise")
        with pytest.raises(Conflict):
            live.app.byok.connect(live.workspace, customer.role_arn, customer.external_id, customer.key_arn)

    def test_pitfall_32_it_is_the_stored_one(self, live: Live, customer: CustomerAccount) -> None:
        """Every AssumeRole carries the external id of the connection's row."""
        live.send(NAME)
        (assumed,) = live.aws.trail.of("sts:AssumeRole")
        assert assumed.parameters["externalId"] == customer.external_id

    def test_pitfall_39_the_principal_is_the_account(self, live: Live) -> None:
        """Customers trust our account's root, which no deploy of ours makes again."""
        trust = policies.trust_policy(OUR_ACCOUNT, "an-external-id-of-theirs")
        assert [one["Principal"] for one in trust["Statement"]] == [{"AWS": f"arn:aws:iam::{OUR_ACCOUNT}:root"}]


class TestProbing:
    def test_pitfall_33_a_disabled_key_is_not_connected(self, live: Live) -> None:
        """A key that ``DescribeKey`` would find is tried with a canary, and refused."""
        customer = live.customer()
        customer.disable_key()
        live.aws.trail.clear()
        assert "failed" in steps_of(live, customer).values()
        assert not {"kms:DescribeKey", "kms:GetKeyPolicy"} & set(actions(live))

    @pytest.mark.parametrize("left", ["kms:Encrypt", "kms:Decrypt"])
    def test_pitfall_34_both_operations_are_probed(self, live: Live, customer: CustomerAccount, left: str) -> None:
        """Whichever of Encrypt and Decrypt is taken away, the next probe finds it."""
        kept = {**customer.use_statement(), "Action": left}
        customer.put_key_policy(customer.key_policy(kept, use=False))
        probe_now(live)
        assert affected(live) == 1

    def test_pitfall_40_what_heals_is_seen(self, live: Live, customer: CustomerAccount) -> None:
        """When access returns the next probe closes the failure, by itself."""
        customer.disable_key()
        probe_now(live)
        assert affected(live) == 1
        customer.enable_key()
        probe_now(live)
        assert affected(live) == 0


class TestBlame:
    @pytest.mark.parametrize(
        "fault",
        [
            Fault("kms:Decrypt", error="ThrottlingException"),
            Fault("kms:Decrypt", error="KMSInternalException"),
            Fault("kms:Decrypt", error="SomethingNew", status=400),
            Fault("kms:Decrypt", reset=True),
            Fault("sts:AssumeRole", error="Throttling"),
        ],
        ids=lambda fault: fault.error or "reset",
    )
    def test_pitfall_35_trouble_is_not_revocation(self, live: Live, customer: CustomerAccount, fault: Fault) -> None:
        """Throttling, AWS's own faults, unknown codes and resets are transient: nobody is reported."""
        live.aws.faults.add(fault)
        with pytest.raises(Transient):
            live.send(NAME)
        probe_now(live)
        assert affected(live) == 0

    def test_pitfall_42_our_own_policy_is_ours(self, live: Live, customer: CustomerAccount) -> None:
        """A session policy that lacks the allow is a fault of ours, ``misconfigured``, and nobody is affected."""
        says = "User is not authorized to perform: kms:Decrypt because no session policy allows the kms:Decrypt action"
        live.aws.faults.add(Fault("kms:Decrypt", error="AccessDeniedException", message=says))
        with pytest.raises(Misconfigured):
            live.send(NAME)
        assert affected(live) == 0

    def test_pitfall_42_a_shared_session_opens_every_secret(
        self, live_with: Callable[..., Live], way_out: object
    ) -> None:
        """In reuse mode the session that one secret's use made is good for the workspace's next secret."""
        live = live_with({"BROKER_STS_REUSE_SECONDS": "600"}, upstream=way_out)
        live.connect(live.customer())
        live.store("one")
        live.store("two")
        live.aws.trail.clear()
        assert [live.send(name).status for name in ("one", "two")] == [200, 200]
        assert actions(live) == ["sts:AssumeRole", "kms:Decrypt", "kms:Decrypt"]

    def test_pitfall_43_a_bad_deploy_of_ours(
        self, live: Live, customer: CustomerAccount, live_with: Callable[..., Live], way_out: object
    ) -> None:
        """Where our own control role cannot be assumed either, a refused role blames no customer."""
        lost = f"arn:aws:iam::{OUR_ACCOUNT}:role/none-such-{uuid4().hex[:8]}"
        deployed = live_with({"BROKER_CONTROL_ROLE_ARN": lost}, upstream=way_out)
        deployed.workspace = live.workspace
        live.aws.faults.add(Fault("sts:AssumeRole", error="AccessDenied"))  # as an SCP on our account does
        with pytest.raises(Transient):
            deployed.send(NAME)
        probe_now(deployed)
        assert affected(deployed) == 0


class TestSessions:
    def test_pitfall_36_one_for_each_use(self, live: Live, customer: CustomerAccount) -> None:
        """Strict, the default: each use assumes the role once, in a session of its own."""
        for _ in range(3):
            live.send(NAME)
        assert actions(live) == USED * 3
        assert len({call.access_key for call in live.aws.trail.of("kms:Decrypt")}) == 3

    def test_pitfall_36_sharing_has_its_own_name_and_policy(
        self, live_with: Callable[..., Live], way_out: object
    ) -> None:
        """In reuse mode a session is one workspace's and one purpose's; its policy says the workspace."""
        live = live_with({"BROKER_STS_REUSE_SECONDS": "600"}, upstream=way_out)
        live.connect(live.customer())
        live.aws.trail.clear()
        live.store(NAME)
        live.send(NAME)
        live.send(NAME)
        assumed: list[Call] = live.aws.trail.of("sts:AssumeRole")
        assert [str(call.session_name).split("-")[1] for call in assumed] == ["encrypt", "inject"]
        assert all(live.workspace in call.parameters["policy"] for call in assumed)

    def test_pitfall_38_one_silent_key_stops_nobody(self, live: Live, customer: CustomerAccount) -> None:
        """While one customer's KMS hangs, another workspace's use goes through."""
        first = live.workspace
        live.workspace = f"{first}_2"
        live.app.store.put_workspace(live.workspace, "enterprise")
        live.connect(live.customer())
        live.store(NAME)
        live.aws.faults.add(Fault("kms:*", key=customer.key_arn, hang=True))
        ended: list[BaseException | int] = []
        silent = threading.Thread(target=_send_for, args=(live, first, ended))
        silent.start()
        wait_until(lambda: live.aws.faults.hanging == 1)
        assert live.send(NAME).status == 200
        assert ended == []
        live.aws.faults.clear()
        silent.join(30)
        assert not silent.is_alive()


def _send_for(live: Live, workspace: str, ended: list[BaseException | int]) -> None:
    try:
        ended.append(live.send(NAME, workspace_id=workspace).status)
    except BrokerError as error:
        ended.append(error)


class TestRegions:
    def test_pitfall_41_the_region_is_the_keys(self, live: Live, customer: CustomerAccount) -> None:
        """Every call goes to the Region of the stored key's ARN, and nowhere else."""
        live.send(NAME)
        assert {call.region for call in live.aws.trail.calls} == {customer.key_arn.split(":")[3]}

    def test_pitfall_41_a_multi_region_key_is_warned_about(self) -> None:
        """The owner of an ``mrk-`` key hears that disabling one Region leaves the others."""
        key = "arn:aws:kms:eu-west-1:222222222222:key/mrk-00000000000040008000000000000000"
        assert any("Region" in warning for warning in warnings_for(key))


class TestNames:
    def test_pitfall_44_a_deleted_name_starts_no_version_again(self, live: Live) -> None:
        """After a deletion the name's versions go on: an old blob's context never becomes valid again."""
        live.store(NAME, version=3)
        live.publish(NAME, "secret.deleted", 4)
        with pytest.raises(Conflict):
            live.publish(NAME, version=3)
        live.publish(NAME, version=1)
        assert live.work()[-1] is EventState.SUPERSEDED
        live.store(NAME, version=5)
        assert live.candidate(NAME).version == 5


class TestEndpoints:
    @pytest.mark.parametrize(
        "url",
        [
            "https://kms.evil.test",
            "https://kms.eu-west-1.amazonaws.com.evil.test",
            "http://169.254.169.254",
            "http://10.0.0.1",
        ],
    )
    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_STS"])
    def test_pitfall_46_somebody_elses_endpoint(self, environment: dict[str, str], name: str, url: str) -> None:
        """An endpoint that is neither AWS's own nor loopback stops the start."""
        with pytest.raises(ConfigurationError, match=name):
            Settings.from_environment({**environment, name: url})

    def test_pitfall_46_no_ambient_proxy(
        self, live_with: Callable[..., Live], way_out: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Proxies and CA bundles of the environment are not used for STS and KMS."""
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere")
        live = live_with(upstream=way_out)
        live = live_with(upstream=way_out, clients=clients_for(live.environment))
        live.connect(live.customer())
        live.store(NAME)
        assert live.send(NAME).status == 200
