"""AWS's names: one rule for settings, connections and the AWS adapter."""

from __future__ import annotations

import botocore.session
import pytest

from broker_core import aws_names
from broker_core.adapters.aws_clients import check_endpoint
from broker_core.errors import ConfigurationError
from broker_core.model import parse_key_arn
from broker_core.settings_checks import Unacceptable, aws_endpoint, kms_key_arn, role_arn

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
#: a Region of each partition
REGIONS = {
    "aws": "eu-west-1",
    "aws-us-gov": "us-gov-west-1",
    "aws-cn": "cn-north-1",
    "aws-eusc": "eusc-de-east-1",
    "aws-iso": "us-iso-east-1",
    "aws-iso-b": "us-isob-east-1",
    "aws-iso-e": "eu-isoe-west-1",
    "aws-iso-f": "us-isof-south-1",
}
each_partition = pytest.mark.parametrize("partition", REGIONS)


def settings_take(url: str) -> bool:
    try:
        aws_endpoint(url)
    except Unacceptable:
        return False
    return True


def adapter_takes(url: str, partition: str | None = None) -> bool:
    try:
        check_endpoint(url, partition)
    except ConfigurationError:
        return False
    return True


def test_partitions_are_botocores() -> None:
    """Every partition that botocore knows is here, with its two suffixes."""
    listed = botocore.session.Session().get_component("data_loader").load_data("partitions")["partitions"]
    assert {
        each["id"]: (each["outputs"]["dnsSuffix"], each["outputs"]["dualStackDnsSuffix"]) for each in listed
    } == dict(aws_names.SUFFIXES)


def test_regions_are_botocores() -> None:
    """Every Region that botocore knows is one of its own partition, and of no other; so is a new one of its shape."""
    listed = botocore.session.Session().get_component("data_loader").load_data("partitions")["partitions"]
    found = {
        (each["id"], region): [name for name in aws_names.SUFFIXES if aws_names.is_region(region, name)]
        for each in listed
        for region in each["regions"]
        if not region.endswith("-global")
    }
    assert {homes == [partition] for (partition, _), homes in found.items()} == {True}
    assert aws_names.is_region("eu-southwest-12", "aws")


@pytest.mark.parametrize(
    "region", ["eu-west", "eu-west-1\n", "eu-WEST-1", f"eu-{'w' * 64}-1", "eu-west-1.example.com", "xx-west-1", ""]
)
def test_what_is_no_region(region: str) -> None:
    """It becomes part of a host's name."""
    assert not any(aws_names.is_region(region, partition) for partition in aws_names.SUFFIXES)


@each_partition
def test_own_endpoints_are_taken_by_both(partition: str) -> None:
    """Settings and adapter take KMS and STS, classic and dual-stack, of every partition."""
    for suffix in aws_names.SUFFIXES[partition]:
        for service in ("kms", "sts", "kms-fips"):
            url = f"https://{service}.{REGIONS[partition]}.{suffix}"
            assert settings_take(url), url
            assert adapter_takes(url), url
            assert adapter_takes(url, partition), url


@pytest.mark.parametrize(
    "url",
    [
        "https://bucket.s3.amazonaws.com",
        "https://bucket.s3.eu-west-1.amazonaws.com",
        "https://kms.s3.amazonaws.com",
        "https://a1b2.execute-api.eu-west-1.amazonaws.com",
        "https://a1b2.lambda-url.eu-west-1.on.aws",
        "https://kms.eu-west-1.elb.amazonaws.com",
        "https://amazonaws.com",
        "https://.amazonaws.com",
        "https://kms.eu-west-1.amazonaws.com/path",
        "https://kms.eu-west-1.amazonaws.com:port",
        "https://user@kms.eu-west-1.amazonaws.com",
        "http://kms.eu-west-1.amazonaws.com",
        "http://10.0.0.1:5000",
        "http://localhost.example.com",
        "http://localhost:5000/path",
    ],
)
def test_others_are_refused_by_both(url: str) -> None:
    """What a customer of AWS can rent under AWS's suffix is not AWS."""
    assert not settings_take(url)
    assert not adapter_takes(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:5000", "https://[::1]:1", "http://localhost:4566/"])
def test_loopback_is_taken_by_both(url: str) -> None:
    """This machine."""
    assert settings_take(url)
    assert adapter_takes(url)


@each_partition
def test_key_arns_are_read_alike(partition: str) -> None:
    """A key's ARN is acceptable in a setting, and read in a connection, in every partition."""
    arn = f"arn:{partition}:kms:{REGIONS[partition]}:222222222222:key/{KEY_ID}"
    assert kms_key_arn(arn) == arn
    assert parse_key_arn(arn).partition == partition


@each_partition
def test_role_arns_are_read_alike(partition: str) -> None:
    """So is a role's."""
    arn = f"arn:{partition}:iam::222222222222:role/a/path/axiorank"
    found = aws_names.ROLE_ARN.fullmatch(arn)
    assert role_arn(arn) == arn
    assert found is not None
    assert found.groups() == (partition, "222222222222")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alias/mine", True),
        ("arn:aws:kms:eu-west-1:222222222222:alias/mine", True),
        (f"arn:aws:kms:eu-west-1:222222222222:key/{KEY_ID}", False),
        (KEY_ID, False),
    ],
)
def test_an_alias_is_known(name: str, expected: bool) -> None:
    """Bare or as an ARN."""
    assert aws_names.is_alias(name) is expected
