"""Verifying a connection: what a role and a key must show before anything is encrypted under them, step by step.

In this order: the role lets us in with its external id, and nobody without it; the key encrypts and gives back, under
one context and no other, and it is the key that was named; and it lets the role do no more than that. A failed step
never hides others, unless those build on it: then they are not taken, and the verification says which. Every asking is
an audited use (``canary``). Enables nothing; imports no AWS or database library.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from broker_core import advice, context, telemetry
from broker_core.canary import CANARY_BYTES, Canaries
from broker_core.errors import Denied, Integrity, KeyServiceError, KeyState, Misconfigured, Transient, WrongKey
from broker_core.model import Blob, Connection, Purpose, StepOutcome, StepResult
from broker_core.policies import Extra
from broker_core.ports import Clock, Permit
from broker_core.secret import Plaintext

#: seconds for a whole verification, and for one use of the key in it
VERIFY_SECONDS = 45.0
USE_SECONDS = 10.0

ACCEPTS = "role_accepts_external_id"
REFUSES_NONE = "role_refuses_no_external_id"
REFUSES_WRONG = "role_refuses_wrong_external_id"
ACCEPTS_AGAIN = "role_accepts_again"
ENCRYPT = "encrypt"
DECRYPT = "decrypt"
OTHER_SECRET = "refuses_other_secret"  # noqa: S105 - the name of a step
RIGHT_KEY = "configured_key"
ONE_REGION = "single_region_key"

#: the secret's name that a canary must not open under
_OTHER_NAME = "axiorank-verification"


@dataclass(frozen=True)
class Verified:
    """How a verification went. ``not_run``: the steps that could not be taken, since one before them failed.

    ``canary``: what the encryption left. ``lets_others_in``: whether the role was assumed without its external id, or
    with a wrong one; None where that was not learnt, as where it then refused the right one, too: it may have been our
    own credentials that were refused each time.
    """

    steps: Sequence[StepResult]
    not_run: Sequence[str]
    canary: Blob | None
    lets_others_in: bool | None

    @property
    def passed(self) -> bool:
        """Whether the connection may be used: every step was taken, and none failed."""
        return not self.not_run and not any(step.outcome is StepOutcome.FAILED for step in self.steps)


class Verifier:
    """Takes the steps. ``random`` gives so many bytes."""

    def __init__(self, canaries: Canaries, clock: Clock, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._canaries = canaries
        self._clock = clock
        self._random = random

    def verify(self, connection: Connection) -> Verified:
        """Take every step. Raises AuditUnavailable or Unavailable; how AWS answers is in the steps."""
        trial = self._trial(connection)
        results: list[StepResult] = []
        try:
            for step in STEPS:
                results.append(_taken(step, trial))
                if step.is_needed and results[-1].outcome is StepOutcome.FAILED:
                    break
        finally:
            trial.expected[:] = bytes(len(trial.expected))
        not_run = [step.name for step in STEPS[len(results) :]]
        return Verified(results, not_run, trial.canary, trial.lets_others_in())

    def refusals(self, connection: Connection) -> Verified:
        """Only the steps in which the role must refuse, and whether it accepts us, without which they show nothing.
        Raises as above."""
        trial = self._trial(connection)
        results = [_taken(step, trial) for step in REFUSALS]
        _taken(AGAIN, trial)
        return Verified(results, (), None, trial.lets_others_in())

    def _trial(self, connection: Connection) -> _Trial:
        ends = self._clock.monotonic() + VERIFY_SECONDS
        # it begins and ends as the right one, so that a pattern on either is found out; AWS takes no more than 1224
        own = connection.external_id
        half = min(len(own) // 2, 590)
        wrong = f"{own[:half]}-wrong-{self._random(16).hex()}-{own[-half:]}"
        return _Trial(connection, self._canaries, self._clock, ends, wrong, bytearray(self._random(CANARY_BYTES)))


@dataclass
class _Trial:
    """A verification under way: what one step leaves for the next."""

    connection: Connection
    canaries: Canaries
    clock: Clock
    deadline: float
    wrong_external_id: str
    expected: bytearray = field(repr=False)
    canary: Blob | None = None
    let_in: list[bool] = field(default_factory=list)  # each answer to those who must be refused
    lets_us_in: bool = False  # the last answer to the right external id

    def lets_others_in(self) -> bool | None:
        """See ``Verified``."""
        if any(self.let_in):
            return True
        return False if self.lets_us_in and len(self.let_in) == len(REFUSALS) else None

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
    """One thing that a connection must show. ``take`` raises KeyServiceError where AWS says no, or nothing.

    ``action`` is what it does, for the owner's sentence; ``is_needed``: the steps after it build on it.
    """

    name: str
    take: Callable[[_Trial], StepResult]
    action: str = ""
    is_needed: bool = False


def _taken(step: Step, trial: _Trial) -> StepResult:
    try:
        return step.take(trial)
    except WrongKey as error:
        _alarm(trial, error)
        return _failed(RIGHT_KEY, advice.WRONG_KEY, error)
    except KeyServiceError as error:
        if isinstance(error, Integrity):
            _alarm(trial, error)
        elif isinstance(error, Misconfigured) and advice.is_ours(error):
            telemetry.log().error("byok.misconfigured", connection_id=str(trial.connection.id), aws_code=error.aws_code)
        return _failed(step.name, advice.on_verifying(error, step.action), error)


def _alarm(trial: _Trial, error: KeyServiceError) -> None:
    telemetry.log().error("byok.integrity", connection_id=str(trial.connection.id), aws_code=error.aws_code)


def _failed(name: str, what_to_do: str, error: KeyServiceError) -> StepResult:
    asked = error.receipt.kms_request_id or error.receipt.assume_request_id
    return StepResult(name, StepOutcome.FAILED, error.aws_code, asked, what_to_do)


def _by_permit(name: str, permit: Permit, *, wanted: bool, otherwise: str) -> StepResult:
    asked = permit.receipt.kms_request_id or permit.receipt.assume_request_id
    if permit.is_allowed is wanted:
        return StepResult(name, StepOutcome.OK, permit.aws_code, asked)
    return StepResult(name, StepOutcome.FAILED, permit.aws_code, asked, otherwise)


# ---------------------------------------------------------------- the role


def _accepts(trial: _Trial, name: str, otherwise: str) -> StepResult:
    trial.lets_us_in = False
    permit = trial.canaries.may_assume(trial.connection, trial.connection.external_id, trial.seconds())
    trial.lets_us_in = permit.is_allowed
    return _by_permit(name, permit, wanted=True, otherwise=otherwise)


def _refuses_none(trial: _Trial) -> StepResult:
    return _refuses(trial, None, REFUSES_NONE, advice.ASSUMED_WITHOUT)


def _refuses_wrong(trial: _Trial) -> StepResult:
    return _refuses(trial, trial.wrong_external_id, REFUSES_WRONG, advice.ASSUMED_WITH_WRONG)


def _refuses(trial: _Trial, external_id: str | None, name: str, otherwise: str) -> StepResult:
    permit = trial.canaries.may_assume(trial.connection, external_id, trial.seconds())
    trial.let_in.append(permit.is_allowed)
    return _by_permit(name, permit, wanted=False, otherwise=otherwise)


# ---------------------------------------------------------------- the key


def _encrypt(trial: _Trial) -> StepResult:
    value = Plaintext(bytes(trial.expected))
    sealed = trial.canaries.seal(trial.connection, Purpose.VERIFY, value, trial.seconds())
    trial.canary = sealed.blob
    return StepResult(ENCRYPT, StepOutcome.OK, request_id=sealed.receipt.kms_request_id)


def _decrypt(trial: _Trial) -> StepResult:
    opened = trial.canaries.open(trial.connection, Purpose.VERIFY, trial.sealed(), trial.seconds())
    with opened.value.reveal() as value:
        is_same = hmac.compare_digest(value, trial.expected)
    if not is_same:
        raise Integrity("the key gave back something else than it was given")
    return StepResult(DECRYPT, StepOutcome.OK, request_id=opened.receipt.kms_request_id)


def _refuses_other_secret(trial: _Trial) -> StepResult:
    """The session's own policy allows the other context, so it is the key that must not open under it."""
    other = context.for_secret(trial.connection.workspace_id, _OTHER_NAME, 1)
    try:
        opened = trial.canaries.open(trial.connection, Purpose.VERIFY, trial.sealed(), trial.seconds(), under=other)
    except Integrity as error:
        if error.aws_code != "InvalidCiphertextException":
            raise
        return StepResult(OTHER_SECRET, StepOutcome.OK, error.aws_code, error.receipt.kms_request_id)
    except Denied as error:
        if error.state is not KeyState.ACCESS_DENIED:
            raise
        return _failed(OTHER_SECRET, advice.NOT_OPENED_ELSEWHERE, error)
    opened.value.wipe()
    alarm = Integrity(advice.OPENED_ELSEWHERE, receipt=opened.receipt)
    _alarm(trial, alarm)
    return _failed(OTHER_SECRET, advice.OPENED_ELSEWHERE, alarm)


def _configured_key(trial: _Trial) -> StepResult:
    """Every answer before was compared with the ARN already: what came this far came from the key that was named."""
    trial.sealed()
    return StepResult(RIGHT_KEY, StepOutcome.OK)


def _single_region(trial: _Trial) -> StepResult:
    warnings = advice.warnings_for(trial.connection.key_arn)
    outcome = StepOutcome.WARNING if warnings else StepOutcome.OK
    return StepResult(ONE_REGION, outcome, what_to_do=" ".join(warnings))


def _denies(trial: _Trial, name: str, extra: Extra) -> StepResult:
    """Beyond the two. A grant would be a use that the key's policy does not show; what else is allowed is a warning."""
    is_grave = extra is Extra.CREATE_GRANT
    bad = StepOutcome.FAILED if is_grave else StepOutcome.WARNING
    try:
        permit = trial.canaries.permits(trial.connection, extra, trial.seconds())
    except KeyServiceError as error:
        return StepResult(
            name, bad, error.aws_code, error.receipt.kms_request_id, advice.on_unknown_extra(extra, error)
        )
    asked = permit.receipt.kms_request_id
    if permit.is_allowed:
        return StepResult(name, bad, permit.aws_code, asked, advice.on_extra(extra))
    return StepResult(name, StepOutcome.OK, permit.aws_code, asked)


def _step_beyond(extra: Extra) -> Step:
    name = f"denies_{extra.name.lower()}"
    return Step(name, partial(_denies, name=name, extra=extra), extra.value)


REFUSALS = (
    Step(REFUSES_NONE, _refuses_none, "sts:AssumeRole"),
    Step(REFUSES_WRONG, _refuses_wrong, "sts:AssumeRole"),
)
AGAIN = Step(
    ACCEPTS_AGAIN,
    partial(_accepts, name=ACCEPTS_AGAIN, otherwise=advice.ROLE_NO_LONGER_ACCEPTS),
    "sts:AssumeRole",
    True,
)

#: in this order; each later one may build on what the needed ones before it left in the trial
STEPS = (
    Step(ACCEPTS, partial(_accepts, name=ACCEPTS, otherwise=advice.ROLE_DOES_NOT_ACCEPT), "sts:AssumeRole", True),
    *REFUSALS,
    AGAIN,
    Step(ENCRYPT, _encrypt, "kms:Encrypt", True),
    Step(DECRYPT, _decrypt, "kms:Decrypt", True),
    Step(OTHER_SECRET, _refuses_other_secret, "kms:Decrypt"),
    Step(RIGHT_KEY, _configured_key),
    Step(ONE_REGION, _single_region),
    *(_step_beyond(extra) for extra in Extra),
)
