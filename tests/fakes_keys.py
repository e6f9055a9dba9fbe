"""In-memory key service and platform cipher, which can be told to fail, and a scripted pair of AWS clients."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from botocore.exceptions import ClientError

from broker_core.context import EncryptionContext, associated_data
from broker_core.envelope import DIRECT_MAX, Wrapped, open_into, seal, wipe
from broker_core.errors import Integrity, KeyServiceError, KeyState, Receipt, Transient
from broker_core.model import Blob, CipherName, Connection
from broker_core.policies import Extra
from broker_core.ports import KeyUse, Opened, Permit, Sealed
from broker_core.secret import Plaintext


class ManualClock:
    """A clock that moves when it is told to; ``sleep`` is telling it so."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@dataclass(frozen=True)
class KeyCall:
    """One call of the fake: the method's name."""

    method: str
    use: KeyUse


class FakeKeyService:
    """The KeyService port, without AWS. Each key ARN has a key of its own; blobs are bound to the use's context."""

    def __init__(self) -> None:
        self.calls: list[KeyCall] = []
        #: what a key lets the role do beyond the two
        self.allowed: set[Extra] = set()
        #: which external ids a role takes beside its connection's; None stands for coming without one
        self.lets_in: Callable[[str | None], bool] = lambda external_id: False
        self._keys: dict[str, bytes] = {}
        self._failures: dict[UUID | None, Callable[[KeyUse], KeyServiceError | None]] = {}
        self._lock = threading.Lock()

    def fail(self, error: KeyServiceError | None, connection: Connection | None = None) -> None:
        """From now on every use (of one connection) raises this; None: works again."""
        self.fail_when(lambda _: error, connection)

    def fail_when(
        self, decide: Callable[[KeyUse], KeyServiceError | None], connection: Connection | None = None
    ) -> None:
        """Ask ``decide`` before each use (of one connection); what it returns is raised."""
        self._failures[connection.id if connection else None] = decide

    def encrypt(self, use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
        with value.reveal() as view:
            receipt = self._begin("encrypt", use)
            sealed = seal(self._key(use), view, associated_data(use.context))
            if len(view) <= DIRECT_MAX:
                return Sealed(Blob(CipherName.KMS, sealed), receipt)
            return Sealed(Blob(CipherName.KMS_ENVELOPE, Wrapped(b"fake", sealed).pack()), receipt)

    def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
        receipt = self._begin("decrypt", use)
        return Opened(Plaintext(self._open(use, blob, receipt)), receipt)

    def check(self, use: KeyUse, blob: Blob, seconds: float) -> Receipt:
        receipt = self._begin("check", use)
        wipe(self._open(use, blob, receipt))
        return receipt

    def may_assume(self, use: KeyUse, external_id: str | None, seconds: float) -> Permit:
        receipt = replace(self._receipt("may_assume", use), kms_request_id=None)
        error = self._failure(use, receipt)
        if isinstance(error, Transient):
            raise error
        is_refused = error is not None and error.state is KeyState.ROLE_REFUSED  # what the key says, STS does not know
        is_own = external_id == use.connection.external_id
        if not is_refused and (is_own or self.lets_in(external_id)):
            return Permit(True, receipt)
        return Permit(False, receipt, "AccessDenied")

    def permits(self, use: KeyUse, extra: Extra, seconds: float) -> Permit:
        receipt = self._receipt("permits", use)
        error = self._failure(use, receipt)
        if error is not None and error.state is not KeyState.ACCESS_DENIED:
            raise error
        if error is None and extra in self.allowed:
            return Permit(True, receipt)
        return Permit(False, receipt, "AccessDeniedException")

    def _begin(self, method: str, use: KeyUse) -> Receipt:
        receipt = self._receipt(method, use)
        error = self._failure(use, receipt)
        if error is not None:
            raise error
        return receipt

    def _receipt(self, method: str, use: KeyUse) -> Receipt:
        name = f"axiorank-{use.purpose}-{use.audit_id}"
        with self._lock:
            self.calls.append(KeyCall(method, use))
            number = len(self.calls)
        return Receipt(name, f"sts-{number}", f"kms-{number}")

    def _failure(self, use: KeyUse, receipt: Receipt) -> KeyServiceError | None:
        for whose in (use.connection.id, None):
            decide = self._failures.get(whose)
            error = decide(use) if decide else None
            if error is not None:
                error = copy.copy(error)  # one exception raised twice would collect both traces
                error.receipt = receipt
                return error
        return None

    def _open(self, use: KeyUse, blob: Blob, receipt: Receipt) -> bytearray:
        if blob.cipher is CipherName.PLATFORM:
            raise Integrity("this blob was not made by a KMS key", receipt=receipt)
        try:
            sealed = blob.ciphertext if blob.cipher is CipherName.KMS else Wrapped.unpack(blob.ciphertext).sealed
            return open_into(self._key(use), sealed, associated_data(use.context))
        except Integrity as error:
            error.aws_code, error.receipt = "InvalidCiphertextException", receipt
            raise

    def _key(self, use: KeyUse) -> bytes:
        with self._lock:
            return self._keys.setdefault(use.connection.key_arn, os.urandom(32))


class FakePlatformCipher:
    """The PlatformCipher port with one key of its own. ``is_away`` makes it Transient."""

    def __init__(self) -> None:
        self.is_away = False
        self.calls: list[tuple[str, EncryptionContext]] = []
        self._key = os.urandom(32)

    def encrypt(self, context: EncryptionContext, value: Plaintext) -> Blob:
        with value.reveal() as view:
            self._begin("encrypt", context)
            return Blob(CipherName.PLATFORM, seal(self._key, view, associated_data(context)))

    def decrypt(self, context: EncryptionContext, blob: Blob) -> Plaintext:
        self._begin("decrypt", context)
        if blob.cipher is not CipherName.PLATFORM:
            raise Integrity("not a platform blob")
        return Plaintext(open_into(self._key, blob.ciphertext, associated_data(context)))

    def _begin(self, method: str, context: EncryptionContext) -> None:
        self.calls.append((method, context))
        if self.is_away:
            raise Transient("the platform key is away")


# ---------------------------------------------------------------- AWS, scripted


def aws_error(code: str, message: str = "", status: int = 400, operation: str = "Decrypt") -> ClientError:
    """What botocore raises for an answer of AWS's."""
    metadata = {"RequestId": f"req-{code}", "HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, operation)


Script = Callable[[dict[str, Any]], Mapping[str, Any]]


class ScriptedAws:
    """Stands in for AwsClients and its clients: each operation has a list of answers, the last of which repeats.

    An answer is an exception to raise, or a function of the parameters. ``asked`` holds every call.
    """

    def __init__(self, clock: ManualClock, **answers: list[Exception | Script]) -> None:
        self._clock = clock
        self._answers: dict[str, list[Exception | Script]] = {"assume_role": [self.session], **answers}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def sts(self, region: str) -> Any:
        return self

    def kms(self, region: str) -> Any:
        return self

    def own_kms(self, region: str) -> Any:
        return self

    def assume_role(self, **params: Any) -> Mapping[str, Any]:
        return self._answer("assume_role", params)

    def encrypt(self, **params: Any) -> Mapping[str, Any]:
        return self._answer("encrypt", params)

    def decrypt(self, **params: Any) -> Mapping[str, Any]:
        return self._answer("decrypt", params)

    def __getattr__(self, operation: str) -> Any:
        """An operation that a test has given answers for."""
        if operation not in self.__dict__.get("_answers", {}):
            raise AttributeError(operation)
        return lambda **params: self._answer(operation, params)

    def asked_for(self, operation: str) -> list[dict[str, Any]]:
        """The parameters of every call of one operation."""
        return [params for name, params in self.asked if name == operation]

    def session(self, params: dict[str, Any]) -> Mapping[str, Any]:
        number = len(self.asked)
        credentials = {
            "AccessKeyId": f"ASIA{number}",
            "SecretAccessKey": "scripted",
            "SessionToken": "scripted",
            "Expiration": self._clock.now() + timedelta(seconds=params["DurationSeconds"]),
        }
        return {"Credentials": credentials, "ResponseMetadata": {"RequestId": f"sts-{number}"}}

    def _answer(self, operation: str, params: dict[str, Any]) -> Mapping[str, Any]:
        self.asked.append((operation, params))
        answers = self._answers[operation]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(params)
