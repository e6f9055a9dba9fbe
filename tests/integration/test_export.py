"""The escape hatch: the customer decrypts in their own account, with nothing of ours but what the export says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import boto3
import pytest

from broker_core import context
from broker_core.cli.common import as_json
from broker_core.errors import Conflict
from broker_core.export import BLOB_FILE, Export, export
from broker_core.model import Blob, CipherName, Connection

if TYPE_CHECKING:
    from broker_core.dev.aws import CustomerAccount
    from tests.live import Live

SCRIPT = Path(__file__).parents[2] / "docs" / "decrypt_envelope.py"


@pytest.fixture
def customer(live: Live) -> CustomerAccount:
    """A customer who is connected; their own root user may use their key."""
    customer = live.customer()
    live.connect(customer)
    own = {"AWS": f"arn:aws:iam::{customer.account.account_id}:root"}
    customer.put_key_policy(customer.key_policy(customer.use_statement() | {"Sid": "Own", "Principal": own}))
    return customer


def exported(live: Live, value: str) -> Export:
    live.store("its mine/x@1", value=value)
    candidate = live.candidate("its mine/x@1")
    return export(candidate.name, candidate.version, candidate.blob, candidate.connection)


def own_credentials(live: Live, customer: CustomerAccount) -> dict[str, str]:
    """The environment of somebody in the customer's account."""
    return {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL": live.aws.endpoint,
        "AWS_ACCESS_KEY_ID": customer.account.account_id,
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def run_aws(command: list[str], environment: dict[str, str], folder: Path) -> bytes:
    """What ``aws kms decrypt … --query Plaintext`` does, by the same options."""
    assert command[:3] == ["aws", "kms", "decrypt"]
    options: dict[str, Any] = dict(zip(command[3::2], command[4::2], strict=True))
    assert (options["--query"], options["--output"]) == ("Plaintext", "text")
    assert options["--ciphertext-blob"] == f"fileb://{BLOB_FILE}"
    kms = boto3.client(
        "kms",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=options["--region"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    answer = kms.decrypt(
        KeyId=options["--key-id"],
        CiphertextBlob=(folder / BLOB_FILE).read_bytes(),
        EncryptionContext=json.loads(options["--encryption-context"]),
    )
    kms.close()
    plaintext: bytes = answer["Plaintext"]
    return plaintext


def test_the_aws_cli_opens_a_kms_blob(live: Live, customer: CustomerAccount, tmp_path: Path) -> None:
    """The commands as they stand: the shell makes the file, and KMS gives the value."""
    given = exported(live, "value-of-their-own")
    write, decrypt = given.commands
    subprocess.run(["sh", "-c", write], cwd=tmp_path, check=True)
    command, _, _ = decrypt.partition(" | ")

    assert run_aws(shlex.split(command), own_credentials(live, customer), tmp_path) == b"value-of-their-own"


def test_every_legal_name_survives_the_shell(tmp_path: Path) -> None:
    """The commands are for copying: what a shell makes of them is what we meant, for every character of a name."""
    name = "a b ._:/@+=-Z9"
    arn = "arn:aws:kms:eu-west-1:222222222222:key/11111111-2222-3333-4444-555555555555"
    role = "arn:aws:iam::222222222222:role/axiorank"
    connection = Connection(UUID(int=1), "ws-1_A", role, "x" * 16, arn)
    _, command = export(name, 3, Blob(CipherName.KMS, b"\x01\xff" * 40), connection).commands
    aws = tmp_path / "aws"
    aws.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" > arguments\n")
    aws.chmod(0o755)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.defpath}"}, check=True)

    arguments = (tmp_path / "arguments").read_text().split("\0")
    given = json.loads(arguments[arguments.index("--encryption-context") + 1])
    assert given == dict(context.for_secret("ws-1_A", name, 3))


@pytest.mark.parametrize("value", ["small-value", "a value for an envelope; " * 200 + "end"])
def test_the_script_opens_both_ciphers(live: Live, customer: CustomerAccount, tmp_path: Path, value: str) -> None:
    """``docs/decrypt_envelope.py`` alone, with the customer's credentials, from the answer as JSON."""
    (tmp_path / "export.json").write_text(as_json(exported(live, value)))

    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), "export.json"],
        cwd=tmp_path,
        env=own_credentials(live, customer),
        capture_output=True,
        check=True,
    )

    assert done.stdout.decode() == value


def test_nothing_under_the_platform_cipher_is_given(live: Live) -> None:
    """It is under no key of theirs: there is nothing that they could open."""
    live.store("github")
    candidate = live.candidate("github")

    with pytest.raises(Conflict, match="platform cipher"):
        export(candidate.name, candidate.version, candidate.blob, candidate.connection)


def test_the_script_is_short_enough_to_read() -> None:
    """A reviewer reads it before they run it: 30 lines of code, no import of ours."""
    code = SCRIPT.read_text().split('"""', 2)[2]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]

    assert len(lines) <= 30
    assert "broker_core" not in code
