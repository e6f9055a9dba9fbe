"""Where calls go, and whose credentials sign them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.credentials import Credentials
from botocore.exceptions import NoCredentialsError

from broker_core.adapters import aws_clients
from broker_core.adapters.aws_clients import AwsClients, AwsOptions, check_endpoint, patience, signed_with
from broker_core.errors import ConfigurationError

REGION = "eu-west-1"
KEY = "arn:aws:kms:eu-west-1:222222222222:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"


@pytest.fixture(autouse=True)
def _no_ambient_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_STS", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def clients(options: AwsOptions | None = None) -> AwsClients:
    session = botocore.session.Session()
    session.set_credentials("AKIABASE", "base")
    return AwsClients(options or AwsOptions(), session)


def captured(client: Any) -> list[Any]:
    """Let the client send nothing, and keep what it would have sent."""
    sent: list[Any] = []

    class Raw:
        def stream(self) -> Any:
            yield b"{}"

    def keep(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {}, Raw())

    client.meta.events.register("before-send.*", keep)
    return sent


def header(request: Any, name: str) -> str:
    value = request.headers[name]
    return value.decode() if isinstance(value, bytes) else str(value)


class TestEndpoints:
    @pytest.mark.parametrize(
        "url",
        [
            "https://kms.eu-west-1.amazonaws.com",
            "https://kms.eu-west-1.amazonaws.com/",
            "https://kms-fips.us-east-1.amazonaws.com:443",
            "https://kms.us-east-1.api.aws",
            "https://sts.amazonaws.com",
            "https://vpce-0a1b-2c3d.kms.eu-west-1.vpce.amazonaws.com",
            "http://127.0.0.1:5000",
            "https://127.8.0.1:1",
            "http://[::1]:5000",
            "http://localhost:4566/",
        ],
    )
    def test_aws_and_loopback_are_taken(self, url: str) -> None:
        """AWS's own endpoints by https, and this machine."""
        check_endpoint(url, "aws")

    @pytest.mark.parametrize(
        "url",
        [
            "http://kms.eu-west-1.amazonaws.com",
            "https://kms.example.com",
            "https://kms.eu-west-1.amazonaws.com.example.com",
            "https://kms.eu-west-1.amazonaws.com@example.com",
            "https://user:S3CRET@kms.eu-west-1.amazonaws.com",
            "https://kms-eu-west-1-amazonaws.com",
            "https://bucket.s3.eu-west-1.amazonaws.com",
            "https://kms.s3.amazonaws.com",
            "https://a1b2.execute-api.eu-west-1.amazonaws.com",
            "https://kms.eu-west-1.amazonaws.com/path",
            "https://kms.eu-west-1.amazonaws.com?x=1",
            "https://kms.cn-north-1.amazonaws.com.cn",
            "https://kms.eu-west-1.amazonaws.com\n",
            "http://10.0.0.1:5000",
            "http://169.254.169.254",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://0.0.0.0:5000",
            "ftp://127.0.0.1",
            "kms.eu-west-1.amazonaws.com",
            "https://[::1",
            "https://kms.eu-west-1.amazonaws.com:port",
            "",
        ],
    )
    def test_anything_else_is_refused_without_quoting_it(self, url: str) -> None:
        """Whoever answers there receives every value; the message says what to do, not what was set."""
        with pytest.raises(ConfigurationError) as caught:
            check_endpoint(url, "aws", name="AWS_ENDPOINT_URL_KMS")
        assert "AWS_ENDPOINT_URL_KMS" in caught.value.message
        assert "BROKER_AWS_PROXY" in caught.value.message
        assert "S3CRET" not in caught.value.message

    def test_each_partition_has_its_own_suffix(self) -> None:
        """China's endpoint is AWS's own for aws-cn, and for no other partition."""
        check_endpoint("https://kms.cn-north-1.amazonaws.com.cn", "aws-cn")
        check_endpoint("https://kms.eusc-de-east-1.amazonaws.eu", "aws-eusc")
        with pytest.raises(ConfigurationError):
            check_endpoint("https://kms.eu-west-1.amazonaws.com", "aws-cn")

    @pytest.mark.parametrize("options", [{"endpoint_kms": "https://evil.example"}, {"endpoint_sts": "http://10.1.1.1"}])
    def test_a_bad_setting_stops_the_start(self, options: dict[str, Any]) -> None:
        """Refused when the clients are wired, not at the first use."""
        with pytest.raises(ConfigurationError):
            clients(AwsOptions(**options))

    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_STS"])
    def test_a_bad_environment_stops_the_start(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where bootstrap did not hand it on: the credential chain would use it."""
        monkeypatch.setenv(name, "https://evil.example")
        with pytest.raises(ConfigurationError):
            clients()

    @pytest.mark.parametrize(
        "config",
        [
            "[default]\nendpoint_url = https://evil.example\n",
            "[default]\nservices = mine\n[services mine]\nkms =\n  endpoint_url = https://evil.example\n",
        ],
    )
    def test_a_bad_shared_config_stops_the_start(self, config: str, tmp_path: Path) -> None:
        """An endpoint in ~/.aws/config counts like one in the environment."""
        (tmp_path / "config").write_text(config)
        with pytest.raises(ConfigurationError):
            clients()

    def test_a_profile_that_does_not_exist_stops_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a message of ours."""
        monkeypatch.setenv("AWS_PROFILE", "none-such")
        with pytest.raises(ConfigurationError, match="AWS_PROFILE"):
            AwsClients(AwsOptions())

    def test_an_allowed_configured_endpoint_is_still_not_picked_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Endpoints come from the options alone."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert clients().kms(REGION).meta.endpoint_url == "https://kms.eu-west-1.amazonaws.com"

    def test_sts_is_regional_whatever_the_environment_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The key's Region answers, not a global endpoint of another continent."""
        monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "legacy")
        assert clients().sts(REGION).meta.endpoint_url == "https://sts.eu-west-1.amazonaws.com"


class TestAmbient:
    def test_proxies_and_ca_bundles_of_the_environment_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither changes who may read a value."""
        monkeypatch.setenv("HTTPS_PROXY", "http://evil.example:1")
        monkeypatch.setenv("AWS_CA_BUNDLE", "/tmp/evil.pem")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/tmp/evil.pem")
        http = clients().kms(REGION)._endpoint.http_session
        assert http._proxy_config.proxy_url_for("https://kms.eu-west-1.amazonaws.com/") is None
        assert http._verify is True

    def test_our_own_proxy_is_used(self) -> None:
        """BROKER_AWS_PROXY, for https; a loopback double is not reached through it."""
        http = clients(AwsOptions(proxy="http://proxy.internal:3128")).kms(REGION)._endpoint.http_session
        assert http._proxy_config.proxy_url_for("https://kms.eu-west-1.amazonaws.com/") == "http://proxy.internal:3128"
        assert http._proxy_config.proxy_url_for("http://127.0.0.1:5000/") is None

    def test_botocore_makes_one_attempt_with_short_timeouts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Retries are ours; the environment cannot bring botocore's back."""
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
        config = clients(AwsOptions(max_connections=40)).kms(REGION).meta.config
        assert config.retries["total_max_attempts"] == 1
        assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (1.0, 3.0, 40)


class TestClients:
    def test_one_client_per_service_and_region(self) -> None:
        """Made once, also when many threads ask at once."""
        ours = clients()
        barrier = threading.Barrier(8)
        made: list[Any] = []

        def ask() -> None:
            barrier.wait(10)
            made.append(ours.kms(REGION))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert {id(client) for client in made} == {id(ours.kms(REGION))}
        assert ours.kms("eu-central-1") is not ours.kms(REGION)

    def test_the_one_not_used_for_longest_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever names one Region after another costs those who use theirs nothing."""
        monkeypatch.setattr(aws_clients, "MOST_CLIENTS", 2)
        ours = clients()
        used, idle = ours.kms(REGION), ours.kms("eu-central-1")
        for region in ("us-east-1", "us-west-2"):
            assert ours.kms(REGION) is used
            ours.kms(region)
        assert ours.kms(REGION) is used
        assert ours.kms("eu-central-1") is not idle

    def test_a_chain_without_credentials_is_asked_again(self) -> None:
        """A client that was made without credentials would stay without for ever."""
        session = botocore.session.Session()
        found: list[Credentials | None] = [None, Credentials("AKIALATE", "late")]
        session.get_credentials = lambda: found[0]  # type: ignore[method-assign]
        ours = AwsClients(AwsOptions(), session)
        with pytest.raises(NoCredentialsError):
            ours.sts(REGION)
        found.pop(0)
        assert ours.sts(REGION) is not None

    @pytest.mark.parametrize("seconds", [-1, 901])
    def test_reuse_is_bounded(self, seconds: int) -> None:
        """AWS's shortest session is the longest that one may be shared."""
        with pytest.raises(ConfigurationError, match="BROKER_STS_REUSE_SECONDS"):
            AwsOptions(sts_reuse_seconds=seconds)


class TestSigning:
    def test_the_call_is_signed_with_the_assumed_session(self) -> None:
        """The seam in botocore that all of this stands on: if it moves, this fails."""
        client = clients().kms(REGION)
        sent = captured(client)
        with signed_with(Credentials("ASIASESSION", "secret", "token")):
            client.decrypt(CiphertextBlob=b"blob", KeyId=KEY)
        assert "Credential=ASIASESSION/" in header(sent[0], "Authorization")
        assert header(sent[0], "X-Amz-Security-Token") == "token"

    def test_without_a_session_nothing_is_sent(self) -> None:
        """A customer's key is never asked under our base credentials."""
        client = clients().kms(REGION)
        sent = captured(client)
        with pytest.raises(LookupError):
            client.decrypt(CiphertextBlob=b"blob", KeyId=KEY)
        assert sent == []

    def test_the_customers_client_holds_no_credentials_of_ours(self) -> None:
        """Should the swap ever not happen, AWS refuses the placeholder, and nobody is blamed."""
        signer = clients().kms(REGION)._request_signer
        assert signer._credentials.access_key == "AKIAAXIORANKNOSESSION"

    def test_sts_and_our_own_key_are_signed_with_base_credentials(self) -> None:
        """AssumeRole, and the platform's key."""
        ours = clients()
        sent = captured(ours.own_kms(REGION))
        with signed_with(Credentials("ASIASESSION", "secret", "token")):
            ours.own_kms(REGION).decrypt(CiphertextBlob=b"blob", KeyId=KEY)
        assert "Credential=AKIABASE/" in header(sent[0], "Authorization")
        assert ours.sts(REGION)._request_signer._credentials.access_key == "AKIABASE"

    def test_threads_do_not_see_each_others_sessions(self) -> None:
        """One client serves many tenants at once."""
        client = clients().kms(REGION)
        sent = captured(client)

        def decrypt(tenant: int) -> Callable[[], None]:
            def run() -> None:
                for _ in range(20):
                    with signed_with(Credentials(f"ASIA{tenant}", "secret", f"token-{tenant}")):
                        client.decrypt(CiphertextBlob=f"blob-{tenant}".encode(), KeyId=KEY)

            return run

        threads = [threading.Thread(target=decrypt(tenant)) for tenant in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        seen = {
            (base64.b64decode(json.loads(request.body)["CiphertextBlob"]), header(request, "X-Amz-Security-Token"))
            for request in sent
        }
        assert len(sent) == 160
        assert seen == {(f"blob-{tenant}".encode(), f"token-{tenant}") for tenant in range(8)}

    @pytest.mark.parametrize(("left", "read"), [(60.0, 3.0), (3.0, 2.0), (1.0, 0.5), (0.01, 0.05)])
    def test_a_call_waits_no_longer_than_its_use_may(self, left: float, read: float) -> None:
        """What is left after connecting, at most botocore's own three seconds."""
        client = clients().kms(REGION)
        sent = captured(client)
        with signed_with(Credentials("ASIASESSION", "secret", "token")), patience(left):
            client.decrypt(CiphertextBlob=b"blob", KeyId=KEY)
        assert sent[0].context["read_timeout"] == read

    @pytest.mark.parametrize("left", [0.0, -1.0])
    def test_with_no_time_left_nothing_is_sent(self, left: float) -> None:
        """Waiting for a slot or a session may have used it up."""
        client = clients().kms(REGION)
        sent = captured(client)
        with pytest.raises(TimeoutError), patience(left):
            client.decrypt(CiphertextBlob=b"blob", KeyId=KEY)
        assert sent == []
