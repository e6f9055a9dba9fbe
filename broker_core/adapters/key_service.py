"""``KmsKeyService``: the KeyService port on AWS. One use of a customer's key, from AssumeRole to receipt.

Promise: a use is one AssumeRole (or a shared session, where the operator chose that) and one KMS operation under the
use's own context, the stored key's ARN and nothing else; it ends within its seconds; every error is one of ours and
carries the receipt so far. Only transient errors are tried again, with full jitter, and a retry keeps the session of
its own use. Errors are mapped in ``kms``; who shares sessions is decided in ``sessions``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from botocore.credentials import Credentials

from broker_core import telemetry
from broker_core.adapters.aws_clients import AwsClients, AwsOptions, patience, signed_with
from broker_core.adapters.dry_runs import denial, dry_run_of, require_dry_run
from broker_core.adapters.kms import (
    DEAD_SESSION,
    DRY_RUN_OK,
    NoAnswer,
    Reply,
    ask,
    ciphertext_of,
    plaintext_of,
    retry_in_seconds,
)
from broker_core.adapters.limits import Breaker, Lanes, NotAnswering
from broker_core.adapters.sessions import Assumed, ControlRole, SessionSource, SharedSessions, StrictSessions
from broker_core.audit import session_name
from broker_core.context import associated_data
from broker_core.envelope import Random, decrypt_value, encrypt_value, kms_part
from broker_core.errors import Denied, KeyServiceError, KeyState, Receipt, Transient
from broker_core.model import Blob, Purpose
from broker_core.policies import Action, Extra, Policy, deny_all, extra_policy, to_json
from broker_core.ports import Clock, KeyUse, Opened, Permit, Sealed
from broker_core.secret import Plaintext

T = TypeVar("T")

#: what a span is called that does one of the two; the others only ask
_SPANS: Final = {"encrypt": "Encrypt", "decrypt": "Decrypt"}

#: opens a session by a deadline on the monotonic clock
_Open = Callable[[float], Assumed]

#: the shortest that AWS allows: changing an external id does not end sessions that are already out
SESSION_SECONDS: Final = 900

#: seconds that a use may wait for one of its connection's slots, as far as ``Lanes`` lets it: a thread that waits for
#: one customer serves no other. Somebody waits for an injection. An event that does not wait costs another round
#: through database and queue (measured: a burst of 300 for one customer takes 3.7 times as long without this half
#: second, 1.6 times with it). A probe has a thread of the sweep's own, and is else lost until the next; a
#: verification is seldom, and its owner waits. What is not named comes again by itself and does not wait.
SLOT_SECONDS: Final[Mapping[Purpose, float]] = {
    Purpose.INJECT: 2.0,
    Purpose.ENCRYPT: 0.5,
    Purpose.PROBE: 5.0,
    Purpose.VERIFY: 2.0,
}


class KmsKeyService:
    """See the port ``KeyService`` for what each method promises. Thread-safe; one per process."""

    def __init__(
        self,
        clients: AwsClients,
        options: AwsOptions,
        clock: Clock,
        *,
        sleep: Callable[[float], None] = time.sleep,
        random: Random = os.urandom,
    ) -> None:
        self._clients = clients
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._lanes = Lanes(clock, options.per_connection_concurrency)
        self._control = ControlRole(self._prove_control, clock)
        self._sessions: SessionSource = (
            SharedSessions(self._assume, clock, options.sts_reuse_seconds)
            if options.sts_reuse_seconds
            else StrictSessions(self._assume)
        )

    def encrypt(self, use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
        """See KeyService."""
        running = self._begin(use, Action.ENCRYPT, seconds)
        with value.reveal() as view, running.receipted():
            cipher, blob = encrypt_value(view, associated_data(use.context), running.encrypt, self._random)
        return Sealed(Blob(cipher, blob), running.receipt)

    def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
        """See KeyService."""
        running = self._begin(use, Action.DECRYPT, seconds)
        with running.receipted():
            value = decrypt_value(blob.cipher, blob.ciphertext, associated_data(use.context), running.decrypt)
        return Opened(Plaintext(value), running.receipt)

    def check(self, use: KeyUse, blob: Blob, seconds: float) -> Receipt:
        """See KeyService."""
        running = self._begin(use, Action.DECRYPT, seconds)
        with running.receipted():
            running.dry_run(kms_part(blob.cipher, blob.ciphertext))
        return running.receipt

    def may_assume(self, use: KeyUse, external_id: str | None, seconds: float) -> Permit:
        """See KeyService."""
        deadline = self._clock.monotonic() + seconds
        wait = min(seconds, SLOT_SECONDS.get(use.purpose, 0.0))
        with self._lanes.use(use.connection.id, wait) as breaker:
            retrying = retry_in_seconds(self._clock, deadline, self._sleep, _is_transient)
            permit: Permit = retrying(_watched, breaker, lambda: self._knock(use, external_id, deadline))
        return permit

    def permits(self, use: KeyUse, extra: Extra, seconds: float) -> Permit:
        """See KeyService."""
        policy = extra_policy(extra, use.connection.key_arn)
        running = self._begin(use, Action.DECRYPT, seconds, lambda deadline: self._assume(use, policy, deadline))
        with running.receipted():
            denied = running.would_be_denied(extra)
        return Permit(not denied, running.receipt, denied)

    def _begin(self, use: KeyUse, action: Action, seconds: float, open_session: _Open | None = None) -> _Running:
        """``open_session``: how this use gets its session, if not from where others get theirs."""
        tools = _Tools(self._clients, self._clock, self._sleep, self._lanes, self._sessions)
        open_session = open_session or (lambda deadline: self._sessions.get(use, action, deadline))
        return _Running(tools, use, open_session, self._clock.monotonic() + seconds)

    # ------------------------------------------------------------ AssumeRole

    def _assume(self, use: KeyUse, policy: Policy, deadline: float) -> Assumed:
        """One AssumeRole of the use's own role. Raises KeyServiceError with the receipt of the attempt."""
        return self._assumed(*self._ask_role(use, use.connection.external_id, policy, deadline))

    def _knock(self, use: KeyUse, external_id: str | None, deadline: float) -> Permit:
        """One AssumeRole only to see whether it is refused: what came back is not even looked at, and dies here."""
        try:
            _, receipt = self._ask_role(use, external_id, deny_all(), deadline)
        except Denied as error:
            return Permit(False, error.receipt, error.aws_code)
        return Permit(True, receipt)

    def _ask_role(self, use: KeyUse, external_id: str | None, policy: Policy, deadline: float) -> tuple[Reply, Receipt]:
        """One AssumeRole. Raises KeyServiceError with the receipt of the attempt."""
        connection = use.connection
        name = session_name(use.purpose, use.audit_id)
        wanted = {"RoleArn": connection.role_arn, "RoleSessionName": name}
        if external_id is not None:
            wanted["ExternalId"] = external_id
        reply = self._assume_role(connection.region, deadline, wanted, policy, _attributes(use))
        receipt = Receipt(session_name=name, assume_request_id=reply.request_id)
        if reply.error is not None:
            error = self._blame(reply.error, connection.region, deadline)
            error.receipt = receipt
            raise error
        return reply, receipt

    def _assumed(self, reply: Reply, receipt: Receipt) -> Assumed:
        given = reply.body.get("Credentials")
        if given is None:
            raise Transient("STS answered without a session", receipt=receipt)
        left = (given["Expiration"] - self._clock.now()).total_seconds()
        return Assumed(
            credentials=Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"]),
            receipt=receipt,
            expires_at=self._clock.monotonic() + left,
        )

    def _blame(self, error: KeyServiceError, region: str, deadline: float) -> KeyServiceError:
        """A refused role is the customer's no only while our own side of AssumeRole works (INV-8)."""
        if error.state is not KeyState.ROLE_REFUSED or self._options.control_role_arn is None:
            return error
        if self._control.works(region, deadline):
            return error
        telemetry.log().error("sts.control_role_failed", region=region)
        return Transient("AssumeRole does not work for AxioRank's own control role either", aws_code=error.aws_code)

    def _prove_control(self, region: str, deadline: float) -> bool:
        wanted = {"RoleArn": self._options.control_role_arn, "RoleSessionName": "axiorank-control"}
        if self._options.control_external_id:
            wanted["ExternalId"] = self._options.control_external_id
        return self._assume_role(region, deadline, wanted, deny_all(), {"aws__region": region}).error is None

    def _assume_role(
        self,
        region: str,
        deadline: float,
        wanted: Mapping[str, Any],
        policy: Policy,
        attributes: Mapping[str, telemetry.AttributeValue | None],
    ) -> Reply:
        def call() -> Mapping[str, Any]:
            with patience(deadline - self._clock.monotonic()):
                answer: Mapping[str, Any] = self._clients.sts(region).assume_role(
                    **wanted, DurationSeconds=SESSION_SECONDS, Policy=to_json(policy)
                )
                return answer

        return ask("sts.AssumeRole", call, attributes)


@dataclass(frozen=True)
class _Tools:
    """What the uses of one service share."""

    clients: AwsClients
    clock: Clock
    sleep: Callable[[float], None]
    lanes: Lanes
    sessions: SessionSource


class _Running:
    """One use under way: its session, its receipt, its time."""

    def __init__(self, tools: _Tools, use: KeyUse, open_session: _Open, deadline: float) -> None:
        self.receipt = Receipt()
        self._tools = tools
        self._use = use
        self._key_arn = use.connection.key_arn
        self._open_session = open_session
        self._deadline = deadline
        self._session: Assumed | None = None
        self._was_renewed = False
        self._times_gone = 0

    @contextmanager
    def receipted(self) -> Iterator[None]:
        """Give every error of the block the receipt so far."""
        try:
            yield
        except KeyServiceError as error:
            error.receipt = self.receipt
            raise

    def encrypt(self, plaintext: bytearray) -> bytes:
        """kms:Encrypt under the use's key and context."""
        return self._in_time(lambda: ciphertext_of(self._ask_key("encrypt", Plaintext=plaintext), self._key_arn))

    def decrypt(self, ciphertext: bytes) -> bytearray:
        """kms:Decrypt, with the stored key named and checked."""
        return self._in_time(lambda: plaintext_of(self._ask_key("decrypt", CiphertextBlob=ciphertext), self._key_arn))

    def dry_run(self, ciphertext: bytes) -> None:
        """kms:Decrypt as a dry run."""
        self._in_time(lambda: self._dry_run(ciphertext))

    def would_be_denied(self, extra: Extra) -> str:
        """Ask by dry run for something beyond the two: AWS's code where the customer's side denies it, else empty."""
        method, params = dry_run_of(extra, self._use)
        return self._in_time(lambda: denial(extra, self._ask(method, DRY_RUN_OK, **params)))

    def _dry_run(self, ciphertext: bytes) -> None:
        require_dry_run(self._ask_key("decrypt", DRY_RUN_OK, CiphertextBlob=ciphertext, DryRun=True))

    def _in_time(self, once: Callable[[], T]) -> T:
        """Run one operation in the connection's lane, again where that is worth it, until the deadline."""
        tools = self._tools
        wait = min(self._left(), SLOT_SECONDS.get(self._use.purpose, 0.0))
        with tools.lanes.use(self._use.connection.id, wait) as breaker:
            retrying = retry_in_seconds(tools.clock, self._deadline, tools.sleep, self._is_worth_another)
            try:
                result: T = retrying(_watched, breaker, once)
                return result
            except Denied as error:
                if error.state is not KeyState.KEY_GONE or self._times_gone > 1:
                    raise
            # AWS propagates in seconds: one look, with no time for a second, does not say that a key is gone
            raise Transient("the key was not found, and there was no time to look again", aws_code="NotFoundException")

    def _is_worth_another(self, error: BaseException) -> bool:
        if isinstance(error, Denied) and error.state is KeyState.KEY_GONE:
            self._times_gone += 1
            return self._times_gone == 1
        return _is_transient(error)

    def _ask_key(self, method: str, expected: str = "", **params: Any) -> Reply:
        """One of the two, under the use's key and context."""
        return self._ask(method, expected, KeyId=self._key_arn, EncryptionContext=dict(self._use.context), **params)

    def _ask(self, method: str, expected: str, **params: Any) -> Reply:
        """One KMS call in the use's own session; where AWS no longer takes that session, once more in a new one."""
        session = self._session or self._new_session()
        reply = self._ask_in(session, method, expected, params)
        if reply.code in DEAD_SESSION and not self._was_renewed:
            self._was_renewed = True
            self._tools.sessions.drop(session)
            reply = self._ask_in(self._new_session(), method, expected, params)
        return reply

    def _new_session(self) -> Assumed:
        self._session = None
        try:
            self._session = self._open_session(self._deadline)
        except KeyServiceError as error:
            self.receipt = error.receipt
            raise
        self.receipt = self._session.receipt
        return self._session

    def _ask_in(self, session: Assumed, method: str, expected: str, params: Mapping[str, Any]) -> Reply:
        def call() -> Mapping[str, Any]:
            client = self._tools.clients.kms(self._use.connection.region)
            with signed_with(session.credentials), patience(self._left()):
                answer: Mapping[str, Any] = getattr(client, method)(**params)
                return answer

        reply = ask(f"kms.{_SPANS.get(method, 'DryRun')}", call, _attributes(self._use), expected)
        self.receipt = replace(self.receipt, kms_request_id=reply.request_id or self.receipt.kms_request_id)
        return reply

    def _left(self) -> float:
        return self._deadline - self._tools.clock.monotonic()


def _watched(breaker: Breaker, once: Callable[[], T]) -> T:
    """One attempt, if the breaker lets it start, reported to it by how it ended: an answer, no answer in time, or
    neither."""
    breaker.ask()
    try:
        result = once()
    except NoAnswer:
        breaker.timed_out()
        raise
    except KeyServiceError as error:
        if error.aws_code:
            breaker.answered()
        raise
    breaker.answered()
    return result


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, Transient) and not isinstance(error, NotAnswering)


def _attributes(use: KeyUse) -> dict[str, telemetry.AttributeValue | None]:
    return {
        "aws__region": use.connection.region,
        "broker__purpose": use.purpose.value,
        "broker__audit": str(use.audit_id),
        "broker__connection": str(use.connection.id),
        "broker__workspace": use.connection.workspace_id,
    }
