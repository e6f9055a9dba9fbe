"""The key service against an AWS that enforces: every way of revoking, every way of failing, and what the log shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import boto3
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from broker_core import telemetry
from broker_core.adapters.aws_clients import AwsClients, signed_with
from broker_core.adapters.key_service import KmsKeyService
from broker_core.context import for_secret
from broker_core.dev.aws import AwsDouble, Call, Credentials, CustomerAccount, Fault, document, statement
from broker_core.errors import Denied, KeyServiceError, KeyState, Misconfigured, Transient
from broker_core.model import Blob, Purpose
from broker_core.policies import Action, key_policy, trust_policy
from broker_core.secret import Plaintext
from tests.aws_setup import BrokerSide, Customer

SECONDS = 10.0


@pytest.fixture(scope="module")
def broker_side(aws: AwsDouble) -> BrokerSide:
    return BrokerSide(aws)


@pytest.fixture
def side(broker_side: BrokerSide) -> Iterator[BrokerSide]:
    """One account of ours for the module: making its clients takes longer than a test."""
    yield broker_side
    broker_side.double.faults.clear()


@pytest.fixture
def customer(side: BrokerSide) -> Customer:
    return side.customer()


@pytest.fixture
def service(side: BrokerSide) -> KmsKeyService:
    return side.key_service()


def encrypted(service: KmsKeyService, customer: Customer, value: bytes = b"value") -> Blob:
    return service.encrypt(customer.use(Purpose.ENCRYPT), Plaintext(value), SECONDS).blob


def decrypted(service: KmsKeyService, customer: Customer, blob: Blob, seconds: float = SECONDS) -> bytes:
    with service.decrypt(customer.use(), blob, seconds).value.reveal() as view:
        return bytes(view)


def calls_of(side: BrokerSide, customer: Customer) -> list[Call]:
    """What reached the customer's account."""
    return [call for call in side.double.trail.calls if call.owner == customer.account.account.account_id]


def actions(side: BrokerSide, customer: Customer) -> list[str]:
    wanted = ("sts:AssumeRole", "kms:Encrypt", "kms:Decrypt")
    return [call.action for call in calls_of(side, customer) if call.action in wanted]


class TestWhatTheCustomerSees:
    def test_a_use_is_one_assume_role_and_one_operation(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService
    ) -> None:
        """Strict: nothing is shared, nothing more is asked."""
        decrypted(service, customer, encrypted(service, customer))
        assert actions(side, customer) == ["sts:AssumeRole", "kms:Encrypt", "sts:AssumeRole", "kms:Decrypt"]

    def test_the_log_shows_purpose_audit_id_and_context(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService
    ) -> None:
        """CloudTrail tells for every use what it was for, and which audit row it is; the receipt has the same ids."""
        use = customer.use(Purpose.INJECT)
        opened = service.decrypt(use, encrypted(service, customer), SECONDS)
        opened.value.wipe()
        assumed, call = calls_of(side, customer)[-2:]
        assert call.session_name == assumed.session_name == f"axiorank-inject-{use.audit_id}"
        assert dict(call.encryption_context) == dict(use.context)
        assert (opened.receipt.assume_request_id, opened.receipt.kms_request_id) == (
            assumed.request_id,
            call.request_id,
        )

    def test_a_check_reads_no_value(self, side: BrokerSide, customer: Customer, service: KmsKeyService) -> None:
        """What reached KMS was a dry run."""
        service.check(customer.use(Purpose.CHECK), encrypted(service, customer), SECONDS)
        assert calls_of(side, customer)[-1].dry_run is True

    def test_the_blob_is_kms_own_and_decrypts_without_us(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService
    ) -> None:
        """With the AWS SDK alone, a session of the role and the context, the exported blob gives the value."""
        blob = encrypted(service, customer)
        session = self.session_of(side, customer)
        kms = boto3.client("kms", "eu-west-1", endpoint_url=side.double.endpoint, **session)
        context = dict(for_secret(customer.connection.workspace_id, "api", 1))
        assert kms.decrypt(CiphertextBlob=blob.ciphertext, EncryptionContext=context)["Plaintext"] == b"value"
        kms.close()

    def session_of(self, side: BrokerSide, customer: Customer) -> dict[str, str]:
        sts = boto3.client(
            "sts",
            "eu-west-1",
            endpoint_url=side.double.endpoint,
            aws_access_key_id=side.credentials.access_key_id,
            aws_secret_access_key=side.credentials.secret_access_key,
        )
        given = sts.assume_role(
            RoleArn=customer.connection.role_arn, RoleSessionName="me", ExternalId=customer.connection.external_id
        )["Credentials"]
        sts.close()
        return {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
        }


class TestOurPolicies:
    def test_what_we_tell_customers_to_apply_works(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService
    ) -> None:
        """The trust and key policies of the setup, the stricter one included, let exactly our uses through."""
        account, connection = customer.account, customer.connection
        account.account.update_trust(account.role_name, trust_policy(side.account_id, account.external_id))
        account.put_key_policy(key_policy(account.role_arn, workspace_id=connection.workspace_id))
        assert decrypted(service, customer, encrypted(service, customer)) == b"value"
        elsewhere = customer.use(context=for_secret("ws_elsewhere", "api", 1))
        with pytest.raises(Denied):
            service.encrypt(elsewhere, Plaintext(b"value"), SECONDS)

    def test_our_key_policy_can_be_put_by_an_administrator_again(self, customer: Customer) -> None:
        """It does not lock its author out: revoking and giving back stay possible."""
        policy = key_policy(customer.account.role_arn)
        customer.account.put_key_policy(policy)
        customer.account.put_key_policy(policy)
        customer.account.disable_key()
        customer.account.enable_key()

    def test_a_session_can_do_its_one_use_and_no_other(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService
    ) -> None:
        """Another context, or the other action, is denied by the session's own policy: misconfigured, ours."""
        blob = encrypted(service, customer)
        use = customer.use()
        session = service._sessions.get(use, Action.DECRYPT, service._clock.monotonic() + SECONDS)
        client = side.clients.kms("eu-west-1")
        kept = KeptSession(session)
        for attempt in (
            replace(use, context=for_secret(customer.connection.workspace_id, "other", 1)),
            replace(use, context=for_secret(customer.connection.workspace_id, "api", 2)),
        ):
            tight = side.key_service()
            tight._sessions = kept  # type: ignore[assignment]
            with pytest.raises(Misconfigured):
                tight.decrypt(attempt, blob, SECONDS)
        tight = side.key_service()
        tight._sessions = kept  # type: ignore[assignment]
        with pytest.raises(Misconfigured):
            tight.encrypt(use, Plaintext(b"value"), SECONDS)
        with signed_with(session.credentials):
            client.decrypt(CiphertextBlob=blob.ciphertext, EncryptionContext=dict(use.context))


class KeptSession:
    """A session source that hands out one session, whoever asks."""

    def __init__(self, session: object) -> None:
        self._session = session

    def get(self, *_: object) -> object:
        return self._session

    def drop(self, _: object) -> None:
        """It stays."""


REVOCATIONS: dict[str, tuple[Callable[[CustomerAccount], None], KeyState]] = {
    "role removed from the key policy": (CustomerAccount.remove_role_from_key_policy, KeyState.ACCESS_DENIED),
    "key disabled": (CustomerAccount.disable_key, KeyState.KEY_DISABLED),
    "deletion scheduled": (CustomerAccount.schedule_deletion, KeyState.KEY_PENDING_DELETION),
    "external id changed": (lambda account: account.change_external_id("another-external-id"), KeyState.ROLE_REFUSED),
    "role deleted": (CustomerAccount.delete_role, KeyState.ROLE_REFUSED),
}


class TestRevocation:
    @pytest.mark.parametrize("way", REVOCATIONS)
    def test_each_way_has_its_state(self, customer: Customer, service: KmsKeyService, way: str) -> None:
        """Encrypt, decrypt and check are denied at once, with the state that tells the owner what was done."""
        revoke, state = REVOCATIONS[way]
        blob = encrypted(service, customer)
        revoke(customer.account)
        uses: list[Callable[[], object]] = [
            lambda: encrypted(service, customer),
            lambda: decrypted(service, customer, blob),
            lambda: service.check(customer.use(Purpose.CHECK), blob, SECONDS),
        ]
        for use in uses:
            with pytest.raises(Denied) as caught:
                use()
            assert caught.value.state is state

    def test_a_destroyed_key_is_gone(self, side: BrokerSide, customer: Customer, service: KmsKeyService) -> None:
        """After its waiting period, at the second look."""
        blob = encrypted(service, customer)
        customer.account.schedule_deletion()
        side.double.expire_keys()
        with pytest.raises(Denied) as caught:
            decrypted(service, customer, blob)
        assert caught.value.state is KeyState.KEY_GONE
        assert actions(side, customer)[-2:] == ["kms:Decrypt", "kms:Decrypt"]

    def test_a_role_made_again_is_another(self, customer: Customer, service: KmsKeyService) -> None:
        """The same name, and the key policy does not mean it."""
        blob = encrypted(service, customer)
        customer.account.delete_role()
        customer.account.recreate_role()
        with pytest.raises(Denied) as caught:
            decrypted(service, customer, blob)
        assert caught.value.state is KeyState.ACCESS_DENIED

    def test_what_is_given_back_works_again(self, customer: Customer, service: KmsKeyService) -> None:
        """Nothing of ours remembers the refusal."""
        blob = encrypted(service, customer)
        customer.account.disable_key()
        with pytest.raises(Denied):
            decrypted(service, customer, blob)
        customer.account.enable_key()
        assert decrypted(service, customer, blob) == b"value"


class TestOurSide:
    def test_unknown_base_credentials_blame_nobody(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService
    ) -> None:
        """STS does not know us: transient, ours."""
        stranger = side.key_service(Credentials("AKIAZZZZZZZZZZZZZZZZ", "x" * 40))
        with pytest.raises(Transient) as caught:
            stranger.decrypt(customer.use(), encrypted(service, customer), SECONDS)
        assert caught.value.aws_code == "InvalidClientTokenId"

    def test_a_control_role_that_works_lets_the_customer_be_named(self, side: BrokerSide, customer: Customer) -> None:
        """Their trust policy changed, ours stands."""
        trust = document(
            statement("Allow", "sts:AssumeRole", Principal={"AWS": f"arn:aws:iam::{side.account_id}:root"})
        )
        service = side.key_service(control_role_arn=side.account.create_role("control", trust))
        customer.account.change_external_id("another-external-id")
        with pytest.raises(Denied) as caught:
            encrypted(service, customer)
        assert caught.value.state is KeyState.ROLE_REFUSED

    def test_a_lost_control_role_blames_nobody(self, side: BrokerSide, customer: Customer) -> None:
        """One bad deploy of ours does not report every customer as revoked."""
        service = side.key_service(control_role_arn=f"arn:aws:iam::{side.account_id}:role/none-such")
        customer.account.change_external_id("another-external-id")
        with pytest.raises(Transient):
            encrypted(service, customer)


class TestFailure:
    @pytest.mark.parametrize("action", ["sts:AssumeRole", "kms:Decrypt"])
    @pytest.mark.parametrize(
        "fault",
        [
            {"error": "ThrottlingException"},
            {"error": "InternalFailure", "status": 500},
            {"error": "ServiceUnavailable", "status": 503},
            {"reset": True},
        ],
        ids=["throttled", "500", "503", "reset"],
    )
    def test_it_is_transient_and_a_moment_later_it_works(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService, action: str, fault: dict[str, object]
    ) -> None:
        """For good: transient. Twice: the third attempt succeeds within the same use."""
        blob = encrypted(service, customer)
        account = customer.account.account.account_id
        added = side.double.faults.add(Fault(action=action, account=account, **fault))  # type: ignore[arg-type]
        with pytest.raises(Transient):
            decrypted(service, customer, blob)
        side.double.faults.remove(added)
        side.double.faults.add(Fault(action=action, account=account, count=2, **fault))  # type: ignore[arg-type]
        assert decrypted(service, customer, blob) == b"value"

    @pytest.mark.parametrize("action", ["sts:AssumeRole", "kms:Decrypt"])
    def test_silence_is_transient_within_the_uses_seconds(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService, action: str
    ) -> None:
        """The read timeout follows what the use may still take."""
        blob = encrypted(service, customer)
        side.double.faults.add(Fault(action=action, account=customer.account.account.account_id, hang=True))
        with pytest.raises(Transient):
            decrypted(service, customer, blob, seconds=0.3)

    def test_a_silent_key_takes_its_own_slots_and_nobody_elses(self, side: BrokerSide, customer: Customer) -> None:
        """With one customer's KMS hanging and more uses than slots, another customer's goes through."""
        service = side.key_service(per_connection_concurrency=2)
        other = side.customer()
        blob, others = encrypted(service, customer), encrypted(service, other)
        side.double.faults.add(Fault(action="kms:Decrypt", key=customer.connection.key_arn, hang=True))
        failed: list[KeyServiceError] = []

        def try_it() -> None:
            try:
                decrypted(service, customer, blob, seconds=1.0)
            except KeyServiceError as error:
                failed.append(error)

        threads = [threading.Thread(target=try_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert decrypted(service, other, others) == b"value"
        for thread in threads:
            thread.join(20)
        assert [isinstance(error, Transient) for error in failed] == [True] * 4

    def test_a_session_that_kms_does_not_know_yet_is_replaced(
        self, side: BrokerSide, customer: Customer, service: KmsKeyService
    ) -> None:
        """One UnrecognizedClient: a second AssumeRole, then it works."""
        blob = encrypted(service, customer)
        before = len(actions(side, customer))
        fault = Fault(
            action="kms:Decrypt", key=customer.connection.key_arn, count=1, error="UnrecognizedClientException"
        )
        side.double.faults.add(fault)
        assert decrypted(service, customer, blob) == b"value"
        assert actions(side, customer)[before:] == ["sts:AssumeRole", "kms:Decrypt"] * 2


class TestReuse:
    def test_uses_of_a_workspace_share_a_session(self, side: BrokerSide, customer: Customer) -> None:
        """Different secrets, one purpose: one AssumeRole, and the shared policy allows each."""
        service = side.key_service(sts_reuse_seconds=300)
        names = ["one", "two", "three"]
        workspace = customer.connection.workspace_id
        blobs = [
            service.encrypt(customer.use(Purpose.ENCRYPT, for_secret(workspace, name, 1)), Plaintext(b"v"), SECONDS)
            for name in names
        ]
        receipts = set()
        for name, sealed in zip(names, blobs, strict=True):
            opened = service.decrypt(customer.use(context=for_secret(workspace, name, 1)), sealed.blob, SECONDS)
            opened.value.wipe()
            receipts.add(opened.receipt.session_name)
        assert actions(side, customer).count("sts:AssumeRole") == 2
        assert len(receipts) == 1

    def test_disabling_the_key_still_ends_it_at_once(self, side: BrokerSide, customer: Customer) -> None:
        """A shared session delays only what the trust policy says."""
        service = side.key_service(sts_reuse_seconds=300)
        blob = encrypted(service, customer)
        assert decrypted(service, customer, blob) == b"value"
        customer.account.disable_key()
        with pytest.raises(Denied) as caught:
            decrypted(service, customer, blob)
        assert caught.value.state is KeyState.KEY_DISABLED
        customer.account.enable_key()
        customer.account.remove_role_from_key_policy()
        with pytest.raises(Denied):
            decrypted(service, customer, blob)

    def test_eight_threads_and_one_flight(self, side: BrokerSide, customer: Customer) -> None:
        """Misses at the same time share one AssumeRole."""
        service = side.key_service(sts_reuse_seconds=300, per_connection_concurrency=8)
        blob = encrypted(service, customer)
        before = actions(side, customer).count("sts:AssumeRole")
        values: list[bytes] = []
        threads = [threading.Thread(target=lambda: values.append(decrypted(service, customer, blob))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert values == [b"value"] * 8
        assert actions(side, customer).count("sts:AssumeRole") - before == 1


class TestTheSwap:
    def test_many_threads_and_tenants_never_meet(self, side: BrokerSide) -> None:
        """One client, several tenants at once: each blob decrypts, and in its own account's log alone."""
        service = side.key_service()
        customers = [side.customer() for _ in range(4)]
        blobs = [encrypted(service, customer, customer.connection.workspace_id.encode()) for customer in customers]
        wrong: list[str] = []

        def work(customer: Customer, blob: Blob) -> None:
            for _ in range(5):
                if decrypted(service, customer, blob) != customer.connection.workspace_id.encode():
                    wrong.append(customer.connection.workspace_id)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(customers, blobs, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wrong == []
        for customer in customers:
            assert actions(side, customer).count("kms:Decrypt") == 5

    def test_a_customers_client_without_a_session_sends_nothing(self, side: BrokerSide, customer: Customer) -> None:
        """Not even under base credentials that the key policy would let in."""
        clients: AwsClients = side.clients
        with pytest.raises(LookupError):
            clients.kms("eu-west-1").encrypt(KeyId=customer.connection.key_arn, Plaintext=b"value")
        assert actions(side, customer) == []


class TestSpans:
    def test_a_use_is_two_spans_with_ids_and_no_values(
        self, customer: Customer, service: KmsKeyService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """sts.AssumeRole and kms.Decrypt, with request id, Region, purpose and audit id."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
        blob = encrypted(service, customer, b"sentinel-3f9a")
        exporter.clear()
        audit_id = uuid4()
        opened = service.decrypt(customer.use(audit_id=audit_id), blob, SECONDS)
        opened.value.wipe()
        spans = exporter.get_finished_spans()
        assert [span.name for span in spans] == ["sts.AssumeRole", "kms.Decrypt"]
        for span, request_id in zip(
            spans, (opened.receipt.assume_request_id, opened.receipt.kms_request_id), strict=True
        ):
            attributes = dict(span.attributes or {})
            assert attributes["aws.request_id"] == request_id
            assert attributes["aws.region"] == "eu-west-1"
            assert (attributes["broker.purpose"], attributes["broker.audit"]) == ("inject", str(audit_id))
            assert set(attributes) <= telemetry.ATTRIBUTES
            assert "sentinel-3f9a" not in span.to_json()

    def test_a_refusal_marks_its_span_with_codes_alone(
        self, customer: Customer, service: KmsKeyService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Our code and AWS's; no event, no exception text."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
        customer.account.disable_key()
        with pytest.raises(Denied):
            encrypted(service, customer)
        span = exporter.get_finished_spans()[-1]
        attributes = dict(span.attributes or {})
        assert (attributes["broker.code"], attributes["broker.aws_code"]) == ("key_disabled", "DisabledException")
        assert (span.status.is_ok, span.status.description, span.events) == (False, None, ())
