"""The customer's own trail, as the AWS double writes it, against our rows: everything is explained, and what we did not
do is found."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

from broker_core import context
from broker_core.adapters.trail_files import read_trail
from broker_core.cloudtrail import Matching, Summary, Verdict
from broker_core.dev.aws import CustomerAccount
from broker_core.ports import Use

if TYPE_CHECKING:
    from tests.live import Live


def uses(live: Live) -> Iterator[Use]:
    """Every row of the workspace's audit log."""
    after = None
    while page := live.app.store.uses(live.workspace, after=after, limit=50):
        yield from page
        after = page[-1].intent.id


def a_life(live: Live, customer: CustomerAccount) -> None:
    """Verified, stored, used, swept, revoked, refused, given back, used again."""
    live.connect(customer, verified=True)
    live.store("github", value="sample-value-of-github")
    live.store("large", value=b"v" * 5000)  # an envelope
    live.send("github")
    live.app.sweep.checks()
    customer.remove_role_from_key_policy()
    live.app.sweep.checks()
    live.publish("held")
    live.work()
    customer.restore_key_policy()
    live.send("large")


def exported(live: Live, customer: CustomerAccount, folder: Path) -> Path:
    """The customer's trail as files: overlapping, one plain, one gzip."""
    records = live.aws.trail.records(customer.account.account_id)
    half = len(records) // 2
    folder.mkdir(exist_ok=True)
    (folder / "1.json").write_text(json.dumps({"Records": records[: half + 3]}))
    (folder / "2.json.gz").write_bytes(gzip.compress(json.dumps({"Records": records[half:]}).encode()))
    return folder


def matched(live: Live, customer: CustomerAccount, folder: Path, without: str = "") -> Matching:
    matching = Matching([customer.role_arn])
    records = read_trail([exported(live, customer, folder)])
    matching.add_trail(record for record in records if record["requestID"] != without)
    matching.add_ours(uses(live))
    return matching


def test_every_call_of_a_whole_life_is_explained(live: Live, tmp_path: Path) -> None:
    """Nothing of ours was done without a row, and no row stands without its call in the customer's trail."""
    customer = live.customer()
    a_life(live, customer)

    with matched(live, customer, tmp_path) as matching:
        summary: Summary = matching.summary()
        assert (list(matching.unexplained()), summary.theirs_only, summary.unanswered) == ([], 0, 0)
        assert list(matching.ours_only()) == []
        assert summary.matched > 10


def test_a_decrypt_past_the_broker_is_found(live: Live, tmp_path: Path) -> None:
    """Somebody with our account's credentials assumes the role himself and decrypts a blob: no row explains either
    call."""
    customer = live.customer()
    a_life(live, customer)
    candidate = live.candidate("github")
    ours = {"aws_access_key_id": live.environment["AWS_ACCESS_KEY_ID"], "region_name": "eu-west-1"}
    ours["aws_secret_access_key"] = live.environment["AWS_SECRET_ACCESS_KEY"]
    sts = boto3.client("sts", endpoint_url=live.aws.endpoint, **ours)
    given = sts.assume_role(
        RoleArn=customer.role_arn, ExternalId=customer.external_id, RoleSessionName="axiorank-inject-me"
    )["Credentials"]
    kms = boto3.client(
        "kms",
        endpoint_url=live.aws.endpoint,
        region_name="eu-west-1",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["SessionToken"],
    )
    kms.decrypt(
        CiphertextBlob=candidate.blob.ciphertext,
        EncryptionContext={
            "axiorank:workspace": live.workspace,
            "axiorank:secret": "github",
            "axiorank:version": "1",
        },
    )
    sts.close()
    kms.close()

    with matched(live, customer, tmp_path) as matching:
        names = [found.event_name for found in matching.unexplained()]
        assert sorted(names) == ["AssumeRole", "Decrypt"]


def test_a_decrypt_by_another_principal_is_found(live: Live, tmp_path: Path) -> None:
    """Somebody in the customer's account who may use the key opens a blob: under its context, or not at all."""
    customer = live.customer()
    a_life(live, customer)
    account, candidate = customer.account.account_id, live.candidate("github")
    own = customer.use_statement() | {"Sid": "Own", "Principal": {"AWS": f"arn:aws:iam::{account}:root"}}
    customer.put_key_policy(customer.key_policy(own))
    client = {"aws_access_key_id": account, "aws_secret_access_key": "test", "region_name": "eu-west-1"}
    kms = boto3.client("kms", endpoint_url=live.aws.endpoint, **client)
    bound = context.for_secret(live.workspace, "github", candidate.version)
    kms.decrypt(CiphertextBlob=candidate.blob.ciphertext, EncryptionContext=dict(bound))
    kms.close()

    with matched(live, customer, tmp_path) as matching:
        (found,) = matching.unexplained()
        assert (found.verdict, found.principal) == (Verdict.OTHER_PRINCIPAL, f"arn:aws:iam::{account}:root")


def test_a_call_that_the_trail_lost_is_listed(live: Live, tmp_path: Path) -> None:
    """A record is missing from the middle of the export: our row for it stands alone."""
    customer = live.customer()
    a_life(live, customer)
    lost = next(use for use in uses(live) if use.intent.secret_name == "github" and use.result is not None)
    assert lost.result is not None
    assert lost.result.receipt.kms_request_id is not None

    with matched(live, customer, tmp_path, without=lost.result.receipt.kms_request_id) as matching:
        assert [found.audit_id for found in matching.ours_only()] == [lost.intent.id]
