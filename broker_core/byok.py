"""Setting BYOK up and taking it down; what owners see of failures.

A new connection encrypts nothing until it has shown that it works: it is written as pending, tried, and made current in
one compare-and-set on the version of the setting that was read at the start. Whatever goes wrong on the way, the old
setting stays. Losing Enterprise stops connecting and never changes a cipher; disconnecting is always allowed. Imports
no AWS or database library.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from broker_core import telemetry
from broker_core.canary import CANARY_BYTES, Canaries
from broker_core.errors import Conflict, Forbidden, Integrity, KeyServiceError, KeyState, Transient
from broker_core.model import Blob, Connection, Plan, Purpose, check_connection, parse_key_arn
from broker_core.ports import Affected, AuditStore, ByokStore, Clock, KeyService
from broker_core.secret import Plaintext

#: seconds for a whole verification, and for one use of the key in it
VERIFY_SECONDS = 45.0
USE_SECONDS = 10.0

_WHAT_TO_DO: Mapping[KeyState, str] = {
    KeyState.ACCESS_DENIED: "Let the role use kms:Encrypt and kms:Decrypt on this key again, in the key's policy.",
    KeyState.ROLE_REFUSED: "Let AxioRank assume the role again: the role must exist, and its trust policy must name our"
    " account and this external id.",
    KeyState.KEY_DISABLED: "Enable the key again in AWS KMS, or connect another key and give the values again.",
    KeyState.KEY_PENDING_DELETION: "Cancel the key's deletion in AWS KMS and enable it before the waiting period ends.",
    KeyState.KEY_STATE: "Look at the key's state in AWS KMS: it must be Enabled.",
    KeyState.KEY_GONE: "The key does not exist any more, and what it encrypted cannot be read again: connect another"
    " key and give the values again.",
    KeyState.INTEGRITY: "Nothing is wrong on your side: a stored value does not fit its place, and our operators were"
    " told.",
    KeyState.MISCONFIGURED: "Check that the key is a symmetric encryption key in a Region that your account has"
    " enabled; if it is, the fault is ours.",
    KeyState.TRANSIENT: "AWS did not answer, or asked us to slow down: try again in a minute.",
}


def what_to_do(state: KeyState) -> str:
    """One plain sentence for an owner."""
    return _WHAT_TO_DO[state]


def warnings_for(key_arn: str) -> tuple[str, ...]:
    """What an owner must know about a key that they connect, one plain sentence each. Raises Invalid (``keyArn``)."""
    key = parse_key_arn(key_arn)
    if not key.is_multi_region:
        return ()
    several = "This is a multi-Region key: it exists in several Regions, and disabling it in one leaves the others."
    return (f"{several} AxioRank uses only the one in {key.region}.",)


class Byok:
    """Use case: connect, disconnect, and say what is affected."""

    def __init__(
        self,
        store: ByokStore,
        audit: AuditStore,
        keys: KeyService,
        clock: Clock,
        new_id: Callable[[], UUID],
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._random = random
        self._canaries = Canaries(audit, keys, new_id)

    def connect(self, workspace_id: str, role_arn: str, external_id: str, key_arn: str) -> Connection:
        """Make a key the one that encrypts every new and rotated secret, once it has shown that it works.

        What the owner must know about the key besides is in ``warnings_for``.
        Raises NotFound, Forbidden (``plan_required``), Invalid, Conflict (the external id is not to be had, or the
        setting changed meanwhile), KeyServiceError (its message says what to do; nothing was enabled) or Unavailable.
        """
        if self._store.plan_of(workspace_id) != Plan.ENTERPRISE:
            raise Forbidden("connecting a key of your own is part of the Enterprise plan", code="plan_required")
        key = check_connection(role_arn, key_arn, external_id)
        before = self._store.setting(workspace_id)
        connection = Connection(self._new_id(), workspace_id, role_arn, external_id, key_arn)
        with telemetry.span("byok.connect", broker__workspace=workspace_id, broker__connection=str(connection.id)):
            self._store.add_pending(connection)
            canary = self._verify(connection)
            if not self._store.make_current(connection, canary, before.version):
                raise Conflict("the setting changed while this key was being tried; nothing was enabled: try again")
        if key.is_multi_region:
            telemetry.log().warning(
                "byok.multi_region_key", workspace_id=workspace_id, connection_id=str(connection.id)
            )
        return connection

    def disconnect(self, workspace_id: str) -> None:
        """Let the platform cipher encrypt what comes; what is stored stays under its key. On every plan.

        Raises NotFound, Conflict (not connected) or Unavailable.
        """
        self._store.disconnect(workspace_id)

    def affected(self, workspace_id: str) -> Affected:
        """What cannot be decrypted now for a reason on the customer's side. Raises NotFound or Unavailable."""
        return self._store.affected(workspace_id)

    def _verify(self, connection: Connection) -> Blob:
        """Take every step; the canary that is left over is the connection's for ever."""
        expected = bytearray(self._random(CANARY_BYTES))
        trial = _Trial(connection, self._canaries, self._clock, self._clock.monotonic() + VERIFY_SECONDS, expected)
        try:
            for step in STEPS:
                step.take(trial)
        except KeyServiceError as error:
            if isinstance(error, Integrity):
                telemetry.log().error("byok.integrity", connection_id=str(connection.id), aws_code=error.aws_code)
            raise _with_advice(error) from None
        finally:
            expected[:] = bytes(len(expected))
        return trial.sealed()


@dataclass
class _Trial:
    """A verification under way: what one step leaves for the next."""

    connection: Connection
    canaries: Canaries
    clock: Clock
    deadline: float
    expected: bytearray = field(repr=False)
    canary: Blob | None = None

    def seconds(self) -> float:
        """What one use may take. Raises Transient when the verification's own time is up."""
        left = self.deadline - self.clock.monotonic()
        if left <= 0:
            raise Transient("the verification took too long")
        return min(left, USE_SECONDS)

    def sealed(self) -> Blob:
        """The canary. Raises RuntimeError where no step has made it: a mistake in the list of steps."""
        if self.canary is None:
            raise RuntimeError("no step has sealed the canary")
        return self.canary


@dataclass(frozen=True)
class Step:
    """One thing that a connection must show. ``take`` raises KeyServiceError where it does not."""

    name: str
    take: Callable[[_Trial], None]


def _encrypt(trial: _Trial) -> None:
    value = Plaintext(bytes(trial.expected))
    trial.canary = trial.canaries.seal(trial.connection, Purpose.VERIFY, value, trial.seconds())


def _decrypt_gives_it_back(trial: _Trial) -> None:
    opened = trial.canaries.open(trial.connection, Purpose.VERIFY, trial.sealed(), trial.seconds())
    with opened.reveal() as value:
        is_same = hmac.compare_digest(value, trial.expected)
    if not is_same:
        raise Integrity("the key gave back something else than it was given")


#: in this order; each later one may build on what the ones before it left in the trial
STEPS = (Step("encrypt", _encrypt), Step("decrypt", _decrypt_gives_it_back))


def _with_advice(error: KeyServiceError) -> KeyServiceError:
    """The same error, its message for the owner."""
    advice = what_to_do(error.state)
    if isinstance(error, Transient):
        return Transient(advice, aws_code=error.aws_code, receipt=error.receipt, mapped=error.mapped)
    return type(error)(advice, state=error.state, aws_code=error.aws_code, receipt=error.receipt)
