"""Steps 7 and 8 of an injection: ask the key, and check what it gives. Imports no library."""

from __future__ import annotations

from broker_core import context
from broker_core.errors import Integrity, Misconfigured, Receipt, Transient
from broker_core.inject.uses import OneUse
from broker_core.injection import value_problem
from broker_core.model import CipherName, Purpose
from broker_core.ports import Clock, KeyService, KeyUse, Opened, PlatformCipher


class Opener:
    """Gives the value of one use. Keeps nothing (INV-4)."""

    def __init__(self, keys: KeyService, platform: PlatformCipher, clock: Clock, key_seconds: float) -> None:
        self._keys = keys
        self._platform = platform
        self._clock = clock
        self._key_seconds = key_seconds

    def value(self, use: OneUse, ends: float) -> bytes:
        """Decrypt, check, and give a copy: the libraries below us take nothing else. It lives as long as the call.

        ``ends``: by the monotonic clock. Raises KeyServiceError."""
        opened = self._opened(use, ends)  # 7
        use.receipt = opened.receipt
        with opened.value.reveal() as view:  # our own buffer is wiped here, before anything is sent
            if value_problem(use.secret.injection.kind, view) is not None:  # 8
                raise Misconfigured("the value does not fit its injectionKind; rotate it", receipt=opened.receipt)
            return bytes(view)

    def _opened(self, use: OneUse, ends: float) -> Opened:
        """Being listed as affected never refuses: every call asks the key."""
        use.is_begun = True
        secret, left = use.secret, ends - self._clock.monotonic()
        binding = context.for_secret(secret.workspace_id, secret.name, secret.version)
        if left <= 0:
            raise Transient("no time was left to use the key")
        if secret.blob.cipher is CipherName.PLATFORM:
            return Opened(self._platform.decrypt(binding, secret.blob), Receipt())
        if secret.connection is None:
            raise Integrity("a blob under a customer's key has no connection")
        key_use = KeyUse(secret.connection, Purpose.INJECT, use.intent.id, binding)
        return self._keys.decrypt(key_use, secret.blob, min(left, self._key_seconds))
