"""What encrypts when BYOK is off: a keyring of ours (``BROKER_PLATFORM_KEYS``), or an AxioRank KMS key.

    keyring       =  0x01  ‖  length of kid (1)  ‖  kid  ‖  nonce (12)  ‖  ciphertext  ‖  tag (16)
    KMS, direct   =  0x02  ‖  CiphertextBlob
    KMS, wrapped  =  0x03  ‖  a kms-envelope blob (see ``envelope``)

All stand in the blob's column as cipher ``platform``. The encryption context is bound in each: as associated data
together with the header, or as KMS's own. A denial by our own key is nobody's revocation: it is transient (INV-8).
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from broker_core.adapters.aws_clients import AwsClients, patience
from broker_core.adapters.kms import Reply, ask, ciphertext_of, plaintext_of, retry_in_seconds
from broker_core.context import EncryptionContext, associated_data
from broker_core.envelope import KEY_BYTES, Random, decrypt_value, encrypt_value, open_into, seal
from broker_core.errors import ConfigurationError, Integrity, Invalid, KeyServiceError, Transient
from broker_core.model import Blob, CipherName, parse_key_arn
from broker_core.ports import Clock
from broker_core.secret import Plaintext
from broker_core.settings_checks import PLATFORM_KEY_ID

T = TypeVar("T")

_KEYRING, _KMS_DIRECT, _KMS_WRAPPED = b"\x01", b"\x02", b"\x03"


class PlatformKeyring:
    """Keys of our own, by key id: the first encrypts, all decrypt. So a key is rotated by putting a new one first."""

    def __init__(self, keys: Mapping[str, bytes], *, random: Random = os.urandom) -> None:
        """``keys``: kid to 32 bytes, in order; use ``parse`` for the setting's text."""
        self._keys = dict(keys)
        self._first = next(iter(self._keys))
        self._random = random

    @classmethod
    def parse(cls, text: str, *, random: Random = os.urandom) -> PlatformKeyring:
        """From ``kid:base64(32 bytes)[,kid:…]``. Raises ConfigurationError, which never quotes a key."""
        keys: dict[str, bytes] = {}
        for place, item in enumerate(text.strip().split(","), start=1):
            kid, _, encoded = item.strip().partition(":")
            if not PLATFORM_KEY_ID.fullmatch(kid):
                raise _bad_keyring(place, "has no key id of 1 to 32 letters, digits, - or _ before a colon")
            if kid in keys:
                raise _bad_keyring(place, "repeats a key id; give each key its own")
            keys[kid] = _key(encoded, place)
        return cls(keys, random=random)

    def encrypt(self, context: EncryptionContext, value: Plaintext) -> Blob:
        """See PlatformCipher."""
        header = _KEYRING + bytes([len(self._first)]) + self._first.encode("ascii")
        with value.reveal() as view:
            sealed = seal(self._keys[self._first], view, associated_data(context) + header, random=self._random)
        return Blob(CipherName.PLATFORM, header + sealed)

    def decrypt(self, context: EncryptionContext, blob: Blob) -> Plaintext:
        """See PlatformCipher. Integrity also for a blob of a key that is no longer in the keyring."""
        header, sealed = _keyring_blob(blob)
        key = self._keys.get(header[2:].decode("ascii", "replace"))
        if key is None:
            raise Integrity("the platform key of this blob is not in BROKER_PLATFORM_KEYS")
        return Plaintext(open_into(key, sealed, associated_data(context) + header))

    def __repr__(self) -> str:
        return f"<PlatformKeyring of {len(self._keys)}>"


def _key(encoded: str, place: int) -> bytes:
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise _bad_keyring(place, "is not the base64 of 32 bytes; make one with: openssl rand -base64 32")
    return key


def _bad_keyring(place: int, why: str) -> ConfigurationError:
    return ConfigurationError(f"BROKER_PLATFORM_KEYS: entry {place} {why}; the form is kid:base64(32 bytes)[,kid:…]")


def _keyring_blob(blob: Blob) -> tuple[bytes, bytes]:
    if blob.cipher is not CipherName.PLATFORM or blob.ciphertext[:1] != _KEYRING or len(blob.ciphertext) < 2:
        raise Integrity("not a blob of the platform keyring")
    end = 2 + blob.ciphertext[1]
    return blob.ciphertext[:end], blob.ciphertext[end:]


class PlatformKms:
    """An AxioRank KMS key, under our base credentials: no role is assumed."""

    def __init__(
        self,
        clients: AwsClients,
        key_arn: str,
        clock: Clock,
        *,
        seconds: float = 5.0,
        sleep: Callable[[float], None] = time.sleep,
        random: Random = os.urandom,
    ) -> None:
        """``seconds``: the most that one encryption or decryption may take. Raises ConfigurationError for a bad ARN."""
        try:
            self._region = parse_key_arn(key_arn).region
        except Invalid as error:
            raise ConfigurationError(f"BROKER_PLATFORM_KMS_KEY: {error.fields['keyArn']}") from None
        self._clients = clients
        self._key_arn = key_arn
        self._clock = clock
        self._seconds = seconds
        self._sleep = sleep
        self._random = random

    def encrypt(self, context: EncryptionContext, value: Plaintext) -> Blob:
        """See PlatformCipher."""

        def by_kms(plaintext: bytearray) -> bytes:
            return self._ask(context, "encrypt", ciphertext_of, Plaintext=plaintext)

        with value.reveal() as view:
            cipher, blob = encrypt_value(view, associated_data(context), by_kms, self._random)
        return Blob(CipherName.PLATFORM, (_KMS_DIRECT if cipher is CipherName.KMS else _KMS_WRAPPED) + blob)

    def decrypt(self, context: EncryptionContext, blob: Blob) -> Plaintext:
        """See PlatformCipher."""

        def by_kms(ciphertext: bytes) -> bytearray:
            return self._ask(context, "decrypt", plaintext_of, CiphertextBlob=ciphertext)

        kind = {_KMS_DIRECT: CipherName.KMS, _KMS_WRAPPED: CipherName.KMS_ENVELOPE}.get(blob.ciphertext[:1])
        if blob.cipher is not CipherName.PLATFORM or kind is None:
            raise Integrity("not a blob of the platform's KMS key")
        return Plaintext(decrypt_value(kind, blob.ciphertext[1:], associated_data(context), by_kms))

    def _ask(self, context: EncryptionContext, method: str, take: Callable[[Reply, str], T], **params: Any) -> T:
        deadline = self._clock.monotonic() + self._seconds

        def call() -> Mapping[str, Any]:
            with patience(deadline - self._clock.monotonic()):
                client = self._clients.own_kms(self._region)
                answer: Mapping[str, Any] = getattr(client, method)(
                    KeyId=self._key_arn, EncryptionContext=dict(context), **params
                )
                return answer

        def once() -> T:
            return take(ask(f"kms.{method.capitalize()}", call, {"aws__region": self._region}), self._key_arn)

        retrying = retry_in_seconds(self._clock, deadline, self._sleep, lambda error: isinstance(error, Transient))
        try:
            result: T = retrying(once)
            return result
        except (Integrity, Transient):
            raise
        except KeyServiceError as error:
            ours = Transient("AxioRank's own key cannot be used", aws_code=error.aws_code, receipt=error.receipt)
        raise ours
