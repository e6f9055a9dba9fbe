"""One use of a customer's key: what is asked, what is tried again, what the receipt holds, and who is blamed."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

import botocore.exceptions as bx
import pytest
from structlog.testing import capture_logs

from broker_core.adapters.aws_clients import AwsOptions
from broker_core.adapters.key_service import SLOT_SECONDS, KmsKeyService
from broker_core.context import for_secret
from broker_core.errors import (
    Busy,
    Denied,
    Integrity,
    KeyServiceError,
    KeyState,
    Misconfigured,
    Receipt,
    Transient,
    WrongKey,
)
from broker_core.model import Blob, CipherName, Connection, Purpose
from broker_core.policies import Action, Extra, deny_all, extra_policy, session_policy, to_json
from broker_core.ports import KeyUse
from broker_core.secret import Plaintext
from tests.fakes_keys import ManualClock, Script, ScriptedAws, aws_error

KEY = "arn:aws:kms:eu-west-1:222222222222:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
ROLE = "arn:aws:iam::222222222222:role/axiorank"
CONTROL = "arn:aws:iam::111111111111:role/control"
CONNECTION = Connection(UUID(int=1), "ws_1", ROLE, "external-id-0123456789", KEY)
AUDIT = UUID("0190a1b2-0000-7000-8000-000000000007")
USE = KeyUse(CONNECTION, Purpose.INJECT, AUDIT, for_secret("ws_1", "api", 1))
BLOB = Blob(CipherName.KMS, b"blob")
NAME = f"axiorank-inject-{AUDIT}"


def opened(_: dict[str, Any]) -> Mapping[str, Any]:
    return {"KeyId": KEY, "Plaintext": b"value", "ResponseMetadata": {"RequestId": "kms-ok"}}


def sealed(asked: dict[str, Any]) -> Mapping[str, Any]:
    return {"KeyId": KEY, "CiphertextBlob": b"c" + bytes(asked["Plaintext"]), "ResponseMetadata": {"RequestId": "k"}}


class Stage:
    """A service on scripted clients."""

    def __init__(self, options: AwsOptions | None = None, **answers: list[Exception | Script]) -> None:
        self.clock = ManualClock()
        self.aws = ScriptedAws(self.clock, **{"decrypt": [opened], "encrypt": [sealed], **answers})
        self.service = KmsKeyService(
            self.aws,  # type: ignore[arg-type]
            options or AwsOptions(),
            self.clock,
            sleep=self.clock.sleep,
        )

    def decrypt(self, seconds: float = 10.0) -> bytes:
        with self.service.decrypt(USE, BLOB, seconds).value.reveal() as view:
            return bytes(view)

    def refused(self, seconds: float = 10.0) -> KeyServiceError:
        with pytest.raises(KeyServiceError) as caught:
            self.service.decrypt(USE, BLOB, seconds)
        return caught.value

    def times(self) -> tuple[int, int]:
        return len(self.aws.asked_for("assume_role")), len(self.aws.asked_for("decrypt"))


class TestWhatIsAsked:
    def test_assume_role_says_who_what_for_and_how_little(self) -> None:
        """Purpose and audit id in the name, the external id, 900 s, and a policy of this use alone."""
        stage = Stage()
        stage.decrypt()
        assert stage.aws.asked_for("assume_role") == [
            {
                "RoleArn": ROLE,
                "ExternalId": "external-id-0123456789",
                "RoleSessionName": NAME,
                "DurationSeconds": 900,
                "Policy": to_json(session_policy(Action.DECRYPT, KEY, USE.context)),
            }
        ]

    @pytest.mark.parametrize("purpose", list(Purpose))
    def test_every_session_name_is_one_that_sts_takes(self, purpose: Purpose) -> None:
        """At most 64 of the characters that a RoleSessionName may have."""
        stage = Stage()
        stage.service.decrypt(KeyUse(CONNECTION, purpose, AUDIT, USE.context), BLOB, 10).value.wipe()
        (asked,) = stage.aws.asked_for("assume_role")
        assert asked["RoleSessionName"] == f"axiorank-{purpose.value}-{AUDIT}"
        assert len(asked["RoleSessionName"]) <= 64

    def test_decrypt_names_the_stored_key_and_the_context(self) -> None:
        """KMS must use this key and no other that the blob may name."""
        stage = Stage()
        assert stage.decrypt() == b"value"
        assert stage.aws.asked_for("decrypt") == [
            {"KeyId": KEY, "EncryptionContext": dict(USE.context), "CiphertextBlob": b"blob"}
        ]

    def test_every_use_assumes_by_itself(self) -> None:
        """Strict is the default: two uses, two sessions."""
        stage = Stage()
        stage.decrypt()
        stage.decrypt()
        assert stage.times() == (2, 2)

    def test_encrypt_up_to_4096_is_kms_own_blob(self) -> None:
        """Byte for byte, so that a customer can decrypt it without us."""
        stage = Stage()
        result = stage.service.encrypt(USE, Plaintext(b"v" * 4096), 10)
        assert result.blob == Blob(CipherName.KMS, b"c" + b"v" * 4096)

    def test_above_that_only_the_data_key_goes_to_kms(self) -> None:
        """32 bytes under the same context; one kms:Encrypt, nothing but the two operations."""
        stage = Stage()
        result = stage.service.encrypt(USE, Plaintext(b"v" * 4097), 10)
        (asked,) = stage.aws.asked_for("encrypt")
        assert (len(asked["Plaintext"]), asked["EncryptionContext"]) == (32, dict(USE.context))
        assert result.blob.cipher is CipherName.KMS_ENVELOPE
        assert b"vvvv" not in result.blob.ciphertext

    def test_what_was_handed_to_kms_is_wiped(self) -> None:
        """Our buffers are zero when the call has ended, also when it failed."""
        for answers in ([sealed], [aws_error("DisabledException")]):
            stage = Stage(encrypt=list(answers))
            buffer = bytearray(b"value")
            with suppress(Denied):
                stage.service.encrypt(USE, Plaintext(buffer), 10)
            (asked,) = stage.aws.asked_for("encrypt")
            assert (buffer, asked["Plaintext"]) == (bytes(5), bytes(5))

    @pytest.mark.parametrize("answer", [{"KeyId": KEY[:-1] + "1"}, {}])
    def test_another_key_than_the_stored_one_is_integrity(self, answer: dict[str, Any]) -> None:
        """Whatever else the answer holds, it is dropped."""
        stage = Stage(
            decrypt=[lambda _: {"Plaintext": b"value", **answer}],
            encrypt=[lambda _: {"CiphertextBlob": b"blob", **answer}],
        )
        assert isinstance(stage.refused(), WrongKey)
        with pytest.raises(WrongKey):
            stage.service.encrypt(USE, Plaintext(b"value"), 10)

    def test_a_platform_blob_is_integrity_and_asks_nothing(self) -> None:
        """No role is assumed for a blob that no customer's key made."""
        stage = Stage()
        with pytest.raises(Integrity):
            stage.service.decrypt(USE, Blob(CipherName.PLATFORM, b"x"), 10)
        assert stage.aws.asked == []


class TestCheck:
    def test_it_is_a_dry_run_and_ok_is_an_error_of_kms(self) -> None:
        """DryRunOperation means that it would have worked; the receipt says who asked."""
        stage = Stage(decrypt=[aws_error("DryRunOperationException")])
        receipt = stage.service.check(USE, BLOB, 10)
        assert stage.aws.asked_for("decrypt")[0]["DryRun"] is True
        assert receipt == Receipt(NAME, "sts-1", "req-DryRunOperationException")

    def test_a_denied_dry_run_is_denied(self) -> None:
        """The same table as for a real decryption."""
        stage = Stage(decrypt=[aws_error("AccessDeniedException")])
        with pytest.raises(Denied):
            stage.service.check(USE, BLOB, 10)

    def test_a_value_that_comes_back_is_refused(self) -> None:
        """An endpoint that ignores DryRun makes a check read a value: it is dropped, and the set-up is wrong."""
        with pytest.raises(Misconfigured) as caught:
            Stage().service.check(USE, BLOB, 10)
        assert "value" not in repr(vars(caught.value)).replace("a value", "")

    def test_of_an_envelope_it_is_the_wrapped_key(self) -> None:
        """What KMS made is what KMS is asked about."""
        stage = Stage(decrypt=[aws_error("DryRunOperationException")])
        blob = stage.service.encrypt(USE, Plaintext(b"v" * 5000), 10).blob
        stage.service.check(USE, blob, 10)
        (asked,) = stage.aws.asked_for("decrypt")
        assert len(asked["CiphertextBlob"]) == 33


class TestSeconds:
    @pytest.mark.parametrize("error", [aws_error("ThrottlingException"), bx.ReadTimeoutError(endpoint_url="u")])
    def test_a_transient_error_is_tried_again_in_the_same_session(self, error: Exception) -> None:
        """One AssumeRole per use, whatever KMS needs."""
        stage = Stage(decrypt=[error, error, opened])
        assert stage.decrypt() == b"value"
        assert stage.times() == (1, 3)

    def test_three_attempts_are_all(self) -> None:
        """After that the queue owns the minutes."""
        stage = Stage(decrypt=[aws_error("ThrottlingException")])
        assert isinstance(stage.refused(), Transient)
        assert stage.times() == (1, 3)

    def test_waits_are_jittered_and_short(self) -> None:
        """Full jitter below 0.1, then 0.2 s."""
        stage = Stage(decrypt=[aws_error("ThrottlingException")])
        stage.refused()
        first, second = stage.clock.slept
        assert (0 <= first <= 0.1, 0 <= second <= 0.2) == (True, True)

    @pytest.mark.parametrize(
        "code", ["AccessDeniedException", "DisabledException", "InvalidCiphertextException", "ValidationException"]
    )
    def test_a_no_is_not_asked_again(self, code: str) -> None:
        """Only transient errors are retried (INV-8)."""
        stage = Stage(decrypt=[aws_error(code)])
        stage.refused()
        assert stage.times() == (1, 1)

    def test_no_attempt_starts_after_the_deadline(self) -> None:
        """An attempt that used the time up is the last one."""
        stage = Stage()

        def slow(_: dict[str, Any]) -> Mapping[str, Any]:
            stage.clock.seconds += 3
            raise bx.ReadTimeoutError(endpoint_url="u")

        stage.aws._answers["decrypt"] = [slow]
        assert isinstance(stage.refused(seconds=3), Transient)
        assert stage.times() == (1, 1)

    def test_a_session_that_took_all_the_time_is_not_used(self) -> None:
        """AssumeRole answered at the deadline: KMS is not asked any more."""
        stage = Stage()

        def slow(asked: dict[str, Any]) -> Mapping[str, Any]:
            stage.clock.seconds += 3
            return stage.aws.session(asked)

        stage.aws._answers["assume_role"] = [slow]
        assert isinstance(stage.refused(seconds=3), Transient)
        assert stage.times() == (1, 0)

    def test_a_refused_assume_role_is_retried_when_transient(self) -> None:
        """STS throttles: the use gets its session at the second attempt."""
        stage = Stage()
        stage.aws._answers["assume_role"] = [aws_error("Throttling"), stage.aws.session]
        assert stage.decrypt() == b"value"
        assert stage.times() == (2, 1)

    def test_a_key_is_gone_at_the_second_look(self) -> None:
        """AWS propagates in seconds: one NotFound is not yet the end."""
        stage = Stage(decrypt=[aws_error("NotFoundException")])
        assert stage.refused().state is KeyState.KEY_GONE
        assert stage.times() == (1, 2)
        assert Stage(decrypt=[aws_error("NotFoundException"), opened]).decrypt() == b"value"

    def test_without_time_for_a_second_look_nothing_is_gone(self) -> None:
        """Nobody becomes affected by a single look."""
        error = Stage(decrypt=[aws_error("NotFoundException")]).refused(seconds=0.01)
        assert (type(error), error.aws_code) == (Transient, "NotFoundException")
        assert error.receipt.kms_request_id == "req-NotFoundException"

    def test_a_silent_key_is_left_alone_after_some_timeouts(self) -> None:
        """The breaker: later uses fail fast and ask nothing, and one after some seconds tries."""
        stage = Stage(decrypt=[bx.ReadTimeoutError(endpoint_url="u")])
        stage.refused()
        stage.refused()
        before = stage.times()
        assert isinstance(stage.refused(), Transient)
        assert stage.times() == before
        stage.clock.seconds += 5
        stage.aws._answers["decrypt"] = [opened]
        assert stage.decrypt() == b"value"
        assert stage.decrypt() == b"value"

    def test_every_attempt_asks_the_breaker(self) -> None:
        """The trial of an open breaker is one attempt, and so is each of the last before it opens: five are asked, not
        six, and then one."""
        stage = Stage(decrypt=[bx.ReadTimeoutError(endpoint_url="u")])
        stage.refused()
        stage.refused()
        assert len(stage.aws.asked_for("decrypt")) == 5
        stage.clock.seconds += 5
        stage.refused()
        assert len(stage.aws.asked_for("decrypt")) == 6

    @pytest.mark.parametrize("purpose", sorted(set(Purpose) - set(SLOT_SECONDS)))
    def test_who_comes_again_does_not_wait_for_a_slot(self, purpose: Purpose) -> None:
        """Whatever comes again by itself is told at once that the connection is busy, and asks AWS nothing."""
        stage = Stage(AwsOptions(per_connection_concurrency=2))
        use = replace(USE, purpose=purpose)
        with stage.service._lanes.use(CONNECTION.id), stage.service._lanes.use(CONNECTION.id):
            for ask in (
                lambda: stage.service.encrypt(use, Plaintext(b"value"), 3600),
                lambda: stage.service.decrypt(use, BLOB, 3600),
                lambda: stage.service.check(use, BLOB, 3600),
            ):
                with pytest.raises(Busy):
                    ask()
        assert stage.times() == (0, 0)

    def test_refusals_do_not_open_the_breaker(self) -> None:
        """A key that says no quickly holds nobody up."""
        stage = Stage(decrypt=[aws_error("AccessDeniedException")])
        assert {stage.refused().state for _ in range(10)} == {KeyState.ACCESS_DENIED}


class TestSessionsThatAwsDoesNotTake:
    @pytest.mark.parametrize("code", ["UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException"])
    def test_it_is_dropped_and_assumed_once_more(self, code: str) -> None:
        """A session that is not yet, or no longer, known: a new one, once."""
        stage = Stage(decrypt=[aws_error(code), opened])
        assert stage.decrypt() == b"value"
        assert stage.times() == (2, 2)

    def test_then_it_is_transient_and_ours(self) -> None:
        """Not more than once per use, however often the call is retried."""
        stage = Stage(decrypt=[aws_error("ExpiredTokenException")])
        assert isinstance(stage.refused(), Transient)
        assert stage.times() == (2, 4)

    def test_of_our_base_credentials_it_is_ours_at_once(self) -> None:
        """STS does not know us: that is nobody's revocation."""
        for error in (aws_error("InvalidClientTokenId"), aws_error("ExpiredToken"), bx.NoCredentialsError()):
            assert isinstance(Stage(assume_role=[error]).refused(), Transient)


class TestReuse:
    def test_uses_share_a_session_and_every_receipt_names_it(self) -> None:
        """The audit rows of both uses hold the first one's session name."""
        stage = Stage(AwsOptions(sts_reuse_seconds=60))
        first = stage.service.decrypt(USE, BLOB, 10)
        later = KeyUse(CONNECTION, Purpose.INJECT, UUID(int=9), USE.context)
        second = stage.service.decrypt(later, BLOB, 10)
        assert stage.times() == (1, 2)
        assert {first.receipt.session_name, second.receipt.session_name} == {NAME}
        assert {first.receipt.assume_request_id, second.receipt.assume_request_id} == {"sts-1"}

    def test_a_dead_shared_session_is_replaced_for_all(self) -> None:
        """The next use gets the new one."""
        stage = Stage(AwsOptions(sts_reuse_seconds=60), decrypt=[opened, aws_error("ExpiredTokenException"), opened])
        for _ in range(3):
            assert stage.decrypt() == b"value"
        assert stage.times() == (2, 4)


class TestWhoIsBlamed:
    REFUSED = aws_error("AccessDenied", "not authorized to perform: sts:AssumeRole", 403)

    def test_without_a_control_role_a_refused_role_is_the_customers(self) -> None:
        """STS AccessDenied is role_refused, with the evidence."""
        error = Stage(assume_role=[self.REFUSED]).refused()
        assert (type(error), error.state) == (Denied, KeyState.ROLE_REFUSED)
        assert error.receipt == Receipt(NAME, "req-AccessDenied")

    def test_while_the_control_role_works_it_still_is(self) -> None:
        """Our side works, so theirs said no; the control session can do nothing."""
        stage = Stage(AwsOptions(control_role_arn=CONTROL))
        stage.aws._answers["assume_role"] = [self.refuse_all_but_control(stage)]
        assert stage.refused().state is KeyState.ROLE_REFUSED
        control = stage.aws.asked_for("assume_role")[1]
        assert (control["RoleArn"], control["Policy"]) == (CONTROL, to_json(deny_all()))

    def test_when_the_control_role_is_refused_too_nobody_is_blamed(self) -> None:
        """One bad deploy of ours must not report every customer as revoked."""
        stage = Stage(AwsOptions(control_role_arn=CONTROL), assume_role=[self.REFUSED])
        with capture_logs() as logs:
            error = stage.refused()
        assert (type(error), error.aws_code) == (Transient, "AccessDenied")
        assert "sts.control_role_failed" in {entry["event"] for entry in logs}

    def test_the_control_role_is_asked_once_for_many(self) -> None:
        """Refusals of many customers within ten seconds cost one control call."""
        stage = Stage(AwsOptions(control_role_arn=CONTROL))
        stage.aws._answers["assume_role"] = [self.refuse_all_but_control(stage)]
        for _ in range(5):
            stage.refused()
        roles = [asked["RoleArn"] for asked in stage.aws.asked_for("assume_role")]
        assert (roles.count(ROLE), roles.count(CONTROL)) == (5, 1)

    def test_the_control_roles_own_external_id_goes_along(self) -> None:
        """Where the operator's control role wants one."""
        stage = Stage(AwsOptions(control_role_arn=CONTROL, control_external_id="ours"), assume_role=[self.REFUSED])
        stage.refused()
        assert stage.aws.asked_for("assume_role")[1]["ExternalId"] == "ours"

    def refuse_all_but_control(self, stage: Stage) -> Script:
        def answer(asked: dict[str, Any]) -> Mapping[str, Any]:
            if asked["RoleArn"] == CONTROL:
                return stage.aws.session(asked)
            raise self.REFUSED

        return answer


class TestReceipts:
    def test_a_success_has_all_three(self) -> None:
        """Session name, and the request ids of STS and KMS."""
        opened_value = Stage().service.decrypt(USE, BLOB, 10)
        assert opened_value.receipt == Receipt(NAME, "sts-1", "kms-ok")

    def test_a_refusal_has_what_there_is(self) -> None:
        """The ids of the refusal itself are the evidence."""
        error = Stage(decrypt=[aws_error("DisabledException")]).refused()
        assert error.receipt == Receipt(NAME, "sts-1", "req-DisabledException")

    def test_a_later_silence_does_not_lose_an_earlier_id(self) -> None:
        """Throttled, then a timeout: the throttled answer's id stays."""
        timeout = bx.ReadTimeoutError(endpoint_url="u")
        error = Stage(decrypt=[aws_error("ThrottlingException"), timeout]).refused()
        assert error.receipt.kms_request_id == "req-ThrottlingException"

    def test_an_envelope_that_does_not_open_has_one_too(self) -> None:
        """KMS gave a key, and the value was not sealed with it."""
        stage = Stage(
            decrypt=[lambda _: {"KeyId": KEY, "Plaintext": bytes(32), "ResponseMetadata": {"RequestId": "r"}}]
        )
        blob = stage.service.encrypt(USE, Plaintext(b"v" * 5000), 10).blob
        with pytest.raises(Integrity) as caught:
            stage.service.decrypt(USE, blob, 10)
        assert (caught.value.receipt.session_name, caught.value.receipt.kms_request_id) == (NAME, "r")


class TestNothingLeaks:
    @pytest.mark.parametrize(
        "error",
        [
            aws_error("AccessDeniedException", "sentinel-3f9a"),
            aws_error("NotFoundException", "sentinel-3f9a"),
            aws_error("ThrottlingException", "sentinel-3f9a"),
            bx.ConnectionClosedError(endpoint_url="sentinel-3f9a", request="sentinel-3f9a"),
            bx.ParamValidationError(report="sentinel-3f9a"),
            KeyError("sentinel-3f9a"),
        ],
        ids=["denied", "gone", "throttled", "closed", "invalid", "bug"],
    )
    @pytest.mark.parametrize("where", ["assume_role", "encrypt"])
    @pytest.mark.parametrize("seconds", [10.0, 0.01])
    def test_no_foreign_exception_hangs_on_what_is_raised(self, error: Exception, where: str, seconds: float) -> None:
        """Through retries, second looks and re-raising: no text, no request, no chain to either (INV-1)."""
        stage = Stage(**{where: [error]})
        with pytest.raises(KeyServiceError) as caught:
            stage.service.encrypt(USE, Plaintext(b"sentinel-3f9a"), seconds)
        found: BaseException | None = caught.value
        while found is not None:
            assert isinstance(found, KeyServiceError)
            assert "sentinel-3f9a" not in repr(found) + str(found) + repr(vars(found))
            found = found.__cause__ or found.__context__
        assert "sentinel-3f9a" not in "".join(traceback.format_exception(caught.value)).replace('b"sentinel-3f9a"', "")


DRY_RUN_OK = aws_error("DryRunOperationException", status=412)
DENIED = aws_error("AccessDeniedException", "not authorized")


class TestMayAssume:
    """Only to see whether the role lets us in."""

    def test_it_asks_with_a_session_that_may_do_nothing(self) -> None:
        """Deny-all, 900 s, this external id, and nothing is asked of KMS."""
        stage = Stage()
        stage.service.may_assume(USE, "another-external-id", 10)
        (asked,) = stage.aws.asked_for("assume_role")
        assert (asked["Policy"], asked["DurationSeconds"]) == (to_json(deny_all()), 900)
        assert (asked["ExternalId"], asked["RoleSessionName"]) == ("another-external-id", NAME)
        assert stage.times() == (1, 0)

    def test_without_one_the_parameter_is_left_out(self) -> None:
        """An empty one would be refused for its form, and prove nothing."""
        stage = Stage()
        stage.service.may_assume(USE, None, 10)
        assert "ExternalId" not in stage.aws.asked_for("assume_role")[0]

    def test_what_comes_back_is_dropped(self) -> None:
        """The answer holds the receipt and no credentials, in no form."""
        permit = Stage().service.may_assume(USE, None, 10)
        assert "scripted" not in repr(vars(permit)) + repr(vars(permit.receipt))

    def test_it_is_never_a_shared_session(self) -> None:
        """With sessions shared, it still asks each time, and leaves nothing for others."""
        stage = Stage(AwsOptions(sts_reuse_seconds=600))
        stage.decrypt()
        stage.service.may_assume(USE, CONNECTION.external_id, 10)
        stage.service.may_assume(USE, CONNECTION.external_id, 10)
        stage.decrypt()
        assert stage.times() == (3, 2)

    def test_a_transient_answer_is_asked_again(self) -> None:
        """And is none, if it stays so."""
        throttled = aws_error("Throttling")
        once = Stage(assume_role=[throttled, aws_error("AccessDenied", operation="AssumeRole")])
        assert not once.service.may_assume(USE, None, 10).is_allowed
        with pytest.raises(Transient):
            Stage(assume_role=[throttled]).service.may_assume(USE, None, 10)

    def test_a_refusal_counts_only_while_our_own_side_works(self) -> None:
        """Where even the control role is refused, nothing was learnt about the customer's."""
        stage = Stage(
            AwsOptions(control_role_arn=CONTROL), assume_role=[aws_error("AccessDenied", operation="AssumeRole")]
        )
        with pytest.raises(Transient), capture_logs():
            stage.service.may_assume(USE, None, 10)


class TestPermits:
    """Whether the role could do more with the key."""

    @pytest.mark.parametrize(
        ("extra", "method"),
        [
            (Extra.CREATE_GRANT, "create_grant"),
            (Extra.GENERATE_DATA_KEY, "generate_data_key"),
            (Extra.GENERATE_DATA_KEY_WITHOUT_PLAINTEXT, "generate_data_key_without_plaintext"),
            (Extra.GENERATE_DATA_KEY_PAIR, "generate_data_key_pair"),
            (Extra.GENERATE_DATA_KEY_PAIR_WITHOUT_PLAINTEXT, "generate_data_key_pair_without_plaintext"),
            (Extra.RE_ENCRYPT_FROM, "re_encrypt"),
        ],
    )
    def test_only_asks_under_a_session_that_would_let_it(self, extra: Extra, method: str) -> None:
        """DryRun, the key's ARN, and a policy that allows this on the one key: what decides is the customer's."""
        stage = Stage(**{method: [DRY_RUN_OK]})
        assert stage.service.permits(USE, extra, 10).is_allowed
        (asked,) = stage.aws.asked_for(method)
        assert asked["DryRun"] is True
        assert KEY in (asked.get("KeyId"), asked.get("SourceKeyId"))
        assert stage.aws.asked_for("assume_role")[0]["Policy"] == to_json(extra_policy(extra, KEY))

    def test_it_is_never_a_shared_session(self) -> None:
        """A session that may do more than the two is given to nobody."""
        stage = Stage(AwsOptions(sts_reuse_seconds=600), create_grant=[DENIED])
        for _ in range(2):
            stage.service.permits(USE, Extra.CREATE_GRANT, 10)
        stage.decrypt()
        assert stage.times() == (3, 1)

    def test_what_is_done_instead_of_only_asked_is_refused(self) -> None:
        """An endpoint that ignores DryRun has made a data key: it goes nowhere."""
        stage = Stage(generate_data_key=[lambda _: {"Plaintext": b"sentinel-data-key", "KeyId": KEY}])
        with pytest.raises(Misconfigured) as caught:
            stage.service.permits(USE, Extra.GENERATE_DATA_KEY, 10)
        assert "sentinel" not in "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))

    def test_our_own_policy_in_the_way_is_no_answer(self) -> None:
        """A missing allow in a session policy is ours: it must not look like the customer's no."""
        stage = Stage(create_grant=[aws_error("AccessDeniedException", "because no session policy allows the action")])
        with pytest.raises(Misconfigured):
            stage.service.permits(USE, Extra.CREATE_GRANT, 10)

    @pytest.mark.parametrize(("named", "is_allowed"), [("kms:ReEncryptTo", True), ("kms:ReEncryptFrom", False)])
    def test_of_a_re_encryption_the_source_is_told_from_the_target(self, named: str, is_allowed: bool) -> None:
        """KMS asks about the source first: a no about the target is a yes about the source."""
        message = f"User: arn is not authorized to perform: {named} on resource: {KEY}"
        stage = Stage(re_encrypt=[aws_error("AccessDeniedException", message)])
        assert stage.service.permits(USE, Extra.RE_ENCRYPT_FROM, 10).is_allowed is is_allowed

    def test_a_disabled_key_is_an_error(self) -> None:
        """It says nothing of what is allowed."""
        with pytest.raises(Denied) as caught:
            Stage(create_grant=[aws_error("DisabledException")]).service.permits(USE, Extra.CREATE_GRANT, 10)
        assert caught.value.state is KeyState.KEY_DISABLED
