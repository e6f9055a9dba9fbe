"""AES-256-GCM as this project uses it, for claims, for ``kms-envelope`` and for the platform cipher.

    sealed   =  nonce (12)  ‖  ciphertext  ‖  tag (16)
    wrapped  =  0x01  ‖  length of the wrapped key (2, big endian)  ‖  wrapped key  ‖  sealed

A fresh random nonce for each message is safe here: no key seals anywhere near 2**32 messages (one for a claim or an
envelope's data key; a platform key is rotated long before). What opens lands in a buffer of ours, which the caller
hands to ``Plaintext`` and which is so zeroed after its one use. Decoding is strict: a blob has one form and no other.

Pure. Imports only the model and ``errors``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker_core.errors import Integrity
from broker_core.model import CipherName

Buffer = bytes | bytearray | memoryview
Random = Callable[[int], bytes]

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
#: the most that kms:Encrypt takes: https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html
DIRECT_MAX = 4096
#: the longest CiphertextBlob that kms:Decrypt takes
#: https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html
WRAPPED_MAX = 6144

_VERSION = b"\x01"


def seal(key: Buffer, plaintext: Buffer, associated_data: bytes, *, random: Random = os.urandom) -> bytes:
    """Encrypt under a 256-bit key; returns nonce, ciphertext and tag. Raises ValueError for a key of another length."""
    nonce = random(NONCE_BYTES)
    return nonce + _aead(key).encrypt(nonce, plaintext, associated_data)


def open_into(key: Buffer, sealed: Buffer, associated_data: bytes) -> bytearray:
    """Decrypt into a new buffer, which is the caller's to zero.

    Raises Integrity when the message is too short, was changed, or belongs to another key or other associated data;
    ValueError for a key that is not 256 bits.
    """
    aead = _aead(key)
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise Integrity("the message is too short to be ours")
    plaintext = bytearray(len(sealed) - NONCE_BYTES - TAG_BYTES)
    view = memoryview(sealed)
    try:
        aead.decrypt_into(view[:NONCE_BYTES], view[NONCE_BYTES:], associated_data, plaintext)
    except InvalidTag:
        wipe(plaintext)  # what was decrypted before the tag failed is unauthenticated, but may be a value
    else:
        return plaintext
    raise Integrity("the message does not open: another key, another context, or it was changed")


def wipe(buffer: bytearray) -> None:
    """Zero a buffer of ours."""
    buffer[:] = bytes(len(buffer))


@dataclass(frozen=True)
class Wrapped:
    """A ``kms-envelope`` blob taken apart: the data key as KMS wrapped it, and what the data key sealed."""

    key: bytes = field(repr=False)
    sealed: bytes = field(repr=False)

    def pack(self) -> bytes:
        """The blob. Raises ValueError for a wrapped key that no blob can hold."""
        if not 1 <= len(self.key) <= WRAPPED_MAX:
            raise ValueError("a wrapped key has 1 to 6144 bytes")
        return _VERSION + len(self.key).to_bytes(2, "big") + self.key + self.sealed

    @classmethod
    def unpack(cls, blob: bytes) -> Wrapped:
        """Take a blob apart. Raises Integrity for anything that ``pack`` cannot have made."""
        if blob[:1] != _VERSION:
            raise Integrity("not a kms-envelope blob of a version that we know")
        end = 3 + int.from_bytes(blob[1:3], "big")
        if not 3 < end <= 3 + WRAPPED_MAX or len(blob) < end + NONCE_BYTES + TAG_BYTES:
            raise Integrity("a kms-envelope blob that is cut short or malformed")
        return cls(blob[3:end], blob[end:])


def encrypt_value(
    value: memoryview, associated: bytes, encrypt: Callable[[bytearray], bytes], random: Random
) -> tuple[CipherName, bytes]:
    """``kms`` up to 4096 bytes, ``kms-envelope`` above. ``encrypt`` is kms:Encrypt, and is called once."""
    if len(value) <= DIRECT_MAX:
        own = bytearray(value)
        try:
            return CipherName.KMS, encrypt(own)
        finally:
            wipe(own)
    key = bytearray(random(KEY_BYTES))
    try:
        sealed = seal(key, value, associated, random=random)
        return CipherName.KMS_ENVELOPE, Wrapped(encrypt(key), sealed).pack()
    finally:
        wipe(key)


def decrypt_value(
    cipher: CipherName, blob: bytes, associated: bytes, decrypt: Callable[[bytes], bytearray]
) -> bytearray:
    """The reverse. ``decrypt`` is kms:Decrypt, and is called once. Raises Integrity for a blob of another kind."""
    if cipher is CipherName.KMS:
        return decrypt(blob)
    wrapped = _unpack(cipher, blob)
    key = decrypt(wrapped.key)
    try:
        if len(key) != KEY_BYTES:
            raise Integrity("the wrapped key is no data key")
        return open_into(key, wrapped.sealed, associated)
    finally:
        wipe(key)


def kms_part(cipher: CipherName, blob: bytes) -> bytes:
    """What of a blob KMS itself made: all of ``kms``, the wrapped key of ``kms-envelope``. Raises Integrity."""
    return blob if cipher is CipherName.KMS else _unpack(cipher, blob).key


def _unpack(cipher: CipherName, blob: bytes) -> Wrapped:
    if cipher is not CipherName.KMS_ENVELOPE:
        raise Integrity("this blob was not made by a KMS key")
    return Wrapped.unpack(blob)


def _aead(key: Buffer) -> AESGCM:
    if len(key) != KEY_BYTES:
        # AESGCM would take 128 bits too; nothing of ours has such a key
        raise ValueError("the key must have 256 bits")
    return AESGCM(key)
