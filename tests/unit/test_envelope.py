"""AES-256-GCM: what opens, what does not, and that a blob has one form."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core import envelope
from broker_core.envelope import (
    DIRECT_MAX,
    WRAPPED_MAX,
    Wrapped,
    decrypt_value,
    encrypt_value,
    kms_part,
    open_into,
    seal,
    wipe,
)
from broker_core.errors import Integrity
from broker_core.model import CipherName

KEY = bytes(range(32))
SEALED = seal(KEY, b"a value of some length", b"context")


class TestSeal:
    def test_golden_vector(self) -> None:
        """A published vector of NIST comes out as nonce, ciphertext, tag, in this order."""
        # NIST CAVS gcmEncryptExtIV256, Keylen 256, IVlen 96, PTlen 128, AADlen 128, count 0
        key = bytes.fromhex("92e11dcdaa866f5ce790fd24501f92509aacf4cb8b1339d50c9c1240935dd08b")
        nonce = bytes.fromhex("ac93a1a6145299bde902f21a")
        plaintext = bytes.fromhex("2d71bcfa914e4ac045b2aa60955fad24")
        associated = bytes.fromhex("1e0889016f67601c8ebea4943bc23ad6")
        expected = "8995ae2e6df3dbf96fac7b7137bae67f" + "eca5aa77d51d4a0a14d9c51e1da474ab"
        assert seal(key, plaintext, associated, random=lambda _: nonce) == nonce + bytes.fromhex(expected)

    @given(st.binary(max_size=300), st.binary(max_size=50))
    def test_it_opens_again(self, value: bytes, associated: bytes) -> None:
        """Whatever is sealed opens under the same key and associated data."""
        assert open_into(KEY, seal(KEY, memoryview(value), associated), associated) == value

    def test_two_seals_differ(self) -> None:
        """Each message has a nonce of its own."""
        assert seal(KEY, b"same", b"") != seal(KEY, b"same", b"")

    @pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
    def test_a_key_of_another_length_is_refused(self, length: int) -> None:
        """AESGCM itself would take 128 and 192 bits."""
        with pytest.raises(ValueError, match="256"):
            seal(bytes(length), b"value", b"")


class TestOpen:
    @given(st.integers(0, len(SEALED) * 8 - 1))
    def test_any_changed_bit_is_integrity(self, bit: int) -> None:
        """There is no bit of a message that can be changed."""
        changed = bytearray(SEALED)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Integrity):
            open_into(KEY, changed, b"context")

    @pytest.mark.parametrize("length", range(len(SEALED)))
    def test_any_cut_is_integrity(self, length: int) -> None:
        """A message that is cut short does not open, however short."""
        with pytest.raises(Integrity):
            open_into(KEY, SEALED[:length], b"context")

    def test_another_context_is_integrity(self) -> None:
        """The associated data must be the same."""
        with pytest.raises(Integrity):
            open_into(KEY, SEALED, b"another")

    def test_the_error_leads_to_nothing(self) -> None:
        """No foreign exception hangs on ours."""
        with pytest.raises(Integrity) as caught:
            open_into(KEY, SEALED, b"another")
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    def test_what_failed_its_tag_is_wiped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not authenticated, but it may be a value all the same."""
        wiped: list[bytearray] = []
        monkeypatch.setattr(envelope, "wipe", wiped.append)
        with pytest.raises(Integrity):
            open_into(KEY, SEALED, b"another")
        assert [len(buffer) for buffer in wiped] == [len(SEALED) - 28]

    def test_wipe_zeroes(self) -> None:
        """What was opened can be zeroed in place."""
        opened = open_into(KEY, SEALED, b"context")
        wipe(opened)
        assert opened == bytes(len(opened))


class TestWrapped:
    def test_the_format_is_as_documented(self) -> None:
        """Version, length in two bytes, wrapped key, sealed."""
        assert Wrapped(b"key", b"s" * 28).pack() == b"\x01\x00\x03key" + b"s" * 28

    @given(st.binary(min_size=1, max_size=WRAPPED_MAX), st.binary(min_size=28, max_size=100))
    def test_it_comes_apart_again(self, key: bytes, sealed: bytes) -> None:
        """What was packed is unpacked."""
        assert Wrapped.unpack(Wrapped(key, sealed).pack()) == Wrapped(key, sealed)

    @given(st.binary(max_size=200))
    def test_what_unpacks_packs_to_the_same_bytes(self, blob: bytes) -> None:
        """A blob has one form: whatever is not refused is exactly what pack gives."""
        try:
            unpacked = Wrapped.unpack(blob)
        except Integrity:
            return
        assert unpacked.pack() == blob

    @pytest.mark.parametrize(
        "blob",
        [
            b"",
            b"\x01",
            b"\x01\x00",
            b"\x01\x00\x03ke",
            b"\x02\x00\x03key" + b"s" * 28,
            b"\x01\x00\x00" + b"s" * 28,
            b"\x01\x00\x03key" + b"s" * 27,
            b"\x01\x18\x01" + b"k" * (WRAPPED_MAX + 1) + b"s" * 28,
        ],
    )
    def test_malformed_is_integrity(self, blob: bytes) -> None:
        """Strict decoding: another version, no key, a key too long, cut short."""
        with pytest.raises(Integrity):
            Wrapped.unpack(blob)

    @pytest.mark.parametrize("key", [b"", b"k" * (WRAPPED_MAX + 1)])
    def test_a_key_that_no_blob_can_hold_is_refused(self, key: bytes) -> None:
        """Nothing is packed that would not be unpacked."""
        with pytest.raises(ValueError, match="6144"):
            Wrapped(key, b"s" * 28).pack()


class TestDirectOrEnvelope:
    @pytest.mark.parametrize(
        ("length", "cipher"),
        [(1, CipherName.KMS), (DIRECT_MAX, CipherName.KMS), (DIRECT_MAX + 1, CipherName.KMS_ENVELOPE)],
    )
    def test_what_kms_takes_goes_direct(self, length: int, cipher: CipherName) -> None:
        """Up to 4096 bytes the blob is KMS's own; above, a data key is wrapped."""
        made = encrypt_value(memoryview(b"v" * length), b"context", lambda own: bytes(own), os.urandom)
        assert made[0] is cipher
        assert decrypt_value(*made, b"context", bytearray) == b"v" * length

    def test_the_value_and_the_data_key_are_wiped(self) -> None:
        """What was handed to KMS is zero afterwards, also when KMS fails."""
        seen: list[bytearray] = []

        def fails(own: bytearray) -> bytes:
            seen.append(own)
            raise Integrity("no")

        for length in (1, DIRECT_MAX + 1):
            with pytest.raises(Integrity):
                encrypt_value(memoryview(b"v" * length), b"context", fails, os.urandom)
        assert seen == [bytes(1), bytes(32)]

    def test_the_unwrapped_data_key_is_wiped(self) -> None:
        """After the value was opened, and when it did not open."""
        cipher, blob = encrypt_value(memoryview(b"v" * 5000), b"context", lambda own: bytes(own), os.urandom)
        for associated in (b"context", b"another"):
            keys: list[bytearray] = []

            def unwrap(wrapped: bytes, keys: list[bytearray] = keys) -> bytearray:
                keys.append(bytearray(wrapped))
                return keys[0]

            with suppress(Integrity):
                decrypt_value(cipher, blob, associated, unwrap)
            assert keys == [bytes(32)]

    def test_an_unwrapped_key_of_another_length_is_integrity(self) -> None:
        """KMS decrypted something, but not a data key of ours."""
        with pytest.raises(Integrity):
            decrypt_value(CipherName.KMS_ENVELOPE, Wrapped(b"k", b"s" * 28).pack(), b"", lambda _: bytearray(16))

    def test_a_platform_blob_is_integrity(self) -> None:
        """No key of a customer made it."""
        with pytest.raises(Integrity):
            decrypt_value(CipherName.PLATFORM, b"anything", b"", bytearray)

    def test_what_a_check_asks_about_is_kms_own_part(self) -> None:
        """All of a direct blob, the wrapped key of an envelope."""
        assert kms_part(CipherName.KMS, b"blob") == b"blob"
        assert kms_part(CipherName.KMS_ENVELOPE, Wrapped(b"key", b"s" * 28).pack()) == b"key"
