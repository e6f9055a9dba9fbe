"""Taking values in, end to end on the AWS double: which cipher, which calls, and what the customer can see and do."""

from __future__ import annotations

import base64
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

from broker_core.dev.aws import AwsDouble, CustomerAccount, document, statement
from broker_core.dev.aws import Call as AwsCall
from broker_core.dev.upstream import SampleUpstream
from broker_core.errors import Integrity, Transient
from broker_core.inject.call import Call
from broker_core.model import CipherName, EventState, Purpose, SecretStatus
from broker_core.policies import Action, session_policy, shared_session_policy, to_json
from tests.live import AGENT, OUR_ACCOUNT, Live, live_app

USED = ("sts:AssumeRole", "kms:Encrypt", "kms:Decrypt")


def calls(live: Live, customer: CustomerAccount) -> list[AwsCall]:
    """What was asked of the customer's role and key, oldest first."""
    account = customer.account.account_id
    return [call for call in live.aws.trail.calls if call.owner == account and call.action in USED]


def actions(live: Live, customer: CustomerAccount, after: int = 0) -> list[str]:
    """The actions of ``calls``, from the given place on."""
    return [call.action for call in calls(live, customer)[after:]]


def opened_by_the_customer(live: Live, customer: CustomerAccount, blob: bytes, context: dict[str, str]) -> bytes:
    """What the customer's administrator decrypts, once they let themselves; with boto3 and nothing of ours."""
    root = {"AWS": f"arn:aws:iam::{customer.account.account_id}:root"}
    customer.put_key_policy(customer.key_policy(statement("Allow", "kms:Decrypt", Principal=root, Resource="*")))
    client = boto3.client(
        "kms",
        endpoint_url=live.aws.endpoint,
        region_name="eu-west-1",
        aws_access_key_id=customer.account.account_id,
        aws_secret_access_key="test",
        config=Config(proxies={}),
    )
    try:
        plaintext: bytes = client.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"]
    finally:
        client.close()
    return plaintext


class TestTheBlob:
    def test_is_the_customers_to_open(self, live: Live) -> None:
        """The stored blob is KMS's CiphertextBlob, byte for byte: the customer opens it with plain boto3 and the
        documented context."""
        customer = live.customer()
        live.connect(customer)
        live.store(value="theirs-to-open")
        blob = live.candidate().blob
        assert blob.cipher is CipherName.KMS
        context = {"axiorank:workspace": live.workspace, "axiorank:secret": "github", "axiorank:version": "1"}
        assert opened_by_the_customer(live, customer, blob.ciphertext, context) == b"theirs-to-open"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("axiorank:workspace", "ws_other"), ("axiorank:secret", "gitlab"), ("axiorank:version", "2")],
    )
    def test_opens_in_no_other_place(self, live: Live, name: str, value: str) -> None:
        """With another workspace, name or version in the context not even the customer opens it."""
        customer = live.customer()
        live.connect(customer)
        live.store()
        context = {"axiorank:workspace": live.workspace, "axiorank:secret": "github", "axiorank:version": "1"}
        with pytest.raises(Exception, match="InvalidCiphertext"):
            opened_by_the_customer(live, customer, live.candidate().blob.ciphertext, context | {name: value})


class TestStrict:
    def test_storing(self, live: Live) -> None:
        """A stored event is one AssumeRole and one Encrypt, whatever the size of its value."""
        customer = live.customer()
        live.connect(customer)
        before = len(calls(live, customer))
        live.store(value="a" * 100)
        live.store("large", value="a" * 20_000)
        assert actions(live, customer, before) == ["sts:AssumeRole", "kms:Encrypt"] * 2

    def test_injecting(self, live: Live) -> None:
        """An injection is one AssumeRole and one Decrypt."""
        customer = live.customer()
        live.connect(customer)
        live.store()
        before = len(calls(live, customer))
        live.send()
        live.send()
        assert actions(live, customer, before) == ["sts:AssumeRole", "kms:Decrypt"] * 2

    @pytest.mark.parametrize(("purpose", "action"), [("encrypt", Action.ENCRYPT), ("inject", Action.DECRYPT)])
    def test_what_the_customer_reads(self, live: Live, purpose: str, action: Action) -> None:
        """The session's name says the purpose and the audit row; its policy allows the one action on the one key under
        the use's context, for the shortest time; the row keeps both request ids."""
        customer = live.customer()
        live.connect(customer)
        live.store()
        live.send()
        use = next(use for use in live.app.store.uses(live.workspace) if use.intent.purpose == Purpose(purpose))
        session = f"axiorank-{purpose}-{use.intent.id}"
        assumed, asked = (call for call in calls(live, customer) if call.session_name == session)
        assert (assumed.action, asked.action) == ("sts:AssumeRole", action.value)
        context: Any = {"axiorank:workspace": live.workspace, "axiorank:secret": "github", "axiorank:version": "1"}
        assert dict(asked.encryption_context) == context
        assert assumed.parameters["policy"] == to_json(session_policy(action, customer.key_arn, context))
        assert int(assumed.parameters["durationSeconds"]) == 900
        assert use.result is not None
        receipt = use.result.receipt
        assert (receipt.assume_request_id, receipt.kms_request_id) == (assumed.request_id, asked.request_id)

    def test_nothing_is_shared(self, live: Live) -> None:
        """Every call to KMS was made in a session of its own."""
        customer = live.customer()
        live.connect(customer)
        for n in range(3):
            live.store(f"secret-{n}")
            live.send(f"secret-{n}")
        keys = [call.access_key for call in calls(live, customer) if call.action != "sts:AssumeRole"]
        assert len(set(keys)) == len(keys)


class TestReuse:
    def test_fewer_sessions(self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream) -> None:
        """Uses of one purpose share a session, conditioned on the workspace; each purpose has its own; every audit row
        keeps the name of the session that it used."""
        with live_app({**environment, "BROKER_STS_REUSE_SECONDS": "600"}, aws, upstream) as live:
            customer = live.customer()
            live.connect(customer)
            before = len(calls(live, customer))
            for n in range(3):
                live.store(f"secret-{n}")
                live.send(f"secret-{n}")
            made = calls(live, customer)[before:]
            uses = [use for use in live.app.store.uses(live.workspace) if use.intent.secret_name]
        assert [call.action for call in made].count("sts:AssumeRole") == 2
        encrypt, inject = [call for call in made if call.action == "sts:AssumeRole"]
        workspace: Any = {"axiorank:workspace": live.workspace}
        for assumed, action in ((encrypt, Action.ENCRYPT), (inject, Action.DECRYPT)):
            assert assumed.parameters["policy"] == to_json(shared_session_policy(action, customer.key_arn, workspace))
        names = {use.result.receipt.session_name for use in uses if use.result}
        assert names == {encrypt.session_name, inject.session_name}

    def test_never_across_workspaces(
        self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream
    ) -> None:
        """Two workspaces with one role and one key share no session."""
        with live_app({**environment, "BROKER_STS_REUSE_SECONDS": "600"}, aws, upstream) as live:
            customer = live.customer()
            live.connect(customer)
            first, second = live.workspace, f"{live.workspace}_2"
            live.app.store.put_workspace(second, "enterprise")
            allow_two_external_ids(customer, f"{customer.external_id}-2")
            live.app.byok.connect(second, customer.role_arn, f"{customer.external_id}-2", customer.key_arn)
            before = len(calls(live, customer))
            for live.workspace in (first, second, first, second):
                live.store(f"secret-{len(calls(live, customer))}")
            made = calls(live, customer)[before:]
        assert [call.action for call in made].count("sts:AssumeRole") == 2
        encrypted = [call for call in made if call.key_arn]
        workspace_of = {call.access_key: call.encryption_context["axiorank:workspace"] for call in encrypted}
        assert sorted(workspace_of.values()) == sorted((first, second))

    def test_never_across_keys(self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream) -> None:
        """Secrets of one workspace under two keys of one role are opened in two sessions."""
        with live_app({**environment, "BROKER_STS_REUSE_SECONDS": "600"}, aws, upstream) as live:
            customer = live.customer()
            live.connect(customer)
            live.store("under-the-first")
            customer.key_arn = customer.create_key()
            live.connect(customer)
            live.store("under-the-second")
            before = len(calls(live, customer))
            for name in ("under-the-first", "under-the-second") * 2:
                live.send(name)
            made = calls(live, customer)[before:]
        assert [call.action for call in made].count("sts:AssumeRole") == 2
        assert len({(call.access_key, call.key_arn) for call in made if call.key_arn}) == 2


def allow_two_external_ids(customer: CustomerAccount, other: str) -> None:
    """A trust policy for two workspaces of one customer."""
    trust = customer.trust_policy()
    trust["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"] = [customer.external_id, other]
    customer.account.update_trust(customer.role_name, trust)


class TestFollowingTheSetting:
    def test_before_byok(self, live: Live) -> None:
        """A secret stored before BYOK still injects afterwards, from the platform cipher and without AWS, and moves to
        the customer's key at its next rotation."""
        live.store(value="stored-before-byok")
        customer = live.customer()
        live.connect(customer)
        before = len(calls(live, customer))
        live.send()
        assert live.upstream.requests[-1].header("Authorization") == "Bearer stored-before-byok"
        assert live.candidate().blob.cipher is CipherName.PLATFORM
        assert actions(live, customer, before) == []
        live.store(kind="secret.rotated", version=2, value="rotated-under-byok", bare=True)
        assert live.candidate().blob.cipher is CipherName.KMS
        live.send()
        assert live.upstream.requests[-1].header("Authorization") == "Bearer rotated-under-byok"

    def test_after_disconnecting(self, live: Live) -> None:
        """After disconnecting, old blobs still decrypt under the old connection; a rotation goes back to the platform
        cipher."""
        customer = live.customer()
        connection = live.connect(customer)
        live.store("stays", value="value-that-stays")
        live.store("rotates")
        live.app.byok.disconnect(live.workspace)
        live.store("rotates", kind="secret.rotated", version=2, value="value-after-byok", bare=True)
        assert (live.candidate("rotates").blob.cipher, live.candidate("rotates").connection) == (
            CipherName.PLATFORM,
            None,
        )
        assert live.candidate("stays").connection == connection
        for name, value in (("stays", "value-that-stays"), ("rotates", "value-after-byok")):
            live.send(name)
            assert live.upstream.requests[-1].header("Authorization") == f"Bearer {value}"

    def test_another_key(self, live: Live) -> None:
        """With another key connected, old blobs open with the old one and new ones are under the new one."""
        first, second = live.customer(), live.customer()
        live.connect(first)
        live.store("old")
        live.connect(second)
        live.store("new")
        before = len(calls(live, first)), len(calls(live, second))
        live.send("old")
        live.send("new")
        assert actions(live, first, before[0]) == actions(live, second, before[1]) == ["sts:AssumeRole", "kms:Decrypt"]

    def test_setting_of_the_moment(self, live: Live) -> None:
        """What was accepted before BYOK and is taken in afterwards is stored under the customer's key."""
        live.publish()
        live.connect(live.customer())
        assert live.work() == [EventState.STORED]
        assert live.candidate().blob.cipher is CipherName.KMS


def keys(*entries: tuple[str, bytes]) -> dict[str, str]:
    """BROKER_PLATFORM_KEYS; the first encrypts."""
    return {"BROKER_PLATFORM_KEYS": ",".join(f"{kid}:{base64.b64encode(key * 32).decode()}" for kid, key in entries)}


OLD, NEW = ("old", b"o"), ("new", b"n")


class TestPlatformKeys:
    def test_rotation(self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream) -> None:
        """With a new key put first, old blobs still open and new ones are under the new key; with the old key removed
        the old blob is an integrity failure that makes nothing affected, and the new one opens."""
        with live_app(environment | keys(OLD), aws, upstream) as live:
            live.store("first")
        workspace = live.workspace
        with live_app(environment | keys(NEW, OLD), aws, upstream) as live:
            live.workspace = workspace
            assert live.send("first").status == 200
            live.store("second")
            assert live.candidate("first").blob.ciphertext[2:5] == b"old"
            assert live.candidate("second").blob.ciphertext[2:5] == b"new"
        with live_app(environment | keys(NEW), aws, upstream) as live:
            live.workspace = workspace
            assert live.send("second").status == 200
            with pytest.raises(Integrity):
                live.send("first")
            assert {view.status for view in live.app.store.secrets(workspace)} == {SecretStatus.ACTIVE}

    def test_kms(self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream) -> None:
        """With BROKER_PLATFORM_KMS_KEY values of every size are under that key with base credentials, and inject; a
        denial there is nobody's revocation."""
        ours = aws.account(OUR_ACCOUNT)
        root = {"AWS": f"arn:aws:iam::{OUR_ACCOUNT}:root"}
        key_arn = ours.create_key(document(statement("Allow", "kms:*", Principal=root, Resource="*")))
        use = statement("Allow", ["kms:Encrypt", "kms:Decrypt"], Resource=key_arn)
        user = ours.create_user(f"broker-{uuid4().hex}", document(use))
        changed = environment | {
            "BROKER_PLATFORM_KEYS": "",
            "BROKER_PLATFORM_KMS_KEY": key_arn,
            "AWS_ACCESS_KEY_ID": user.access_key_id,
            "AWS_SECRET_ACCESS_KEY": user.secret_access_key,
        }
        with live_app(changed, aws, upstream) as live:
            live.store("small", value="a-small-value")
            live.store("large", value="x" * 20_000, injectionKind="stdio_env", bindingKey="LARGE", agentId=AGENT)
            assert {live.candidate(name).blob.cipher for name in ("small", "large")} == {CipherName.PLATFORM}
            live.send("small")
            assert live.upstream.requests[-1].header("Authorization") == "Bearer a-small-value"
            assert live.app.injector.environment(Call(live.workspace, AGENT, None)).variables == {"LARGE": "x" * 20_000}
            ours.disable_key(key_arn)
            with pytest.raises(Transient):
                live.send("small")
            assert {view.status for view in live.app.store.secrets(live.workspace)} == {SecretStatus.ACTIVE}
