"""A connection's canary: a random value under the customer's key, opened and sealed to learn whether the key works.

Each opening and each sealing is one use like any other: intent committed first, outcome written after, one session of
its own (INV-5). Nobody reads an opened canary but the verification that made it. Imports no AWS or database library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from broker_core import context
from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import KeyServiceError, Receipt, Transient
from broker_core.model import Blob, CipherName, Connection, Purpose
from broker_core.ports import AuditStore, KeyService, KeyUse, Opened, Sealed
from broker_core.secret import Plaintext

#: of a canary's value; as much as a 256-bit key, and always under the 4096 bytes that ``kms`` takes directly
CANARY_BYTES = 32

_Done = TypeVar("_Done", Opened, Sealed)


def result_of(error: KeyServiceError) -> Result:
    """How a use ended that the key service did not serve."""
    outcome = Outcome.FAILED if isinstance(error, Transient) else Outcome.REFUSED
    return Result(outcome, error.state.value, error.aws_code, error.receipt)


class Canaries:
    """Opens and seals canaries, audited."""

    def __init__(self, audit: AuditStore, keys: KeyService, new_id: Callable[[], UUID]) -> None:
        self._audit = audit
        self._keys = keys
        self._new_id = new_id

    def open(self, connection: Connection, purpose: Purpose, blob: Blob, seconds: float) -> Plaintext:
        """Decrypt a canary. Raises KeyServiceError, AuditUnavailable (nothing was asked) or Unavailable (it was)."""
        return self._use(connection, purpose, lambda use: self._keys.decrypt(use, blob, seconds)).value

    def seal(self, connection: Connection, purpose: Purpose, value: Plaintext, seconds: float) -> Blob:
        """Encrypt a value as a canary; the value is wiped in any case. Raises as ``open``."""
        try:
            return self._use(connection, purpose, lambda use: self._keys.encrypt(use, value, seconds)).blob
        finally:
            value.wipe()

    def _use(self, connection: Connection, purpose: Purpose, call: Callable[[KeyUse], _Done]) -> _Done:
        intent = Intent(self._new_id(), connection.workspace_id, purpose, CipherName.KMS, connection.id)
        self._audit.begin_use(intent)
        use = KeyUse(connection, purpose, intent.id, context.for_canary(connection.workspace_id, connection.id))
        try:
            done = call(use)
        except KeyServiceError as error:
            self._audit.end_use(intent, result_of(error))
            raise
        self._end(intent, done, done.receipt)
        return done

    def _end(self, intent: Intent, done: Opened | Sealed, receipt: Receipt) -> None:
        try:
            self._audit.end_use(intent, Result(Outcome.OK, receipt=receipt))
        except BaseException:
            if isinstance(done, Opened):
                done.value.wipe()
            raise
