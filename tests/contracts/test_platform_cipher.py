"""What every PlatformCipher promises: one suite, on the fake, the keyring, and AxioRank's own KMS key."""

from __future__ import annotations

import base64
import json

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.platform_cipher import PlatformKeyring, PlatformKms
from broker_core.context import for_secret
from broker_core.dev.aws import AwsDouble, document, statement
from broker_core.errors import Integrity
from broker_core.model import Blob, CipherName
from broker_core.ports import PlatformCipher
from broker_core.secret import Plaintext
from tests.aws_setup import BrokerSide
from tests.fakes_keys import FakePlatformCipher

CONTEXT = for_secret("ws_1", "api", 1)


class PlatformCipherContract:
    """The promises of the port."""

    @pytest.mark.parametrize("length", [1, 4096, 4097, 65536])
    def test_a_value_comes_back(self, cipher: PlatformCipher, length: int) -> None:
        """Of any length that a value may have."""
        blob = cipher.encrypt(CONTEXT, Plaintext(b"v" * length))
        assert blob.cipher is CipherName.PLATFORM
        with cipher.decrypt(CONTEXT, blob).reveal() as view:
            assert view == b"v" * length

    @pytest.mark.parametrize(
        "context", [for_secret("ws_2", "api", 1), for_secret("ws_1", "other", 1), for_secret("ws_1", "api", 2)]
    )
    @pytest.mark.parametrize("length", [5, 5000])
    def test_another_identity_is_integrity(self, cipher: PlatformCipher, context: object, length: int) -> None:
        """A blob opens in its own row alone."""
        blob = cipher.encrypt(CONTEXT, Plaintext(b"v" * length))
        with pytest.raises(Integrity):
            cipher.decrypt(context, blob)  # type: ignore[arg-type]

    def test_a_customers_blob_is_integrity(self, cipher: PlatformCipher) -> None:
        """The cipher column decides who may try."""
        blob = cipher.encrypt(CONTEXT, Plaintext(b"value"))
        with pytest.raises(Integrity):
            cipher.decrypt(CONTEXT, Blob(CipherName.KMS, blob.ciphertext))

    def test_encrypting_is_the_values_one_use(self, cipher: PlatformCipher) -> None:
        """The buffer is zero afterwards."""
        buffer = bytearray(b"value")
        cipher.encrypt(CONTEXT, Plaintext(buffer))
        assert buffer == bytes(5)


class TestFake(PlatformCipherContract):
    @pytest.fixture
    def cipher(self) -> PlatformCipher:
        return FakePlatformCipher()


class TestKeyring(PlatformCipherContract):
    @pytest.fixture
    def cipher(self) -> PlatformCipher:
        return PlatformKeyring.parse(f"k1:{base64.b64encode(bytes(range(32))).decode()}")


class TestKms(PlatformCipherContract):
    @pytest.fixture
    def cipher(self, own_kms: PlatformKms) -> PlatformCipher:
        return own_kms


@pytest.fixture(scope="module")
def own_kms(aws: AwsDouble) -> PlatformKms:
    """One key of ours for the module: making clients takes longer than a test."""
    side = BrokerSide(aws)
    root = {"AWS": f"arn:aws:iam::{side.account_id}:root"}
    key = side.account.create_key(document(statement("Allow", "kms:*", Principal=root, Resource="*")))
    policy = document(statement("Allow", ["kms:Encrypt", "kms:Decrypt"], Resource=key))
    side.account.iam.put_user_policy(UserName="broker", PolicyName="kms", PolicyDocument=json.dumps(policy))
    return PlatformKms(side.clients, key, SystemClock())
