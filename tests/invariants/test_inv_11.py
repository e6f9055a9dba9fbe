"""INV-11: no switch turns encryption or any of the invariants off.

Every setting stands here with the reason why no value of it does; a new one fails this test until somebody has thought
about it.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import broker_core
from broker_core.errors import ConfigurationError
from broker_core.settings import Settings
from workers import main as workers_main

ROOT = Path(__file__).parent.parent.parent

#: variable → why no value that is accepted switches a protection off
HARMLESS = {
    "BROKER_DATABASE_URL": "where; TLS or a socket off loopback is checked",
    "BROKER_REDIS_URL": "where; TLS off loopback is checked, and a message holds an id only",
    "BROKER_CLAIM_REDIS_URL": "where; must keep nothing on disk, or nothing starts",
    "BROKER_PLATFORM_KEYS": "which key; exactly one of the two must be there",
    "BROKER_PLATFORM_KMS_KEY": "which key; exactly one of the two must be there",
    "BROKER_AWS_ACCOUNT_ID": "a name in policies",
    "BROKER_CONTROL_ROLE_ARN": "adds a doubt before a customer is blamed",
    "BROKER_AWS_PROXY": "a way to AWS; TLS goes through it to AWS",
    "AWS_ENDPOINT_URL": "AWS's own over https, or loopback",
    "AWS_ENDPOINT_URL_KMS": "AWS's own over https, or loopback",
    "AWS_ENDPOINT_URL_STS": "AWS's own over https, or loopback",
    "BROKER_TOKEN_JWKS": "whose tokens; web does not start without",
    "BROKER_TOKEN_ISSUER": "whose tokens; web does not start without",
    "BROKER_TOKEN_AUDIENCE": "whose tokens; web does not start without",
    "BROKER_SIGNING_KEY": "signs proofs; none are made without",
    "BROKER_WEBHOOK_URL": "https only, and always signed",
    "BROKER_WEBHOOK_SECRET": "webhooks are always signed",
    "BROKER_CLAIM_TTL_SECONDS": "a day at most; a claim is ciphertext in memory however long it lives",
    "BROKER_STS_REUSE_SECONDS": "a session's life at most; delays trust-policy removal alone, and says so",
    "BROKER_PROBE_SECONDS": "how often; never refuses or allows a use",
    "BROKER_PROBE_UNHEALTHY_SECONDS": "how often; never refuses or allows a use",
    "BROKER_CHECK_ROUND_SECONDS": "how often; never refuses or allows a use",
    "BROKER_CHECK_RPS": "how often; never refuses or allows a use",
    "BROKER_ANNOUNCE_AFTER_SECONDS": "when it is announced; acting on a denial does not wait for it",
    "BROKER_UPSTREAM_SECONDS": "a limit that is at least 1 and at most minutes",
    "BROKER_STREAM_SECONDS": "a limit that is at least 1 and at most a day",
    "BROKER_UPSTREAM_MAX_BYTES": "a limit that is at least 1 and at most a gigabyte",
    "BROKER_STREAM_PLACES": "a limit that is at least 2 and at most thousands",
    "BROKER_RATE_INJECT_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_RATE_EVENTS_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_RATE_OTHER_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_RATE_BYTES_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_EGRESS_ALLOW": "adds networks by name; metadata addresses are refused in any case",
    "BROKER_EGRESS_DENY": "takes away, and beats the allow list",
    "BROKER_EGRESS_CA_FILE": "adds authorities; certificates and names are always checked",
    "PORT": "where",
}
#: a setting with such a word in its name would be a switch, whatever it says it is for
SWITCH_WORDS = re.compile(r"DISABLE|ENABLE|SKIP|INSECURE|UNSAFE|VERIFY|DEBUG|NO_|ALLOW_|PLAINTEXT|BYPASS|FALLBACK|DEV")


def _variables() -> dict[str, Any]:
    return {str(each.metadata["variable"]): each for each in fields(Settings)}


def test_every_setting_is_known_not_to_be_a_switch() -> None:
    """The list above is the list of settings, and each has its reason."""
    assert set(_variables()) == set(HARMLESS)
    assert all(HARMLESS.values())


def test_no_setting_is_a_yes_or_no() -> None:
    """A boolean would be a switch; there is none."""
    kinds = get_type_hints(Settings)
    assert [name for name, kind in kinds.items() if kind is bool or bool in get_args(kind)] == []


def test_no_settings_name_sounds_like_a_switch() -> None:
    """Not by intent, and not by accident."""
    assert [name for name in _variables() if SWITCH_WORDS.search(name)] == []


@pytest.mark.parametrize(
    "name",
    "BROKER_ENCRYPTION BROKER_DISABLE_AUDIT BROKER_TLS_VERIFY BROKER_DEV BROKER_LOG_LEVEL BROKER_BYOK"
    " BROKER_CLAIM_REDIS BROKER_PLATFORM_FALLBACK".split(),
)
def test_a_variable_that_nobody_knows_stops_the_start(environment: dict[str, str], name: str) -> None:
    """A misspelt protection, or a switch that somebody hopes for, is refused, and the message names it."""
    with pytest.raises(ConfigurationError, match=f"{name} is no setting"):
        Settings.from_environment(environment | {name: "off"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_STS_REUSE_SECONDS", "901"),
        ("BROKER_CLAIM_TTL_SECONDS", "0"),
        ("BROKER_CLAIM_TTL_SECONDS", "86401"),
        ("BROKER_UPSTREAM_SECONDS", "0"),
        ("BROKER_UPSTREAM_MAX_BYTES", "0"),
        ("BROKER_PROBE_SECONDS", "0"),
        ("BROKER_CHECK_ROUND_SECONDS", "0"),
        ("BROKER_CHECK_RPS", "0"),
        ("BROKER_PLATFORM_KEYS", ""),
        ("BROKER_PLATFORM_KEYS", "none"),
        ("BROKER_DATABASE_URL", "postgresql://user@db.example.com/broker?sslmode=disable"),
        ("BROKER_REDIS_URL", "redis://queue.example.com:6379/0"),
        ("BROKER_CLAIM_REDIS_URL", "redis://claims.example.com:6379/0"),
        ("AWS_ENDPOINT_URL", "http://kms.example.com"),
        ("AWS_ENDPOINT_URL", "https://kms.example.com"),
        ("AWS_ENDPOINT_URL_KMS", "https://kms.eu-west-1.amazonaws.com.example.com"),
        ("BROKER_WEBHOOK_URL", "http://hooks.example.com"),
        ("BROKER_EGRESS_ALLOW", "everything"),
        ("BROKER_EGRESS_DENY", "https://example.com"),
    ],
)
def test_a_value_that_would_weaken_stops_the_start(environment: dict[str, str], name: str, value: str) -> None:
    """Zero, empty, endless or somewhere else: refused by name, and not quoted."""
    with pytest.raises(ConfigurationError, match="BROKER_PLATFORM" if "PLATFORM" in name else name) as refused:
        Settings.from_environment(environment | {name: value})

    assert len(value) < 5 or value not in str(refused.value)


def test_the_claims_may_not_live_where_the_queue_does(environment: dict[str, str]) -> None:
    """One server for both would write the second half to disk."""
    with pytest.raises(ConfigurationError, match="BROKER_CLAIM_REDIS_URL"):
        Settings.from_environment(environment | {"BROKER_CLAIM_REDIS_URL": environment["BROKER_REDIS_URL"]})


def test_a_claim_server_that_keeps_files_stops_the_start(environment: dict[str, str]) -> None:
    """The queue's server, under the claims' name: it persists, and so no process of ours starts with it."""
    from broker_core.bootstrap import build_app

    swapped = environment | {
        "BROKER_CLAIM_REDIS_URL": environment["BROKER_REDIS_URL"],
        "BROKER_REDIS_URL": environment["BROKER_CLAIM_REDIS_URL"],
    }
    with pytest.raises(ConfigurationError):
        build_app(Settings.from_environment(swapped))


@pytest.mark.parametrize("allowed", ["0.0.0.0/0,::/0", "169.254.0.0/16"])
def test_no_list_of_networks_opens_the_metadata_service(environment: dict[str, str], allowed: str) -> None:
    """Whatever is allowed, the address that hands out our own credentials is not reached."""
    import ipaddress

    from broker_core.adapters.egress import Egress

    networks = Settings.from_environment(environment | {"BROKER_EGRESS_ALLOW": allowed}).egress_allow
    egress = Egress([str(network) for network in networks])

    assert not egress.passes(ipaddress.ip_address("169.254.169.254"))


def test_the_settings_are_frozen() -> None:
    """What was checked at the start cannot be changed afterwards."""
    params: Any = Settings.__dataclass_params__  # type: ignore[attr-defined]  # dataclasses keep it there
    assert params.frozen


def test_only_the_settings_and_the_ways_in_read_the_environment() -> None:
    """A switch could hide in any ``os.environ``: outside of the command line, the workers' set-up and the local stack
    nothing reads it."""
    reading = re.compile(r"os\.environ|getenv")
    package = Path(str(broker_core.__file__)).parent
    found = {
        path.relative_to(ROOT).as_posix()
        for directory in (package, Path(str(workers_main.__file__)).parent)
        for path in directory.rglob("*.py")
        if reading.search(path.read_text())
    }

    allowed = {path for path in found if path.startswith(("broker_core/cli/", "broker_core/dev/"))}
    assert found - allowed == {"workers/main.py"}
