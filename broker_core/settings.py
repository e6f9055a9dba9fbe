"""Every setting, read once from the environment into one frozen ``Settings``.

The promise: it refuses to start rather than guess. All problems are collected and reported together; a message names
the variable and what to do, and never repeats a value. Each variable of ours may instead be given as ``NAME_FILE``, the
path of a file that holds it. Imports only ``errors`` and ``settings_checks``; reads the mapping it is given, nothing
else. The fields are the table: a field says which variable it comes from and what makes a value acceptable.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from broker_core import settings_checks as checks
from broker_core.errors import ConfigurationError
from broker_core.settings_checks import Network, Unacceptable


def _variable(name: str, parse: Callable[[str], Any], *, secret: bool = False, default: Any = MISSING) -> Any:
    """A field read from a variable; without a default it is required. ``secret`` keeps it out of ``repr``."""
    return field(repr=not secret, default=default, metadata={"variable": name, "parse": parse})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process. URLs can hold passwords and are not shown."""

    database_url: str = _variable("BROKER_DATABASE_URL", checks.database_url, secret=True)
    redis_url: str = _variable("BROKER_REDIS_URL", checks.redis_url, secret=True)
    claim_redis_url: str = _variable("BROKER_CLAIM_REDIS_URL", checks.redis_url, secret=True)

    platform_keys: str | None = _variable("BROKER_PLATFORM_KEYS", checks.platform_keys, secret=True, default=None)
    platform_kms_key: str | None = _variable("BROKER_PLATFORM_KMS_KEY", checks.kms_key_arn, default=None)

    aws_account_id: str | None = _variable("BROKER_AWS_ACCOUNT_ID", checks.account_id, default=None)
    control_role_arn: str | None = _variable("BROKER_CONTROL_ROLE_ARN", checks.role_arn, default=None)
    aws_proxy: str | None = _variable("BROKER_AWS_PROXY", checks.proxy_url, secret=True, default=None)
    aws_endpoint_url: str | None = _variable("AWS_ENDPOINT_URL", checks.aws_endpoint, default=None)
    aws_endpoint_url_kms: str | None = _variable("AWS_ENDPOINT_URL_KMS", checks.aws_endpoint, default=None)
    aws_endpoint_url_sts: str | None = _variable("AWS_ENDPOINT_URL_STS", checks.aws_endpoint, default=None)

    #: a path or a URL of the platform's public token keys
    token_jwks: str | None = _variable("BROKER_TOKEN_JWKS", checks.path_or_url, default=None)
    token_issuer: str | None = _variable("BROKER_TOKEN_ISSUER", checks.text, default=None)
    token_audience: str | None = _variable("BROKER_TOKEN_AUDIENCE", checks.text, default=None)
    #: Ed25519, PEM
    signing_key: str | None = _variable("BROKER_SIGNING_KEY", checks.private_key, secret=True, default=None)
    webhook_url: str | None = _variable("BROKER_WEBHOOK_URL", checks.https_url, secret=True, default=None)
    webhook_secret: str | None = _variable("BROKER_WEBHOOK_SECRET", checks.shared_secret, secret=True, default=None)

    #: how long a value may wait for custody; its one-time key goes at that time too
    claim_ttl_seconds: int = _variable("BROKER_CLAIM_TTL_SECONDS", checks.whole(1, 86_400), default=3600)
    #: 0: one AssumeRole per use; above it, trust-policy removal is seen up to this much later (900: a session's life)
    sts_reuse_seconds: int = _variable("BROKER_STS_REUSE_SECONDS", checks.whole(0, 900), default=0)
    probe_seconds: int = _variable("BROKER_PROBE_SECONDS", checks.whole(1, 86_400), default=300)
    probe_unhealthy_seconds: int = _variable("BROKER_PROBE_UNHEALTHY_SECONDS", checks.whole(1, 86_400), default=60)
    check_round_seconds: int = _variable("BROKER_CHECK_ROUND_SECONDS", checks.whole(1, 2_592_000), default=86_400)
    #: calls a second and connection: they are on the customer's bill and in their quota
    check_rps: int = _variable("BROKER_CHECK_RPS", checks.whole(1, 1000), default=5)
    announce_after_seconds: int = _variable("BROKER_ANNOUNCE_AFTER_SECONDS", checks.whole(0, 86_400), default=120)

    upstream_seconds: int = _variable("BROKER_UPSTREAM_SECONDS", checks.whole(1, 900), default=30)
    stream_seconds: int = _variable("BROKER_STREAM_SECONDS", checks.whole(1, 86_400), default=3600)
    upstream_max_bytes: int = _variable("BROKER_UPSTREAM_MAX_BYTES", checks.whole(1, 1 << 30), default=10_485_760)
    #: streams at a time in one process; each holds a thread for as long as it lasts, and a workspace gets half at most
    stream_places: int = _variable("BROKER_STREAM_PLACES", checks.whole(2, 2000), default=200)
    #: of one workspace; 100 a second is beyond what one process can inject, and below what AWS lets one account assume
    rate_inject_per_minute: int = _variable("BROKER_RATE_INJECT_PER_MINUTE", checks.whole(1, 10**7), default=6000)
    rate_events_per_minute: int = _variable("BROKER_RATE_EVENTS_PER_MINUTE", checks.whole(1, 10**7), default=6000)
    #: people, scripts of theirs, environments; some of these calls ask AWS a dozen times
    rate_other_per_minute: int = _variable("BROKER_RATE_OTHER_PER_MINUTE", checks.whole(1, 10**7), default=600)
    #: of bodies, both ways; at 1 GiB one workspace keeps a sixth of a core busy with redaction
    rate_bytes_per_minute: int = _variable("BROKER_RATE_BYTES_PER_MINUTE", checks.whole(1, 1 << 40), default=1 << 30)
    egress_allow: tuple[Network, ...] = _variable("BROKER_EGRESS_ALLOW", checks.networks, default=())
    #: beats the allow list
    egress_deny: tuple[Network | str, ...] = _variable("BROKER_EGRESS_DENY", checks.networks_and_names, default=())
    egress_ca_file: str | None = _variable("BROKER_EGRESS_CA_FILE", checks.readable_file, default=None)
    port: int = _variable("PORT", checks.whole(1, 65_535), default=8000)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check every setting. Raises ConfigurationError that lists all problems."""
        problems: list[str] = _unknown(environ) + _dangerous(environ)
        values: dict[str, Any] = {}
        for each in fields(cls):
            try:
                values |= _read(each, environ)
            except Unacceptable as problem:
                problems.append(f"{each.metadata['variable']} {problem}")
        problems += _together(values)
        if problems:
            raise ConfigurationError(
                "\n".join(["the settings do not work:", *(f"- {problem}" for problem in problems)])
            )
        return cls(**values)

    def require(self, *names: str) -> None:
        """Insist on settings that only some processes need, by field name. Raises ConfigurationError."""
        missing = [
            str(each.metadata["variable"]) for each in fields(self) if each.name in names and not self._has(each)
        ]
        if missing:
            raise ConfigurationError(
                f"this process needs {', '.join(missing)}: set each, or NAME_FILE to a file's path"
            )

    def _has(self, each: Field[Any]) -> bool:
        return getattr(self, each.name) is not None


#: what ``web`` needs beside the rest, for ``require``
WEB = ("token_jwks", "token_issuer", "token_audience")


def _read(each: Field[Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The field's value by its name; empty where it is not set and has a default. Raises Unacceptable."""
    text = _text(each.metadata["variable"], environ)
    if text:
        return {each.name: each.metadata["parse"](text)}
    # every default is the safe choice, so an empty variable (as a compose file leaves it) may count as not set
    if each.default is MISSING:
        raise Unacceptable("is required: set it, or set it as _FILE to the path of a file that holds it")
    return {}


def _text(name: str, environ: Mapping[str, str]) -> str:
    path = environ.get(f"{name}_FILE", "") if _is_ours(name) else ""
    if not path:
        return environ.get(name, "")
    if environ.get(name):
        raise Unacceptable("is given twice, as it is and as _FILE: keep one")
    try:
        text = Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError):
        raise Unacceptable(
            "is to come from its _FILE, which cannot be read as text: check the path and permissions"
        ) from None
    if not text:
        raise Unacceptable("is to come from its _FILE, which is empty: put the value in it, or leave the variable out")
    return text


def _is_ours(name: str) -> bool:
    return name == "PORT" or name.startswith("BROKER_")


def _unknown(environ: Mapping[str, str]) -> list[str]:
    """A misspelt variable would silently leave a default in force. ``BROKER_TEST_…`` belong to the tests."""
    names = [str(each.metadata["variable"]) for each in fields(Settings)]
    known = {*names, *(f"{name}_FILE" for name in names)}
    strangers = (name for name in environ if name.startswith("BROKER_") and not name.startswith("BROKER_TEST_"))
    return [_misspelt(name, known) for name in sorted(strangers) if name not in known]


def _dangerous(environ: Mapping[str, str]) -> list[str]:
    """Variables of libraries that would undo a promise (INV-1)."""
    if environ.get("SSLKEYLOGFILE"):
        return ["SSLKEYLOGFILE is set, and would write the keys of every TLS session to a file: unset it"]
    return []


def _misspelt(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f"{name} is no setting of this program: " + (f"did you mean {close[0]}?" if close else "remove it")


def _together(values: Mapping[str, Any]) -> list[str]:
    """What is wrong between settings that are each well on their own."""
    problems = []
    if bool(values.get("platform_keys")) == bool(values.get("platform_kms_key")):
        problems.append("BROKER_PLATFORM_KEYS and BROKER_PLATFORM_KMS_KEY: set exactly one acceptable value of the two")
    if bool(values.get("webhook_url")) != bool(values.get("webhook_secret")):
        problems.append("BROKER_WEBHOOK_URL and BROKER_WEBHOOK_SECRET: set both or neither; webhooks are always signed")
    queue, claims = values.get("redis_url"), values.get("claim_redis_url")
    if queue and claims and checks.server_of(queue) == checks.server_of(claims):
        problems.append(
            "BROKER_CLAIM_REDIS_URL names the same server as BROKER_REDIS_URL (another database number does not help): "
            "give claims a server of their own that keeps nothing on disk"
        )
    return problems
