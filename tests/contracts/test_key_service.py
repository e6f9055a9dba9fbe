"""What every KeyService promises: one suite, on the fake and on the real adapter against the AWS double."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from broker_core.context import for_canary, for_secret
from broker_core.dev.aws import AwsDouble, CustomerAccount, Fault
from broker_core.dev.aws.account import document, statement
from broker_core.errors import Denied, Integrity, KeyServiceError, KeyState, Transient
from broker_core.model import Blob, CipherName, Connection, Purpose
from broker_core.policies import Extra
from broker_core.ports import KeyService, KeyUse, Opened
from broker_core.secret import Plaintext
from tests.aws_setup import BrokerSide
from tests.fakes_keys import FakeKeyService

SECONDS = 10.0


@dataclass
class Stage:
    """A service, two customers' connections, and what can happen to the first."""

    service: KeyService
    ours: Connection
    other: Connection
    let_anybody_in: Callable[[], None]
    allow: Callable[[Extra], None]
    revoke: Callable[[], None]
    break_down: Callable[[], None]

    def use(self, purpose: Purpose = Purpose.INJECT, name: str = "api", version: int = 1) -> KeyUse:
        return KeyUse(self.ours, purpose, uuid4(), for_secret(self.ours.workspace_id, name, version))

    def encrypted(self, value: bytes = b"value", **identity: object) -> Blob:
        return self.service.encrypt(self.use(Purpose.ENCRYPT, **identity), Plaintext(value), SECONDS).blob  # type: ignore[arg-type]


def shown(opened: Opened) -> bytes:
    with opened.value.reveal() as view:
        return bytes(view)


class KeyServiceContract:
    """The promises of the port."""

    @pytest.mark.parametrize(
        ("length", "cipher"),
        [
            (1, CipherName.KMS),
            (4096, CipherName.KMS),
            (4097, CipherName.KMS_ENVELOPE),
            (65536, CipherName.KMS_ENVELOPE),
        ],
    )
    def test_a_value_comes_back(self, stage: Stage, length: int, cipher: CipherName) -> None:
        """Up to 4096 bytes directly, above by envelope; any bytes."""
        value = (bytes(range(256)) * 256)[-length:]
        blob = stage.encrypted(value)
        assert blob.cipher is cipher
        assert length == 1 or value not in blob.ciphertext  # any one byte may be in it
        assert shown(stage.service.decrypt(stage.use(), blob, SECONDS)) == value

    @pytest.mark.parametrize("length", [5, 5000])
    @pytest.mark.parametrize("identity", [{"name": "other"}, {"version": 2}])
    def test_another_identity_is_integrity(self, stage: Stage, length: int, identity: dict[str, object]) -> None:
        """A blob that is moved to another row, or an older one put back, does not decrypt."""
        blob = stage.encrypted(b"v" * length)
        with pytest.raises(Integrity):
            stage.service.decrypt(stage.use(**identity), blob, SECONDS)  # type: ignore[arg-type]

    def test_a_canary_is_no_secret(self, stage: Stage) -> None:
        """The context of a canary opens no secret's blob."""
        use = KeyUse(stage.ours, Purpose.PROBE, uuid4(), for_canary(stage.ours.workspace_id, stage.ours.id))
        with pytest.raises(Integrity):
            stage.service.decrypt(use, stage.encrypted(), SECONDS)

    def test_another_customers_key_is_integrity(self, stage: Stage) -> None:
        """The stored key is named; a blob of another key does not decrypt, whatever its context."""
        blob = stage.encrypted()
        use = stage.use()
        with pytest.raises(Integrity):
            stage.service.decrypt(KeyUse(stage.other, use.purpose, use.audit_id, use.context), blob, SECONDS)

    @pytest.mark.parametrize("length", [5, 5000])
    def test_a_changed_blob_is_integrity(self, stage: Stage, length: int) -> None:
        """The last byte flipped."""
        blob = stage.encrypted(b"v" * length)
        changed = Blob(blob.cipher, blob.ciphertext[:-1] + bytes([blob.ciphertext[-1] ^ 1]))
        with pytest.raises(Integrity):
            stage.service.decrypt(stage.use(), changed, SECONDS)

    @pytest.mark.parametrize("method", ["decrypt", "check"])
    def test_a_platform_blob_is_integrity(self, stage: Stage, method: str) -> None:
        """No customer's key made it."""
        with pytest.raises(Integrity):
            getattr(stage.service, method)(stage.use(), Blob(CipherName.PLATFORM, b"x" * 60), SECONDS)

    def test_encrypting_is_the_values_one_use(self, stage: Stage) -> None:
        """The buffer is zero afterwards, when it worked and when it did not."""
        for fails in (False, True):
            if fails:
                stage.revoke()
            buffer = bytearray(b"value")
            with suppress(Denied):
                stage.service.encrypt(stage.use(Purpose.ENCRYPT), Plaintext(buffer), SECONDS)
            assert buffer == bytes(5)

    @pytest.mark.parametrize("length", [5, 5000])
    def test_a_check_says_that_it_would_work(self, stage: Stage, length: int) -> None:
        """By dry run; what comes back is a receipt."""
        use = stage.use(Purpose.CHECK)
        receipt = stage.service.check(use, stage.encrypted(b"v" * length), SECONDS)
        assert receipt.session_name == f"axiorank-check-{use.audit_id}"

    def test_a_check_under_another_identity_is_integrity(self, stage: Stage) -> None:
        """The dry run is made under the true context."""
        with pytest.raises(Integrity):
            stage.service.check(stage.use(name="other"), stage.encrypted(), SECONDS)

    def test_a_receipt_leads_to_the_customers_log(self, stage: Stage) -> None:
        """Session name with purpose and audit id, and both request ids."""
        use = stage.use()
        receipt = stage.service.decrypt(use, stage.encrypted(), SECONDS).receipt
        assert receipt.session_name == f"axiorank-inject-{use.audit_id}"
        assert receipt.assume_request_id
        assert receipt.kms_request_id

    def test_a_revoked_key_denies_every_use(self, stage: Stage) -> None:
        """Encrypt, decrypt and check; the evidence goes along."""
        blob = stage.encrypted()
        stage.revoke()
        uses: list[Callable[[], object]] = [
            lambda: stage.service.encrypt(stage.use(), Plaintext(b"value"), SECONDS),
            lambda: stage.service.decrypt(stage.use(), blob, SECONDS),
            lambda: stage.service.check(stage.use(), blob, SECONDS),
        ]
        for use in uses:
            with pytest.raises(Denied) as caught:
                use()
            error = caught.value
            assert (error.state, error.aws_code) == (KeyState.ACCESS_DENIED, "AccessDeniedException")
            assert error.receipt.session_name
            assert error.receipt.kms_request_id

    def test_one_customers_revocation_is_nobody_elses(self, stage: Stage) -> None:
        """The other key goes on working."""
        stage.revoke()
        use = KeyUse(stage.other, Purpose.INJECT, uuid4(), for_secret(stage.other.workspace_id, "api", 1))
        blob = stage.service.encrypt(use, Plaintext(b"value"), SECONDS).blob
        assert shown(stage.service.decrypt(use, blob, SECONDS)) == b"value"

    def test_a_broken_service_is_transient(self, stage: Stage) -> None:
        """Nobody said no, so nobody is affected."""
        blob = stage.encrypted()
        stage.break_down()
        with pytest.raises(Transient) as caught:
            stage.service.decrypt(stage.use(), blob, SECONDS)
        assert caught.value.state is KeyState.TRANSIENT

    @pytest.mark.parametrize(
        ("external_id", "is_allowed"),
        [("own", True), (None, False), ("a-wrong-external-id", False)],
        ids=["own", "without", "wrong"],
    )
    def test_only_its_external_id_opens_a_role(self, stage: Stage, external_id: str | None, is_allowed: bool) -> None:
        """A refusal is an answer, with AWS's code and the request's id, and no error."""
        asked = stage.ours.external_id if external_id == "own" else external_id
        use = stage.use(Purpose.VERIFY)
        permit = stage.service.may_assume(use, asked, SECONDS)
        assert (permit.is_allowed, permit.aws_code) == (is_allowed, "" if is_allowed else "AccessDenied")
        assert permit.receipt.session_name == f"axiorank-verify-{use.audit_id}"
        assert permit.receipt.assume_request_id
        assert permit.receipt.kms_request_id is None

    @pytest.mark.parametrize("external_id", [None, "a-wrong-external-id"], ids=["without", "wrong"])
    def test_a_role_that_takes_anybody_shows_it(self, stage: Stage, external_id: str | None) -> None:
        """Accepted is what it says."""
        stage.let_anybody_in()
        assert stage.service.may_assume(stage.use(Purpose.VERIFY), external_id, SECONDS).is_allowed

    @pytest.mark.parametrize("extra", list(Extra))
    def test_a_key_as_promised_permits_no_more(self, stage: Stage, extra: Extra) -> None:
        """Denied by the customer's side, which is an answer and no error."""
        permit = stage.service.permits(stage.use(Purpose.VERIFY), extra, SECONDS)
        assert (permit.is_allowed, permit.aws_code) == (False, "AccessDeniedException")
        assert permit.receipt.session_name
        assert permit.receipt.kms_request_id

    @pytest.mark.parametrize("extra", list(Extra))
    def test_what_a_key_permits_beyond_is_seen(self, stage: Stage, extra: Extra) -> None:
        """Each for itself: allowing one shows one."""
        stage.allow(extra)
        permitted = [one for one in Extra if stage.service.permits(stage.use(Purpose.VERIFY), one, SECONDS).is_allowed]
        assert permitted == [extra]

    def test_a_broken_service_is_transient_for_these_too(self, stage: Stage) -> None:
        """Not knowing is no answer."""
        stage.break_down()
        with pytest.raises(Transient):
            stage.service.permits(stage.use(Purpose.VERIFY), Extra.CREATE_GRANT, SECONDS)

    def test_errors_say_no_value(self, stage: Stage) -> None:
        """INV-1, for what both implementations raise."""
        stage.revoke()
        with pytest.raises(KeyServiceError) as caught:
            stage.service.encrypt(stage.use(), Plaintext(b"sentinel-3f9a"), SECONDS)
        assert "sentinel-3f9a" not in str(caught.value) + repr(vars(caught.value))


class TestFake(KeyServiceContract):
    @pytest.fixture
    def stage(self) -> Stage:
        service = FakeKeyService()
        ours, other = (
            Connection(
                UUID(int=number),
                f"ws_{number}",
                "arn:aws:iam::222222222222:role/axiorank",
                "external-id-0123456789",
                f"arn:aws:kms:eu-west-1:222222222222:key/00000000-0000-0000-0000-00000000000{number}",
            )
            for number in (1, 2)
        )
        denied = Denied("no", aws_code="AccessDeniedException")
        return Stage(
            service,
            ours,
            other,
            let_anybody_in=lambda: setattr(service, "lets_in", lambda external_id: True),
            allow=service.allowed.add,
            revoke=lambda: service.fail(denied, ours),
            break_down=lambda: service.fail(Transient("away"), ours),
        )


class TestAws(KeyServiceContract):
    @pytest.fixture
    def stage(self, aws: AwsDouble, side: BrokerSide) -> Iterator[Stage]:
        ours, other = side.customer(), side.customer()
        yield Stage(
            side.key_service(),
            ours.connection,
            other.connection,
            let_anybody_in=lambda: _trust_anybody(ours.account, side.account_id),
            allow=lambda extra: ours.account.put_key_policy(
                ours.account.key_policy({**ours.account.use_statement(), "Sid": "More", "Action": extra.value})
            ),
            revoke=ours.account.remove_role_from_key_policy,
            break_down=lambda: _break_down(aws, ours.connection.key_arn),
        )
        aws.faults.clear()


@pytest.fixture(scope="module")
def side(aws: AwsDouble) -> BrokerSide:
    """One account of ours for the module: making its clients takes longer than a test."""
    return BrokerSide(aws)


def _trust_anybody(account: CustomerAccount, principal: str) -> None:
    trust = statement("Allow", "sts:AssumeRole", Principal={"AWS": principal})
    account.account.update_trust(account.role_name, document(trust))


def _break_down(aws: AwsDouble, key_arn: str) -> None:
    aws.faults.add(Fault(action="kms:*", key=key_arn, error="ThrottlingException"))
