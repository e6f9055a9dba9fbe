"""A customer's key, and the platform's cipher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from broker_core.context import EncryptionContext
from broker_core.errors import Receipt
from broker_core.model import Blob, Connection, Purpose
from broker_core.policies import Extra
from broker_core.secret import Plaintext


@dataclass(frozen=True)
class KeyUse:
    """One use of a customer's key: who, what for, on which audit row, under which context."""

    connection: Connection
    purpose: Purpose
    audit_id: UUID
    context: EncryptionContext


@dataclass(frozen=True)
class Sealed:
    """The result of an encryption."""

    blob: Blob
    receipt: Receipt


@dataclass(frozen=True)
class Opened:
    """The result of a decryption. The value is the caller's to reveal once."""

    value: Plaintext
    receipt: Receipt


@dataclass(frozen=True)
class Permit:
    """Whether the customer's side would let us; a no comes with AWS's code."""

    is_allowed: bool
    receipt: Receipt
    aws_code: str = ""


class KeyService(Protocol):
    """The customer's key, reached through their role. Strict: one AssumeRole for each call, never shared.

    Every method raises Denied, Misconfigured, Integrity or Transient, each with the receipt so far. Callers have
    committed the intent row before they call (INV-5).
    """

    def encrypt(self, use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
        """Encrypt under the customer's key: up to 4096 bytes directly (``kms``), above that by ``kms-envelope``. The
        value is revealed, and so wiped, whether it works or not."""

    def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
        """Decrypt a ``kms`` or ``kms-envelope`` blob under the stored key ARN and the use's context."""

    def check(self, use: KeyUse, blob: Blob, seconds: float) -> Receipt:
        """Ask by dry run whether ``decrypt`` would work; no plaintext leaves KMS."""

    def may_assume(self, use: KeyUse, external_id: str | None, seconds: float) -> Permit:
        """Whether the role can be assumed with this external id, or without one; never by a shared session. What comes
        back may do nothing (its policy denies all) and is dropped at once. A refusal is no error here."""

    def permits(self, use: KeyUse, extra: Extra, seconds: float) -> Permit:
        """Ask by dry run whether the role could use the key for something beyond the two, under the use's context.
        ``access_denied`` is no error here."""


class PlatformCipher(Protocol):
    """What encrypts when BYOK is off."""

    def encrypt(self, context: EncryptionContext, value: Plaintext) -> Blob:
        """Encrypt under the first platform key; the value is revealed. Raises Transient where a remote key is away."""

    def decrypt(self, context: EncryptionContext, blob: Blob) -> Plaintext:
        """Decrypt under whichever platform key made the blob. Raises Integrity, or Transient as above."""
