"""How AWS's names look: partitions, ARNs of keys and roles, endpoints of KMS and STS.

Promise: whoever reads or checks such a name does it by the one rule that stands here, so that what a setting may say
and what the AWS adapter accepts cannot come apart. Pure; imports nothing of ours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

#: each partition's classic and dual-stack suffix, as in botocore's partitions.json (a test compares the two).
#: https://docs.aws.amazon.com/general/latest/gr/rande.html
SUFFIXES: Final[Mapping[str, tuple[str, str]]] = {
    "aws": ("amazonaws.com", "api.aws"),
    "aws-us-gov": ("amazonaws.com", "api.aws"),
    "aws-cn": ("amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    "aws-eusc": ("amazonaws.eu", "api.amazonwebservices.eu"),
    "aws-iso": ("c2s.ic.gov", "api.aws.ic.gov"),
    "aws-iso-b": ("sc2s.sgov.gov", "api.aws.scloud"),
    "aws-iso-e": ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    "aws-iso-f": ("csp.hci.ic.gov", "api.aws.hci.ic.gov"),
}

#: how each partition's Regions begin, as in botocore's partitions.json too. By shape and not by name, so that a new
#: Region needs no release of ours
_REGIONS_BEGIN: Final[Mapping[str, str]] = {
    "aws": "us|eu|ap|sa|ca|me|af|il|mx",
    "aws-us-gov": "us-gov",
    "aws-cn": "cn",
    "aws-eusc": "eusc-de",
    "aws-iso": "us-iso",
    "aws-iso-b": "us-isob",
    "aws-iso-e": "eu-isoe",
    "aws-iso-f": "us-isof",
}

_PARTITION = "|".join(SUFFIXES)
_REGION = r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]"
_ACCOUNT = r"[0-9]{12}"

#: for ``fullmatch``
ACCOUNT_ID: Final = re.compile(_ACCOUNT)
#: for ``fullmatch``; groups: partition, Region, account, key id
KEY_ARN: Final = re.compile(
    rf"arn:({_PARTITION}):kms:({_REGION}):({_ACCOUNT}):key/([0-9a-f-]{{36}}|mrk-[0-9a-f]{{32}})"
)
#: for ``fullmatch``; groups: partition, account
ROLE_ARN: Final = re.compile(
    rf"arn:({_PARTITION}):iam::({_ACCOUNT}):role/(?:[\x21-\x7e]{{1,510}}/)?[\w+=,.@-]{{1,64}}", re.ASCII
)

#: a suffix alone proves nothing: customers' buckets, load balancers and API gateways live under it too
_SERVICE = rf"(?:vpce-[a-z0-9-]+\.)?(?:kms|sts)(?:-fips)?(?:\.{_REGION})?(?:\.vpce)?\."


def is_region(name: str, partition: str) -> bool:
    """Whether a Region of this partition may be called so. Another partition's would be asked on its own hosts, where
    neither role nor key of this one can be."""
    return re.fullmatch(rf"(?:{_REGIONS_BEGIN[partition]})-[a-z]{{1,20}}-[0-9]{{1,2}}", name) is not None


def is_alias(name: str) -> bool:
    """Whether a key's name is an alias, bare or as an ARN: what it points at can change without us seeing it."""
    return ":alias/" in name or name.startswith("alias/")


def is_endpoint(url: str, partition: str | None = None) -> bool:
    """Whether a URL is an https endpoint of AWS's own for KMS or STS in ``partition`` (None: in any), or on loopback.

    Whoever answers there receives every value in plain text: a bare scheme, host and port, and nothing that only looks
    like AWS.
    """
    parts = _split(url)
    if parts is None:
        return False
    scheme, host = parts
    if _is_loopback(host):
        return scheme in ("http", "https")
    suffixes = SUFFIXES.get(partition, ()) if partition else sum(SUFFIXES.values(), ())
    return scheme == "https" and any(re.fullmatch(_SERVICE + re.escape(suffix), host) for suffix in suffixes)


def _split(url: str) -> tuple[str, str] | None:
    """Scheme and host of a bare endpoint; None where the URL has more to it than an endpoint may have."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return None
    is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment and "@" not in parts.netloc
    return (parts.scheme, host) if is_bare and url.isascii() and url.isprintable() and " " not in url else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
