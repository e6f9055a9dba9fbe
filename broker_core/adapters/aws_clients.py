"""STS and KMS clients: one of each per Region and process, never one per tenant; and whose credentials sign a call.

Promise: nothing but the operator's own settings decides where a call goes. Proxies, CA bundles and endpoints from the
environment or from shared config are not used; base credentials are boto3's default chain. The client for customers'
keys has no credentials of its own, so that a call without an assumed session cannot be signed, let alone with ours.

botocore's own parts (and nothing else that is AWS) are imported here, in ``sessions``, ``kms`` and ``platform_cipher``.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import botocore.session
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, NoCredentialsError

from broker_core.aws_names import is_endpoint
from broker_core.errors import ConfigurationError

CONNECT_SECONDS: Final = 1.0
READ_SECONDS: Final = 3.0
#: clients kept, those used last; a client is per Region, and Regions come out of customers' ARNs
MOST_CLIENTS: Final = 64


@dataclass(frozen=True)
class AwsOptions:
    """What the operator may set. Durations in seconds; ARNs and URLs as text."""

    endpoint_kms: str | None = None
    endpoint_sts: str | None = None
    proxy: str | None = field(default=None, repr=False)  # may hold a password
    control_role_arn: str | None = None
    control_external_id: str | None = field(default=None, repr=False)
    sts_reuse_seconds: int = 0
    max_connections: int = 64
    #: uses of one connection's key at a time; half of the process's threads, so that the other half serves the others
    per_connection_concurrency: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.sts_reuse_seconds <= 900:
            raise ConfigurationError("BROKER_STS_REUSE_SECONDS must be from 0 (every use its own session) to 900")
        if self.per_connection_concurrency < 1:
            raise ConfigurationError("at least one use of a connection's key must be possible at a time")


def check_endpoint(url: str, partition: str | None = None, *, name: str = "AWS_ENDPOINT_URL") -> None:
    """Accept AWS's own https endpoints for KMS and STS in ``partition`` (None: in any), and loopback addresses.

    Whoever answers at the endpoint receives every value in plain text. Raises ConfigurationError, which names the
    setting ``name`` and says what to do; it does not repeat the URL, which may hold a password.
    """
    if is_endpoint(url, partition):
        return
    where = f"of partition {partition}" if partition else "of KMS or STS"
    raise ConfigurationError(
        f"{name} is neither an https endpoint of AWS's own {where}, such as https://kms.eu-west-1.amazonaws.com, "
        "nor a loopback address; unset it to use AWS's own endpoints (a proxy goes into BROKER_AWS_PROXY)"
    )


_signing: ContextVar[Credentials] = ContextVar("broker_aws_signing")
_patience: ContextVar[float] = ContextVar("broker_aws_patience", default=READ_SECONDS)


@contextmanager
def signed_with(credentials: Credentials) -> Iterator[None]:
    """Sign this context's calls to customers' keys with an assumed session's credentials."""
    token = _signing.set(credentials)
    try:
        yield
    finally:
        _signing.reset(token)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let each call in the block wait for its answer no longer than what ``seconds`` leaves after connecting.

    Raises TimeoutError when nothing is left: then the block does not run.
    """
    if seconds <= 0:
        raise TimeoutError
    token = _patience.set(min(READ_SECONDS, max(seconds - CONNECT_SECONDS, seconds / 2, 0.05)))
    try:
        yield
    finally:
        _patience.reset(token)


def _limit_read(request: Any, **_: Any) -> None:
    request.context["read_timeout"] = _patience.get()


def _swap_credentials(request: Any, **_: Any) -> None:
    # Not documented by botocore: signers.py reads it for every request. Its range is pinned, and a test fails when this
    # stops working. If it did, the call would be signed with the placeholder below, and AWS would refuse it. Outside of
    # signed_with it raises LookupError: a call that nobody assumed a session for.
    request.context.setdefault("signing", {})["request_credentials"] = _signing.get()


#: what the customers' client signs with if nothing else: nobody's key, so that the answer is a refusal of ours
_NOBODY: Final = {"aws_access_key_id": "AKIAAXIORANKNOSESSION", "aws_secret_access_key": "none"}


class AwsClients:
    """The clients. Thread-safe; a client is made once, under a lock (making one is not thread-safe in botocore)."""

    def __init__(self, options: AwsOptions, session: botocore.session.Session | None = None) -> None:
        """Raises ConfigurationError when an endpoint, also one of shared config, is neither AWS's own nor loopback."""
        self._options = options
        self._session = session or botocore.session.Session()
        # legacy would send eu-west-1's calls to a Region of another continent; CSM sends call records to a UDP port
        self._session.set_config_variable("sts_regional_endpoints", "regional")
        self._session.set_config_variable("csm_enabled", False)
        self._check_endpoints()
        self._clients: OrderedDict[tuple[str, str, bool], Any] = OrderedDict()  # the one not used for longest is first
        self._order = threading.Lock()
        self._making = threading.Lock()

    def sts(self, region: str) -> Any:
        """STS in a Region, under base credentials. Raises NoCredentialsError while there are none."""
        return self._client("sts", region, is_base=True)

    def kms(self, region: str) -> Any:
        """KMS in a Region for customers' keys: use it inside ``signed_with``."""
        return self._client("kms", region, is_base=False)

    def own_kms(self, region: str) -> Any:
        """KMS in a Region for AxioRank's own key, under base credentials. Raises NoCredentialsError as above."""
        return self._client("kms", region, is_base=True)

    def _client(self, service: str, region: str, is_base: bool) -> Any:
        key = (service, region, is_base)
        client = self._kept(key)
        if client is None:
            with self._making:
                client = self._kept(key) or self._keep(key, self._make(service, region, is_base))
        return client

    def _kept(self, key: tuple[str, str, bool]) -> Any:
        with self._order:
            if key not in self._clients:
                return None
            self._clients.move_to_end(key)
            return self._clients[key]

    def _keep(self, key: tuple[str, str, bool], client: Any) -> Any:
        with self._order:
            self._clients[key] = client
            while len(self._clients) > MOST_CLIENTS:
                self._clients.popitem(last=False)  # whoever uses it now may end
        return client

    def _make(self, service: str, region: str, is_base: bool) -> Any:
        endpoint = self._options.endpoint_kms if service == "kms" else self._options.endpoint_sts
        if endpoint:
            check_endpoint(endpoint, self._session.get_partition_for_region(region))
        # a client that was made while the chain had nothing would have no credentials for ever
        if is_base and self._session.get_credentials() is None:
            raise NoCredentialsError
        client = self._session.create_client(
            service,
            region_name=region,
            endpoint_url=endpoint,
            verify=True,  # and so not AWS_CA_BUNDLE, nor ca_bundle of shared config
            config=self._config(),
            **({} if is_base else _NOBODY),
        )
        client.meta.events.register(f"before-sign.{service}", _limit_read)
        if not is_base:
            client.meta.events.register(f"before-sign.{service}", _swap_credentials)
        return client

    def _config(self) -> Config:
        return Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=self._options.max_connections,
            proxies={"https": self._options.proxy} if self._options.proxy else {},  # {}: not the environment's
            ignore_configured_endpoint_urls=True,
            tcp_keepalive=True,
        )

    def _check_endpoints(self) -> None:
        """Our own settings, and what the credential chain's own STS client would find."""
        for name, url in (
            ("AWS_ENDPOINT_URL_KMS or AWS_ENDPOINT_URL", self._options.endpoint_kms),
            ("AWS_ENDPOINT_URL_STS or AWS_ENDPOINT_URL", self._options.endpoint_sts),
        ):
            if url:
                check_endpoint(url, name=name)
        for service in ("kms", "sts"):
            configured = self._configured_endpoint(service)
            if configured:
                check_endpoint(configured, name=f"endpoint_url for {service} (AWS_ENDPOINT_URL… or shared config)")

    def _configured_endpoint(self, service: str) -> str | None:
        try:
            found: str | None = ConfiguredEndpointProvider(
                full_config=self._session.full_config,
                scoped_config=self._session.get_scoped_config(),
                client_name=service,
            ).provide()
        except BotoCoreError:
            raise ConfigurationError(
                "AWS_PROFILE names no profile of AWS_CONFIG_FILE, or that file cannot be read"
            ) from None
        return found
