"""A connection's canary: a random value under the customer's key, opened and sealed to learn whether the key works; and
what else is asked of a role and a key to learn whether they are set up as promised.

Each asking is one use like any other: intent committed first, outcome written after, one session of its own (INV-5).
Nobody reads an opened canary but the verification that made it. Imports no AWS or database library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from broker_core import context
from broker_core.audit import Intent, Outcome, Result
from broker_core.context import EncryptionContext
from broker_core.errors import KeyServiceError, KeyState, Transient
from broker_core.model import Blob, CipherName, Connection, Purpose
from broker_core.policies import Extra
from broker_core.ports import AuditStore, KeyService, KeyUse, Opened, Permit, Sealed
from broker_core.secret import Plaintext

#: of a canary's value; as much as a 256-bit key, and always under the 4096 bytes that ``kms`` takes directly
CANARY_BYTES = 32

_Done = TypeVar("_Done", Opened, Sealed, Permit)


def result_of(error: KeyServiceError) -> Result:
    """How a use ended that the key service did not serve."""
    outcome = Outcome.FAILED if isinstance(error, Transient) else Outcome.REFUSED
    return Result(outcome, error.state.value, error.aws_code, error.receipt)


class Canaries:
    """Opens and seals canaries, and asks what else is allowed, audited.

    Every method raises KeyServiceError, AuditUnavailable (nothing was asked) or Unavailable (it was).
    """

    def __init__(self, audit: AuditStore, keys: KeyService, new_id: Callable[[], UUID]) -> None:
        self._audit = audit
        self._keys = keys
        self._new_id = new_id

    def open(
        self,
        connection: Connection,
        purpose: Purpose,
        blob: Blob,
        seconds: float,
        under: EncryptionContext | None = None,
    ) -> Opened:
        """Decrypt a canary; ``under`` another context than its own it must not open."""
        return self._use(connection, purpose, lambda use: self._keys.decrypt(use, blob, seconds), under)

    def seal(self, connection: Connection, purpose: Purpose, value: Plaintext, seconds: float) -> Sealed:
        """Encrypt a value as a canary; the value is wiped in any case."""
        try:
            return self._use(connection, purpose, lambda use: self._keys.encrypt(use, value, seconds))
        finally:
            value.wipe()

    def may_assume(self, connection: Connection, external_id: str | None, seconds: float) -> Permit:
        """See ``KeyService.may_assume``; always to verify."""
        return self._use(connection, Purpose.VERIFY, lambda use: self._keys.may_assume(use, external_id, seconds))

    def permits(self, connection: Connection, extra: Extra, seconds: float) -> Permit:
        """See ``KeyService.permits``; always to verify, under the canary's context."""
        return self._use(connection, Purpose.VERIFY, lambda use: self._keys.permits(use, extra, seconds))

    def _use(
        self,
        connection: Connection,
        purpose: Purpose,
        call: Callable[[KeyUse], _Done],
        under: EncryptionContext | None = None,
    ) -> _Done:
        intent = Intent(self._new_id(), connection.workspace_id, purpose, CipherName.KMS, connection.id)
        self._audit.begin_use(intent)
        own = context.for_canary(connection.workspace_id, connection.id)
        try:
            done = call(KeyUse(connection, purpose, intent.id, under or own))
        except KeyServiceError as error:
            self._audit.end_use(intent, result_of(error))
            raise
        self._end(intent, done)
        return done

    def _end(self, intent: Intent, done: Opened | Sealed | Permit) -> None:
        try:
            self._audit.end_use(intent, _result(done))
        except BaseException:
            if isinstance(done, Opened):
                done.value.wipe()
            raise


def _result(done: Opened | Sealed | Permit) -> Result:
    if not isinstance(done, Permit) or done.is_allowed:
        return Result(Outcome.OK, receipt=done.receipt)
    asked_kms = done.receipt.kms_request_id is not None
    state = KeyState.ACCESS_DENIED if asked_kms else KeyState.ROLE_REFUSED
    return Result(Outcome.REFUSED, state.value, done.aws_code, done.receipt)
