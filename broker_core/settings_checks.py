"""What makes the text of a setting acceptable: one function per kind of value, each returns what Settings keeps.

Every function raises Unacceptable with words that follow the variable's name, say what to do, and never repeat the
text. Pure but for ``readable_file``; of ours it imports ``aws_names`` only.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Callable
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from broker_core import aws_names

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Unacceptable(ValueError):
    """The text is no acceptable value. The message follows the variable's name and holds no part of the text."""


def text(value: str) -> str:
    """Any text without outer space."""
    if value != value.strip():
        raise Unacceptable("begins or ends with white space: remove it")
    return value


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number in a range, both ends included."""

    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value) or not least <= int(value) <= most:
            raise Unacceptable(f"must be a whole number from {least} to {most}")
        return int(value)

    return parse


# ---------------------------------------------------------------- servers


def database_url(value: str) -> str:
    """A PostgreSQL URL; off loopback by a Unix socket, or by TLS that checks the certificate."""
    parts = _split(value)
    if parts.scheme not in ("postgresql", "postgresql+psycopg"):
        raise Unacceptable("must be postgresql://… or postgresql+psycopg://…: there is no other dialect")
    options = parse_qs(parts.query, keep_blank_values=True)
    hosts = _database_hosts(parts, options)
    if not hosts or "" in hosts or "service" in options:
        raise Unacceptable("must name its host in the URL (or ?host=/directory of the Unix socket): none is guessed")
    modes = options.get("sslmode", [])
    if not all(map(_is_local, hosts)) and (not modes or not set(modes) <= {"verify-full", "verify-ca"}):
        # sslmode=require encrypts, but to whoever answers: only the verify modes look at the certificate
        raise Unacceptable("is off loopback: add sslmode=verify-full and sslrootcert=…, or use a Unix socket")
    return value


def _database_hosts(parts: SplitResult, options: dict[str, list[str]]) -> list[str]:
    """Every host that libpq might connect to: from the URL, and from the options that override it."""
    network = parts.netloc.rpartition("@")[2]
    named = [_without_port(host) for host in network.split(",")] if network else []
    listed = [host for key in ("host", "hostaddr") for value in options.get(key, []) for host in value.split(",")]
    return named + [host if host.startswith("/") else _without_port(host) for host in listed]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return unquote(host if host.count(":") > 1 else host.partition(":")[0])


def redis_url(value: str) -> str:
    """A Redis or Valkey URL; off loopback with TLS that checks the certificate."""
    parts = _split(value)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise Unacceptable("must be rediss://…, or redis://… on loopback, or unix:///path")
    if parts.scheme == "unix" and not parts.path:
        raise Unacceptable("must name the socket's path: unix:///path")
    if parts.scheme != "unix" and not parts.hostname:
        raise Unacceptable("must name its host: none is guessed")
    options = parse_qs(parts.query)
    if {"ssl_cert_reqs", "ssl_check_hostname"} & set(options) and not _is_local(parts.hostname or ""):
        raise Unacceptable("must not relax certificate checks: remove ssl_cert_reqs and ssl_check_hostname")
    if parts.scheme == "redis" and not _is_local(parts.hostname or ""):
        raise Unacceptable("is off loopback: use rediss:// (TLS)")
    return value


def server_of(url: str) -> tuple[str, int]:
    """Which server a Redis URL names: the path of a socket, or host and port with all loopback names alike."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return os.path.normpath(unquote(parts.path)), 0
    host = (parts.hostname or "").rstrip(".")
    return ("loopback" if _is_local(host) else host), parts.port or 6379


def _split(value: str) -> SplitResult:
    """Split a URL and look at its port once; parsers complain with the text in their message."""
    text(value)
    try:
        parts = urlsplit(value)
        if parts.scheme not in ("postgresql", "postgresql+psycopg"):  # those may list several hosts and ports
            _ = parts.port
    except ValueError:
        raise Unacceptable("is not a URL: check its host and port, and percent-encode its password") from None
    return parts


def _is_local(host: str) -> bool:
    """A Unix socket's directory, ``localhost``, or a literal loopback address."""
    if host.startswith("/") or host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------- web addresses


def https_url(value: str) -> str:
    """An https URL without user and password; http on loopback only."""
    parts = _split(value)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise Unacceptable("must be an https:// URL")
    if parts.username is not None or parts.fragment:
        raise Unacceptable("must hold no user, password or fragment")
    if parts.scheme == "http" and not _is_local(parts.hostname):
        raise Unacceptable("must be https:// off loopback")
    return value


def path_or_url(value: str) -> str:
    """An https URL, or the absolute path of a file."""
    if value.startswith("/"):
        return value
    if "://" not in value:
        raise Unacceptable("must be an https:// URL, or the absolute path of a file")
    return https_url(value)


def proxy_url(value: str) -> str:
    """A proxy's http or https URL."""
    parts = _split(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise Unacceptable("must be a proxy as http://host:port or https://host:port")
    return value


# ---------------------------------------------------------------- AWS names


def aws_endpoint(value: str) -> str:
    """An endpoint for KMS or STS: https and AWS's own, or loopback. Anyone else would be sent every value."""
    if not aws_names.is_endpoint(value):
        raise Unacceptable(
            "must be https:// on AWS's own suffix, for KMS or STS (as https://kms.REGION.amazonaws.com), or loopback:"
            " remove it"
        )
    return value


def kms_key_arn(value: str) -> str:
    """A key's own ARN."""
    if aws_names.is_alias(value):
        raise Unacceptable("is an alias, which can come to point at another key: give the key's own ARN (…:key/KEY-ID)")
    if not aws_names.KEY_ARN.fullmatch(value):
        raise Unacceptable("must be a KMS key's ARN: arn:aws:kms:REGION:ACCOUNT:key/KEY-ID")
    return value


def role_arn(value: str) -> str:
    """An IAM role's ARN."""
    if not aws_names.ROLE_ARN.fullmatch(value):
        raise Unacceptable("must be an IAM role's ARN: arn:aws:iam::ACCOUNT:role/NAME")
    return value


def account_id(value: str) -> str:
    """An AWS account."""
    if not aws_names.ACCOUNT_ID.fullmatch(value):
        raise Unacceptable("must be an AWS account id of 12 digits")
    return value


# ---------------------------------------------------------------- keys, networks, files


#: a platform key's id, for ``fullmatch``
PLATFORM_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


def platform_keys(value: str) -> str:
    """``kid:base64(32 bytes)``, several after commas; key ids differ."""
    kids = [_platform_key(entry) for entry in value.split(",")]
    if len(set(kids)) != len(kids):
        raise Unacceptable("names a key id twice: every key needs an id of its own, for ever")
    return value


def _platform_key(entry: str) -> str:
    kid, _, encoded = entry.strip().partition(":")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not PLATFORM_KEY_ID.fullmatch(kid) or len(key) != 32:
        raise Unacceptable("must be kid:base64(32 random bytes), others after commas: `openssl rand -base64 32`")
    return kid


def private_key(value: str) -> str:
    """A PKCS #8 private key as PEM; what kind of key it is shows when it is loaded."""
    if not re.fullmatch(r"-----BEGIN PRIVATE KEY-----\s.+\s-----END PRIVATE KEY-----\s*", value, re.DOTALL):
        raise Unacceptable("must be an Ed25519 private key as PEM; `openssl genpkey -algorithm ed25519` makes one")
    return value


def shared_secret(value: str) -> str:
    """A secret long enough for HMAC."""
    if len(text(value)) < 16:
        raise Unacceptable("must have at least 16 characters; `openssl rand -hex 32` makes one")
    return value


def networks(value: str) -> tuple[Network, ...]:
    """CIDRs after commas; host bits must be zero, so that nobody opens more than they read."""
    try:
        return tuple(ipaddress.ip_network(each.strip()) for each in value.split(","))
    except ValueError:
        raise Unacceptable("must be CIDRs after commas, host bits zero: 10.1.0.0/16,127.0.0.1/32") from None


_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


def networks_and_names(value: str) -> tuple[Network | str, ...]:
    """CIDRs and host names after commas; a name stands for all below it. Names as they are compared: ASCII, small
    letters, so that no entry is there that never matches."""
    return tuple(_network_or_name(each.strip()) for each in value.split(","))


def _network_or_name(each: str) -> Network | str:
    try:
        return ipaddress.ip_network(each)
    except ValueError:
        # a last label of digits is a mistyped address: no host name ends in one (WHATWG URL, "ends in a number")
        if _HOST_NAME.fullmatch(each) and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", each.rpartition(".")[2]):
            return each
    raise Unacceptable(
        "must be CIDRs (host bits zero) and host names after commas, names in small letters, IDNs as xn--…, without"
        " *, port or scheme: 10.1.0.0/16,example.com"
    )


def readable_file(value: str) -> str:
    """The path of a file that this process may read."""
    if not (os.path.isfile(value) and os.access(value, os.R_OK)):
        raise Unacceptable("must be the path of a file that can be read")
    return value
