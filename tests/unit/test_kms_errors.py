"""The error table is total: every error that botocore models or raises has a state, written down here by hand."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import botocore.exceptions as bx
import botocore.session
import pytest
from botocore.parsers import ResponseParserError
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Sum
from structlog.testing import capture_logs

from broker_core.adapters.kms import DEAD_SESSION, DRY_RUN_OK, NoAnswer, Reply, ask, map_error, normal_code
from broker_core.errors import Denied, Denier, Integrity, KeyServiceError, KeyState, Misconfigured, Transient
from tests.fakes_keys import aws_error

S = KeyState

#: the operation, AWS's code, the state. Modelled and common unmodelled codes
ANSWERS: list[tuple[str, str, KeyState]] = [
    *[
        (operation, code, state)
        for operation in ("kms.Encrypt", "kms.Decrypt")
        for code, state in {
            "AccessDeniedException": S.ACCESS_DENIED,
            "DisabledException": S.KEY_DISABLED,
            "KMSInvalidStateException": S.KEY_STATE,
            "NotFoundException": S.KEY_GONE,
            "InvalidCiphertextException": S.INTEGRITY,
            "IncorrectKeyException": S.INTEGRITY,
            "InvalidKeyUsageException": S.MISCONFIGURED,
            "InvalidGrantTokenException": S.MISCONFIGURED,
            "ValidationException": S.MISCONFIGURED,
            "InvalidArnException": S.MISCONFIGURED,
            "UnsupportedOperationException": S.MISCONFIGURED,
            "OptInRequired": S.MISCONFIGURED,
            "KeyUnavailableException": S.TRANSIENT,
            "DependencyTimeoutException": S.TRANSIENT,
            "KMSInternalException": S.TRANSIENT,
            "DryRunOperationException": S.TRANSIENT,
            "ThrottlingException": S.TRANSIENT,
            "LimitExceededException": S.TRANSIENT,
            "TooManyRequestsException": S.TRANSIENT,
            "RequestLimitExceeded": S.TRANSIENT,
            "InternalFailure": S.TRANSIENT,
            "ServiceUnavailable": S.TRANSIENT,
            "ServiceUnavailableException": S.TRANSIENT,
            "RequestExpired": S.TRANSIENT,
            "RequestTimeout": S.TRANSIENT,
            "UnrecognizedClientException": S.TRANSIENT,
            "InvalidClientTokenId": S.TRANSIENT,
            "ExpiredTokenException": S.TRANSIENT,
            "InvalidSignatureException": S.TRANSIENT,
            "SignatureDoesNotMatch": S.TRANSIENT,
            "IncompleteSignature": S.TRANSIENT,
            "MissingAuthenticationTokenException": S.TRANSIENT,
        }.items()
    ],
    *[
        ("sts.AssumeRole", code, state)
        for code, state in {
            "AccessDenied": S.ROLE_REFUSED,
            "AccessDeniedException": S.ROLE_REFUSED,
            "MalformedPolicyDocument": S.MISCONFIGURED,
            "MalformedPolicyDocumentException": S.MISCONFIGURED,
            "PackedPolicyTooLarge": S.MISCONFIGURED,
            "PackedPolicyTooLargeException": S.MISCONFIGURED,
            "RegionDisabledException": S.MISCONFIGURED,
            "InvalidContextAssertion": S.MISCONFIGURED,
            "InvalidContextAssertionException": S.MISCONFIGURED,
            "ValidationError": S.MISCONFIGURED,
            "InvalidParameterValue": S.MISCONFIGURED,
            "ExpiredToken": S.TRANSIENT,
            "ExpiredTokenException": S.TRANSIENT,
            "InvalidClientTokenId": S.TRANSIENT,
            "UnrecognizedClientException": S.TRANSIENT,
            "SignatureDoesNotMatch": S.TRANSIENT,
            "RequestExpired": S.TRANSIENT,
            "Throttling": S.TRANSIENT,
            "ThrottlingException": S.TRANSIENT,
            "RequestLimitExceeded": S.TRANSIENT,
            "InternalFailure": S.TRANSIENT,
            "ServiceUnavailable": S.TRANSIENT,
        }.items()
    ],
]

#: exceptions of botocore's own: no answer came, or nothing was sent
NEVER_SENT = set(
    """ParamValidationError ValidationError UnknownKeyError RangeError UnknownParameterError InvalidRegionError
    AliasConflictParameterError MissingParametersError UnknownRegionError BaseEndpointResolverError NoRegionError
    EndpointVariantError UnknownEndpointError UnknownFIPSEndpointError EndpointProviderError EndpointResolutionError
    UnknownEndpointResolutionBuiltInName InvalidEndpointConfigurationError InvalidHostLabelError
    InvalidDNSNameError""".split()
)
AWAY = set(
    """HTTPClientError ConnectionError EndpointConnectionError SSLError ConnectionClosedError ReadTimeoutError
    ConnectTimeoutError ProxyConnectionError ResponseStreamingError IncompleteReadError ChecksumError
    CapacityNotAvailableError NoCredentialsError PartialCredentialsError CredentialRetrievalError UnknownCredentialError
    RefreshWithMFAUnsupportedError NoAuthTokenError TokenRetrievalError UnknownTokenProviderError MetadataRetrievalError
    InvalidIMDSEndpointError InvalidIMDSEndpointModeError SSOError SSOTokenLoadError UnauthorizedSSOTokenError
    LoginError LoginRefreshRequired LoginInsufficientPermissions LoginTokenLoadError
    LoginAuthorizationCodeError""".split()
)
#: what a call to KMS or STS has no reason to raise (other services', tests', set-up's): unknown, so logged
UNKNOWN = set(
    """BotoCoreError DataNotFoundError UnknownServiceError ApiVersionNotFoundError UnknownSignatureVersionError
    ServiceNotInRegionError ProfileNotFound ConfigParseError ConfigNotFound UnknownServiceStyle PaginationError
    OperationNotPageableError UnseekableStreamError WaiterError InvalidExpressionError WaiterConfigError
    UnknownClientMethodError UnsupportedSignatureVersionError InvalidS3AddressingStyleError UnsupportedS3ArnError
    UnsupportedS3ControlArnError UnsupportedOutpostResourceError UnsupportedS3ConfigurationError
    UnsupportedS3AccesspointConfigurationError InvalidEndpointDiscoveryConfigurationError
    UnsupportedS3ControlConfigurationError InvalidRetryConfigurationError InvalidMaxRetryAttemptsError
    InvalidRetryModeError InvalidS3UsEast1RegionalEndpointConfigError InvalidSTSRegionalEndpointsConfigError
    StubResponseError StubAssertionError UnStubbedResponseError InvalidConfigError InfiniteLoopConfigError
    MD5UnavailableError MissingDependencyException UndefinedModelAttributeError MissingServiceIdError
    InvalidProxiesConfigError InvalidDefaultsMode AwsChunkedWrapperError FlexibleChecksumError
    InvalidChecksumConfigError UnsupportedServiceProtocolsError""".split()
)
ANSWER = {"ClientError", "EventStreamError"}

SENTINEL = "sentinel-3f9a-value"


class Anything(dict[str, Any]):
    """Format arguments for any of botocore's messages."""

    def __missing__(self, key: str) -> str:
        return SENTINEL


def botocore_classes() -> dict[str, type[Exception]]:
    return {
        name: found
        for name, found in vars(bx).items()
        if inspect.isclass(found)
        and issubclass(found, Exception)
        and not issubclass(found, Warning)
        and found.__module__ == bx.__name__
    }


def raised(kind: type[Exception]) -> Exception:
    """An instance, by way of no constructor: each wants other arguments."""
    error = kind.__new__(kind)
    error.args = (SENTINEL,)
    error.kwargs = {"report": SENTINEL}  # type: ignore[attr-defined]
    return error


class TestAnswers:
    @pytest.mark.parametrize(("operation", "code", "state"), ANSWERS)
    def test_each_code_has_its_state(self, operation: str, code: str, state: KeyState) -> None:
        """A code that we know is mapped to its state, and is not logged as unknown."""
        with capture_logs() as logs:
            error = map_error(aws_error(code), operation)
        assert (error.state, error.aws_code, logs) == (state, code, [])

    @pytest.mark.parametrize(("service", "operation"), [("kms", "Encrypt"), ("kms", "Decrypt"), ("sts", "AssumeRole")])
    def test_every_modelled_error_is_in_the_table(self, service: str, operation: str) -> None:
        """botocore's own service models name no error that this file does not."""
        model = botocore.session.Session().get_service_model(service).operation_model(operation)
        shapes = {shape.metadata.get("error", {}).get("code", shape.name) for shape in model.error_shapes}
        known = {code for where, code, _ in ANSWERS if where == f"{service}.{operation}"}
        assert shapes, "the model lists its errors"
        assert shapes - known == set()

    @pytest.mark.parametrize("state", list(KeyState))
    def test_each_state_has_the_class_that_callers_react_to(self, state: KeyState) -> None:
        """The customer's side is Denied; ours is anything but."""
        kinds = {S.INTEGRITY: Integrity, S.MISCONFIGURED: Misconfigured, S.TRANSIENT: Transient}
        made = [map_error(aws_error(code), where) for where, code, found in ANSWERS if found is state]
        if state is S.KEY_PENDING_DELETION:
            made = [map_error(aws_error("KMSInvalidStateException", f"{SENTINEL} is pending deletion."), "kms.Decrypt")]
        assert {type(error) for error in made} == {kinds.get(state, Denied)}

    def test_pending_deletion_is_told_from_other_states(self) -> None:
        """KMSInvalidState says in its message which state it is."""
        for message, state in (
            ("arn:aws:kms:eu-west-1:2:key/k is pending deletion.", S.KEY_PENDING_DELETION),
            ("arn:aws:kms:eu-west-1:2:key/k is pending import.", S.KEY_STATE),
        ):
            assert map_error(aws_error("KMSInvalidStateException", message), "kms.Decrypt").state is state

    @pytest.mark.parametrize(
        ("why", "denier"),
        [
            ("with an explicit deny in a resource-based policy", Denier.KEY_POLICY),
            ("with an explicit deny in an identity-based policy", Denier.IDENTITY_POLICY),
            ("with an explicit deny in a permissions boundary", Denier.BOUNDARY),
            ("with an explicit deny in a service control policy", Denier.ORGANIZATION),
            ("with an explicit deny in a resource control policy", Denier.ORGANIZATION),
            ("because no resource-based policy allows the kms:Decrypt action", None),
            ("because no identity-based policy allows the kms:Decrypt action", None),
        ],
    )
    def test_an_explicit_deny_says_whose_it_is(self, why: str, denier: Denier | None) -> None:
        """An owner looks for it in the right place; a missing allow has no place of its own."""
        error = map_error(aws_error("AccessDeniedException", f"User: x is not authorized {why}"), "kms.Decrypt")
        assert isinstance(error, Denied)
        assert error.denier is denier

    @pytest.mark.parametrize("operation", ["kms.Decrypt", "sts.AssumeRole"])
    @pytest.mark.parametrize(
        "why",
        [
            "because no session policy allows the kms:Decrypt action",
            "with an explicit deny in a session policy",
            "because no VPC endpoint policy allows the kms:Decrypt action",
        ],
    )
    def test_what_our_own_policies_deny_is_misconfigured(self, operation: str, why: str) -> None:
        """A session policy and a VPC endpoint policy are ours: the customer is not blamed."""
        error = map_error(
            aws_error("AccessDeniedException", f"User: a is not authorized to perform: b {why}"), operation
        )
        assert (error.state, type(error)) == (S.MISCONFIGURED, Misconfigured)

    @pytest.mark.parametrize(
        "why",
        [
            "because no identity-based policy allows the sts:AssumeRole action",
            "with an explicit deny in an identity-based policy",
            "because no permissions boundary allows the sts:AssumeRole action",
            "with an explicit deny in a service control policy",
        ],
    )
    def test_what_our_own_side_of_assume_role_denies_is_misconfigured(self, why: str) -> None:
        """Of AssumeRole the caller's policies are ours: a permission that we lost blames no customer (INV-8)."""
        message = f"User: a is not authorized to perform: sts:AssumeRole on resource: b {why}"
        assert map_error(aws_error("AccessDenied", message), "sts.AssumeRole").state is S.MISCONFIGURED

    def test_what_the_trust_policy_denies_is_the_customers(self) -> None:
        """A trust policy is the role's resource-based policy."""
        message = "User: a is not authorized to perform: sts:AssumeRole on resource: b"
        for why in ("", " with an explicit deny in a resource-based policy"):
            assert map_error(aws_error("AccessDenied", message + why), "sts.AssumeRole").state is S.ROLE_REFUSED

    @pytest.mark.parametrize("why", ["no resource-based policy allows", "no identity-based policy allows", ""])
    def test_what_the_customers_policies_deny_is_theirs(self, why: str) -> None:
        """A key policy or the role's own policy is the customer's."""
        assert map_error(aws_error("AccessDeniedException", why), "kms.Decrypt").state is S.ACCESS_DENIED

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    @pytest.mark.parametrize("code", ["AccessDeniedException", "DisabledException", "502", "Anything"])
    def test_a_server_error_is_transient_whatever_it_says(self, status: int, code: str) -> None:
        """With 5xx or 429 nobody said no."""
        assert map_error(aws_error(code, status=status), "kms.Decrypt").state is S.TRANSIENT

    def test_an_unknown_code_is_transient_and_logged_by_its_code_alone(self) -> None:
        """Fail closed, blame nobody, and let the operator see the code."""
        with capture_logs() as logs:
            error = map_error(aws_error("BrandNewException", SENTINEL), "kms.Decrypt")
        assert (type(error), error.aws_code) == (Transient, "BrandNewException")
        assert isinstance(error, Transient)
        assert not error.mapped
        (entry,) = logs
        assert entry == {
            "event": "kms.unmapped_error",
            "operation": "kms.Decrypt",
            "code": "BrandNewException",
            "log_level": "warning",
        }

    def test_unknown_codes_are_counted_by_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the metric ``broker.kms.unmapped``, whose only attribute is the code."""
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
        for code in ("BrandNewException", "BrandNewException", "Another", "ThrottlingException"):
            map_error(aws_error(code, SENTINEL), "kms.Decrypt")
        assert counted(reader, "broker.kms.unmapped") == {
            (("broker.aws_code", "BrandNewException"),): 2,
            (("broker.aws_code", "Another"),): 1,
        }
        provider.shutdown()

    @pytest.mark.parametrize("code", [f"with space {SENTINEL}", "x" * 65, "", "a\nb"])
    def test_a_code_that_looks_like_none_is_not_let_through(self, code: str) -> None:
        """A code goes into rows, logs and spans."""
        assert map_error(aws_error(code), "kms.Decrypt").aws_code == "Unreadable"

    def test_a_refused_session_is_recognised_in_each_spelling(self) -> None:
        """KMS and STS spell them with and without a suffix."""
        spelled = ("UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException", "ExpiredToken")
        assert {normal_code(aws_error(code)) for code in spelled} == DEAD_SESSION


def counted(reader: InMemoryMetricReader, name: str) -> dict[tuple[tuple[str, Any], ...], int | float]:
    """A counter's sums, by their attributes."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        tuple(sorted((point.attributes or {}).items())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name and isinstance(metric.data, Sum)
        for point in metric.data.data_points
    }


class TestBotocoresOwn:
    def test_every_class_is_in_the_table(self) -> None:
        """A class that a new botocore brings fails this test until somebody has thought about it."""
        assert set(botocore_classes()) == NEVER_SENT | AWAY | UNKNOWN | ANSWER

    @pytest.mark.parametrize("name", sorted(NEVER_SENT))
    def test_what_was_never_sent_is_misconfigured(self, name: str) -> None:
        """Our parameters, Region or endpoint: trying again does not help."""
        assert type(map_error(raised(botocore_classes()[name]), "kms.Encrypt")) is Misconfigured

    @pytest.mark.parametrize("name", sorted(AWAY))
    def test_what_is_away_is_transient_and_known(self, name: str) -> None:
        """The network and our base credentials: nobody is affected, nothing is logged as unknown."""
        with capture_logs() as logs:
            error = map_error(raised(botocore_classes()[name]), "kms.Encrypt")
        assert isinstance(error, Transient)
        assert (error.mapped, error.aws_code, logs) == (True, "", [])

    @pytest.mark.parametrize("name", sorted(UNKNOWN))
    def test_the_rest_is_transient_and_logged(self, name: str) -> None:
        """Unknown is transient for the caller, and its class is logged, not its text."""
        with capture_logs() as logs:
            error = map_error(raised(botocore_classes()[name]), "kms.Encrypt")
        assert isinstance(error, Transient)
        assert not error.mapped
        assert [entry["code"] for entry in logs] == [name]
        assert SENTINEL not in str(logs)

    @pytest.mark.parametrize("kind", [bx.ReadTimeoutError, bx.ConnectTimeoutError])
    def test_timeouts_are_told_from_the_rest(self, kind: type[Exception]) -> None:
        """The breaker counts them."""
        assert type(map_error(raised(kind), "kms.Encrypt")) is NoAnswer

    @pytest.mark.parametrize(("kind", "is_known"), [(ResponseParserError, True), (OSError, True), (KeyError, False)])
    def test_other_exceptions_are_transient_too(self, kind: type[Exception], is_known: bool) -> None:
        """A garbled answer, a socket error, a bug: nothing passes as it is."""
        error = map_error(kind(SENTINEL), "kms.Encrypt")
        assert isinstance(error, Transient)
        assert error.mapped is is_known


class TestNothingLeaks:
    """INV-1: an exception of botocore's can quote parameters and hold the request, its value included."""

    @pytest.mark.parametrize(
        "error",
        [
            aws_error("AccessDeniedException", SENTINEL),
            aws_error("BrandNewException", SENTINEL),
            bx.ParamValidationError(report=SENTINEL),
            bx.ConnectionClosedError(endpoint_url=SENTINEL, request=SENTINEL),
            ValueError(SENTINEL),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_neither_the_error_nor_what_hangs_on_it_holds_the_text(self, error: Exception) -> None:
        """What is raised has no cause, no context and no foreign text, not even in its attributes."""

        def call() -> dict[str, Any]:
            raise error

        with pytest.raises(KeyServiceError) as caught:
            raise_of(ask("kms.Encrypt", call, {}))
        ours = caught.value
        assert (ours.__cause__, ours.__context__) == (None, None)
        shown = "".join(traceback.format_exception(ours)) + repr(ours) + repr(vars(ours))
        assert SENTINEL not in shown

    def test_a_reply_shows_no_body(self) -> None:
        """The body of Decrypt's answer is a value."""
        assert SENTINEL not in repr(ask("kms.Decrypt", lambda: {"Plaintext": SENTINEL}, {}))


class TestReply:
    def test_the_request_id_is_kept_of_success_and_failure(self) -> None:
        """Evidence for the audit row, whatever the answer was."""
        good = ask("kms.Decrypt", lambda: {"ResponseMetadata": {"RequestId": "req-1"}}, {})
        assert good.request_id == "req-1"
        assert failing("DisabledException").request_id == "req-DisabledException"

    def test_a_request_id_that_looks_like_none_is_dropped(self) -> None:
        """It comes from a header of the answer."""
        assert ask("kms.Decrypt", lambda: {"ResponseMetadata": {"RequestId": "a b\n"}}, {}).request_id is None

    def test_an_expected_code_is_no_error(self) -> None:
        """A dry run that would have worked."""
        assert failing("DryRunOperationException", expected=DRY_RUN_OK).error is None
        assert failing("DisabledException", expected=DRY_RUN_OK).error is not None


def failing(code: str, expected: str = "") -> Reply:
    def call() -> dict[str, Any]:
        raise aws_error(code)

    return ask("kms.Decrypt", call, {}, expected)


def raise_of(reply: Reply) -> None:
    assert reply.error is not None
    raise reply.error
