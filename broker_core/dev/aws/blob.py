"""Ciphertext blobs of the double: what `kms:Encrypt` gives and `kms:Decrypt` takes.

Promise: a blob opens only under the very key and the very set of context pairs that made it. The pairs are written
with their lengths, sorted, so that no two different contexts have the same bytes (`{"workspace": "ws1"}` is not
`{"workspacew": "s1"}`). Layout: AWS's leading bytes, length and text of the key ARN, nonce, AES-256-GCM ciphertext
with tag; header and context are the associated data. The format is ours: nobody may read more than the key out of
it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from struct import pack

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = b"\x01\x02\x02\x00\x78"
"""How the blobs of AWS's symmetric keys begin."""

_NONCE, _TAG = 12, 16


class BadBlob(ValueError):
    """Not a blob of ours, or not under this key and context."""


def seal(
    material: bytes,
    key_arn: str,
    plaintext: bytes,
    context: Mapping[str, str],
    randomness: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """The blob. `material` is the key's 32 bytes."""
    arn = key_arn.encode()
    header = PREFIX + pack(">H", len(arn)) + arn
    nonce = randomness(_NONCE)
    return header + nonce + AESGCM(material).encrypt(nonce, plaintext, header + _canonical(context))


def key_arn_of(blob: bytes) -> str:
    """Which key it was made under. Raises BadBlob."""
    return _header(blob)[len(PREFIX) + 2 :].decode("ascii", "replace")


def unseal(material: bytes, blob: bytes, context: Mapping[str, str]) -> bytes:
    """The plaintext. Raises BadBlob for another key, another context, or a changed byte."""
    header = _header(blob)
    nonce, body = blob[len(header) : len(header) + _NONCE], blob[len(header) + _NONCE :]
    try:
        return AESGCM(material).decrypt(nonce, body, header + _canonical(context))
    except InvalidTag:
        raise BadBlob("tag") from None


def _header(blob: bytes) -> bytes:
    start = len(PREFIX) + 2
    if not blob.startswith(PREFIX) or len(blob) < start:
        raise BadBlob("prefix")
    end = start + int.from_bytes(blob[len(PREFIX) : start], "big")
    if len(blob) < end + _NONCE + _TAG:
        raise BadBlob("length")
    return blob[:end]


def _canonical(context: Mapping[str, str]) -> bytes:
    texts = [text.encode() for pair in sorted(context.items()) for text in pair]
    return b"".join(pack(">I", len(text)) + text for text in texts)
