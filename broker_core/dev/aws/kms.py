"""KMS, the cryptographic operations: decided and done here, without moto.

Promise, in AWS's order: the request is well formed; the key exists in this Region; key policy, identity policy,
grants and session policy allow; the key is enabled and of the right kind; the blob opens under this key and context;
and with `DryRun` the answer is DryRunOperationException where the result would have been. No plaintext is kept or
recorded. Everything else of KMS is in `kms_admin`. This module imports no other service.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from broker_core.dev.aws import blob
from broker_core.dev.aws.decide import Caller
from broker_core.dev.aws.inbound import Inbound
from broker_core.dev.aws.kms_gate import Ask, Gate
from broker_core.dev.aws.trail import Call
from broker_core.dev.aws.wire import Answer, AwsError, json_answer
from broker_core.dev.aws.world import KeyView

_MAX_PLAINTEXT = 4096
_MAX_BLOB = 6144
_SPECS = {"AES_128": 16, "AES_256": 32}


@dataclass(frozen=True)
class _Source:
    """A blob to open: the key it is to be opened with, and what it holds."""

    key: KeyView
    blob: bytes | None
    context: Mapping[str, str]

    def plaintext(self) -> bytes:
        """Raises AwsError InvalidCiphertextException."""
        try:
            return blob.unseal(self.key.material, self.blob or b"", self.context)
        except blob.BadBlob:
            raise AwsError("InvalidCiphertextException", "") from None


class Crypto:
    """Encrypt, Decrypt, ReEncrypt, GenerateDataKey and GenerateDataKeyWithoutPlaintext."""

    def __init__(self, gate: Gate, randomness: Callable[[int], bytes]) -> None:
        self._gate = gate
        self._randomness = randomness
        self._operations: dict[str, Callable[[Ask], dict[str, Any]]] = {
            "Encrypt": self._encrypt,
            "Decrypt": self._decrypt,
            "ReEncrypt": self._re_encrypt,
            "GenerateDataKey": self._generate_data_key,
            "GenerateDataKeyWithoutPlaintext": self._generate_data_key,
        }

    def serves(self, action: str) -> bool:
        return action in self._operations

    def answer(self, inbound: Inbound, caller: Caller, call: Call) -> Answer:
        """Raises AwsError."""
        return json_answer(self._operations[inbound.action](Ask(inbound, caller, call)))

    def _encrypt(self, ask: Ask) -> dict[str, Any]:
        plaintext = _bytes(ask.inbound, "Plaintext", _MAX_PLAINTEXT)
        context = ask.encryption_context()
        key = self._gate.usable(ask, ask.inbound.required("KeyId"), "Encrypt", context)
        ask.stop_if_dry_run()
        return {"KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"} | self._seal(key, plaintext, context)

    def _decrypt(self, ask: Ask) -> dict[str, Any]:
        source = self._source(ask, "Decrypt", "KeyId", "EncryptionContext")
        plaintext = source.plaintext() if source.blob is not None else b""
        ask.stop_if_dry_run()
        return {
            "KeyId": source.key.arn,
            "Plaintext": _text(plaintext),
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }

    def _re_encrypt(self, ask: Ask) -> dict[str, Any]:
        source = self._source(ask, "ReEncryptFrom", "SourceKeyId", "SourceEncryptionContext")
        context = ask.encryption_context("DestinationEncryptionContext")
        target = self._gate.usable(ask, ask.inbound.required("DestinationKeyId"), "ReEncryptTo", context)
        plaintext = source.plaintext() if source.blob is not None else b""
        ask.stop_if_dry_run()
        return {"SourceKeyId": source.key.arn, "KeyId": target.arn} | self._seal(target, plaintext, context)

    def _generate_data_key(self, ask: Ask) -> dict[str, Any]:
        length = _data_key_length(ask.inbound)
        context = ask.encryption_context()
        key = self._gate.usable(ask, ask.inbound.required("KeyId"), ask.inbound.action, context)
        ask.stop_if_dry_run()
        plaintext = self._randomness(length)
        shown = {} if ask.inbound.action.endswith("WithoutPlaintext") else {"Plaintext": _text(plaintext)}
        return {"KeyId": key.arn} | shown | self._seal(key, plaintext, context)

    def _source(self, ask: Ask, action: str, key_name: str, context_name: str) -> _Source:
        """The blob and the key that may open it. A blob says which key; a KeyId that says another is an error."""
        context = ask.encryption_context(context_name)
        named = ask.inbound.text(key_name)
        ciphertext = None if ask.ignores("IGNORE_CIPHERTEXT") else _bytes(ask.inbound, "CiphertextBlob", _MAX_BLOB)
        if ciphertext is None:
            return _Source(
                self._gate.usable(ask, named or ask.inbound.required(key_name), action, context), None, context
            )
        if named is None:
            return _Source(
                self._gate.usable(ask, _made_under(ciphertext), action, context, found=True), ciphertext, context
            )
        key = self._gate.usable(ask, named, action, context)
        if _made_under(ciphertext).rpartition("/")[2] != key.key_id:
            raise AwsError(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
            )
        return _Source(key, ciphertext, context)

    def _seal(self, key: KeyView, plaintext: bytes, context: Mapping[str, str]) -> dict[str, str]:
        return {"CiphertextBlob": _text(blob.seal(key.material, key.arn, plaintext, context, self._randomness))}


def _made_under(ciphertext: bytes) -> str:
    try:
        return blob.key_arn_of(ciphertext)
    except blob.BadBlob:
        raise AwsError("InvalidCiphertextException", "") from None


def _bytes(inbound: Inbound, name: str, longest: int) -> bytes:
    """A base64 parameter of 1 to `longest` bytes. The messages say nothing of its content."""
    try:
        value = base64.b64decode(inbound.text(name) or "", validate=True)
    except (binascii.Error, ValueError):
        raise AwsError("SerializationException", f"{name} is not base64.") from None
    if not 1 <= len(value) <= longest:
        raise AwsError(
            "ValidationException",
            f"1 validation error detected: Value at '{name[0].lower()}{name[1:]}' failed to satisfy constraint: "
            f"Member must have length between 1 and {longest}",
        )
    return value


def _data_key_length(inbound: Inbound) -> int:
    spec, count = inbound.text("KeySpec"), inbound.params.get("NumberOfBytes")
    if (spec is None) == (count is None):
        raise AwsError("ValidationException", "Please specify either number of bytes or key spec.")
    length = _SPECS.get(spec, 0) if spec is not None else count
    if not isinstance(length, int) or not 1 <= length <= 1024:
        raise AwsError("ValidationException", "1 validation error detected: Value failed to satisfy constraint")
    return length


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
