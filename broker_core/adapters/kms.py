"""What we ask AWS, one call at a time, and what its answers mean. The only place that maps AWS's errors.

Promise: whatever botocore raises comes out as a Reply with one of our own errors, which holds a code and ids and no
text of AWS's or botocore's; the foreign exception is let go before ours is raised, so that not even ``__context__``
leads to it (botocore's ParamValidationError quotes parameters, its ConnectionClosedError holds the whole request).

The table is in `_STATES`; a test walks botocore's own service models and exception classes to prove that it is total.
Sessions are not here but in ``sessions``, the course of one use in ``key_service``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import botocore.exceptions as bx
from botocore.parsers import ResponseParserError
from opentelemetry.trace import SpanKind
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from broker_core import telemetry
from broker_core.envelope import WRAPPED_MAX
from broker_core.errors import (
    ConfigurationError,
    Denied,
    Denier,
    Integrity,
    KeyServiceError,
    KeyState,
    Misconfigured,
    Transient,
    WrongKey,
)
from broker_core.ports import Clock

ATTEMPTS: Final = 3

#: an attempt is not started with less time than this left
_WORTH_STARTING: Final = 0.05

#: what kms:Decrypt answers to a dry run that would have worked
DRY_RUN_OK: Final = "DryRunOperation"

#: an assumed session that AWS does not (or no longer) take; of our base credentials they say the same, and are ours
DEAD_SESSION: Final = frozenset({"UnrecognizedClient", "InvalidClientTokenId", "ExpiredToken"})

_MESSAGES: Final[Mapping[KeyState, str]] = {
    KeyState.ACCESS_DENIED: "the key policy does not let the role use the key",
    KeyState.ROLE_REFUSED: "the role refuses AxioRank",
    KeyState.KEY_DISABLED: "the key is disabled",
    KeyState.KEY_PENDING_DELETION: "the key is waiting to be deleted",
    KeyState.KEY_STATE: "the key is in a state in which it cannot be used",
    KeyState.KEY_GONE: "the key does not exist",
    KeyState.INTEGRITY: "blob, context and key do not belong together",
    KeyState.MISCONFIGURED: "the set-up does not let the key be used as it is stored",
    KeyState.TRANSIENT: "the key service could not answer; try again",
}

#: AWS's codes, without the suffixes Exception and Error, and what they mean whichever service says them.
#: https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html and the pages of Encrypt, Decrypt, AssumeRole
_STATES: Final[Mapping[str, KeyState]] = {
    code: state
    for state, codes in {
        KeyState.ACCESS_DENIED: "AccessDenied",
        KeyState.KEY_DISABLED: "Disabled",
        KeyState.KEY_STATE: "KMSInvalidState",
        KeyState.KEY_GONE: "NotFound",
        KeyState.INTEGRITY: "InvalidCiphertext IncorrectKey",
        KeyState.MISCONFIGURED: """InvalidKeyUsage MalformedPolicyDocument PackedPolicyTooLarge RegionDisabled
            InvalidGrantToken InvalidContextAssertion InvalidArn Validation InvalidParameterValue
            InvalidParameterCombination MissingParameter InvalidAction InvalidQueryParameter MalformedQueryString
            UnsupportedOperation UnknownOperation NotImplemented OptInRequired Serialization""",
        KeyState.TRANSIENT: """Throttling Throttled ThrottledRequest RequestThrottled TooManyRequests
            RequestLimitExceeded BandwidthLimitExceeded LimitExceeded
            PriorRequestNotComplete SlowDown TransactionInProgress EC2Throttled
            ProvisionedThroughputExceeded KeyUnavailable KMSInternal DependencyTimeout InternalFailure Internal
            InternalServer InternalService ServiceUnavailable RequestTimeout RequestExpired RequestTimeTooSkewed
            UnrecognizedClient InvalidClientTokenId ExpiredToken SignatureDoesNotMatch InvalidSignature
            IncompleteSignature MissingAuthenticationToken AuthFailure InvalidAccessKeyId NotAuthorized
            RequestInProgress IDPCommunication DryRunOperation""",
    }.items()
    for code in codes.split()
}

#: AWS's words for whose explicit deny it was.
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html
_DENIERS: Final[Mapping[str, Denier]] = {
    "explicit deny in a resource-based policy": Denier.KEY_POLICY,
    "explicit deny in an identity-based policy": Denier.IDENTITY_POLICY,
    "explicit deny in a permissions boundary": Denier.BOUNDARY,
    "explicit deny in a service control policy": Denier.ORGANIZATION,
    "explicit deny in a resource control policy": Denier.ORGANIZATION,
}
#: who denied, in AWS's words, and it was us: session and endpoint policies always; and of AssumeRole, which the
#: caller's account has to allow too, all but the role's trust policy
_OUR_POLICIES: Final = ("session policy", "VPC endpoint policy")
_OUR_POLICIES_OF_ASSUMING: Final = ("identity-based policy", "permissions boundary", "service control policy")
_REFUSED_ACTION: Final = re.compile(r"not authorized to perform: (kms:[A-Za-z]{1,64}) ")

_TIMEOUTS: Final = (bx.ReadTimeoutError, bx.ConnectTimeoutError)

#: what botocore refuses to send: our parameters, a Region or an endpoint, none of which gets better by itself
_NEVER_SENT: Final = (
    ConfigurationError,
    bx.ParamValidationError,
    bx.ValidationError,
    bx.MissingParametersError,
    bx.UnknownRegionError,
    bx.BaseEndpointResolverError,
    bx.EndpointProviderError,
    bx.InvalidEndpointConfigurationError,
    bx.InvalidHostLabelError,
    bx.InvalidDNSNameError,
)

#: the network, and our own base credentials: ours, and they may be back in a moment
_AWAY: Final = (
    bx.ConnectionError,
    bx.HTTPClientError,
    bx.IncompleteReadError,
    bx.ChecksumError,
    bx.CapacityNotAvailableError,
    bx.NoCredentialsError,
    bx.PartialCredentialsError,
    bx.CredentialRetrievalError,
    bx.UnknownCredentialError,
    bx.RefreshWithMFAUnsupportedError,
    bx.NoAuthTokenError,
    bx.TokenRetrievalError,
    bx.UnknownTokenProviderError,
    bx.MetadataRetrievalError,
    bx.InvalidIMDSEndpointError,
    bx.InvalidIMDSEndpointModeError,
    bx.SSOError,
    bx.LoginError,
    ResponseParserError,
    OSError,
)


class NoAnswer(Transient):
    """Nothing came back in time. Callers see a Transient; the breaker of the connection counts these."""


@dataclass(frozen=True)
class Reply:
    """One answer. ``error`` None means success, or the code that the caller expected. ``refused`` is the action that
    AWS names in a denial: of an operation that needs two, the first that is not allowed."""

    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    code: str = ""
    request_id: str | None = None
    error: KeyServiceError | None = None
    refused: str = ""


def ask(
    operation: str,
    call: Callable[[], Mapping[str, Any]],
    attributes: Mapping[str, telemetry.AttributeValue | None],
    expected: str = "",
) -> Reply:
    """Make one AWS call inside a span named ``operation`` (``sts.AssumeRole``, ``kms.Encrypt``, ``kms.Decrypt``).

    Never raises anything of botocore's; KeyServiceErrors are returned, for the caller to raise with its receipt.
    """
    with telemetry.span(operation, kind=SpanKind.CLIENT, **dict(attributes)) as current:
        reply = _reply(operation, call, expected)
        if reply.request_id:
            current.set_attribute("aws.request_id", reply.request_id)
        if reply.error is not None:
            current.set_attribute("broker.aws_code", reply.error.aws_code)
            telemetry.fail(current, reply.error.reason)
        return reply


def _reply(operation: str, call: Callable[[], Mapping[str, Any]], expected: str) -> Reply:
    try:
        body = call()
    except Exception as error:  # noqa: BLE001 - any exception of a call with a value in it is mapped, none passes
        code = normal_code(error)
        request_id = _request_id(getattr(error, "response", None))
        if expected and code == expected:
            return Reply(code=code, request_id=request_id)
        return Reply(
            code=code, request_id=request_id, error=map_error(error, operation), refused=_refused_action(error)
        )
    return Reply(body=body, request_id=_request_id(body))


def map_error(error: Exception, operation: str) -> KeyServiceError:
    """The one table: an exception of an AWS call to an error of ours, with AWS's code and without its text."""
    if isinstance(error, bx.ClientError):
        return _map_answer(error, operation)
    if isinstance(error, _TIMEOUTS):
        return NoAnswer(_MESSAGES[KeyState.TRANSIENT])
    if isinstance(error, _NEVER_SENT):
        return Misconfigured(_MESSAGES[KeyState.MISCONFIGURED])
    return _transient("", operation, type(error).__name__, is_known=isinstance(error, _AWAY))


def _map_answer(error: bx.ClientError, operation: str) -> KeyServiceError:
    code, message, status = _aws_code(error), _text(error, "Error", "Message"), _status(error)
    state = _STATES.get(normal_code(error))
    if status >= 500 or status == 429:
        state = KeyState.TRANSIENT
    if state is None or state is KeyState.TRANSIENT:
        return _transient(code, operation, code, is_known=state is not None)
    if state is KeyState.ACCESS_DENIED:
        state = _who_denied(message, operation)
    elif state is KeyState.KEY_STATE and "pending deletion" in message:
        state = KeyState.KEY_PENDING_DELETION
    kind = {KeyState.INTEGRITY: Integrity, KeyState.MISCONFIGURED: Misconfigured}.get(state, Denied)
    mapped = kind(_MESSAGES[state], state=state, aws_code=code)
    if isinstance(mapped, Denied):
        mapped.denier = next((denier for words, denier in _DENIERS.items() if words in message), None)
    return mapped


def _who_denied(message: str, operation: str) -> KeyState:
    """Session policies and VPC endpoint policies are ours, and whatever of our account keeps us from assuming roles:
    what they deny is not the customer's no (INV-8).

    https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html gives the wording. Neither an ARN
    nor a role's name can hold the space, so the customer's own text cannot look like it.
    """
    is_assuming = operation.startswith("sts.")
    ours = (*_OUR_POLICIES, *_OUR_POLICIES_OF_ASSUMING) if is_assuming else _OUR_POLICIES
    if any(words in message for words in ours):
        return KeyState.MISCONFIGURED
    return KeyState.ROLE_REFUSED if is_assuming else KeyState.ACCESS_DENIED


def _refused_action(error: Exception) -> str:
    message = _text(error, "Error", "Message") if isinstance(error, bx.ClientError) else ""
    found = _REFUSED_ACTION.search(message)
    return found[1] if found else ""


def _transient(aws_code: str, operation: str, name: str, *, is_known: bool) -> Transient:
    if not is_known:
        telemetry.log().warning("kms.unmapped_error", operation=operation, code=name)
        telemetry.count_unmapped(name)
    return Transient(_MESSAGES[KeyState.TRANSIENT], aws_code=aws_code, mapped=is_known)


def normal_code(error: Exception) -> str:
    """AWS's code without its suffix: KMS says ThrottlingException where STS says Throttling."""
    code = _aws_code(error) if isinstance(error, bx.ClientError) else ""
    return code.removesuffix("Exception").removesuffix("Error") or code


def _aws_code(error: bx.ClientError) -> str:
    # a code goes into rows, logs and spans: what is not shaped like one is not let through
    code = _text(error, "Error", "Code")
    return code if re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", code) else "Unreadable"


def _text(error: bx.ClientError, *path: str) -> str:
    found: Any = error.response
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else ""


def _status(error: bx.ClientError) -> int:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _request_id(response: object) -> str | None:
    metadata = response.get("ResponseMetadata") if isinstance(response, Mapping) else None
    found = metadata.get("RequestId") if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) and re.fullmatch(r"[A-Za-z0-9-]{1,64}", found) else None


# ---------------------------------------------------------------- what a call must have given


def ciphertext_of(reply: Reply, key_arn: str) -> bytes:
    """The CiphertextBlob, made by this very key. Raises the reply's error, or Integrity."""
    _check_key(reply, key_arn)
    blob: bytes = reply.body.get("CiphertextBlob") or b""
    if not 1 <= len(blob) <= WRAPPED_MAX:
        raise Integrity("KMS gave a ciphertext that it could not decrypt")
    return blob


def plaintext_of(reply: Reply, key_arn: str) -> bytearray:
    """The Plaintext in a buffer of the caller's, opened by this very key. Raises as above."""
    _check_key(reply, key_arn)
    value = bytearray(reply.body.get("Plaintext") or b"")
    if not value:
        raise Integrity("KMS gave nothing back")  # it never encrypted nothing
    return value


def _check_key(reply: Reply, key_arn: str) -> None:
    if reply.error is not None:
        raise reply.error
    if reply.body.get("KeyId") != key_arn:
        raise WrongKey("KMS used another key than the stored one")


# ---------------------------------------------------------------- seconds


def retry_in_seconds(
    clock: Clock, deadline: float, sleep: Callable[[float], None], is_worth_it: Callable[[BaseException], bool]
) -> Retrying:
    """The one retry policy for seconds: up to three attempts, full jitter, none that starts after the deadline."""

    def stop(state: RetryCallState) -> bool:
        too_late = clock.monotonic() + state.upcoming_sleep + _WORTH_STARTING >= deadline
        return too_late or state.attempt_number >= ATTEMPTS

    return Retrying(
        retry=retry_if_exception(is_worth_it),
        wait=wait_random_exponential(multiplier=0.1, max=1),
        stop=stop,
        sleep=sleep,
        reraise=True,
    )
