"""Settings: what is accepted, what stops start-up, and that no value is ever repeated."""

from __future__ import annotations

import base64
import dataclasses
from ipaddress import ip_network
from pathlib import Path

import pytest

from broker_core.errors import ConfigurationError
from broker_core.settings import WEB, Settings

KEY = base64.b64encode(bytes(range(32))).decode()
LEAST = {
    "BROKER_DATABASE_URL": "postgresql://broker:db-pass-word@127.0.0.1:5432/broker",
    "BROKER_REDIS_URL": "redis://:queue-pass-word@127.0.0.1:6379/0",
    "BROKER_CLAIM_REDIS_URL": "redis://:claim-pass-word@127.0.0.1:6380/0",
    "BROKER_PLATFORM_KEYS": f"k1:{KEY}",
}
KMS = "arn:aws:kms:eu-central-1:111122223333:key/12345678-1234-1234-1234-123456789012"


def read(**changed: str) -> Settings:
    """The least environment with changes; an empty text takes a variable out."""
    return Settings.from_environment({name: value for name, value in {**LEAST, **changed}.items() if value})


def refusal(**changed: str) -> str:
    """The message that the changed environment is refused with."""
    with pytest.raises(ConfigurationError) as caught:
        read(**changed)
    return caught.value.message


class TestAccepted:
    def test_least(self) -> None:
        """The required variables are enough, and the defaults are the documented ones."""
        settings = read()
        assert (settings.claim_ttl_seconds, settings.sts_reuse_seconds, settings.port) == (3600, 0, 8000)

    def test_other_variables_are_left_alone(self) -> None:
        """Variables that are not ours, or belong to the tests, do not matter."""
        assert read(HOME="/root", BROKER_TEST_REDIS_URL="x", OTEL_TRACES_EXPORTER="console") == read()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("BROKER_DATABASE_URL", "postgresql+psycopg://u:p@[::1]/db"),
            ("BROKER_DATABASE_URL", "postgresql://u@/db?host=/run/postgresql"),
            ("BROKER_DATABASE_URL", "postgresql://u@%2Frun%2Fpostgresql/db"),
            ("BROKER_DATABASE_URL", "postgresql://u:p@db.example/db?sslmode=verify-full&sslrootcert=/ca"),
            ("BROKER_DATABASE_URL", "postgresql://u:p@a.example:1,b.example:2/db?sslmode=verify-ca"),
            ("BROKER_REDIS_URL", "rediss://:p@queue.example:6379/0"),
            ("BROKER_CLAIM_REDIS_URL", "unix:///run/claims.sock?db=0"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:5000"),
            ("AWS_ENDPOINT_URL_KMS", "https://kms.eu-central-1.amazonaws.com"),
            ("AWS_ENDPOINT_URL_STS", "https://sts.cn-north-1.amazonaws.com.cn"),
            ("BROKER_AWS_PROXY", "http://user:pass@proxy.example:3128"),
            ("BROKER_CONTROL_ROLE_ARN", "arn:aws-us-gov:iam::111122223333:role/path/control"),
            ("BROKER_TOKEN_JWKS", "/etc/broker/jwks.json"),
            ("BROKER_TOKEN_JWKS", "https://id.example/jwks.json"),
            ("BROKER_STS_REUSE_SECONDS", "900"),
            ("BROKER_PLATFORM_KEYS", f"k2:{KEY},k1:{KEY}"),
        ],
    )
    def test_value(self, name: str, value: str) -> None:
        """An acceptable value is kept."""
        assert read(**{name: value})

    def test_networks(self) -> None:
        """CIDRs become networks."""
        allowed = read(BROKER_EGRESS_ALLOW="10.1.0.0/16, ::1/128").egress_allow
        assert allowed == (ip_network("10.1.0.0/16"), ip_network("::1/128"))

    def test_networks_and_names(self) -> None:
        """CIDRs become networks, the rest are names."""
        denied = read(BROKER_EGRESS_DENY="10.1.0.0/16, pastebin.com,xn--bcher-kva.example").egress_deny
        assert denied == (ip_network("10.1.0.0/16"), "pastebin.com", "xn--bcher-kva.example")

    def test_empty_counts_as_not_set(self) -> None:
        """A variable that a compose file leaves empty has its default."""
        assert Settings.from_environment({**LEAST, "BROKER_STS_REUSE_SECONDS": ""}).sts_reuse_seconds == 0

    def test_frozen(self) -> None:
        """Nobody changes a setting afterwards."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            read().port = 1  # type: ignore[misc]  # what mypy says here is the fact

    def test_repr_shows_no_secret(self) -> None:
        """Neither passwords in URLs nor keys are in the repr."""
        shown = repr(read(BROKER_WEBHOOK_URL="https://hooks.example/x", BROKER_WEBHOOK_SECRET="s" * 32))
        assert not any(secret in shown for secret in ("pass-word", KEY, "s" * 32))


class TestFiles:
    def test_value_from_a_file(self, tmp_path: Path) -> None:
        """NAME_FILE gives the value, without one last line break."""
        (tmp_path / "keys").write_text(f"k1:{KEY}\n")
        settings = read(BROKER_PLATFORM_KEYS="", BROKER_PLATFORM_KEYS_FILE=str(tmp_path / "keys"))
        assert settings.platform_keys == f"k1:{KEY}"

    def test_both_are_refused(self, tmp_path: Path) -> None:
        """NAME and NAME_FILE together are refused, for nobody knows which holds."""
        (tmp_path / "port").write_text("8001")
        assert "PORT is given twice" in refusal(PORT="8000", PORT_FILE=str(tmp_path / "port"))

    def test_unreadable_file(self, tmp_path: Path) -> None:
        """A file that is not there stops start-up."""
        assert "BROKER_REDIS_URL is to come from its _FILE, which cannot be read" in refusal(
            BROKER_REDIS_URL="", BROKER_REDIS_URL_FILE=str(tmp_path / "none")
        )

    def test_empty_file(self, tmp_path: Path) -> None:
        """A file with nothing in it stops start-up."""
        (tmp_path / "empty").write_text("\n")
        assert "which is empty" in refusal(BROKER_WEBHOOK_SECRET_FILE=str(tmp_path / "empty"))

    def test_a_file_setting_may_be_in_a_file(self, tmp_path: Path) -> None:
        """BROKER_EGRESS_CA_FILE is a setting of its own, not the file of another."""
        (tmp_path / "ca.pem").write_text("x")
        assert read(BROKER_EGRESS_CA_FILE=str(tmp_path / "ca.pem")).egress_ca_file == str(tmp_path / "ca.pem")


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("BROKER_DATABASE_URL", "mysql://u:hunter2@127.0.0.1/db", "must be postgresql"),
            ("BROKER_DATABASE_URL", "postgresql://u:hunter2@db.example/db", "sslmode=verify-full"),
            ("BROKER_DATABASE_URL", "postgresql://u:hunter2@db.example/db?sslmode=require", "sslmode=verify-full"),
            ("BROKER_DATABASE_URL", "postgresql://localhost/db?hostaddr=198.51.100.7", "sslmode=verify-full"),
            ("BROKER_DATABASE_URL", "postgresql://localhost,db.example/db", "sslmode=verify-full"),
            ("BROKER_DATABASE_URL", "postgresql:///db", "must name its host"),
            ("BROKER_DATABASE_URL", "postgresql://localhost/db?service=x", "must name its host"),
            ("BROKER_REDIS_URL", "redis://:hunter2@queue.example/0", "use rediss://"),
            ("BROKER_REDIS_URL", "rediss://queue.example/0?ssl_cert_reqs=none", "relax certificate"),
            ("BROKER_REDIS_URL", "redis://127.0.0.1:hunter2/0", "is not a URL"),
            ("BROKER_REDIS_URL", "http://127.0.0.1", "must be rediss://"),
            ("BROKER_PLATFORM_KEYS", KEY, "kid:base64"),
            ("BROKER_PLATFORM_KEYS", "k1:aHVudGVyMg==", "kid:base64"),
            ("BROKER_PLATFORM_KEYS", f"k1:{KEY},k1:{KEY}", "twice"),
            ("BROKER_AWS_ACCOUNT_ID", "1234", "12 digits"),
            ("BROKER_CONTROL_ROLE_ARN", "arn:aws:iam::1:user/hunter2", "IAM role's ARN"),
            ("BROKER_STS_REUSE_SECONDS", "901", "from 0 to 900"),
            ("BROKER_CLAIM_TTL_SECONDS", "1h", "whole number"),
            ("BROKER_CHECK_RPS", "-1", "whole number"),
            ("BROKER_CHECK_RPS", "٣", "whole number"),
            ("BROKER_EGRESS_ALLOW", "10.0.0.1/8", "host bits zero"),
            ("BROKER_EGRESS_DENY", "10.0.0.1/8", "host bits zero"),
            ("BROKER_EGRESS_DENY", "*.example.com", "without"),
            ("BROKER_EGRESS_DENY", "Example.com", "small letters"),
            ("BROKER_EGRESS_DENY", "example.com:443", "without"),
            ("BROKER_EGRESS_DENY", "10.0.0.256", "CIDRs"),
            ("BROKER_EGRESS_DENY", "example.com.", "host names"),
            ("BROKER_EGRESS_DENY", "a.example,", "after commas"),
            ("BROKER_EGRESS_CA_FILE", "/nowhere/hunter2", "can be read"),
            ("BROKER_WEBHOOK_URL", "http://hooks.example/", "https"),
            ("BROKER_TOKEN_JWKS", "http://id.example/jwks", "https"),
            ("BROKER_TOKEN_JWKS", "jwks.json", "absolute path"),
            ("BROKER_SIGNING_KEY", "hunter2", "PEM"),
            ("AWS_ENDPOINT_URL", "http://kms.eu-central-1.amazonaws.com", "AWS's own suffix"),
            ("AWS_ENDPOINT_URL_KMS", "https://kms.amazonaws.com.evil.example", "AWS's own suffix"),
            ("AWS_ENDPOINT_URL_KMS", "https://amazonaws.com@evil.example", "AWS's own suffix"),
            ("AWS_ENDPOINT_URL_STS", "https://evilamazonaws.com", "AWS's own suffix"),
            ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1.evil.example", "AWS's own suffix"),
        ],
    )
    def test_value(self, name: str, value: str, says: str) -> None:
        """The message names the variable, says what to do, and does not repeat the value."""
        message = refusal(**{name: value})
        assert f"- {name} " in message
        assert says in message
        assert "hunter2" not in message

    @pytest.mark.parametrize("name", ["BROKER_DATABASE_URL", "BROKER_REDIS_URL", "BROKER_CLAIM_REDIS_URL"])
    def test_missing(self, name: str) -> None:
        """What is required and missing is named."""
        assert f"- {name} is required" in refusal(**{name: ""})

    def test_alias_instead_of_a_key(self) -> None:
        """A platform KMS key may not be an alias."""
        alias = "arn:aws:kms:eu-central-1:111122223333:alias/broker"
        assert "is an alias" in refusal(BROKER_PLATFORM_KEYS="", BROKER_PLATFORM_KMS_KEY=alias)

    def test_exactly_one_platform_key(self) -> None:
        """Both kinds of platform key, or none, are refused."""
        assert "exactly one" in refusal(BROKER_PLATFORM_KMS_KEY=KMS)
        assert "exactly one" in refusal(BROKER_PLATFORM_KEYS="")
        assert read(BROKER_PLATFORM_KEYS="", BROKER_PLATFORM_KMS_KEY=KMS).platform_kms_key == KMS

    @pytest.mark.parametrize("claims", ["redis://localhost:6379/5", "redis://:x@[::1]:6379", "rediss://127.0.0.1/1"])
    def test_claims_on_the_queues_server(self, claims: str) -> None:
        """Claims on the queue's server are refused, by whichever of its names and in whichever database."""
        assert "same server" in refusal(BROKER_CLAIM_REDIS_URL=claims)

    def test_webhook_without_its_secret(self) -> None:
        """A webhook is never sent unsigned."""
        assert "both or neither" in refusal(BROKER_WEBHOOK_URL="https://hooks.example/")

    def test_misspelt(self) -> None:
        """A variable that nothing reads stops start-up, and the nearest name is proposed."""
        assert "did you mean BROKER_STS_REUSE_SECONDS?" in refusal(BROKER_STS_REUSE_SECOND="0")

    def test_nothing_like_it(self) -> None:
        """Where no name is near, none is proposed."""
        assert "BROKER_FOO is no setting of this program: remove it" in refusal(BROKER_FOO="1")

    def test_tls_keys_in_a_file(self) -> None:
        """A variable that makes OpenSSL write session keys to a file stops start-up."""
        assert "SSLKEYLOGFILE" in refusal(SSLKEYLOGFILE="/tmp/keys")

    def test_all_at_once(self) -> None:
        """Every problem is in one message."""
        message = refusal(BROKER_DATABASE_URL="", BROKER_AWS_ACCOUNT_ID="x", PORT="0", BROKER_X="1")
        assert message.count("\n- ") == 4


class TestRequire:
    def test_web_needs_its_tokens(self) -> None:
        """A process that needs more than the rest says which variables are missing."""
        with pytest.raises(ConfigurationError, match="BROKER_TOKEN_JWKS, BROKER_TOKEN_ISSUER"):
            read(BROKER_TOKEN_AUDIENCE="broker").require(*WEB)

    def test_enough(self) -> None:
        """With all of them set there is nothing to say."""
        given = {"BROKER_TOKEN_JWKS": "/jwks", "BROKER_TOKEN_ISSUER": "i", "BROKER_TOKEN_AUDIENCE": "a"}
        read(**given).require(*WEB)
