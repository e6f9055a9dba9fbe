"""The platform cipher: keyring and rotation, the KMS alternative, and settings that are refused."""

from __future__ import annotations

import base64

import pytest
from botocore.exceptions import NoCredentialsError

from broker_core.adapters.platform_cipher import PlatformKeyring, PlatformKms
from broker_core.context import for_secret
from broker_core.errors import ConfigurationError, Integrity, Transient
from broker_core.model import Blob, CipherName
from broker_core.secret import Plaintext
from tests.fakes_keys import ManualClock, ScriptedAws, aws_error

CONTEXT = for_secret("ws_1", "api", 1)
OTHER = for_secret("ws_2", "api", 1)
KEY_ARN = "arn:aws:kms:eu-west-1:111111111111:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"


def key(letter: str) -> str:
    return base64.b64encode(letter.encode() * 32).decode()


def shown(value: Plaintext) -> bytes:
    with value.reveal() as view:
        return bytes(view)


class TestKeyring:
    def test_it_decrypts_what_it_encrypted(self) -> None:
        """A value comes back under the same context."""
        ring = PlatformKeyring.parse(f"k1:{key('a')}")
        assert shown(ring.decrypt(CONTEXT, ring.encrypt(CONTEXT, Plaintext(b"value")))) == b"value"

    def test_the_blob_names_its_key(self) -> None:
        """Version, length, kid; then what AES-GCM made."""
        blob = PlatformKeyring.parse(f"k1:{key('a')}").encrypt(CONTEXT, Plaintext(b"value"))
        assert (blob.cipher, blob.ciphertext[:4], len(blob.ciphertext)) == (CipherName.PLATFORM, b"\x01\x02k1", 37)

    def test_the_first_encrypts_and_all_decrypt(self) -> None:
        """A key is rotated by putting a new one first."""
        old = PlatformKeyring.parse(f"k1:{key('a')}").encrypt(CONTEXT, Plaintext(b"old"))
        ring = PlatformKeyring.parse(f"k2:{key('b')}, k1:{key('a')}")
        assert ring.encrypt(CONTEXT, Plaintext(b"new")).ciphertext[2:4] == b"k2"
        assert shown(ring.decrypt(CONTEXT, old)) == b"old"

    def test_another_context_is_integrity(self) -> None:
        """A blob that is moved to another row does not decrypt."""
        ring = PlatformKeyring.parse(f"k1:{key('a')}")
        with pytest.raises(Integrity):
            ring.decrypt(OTHER, ring.encrypt(CONTEXT, Plaintext(b"value")))

    def test_a_key_that_left_the_ring_is_integrity(self) -> None:
        """An unknown key id is refused, not tried with other keys."""
        blob = PlatformKeyring.parse(f"k1:{key('a')}").encrypt(CONTEXT, Plaintext(b"value"))
        with pytest.raises(Integrity):
            PlatformKeyring.parse(f"k2:{key('a')}").decrypt(CONTEXT, blob)

    def test_the_key_id_is_bound(self) -> None:
        """With two ids for one key, a blob's id still cannot be changed."""
        ring = PlatformKeyring.parse(f"k1:{key('a')},k2:{key('a')}")
        blob = ring.encrypt(CONTEXT, Plaintext(b"value"))
        renamed = Blob(CipherName.PLATFORM, blob.ciphertext.replace(b"k1", b"k2", 1))
        with pytest.raises(Integrity):
            ring.decrypt(CONTEXT, renamed)

    @pytest.mark.parametrize(
        "blob", [b"", b"\x01", b"\x01\x02k1", b"\x01\xffk1", b"\x02rest", b"\x01\x01\xff" + b"x" * 40]
    )
    def test_malformed_is_integrity(self, blob: bytes) -> None:
        """Nothing that the keyring cannot have made opens, or raises anything else."""
        with pytest.raises(Integrity):
            PlatformKeyring.parse(f"k1:{key('a')}").decrypt(CONTEXT, Blob(CipherName.PLATFORM, blob))

    def test_a_blob_of_a_customers_key_is_integrity(self) -> None:
        """The cipher column decides; a kms blob is not ours."""
        with pytest.raises(Integrity):
            PlatformKeyring.parse(f"k1:{key('a')}").decrypt(CONTEXT, Blob(CipherName.KMS, b"\x01\x02k1" + b"x" * 40))

    def test_the_value_is_wiped(self) -> None:
        """Encrypting is the value's one use."""
        buffer = bytearray(b"value")
        PlatformKeyring.parse(f"k1:{key('a')}").encrypt(CONTEXT, Plaintext(buffer))
        assert buffer == bytes(5)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "k1",
            f":{key('a')}",
            f"k 1:{key('a')}",
            f"{'k' * 33}:{key('a')}",
            "k1:" + base64.b64encode(b"S" * 31).decode(),
            "k1:" + "S" * 43,
            "k1:" + "S" * 43 + "!",
            f"k1:{key('S')},k1:{key('b')}",
            f"k1:{key('S')},",
        ],
    )
    def test_a_bad_setting_is_refused_without_quoting_it(self, text: str) -> None:
        """The message names the variable and what to do, and no part of any key."""
        with pytest.raises(ConfigurationError) as caught:
            PlatformKeyring.parse(text)
        assert "BROKER_PLATFORM_KEYS" in caught.value.message
        assert "SSSS" not in str(caught.value)
        assert "U1NT" not in str(caught.value)

    def test_repr_shows_no_key(self) -> None:
        """A keyring in a traceback says how many keys it has."""
        assert repr(PlatformKeyring.parse(f"k1:{key('a')}")) == "<PlatformKeyring of 1>"


class TestPlatformKms:
    def cipher(self, aws: ScriptedAws, clock: ManualClock) -> PlatformKms:
        return PlatformKms(aws, KEY_ARN, clock, sleep=clock.sleep)  # type: ignore[arg-type]

    def working(self) -> tuple[PlatformKms, ScriptedAws]:
        clock = ManualClock()
        aws = ScriptedAws(
            clock,
            encrypt=[lambda asked: {"KeyId": KEY_ARN, "CiphertextBlob": bytes(asked["Plaintext"])[::-1]}],
            decrypt=[lambda asked: {"KeyId": KEY_ARN, "Plaintext": asked["CiphertextBlob"][::-1]}],
        )
        return self.cipher(aws, clock), aws

    @pytest.mark.parametrize(("length", "version"), [(1, 2), (4096, 2), (4097, 3), (65536, 3)])
    def test_it_decrypts_what_it_encrypted(self, length: int, version: int) -> None:
        """Direct up to 4096 bytes, by envelope above; the first byte says which."""
        cipher, _ = self.working()
        blob = cipher.encrypt(CONTEXT, Plaintext(b"v" * length))
        assert (blob.cipher, blob.ciphertext[0]) == (CipherName.PLATFORM, version)
        assert shown(cipher.decrypt(CONTEXT, blob)) == b"v" * length

    def test_it_assumes_no_role_and_names_key_and_context(self) -> None:
        """Our own key is used under our own credentials."""
        cipher, aws = self.working()
        cipher.encrypt(CONTEXT, Plaintext(b"value"))
        ((operation, asked),) = aws.asked
        assert (operation, asked["KeyId"], asked["EncryptionContext"]) == ("encrypt", KEY_ARN, dict(CONTEXT))

    @pytest.mark.parametrize(
        "error", [aws_error("AccessDeniedException"), aws_error("DisabledException"), NoCredentialsError()]
    )
    def test_our_own_keys_refusal_is_transient(self, error: Exception) -> None:
        """Nobody revoked anything: no state of our own key makes a secret affected."""
        clock = ManualClock()
        with pytest.raises(Transient):
            self.cipher(ScriptedAws(clock, encrypt=[error]), clock).encrypt(CONTEXT, Plaintext(b"value"))

    def test_another_context_is_integrity(self) -> None:
        """KMS says that blob and context do not belong together."""
        clock = ManualClock()
        cipher = self.cipher(ScriptedAws(clock, decrypt=[aws_error("InvalidCiphertextException")]), clock)
        with pytest.raises(Integrity):
            cipher.decrypt(CONTEXT, Blob(CipherName.PLATFORM, b"\x02blob"))

    @pytest.mark.parametrize("blob", [b"", b"\x01\x02k1", b"\x03short"])
    def test_malformed_is_integrity(self, blob: bytes) -> None:
        """Nothing is asked of KMS for a blob that it cannot have made."""
        cipher, aws = self.working()
        with pytest.raises(Integrity):
            cipher.decrypt(CONTEXT, Blob(CipherName.PLATFORM, blob))
        assert aws.asked == []

    def test_an_alias_is_refused(self) -> None:
        """The message names the variable."""
        clock = ManualClock()
        with pytest.raises(ConfigurationError, match="BROKER_PLATFORM_KMS_KEY"):
            PlatformKms(ScriptedAws(clock), "alias/mine", clock)  # type: ignore[arg-type]
