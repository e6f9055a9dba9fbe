"""``broker byok setup``: what it prints, and where."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker_core.cli import main
from broker_core.setup_documents import Format

#: the command reads settings and connects to nothing
ENVIRONMENT = {
    "BROKER_DATABASE_URL": "postgresql://localhost/nowhere",
    "BROKER_REDIS_URL": "redis://localhost:1/0",
    "BROKER_CLAIM_REDIS_URL": "redis://localhost:2/0",
    "BROKER_PLATFORM_KEYS": "test:" + base64.b64encode(b"p" * 32).decode(),
    "BROKER_AWS_ACCOUNT_ID": "111111111111",
}
EXTERNAL_ID = "external-id-0123456789"


def setup(*arguments: str, **changed: str) -> Result:
    """Run it for ``ws_1``."""
    words = ["byok", "setup", "--workspace", "ws_1", *arguments]
    return CliRunner().invoke(main, words, env=ENVIRONMENT | changed)


def document(result: Result) -> dict[str, Any]:
    """What it printed on stdout."""
    assert result.exit_code == 0, result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_without_options_it_prints_json() -> None:
    """stdout is one JSON document with our account in it and a proposed external id."""
    printed = document(setup())
    assert printed["trustPolicy"]["Statement"][0]["Principal"] == {"AWS": "arn:aws:iam::111111111111:root"}
    assert printed["externalId"].startswith("axiorank-")


def test_every_option_arrives() -> None:
    """What is given stands in the document."""
    admin = "arn:aws:iam::222222222222:role/admins"
    key = "arn:aws:kms:eu-west-1:222222222222:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
    printed = document(
        setup(
            "--external-id", EXTERNAL_ID, "--key-arn", key, "--role-name", "their-role", "--admin-principal", admin,
            "--account-id", "222222222222", "--partition", "aws", "--strict",
        )
    )  # fmt: skip
    administrators, use = printed["keyPolicy"]["Statement"]
    assert (printed["externalId"], printed["keyArn"], printed["region"]) == (EXTERNAL_ID, key, "eu-west-1")
    assert administrators["Principal"] == {"AWS": admin}
    assert use["Principal"] == {"AWS": "arn:aws:iam::222222222222:role/their-role"}
    assert use["Condition"] == {"StringEquals": {"kms:EncryptionContext:axiorank:workspace": "ws_1"}}


@pytest.mark.parametrize("form", Format)
def test_warnings_go_to_stderr(form: Format) -> None:
    """In every form, so that stdout can be redirected into a file."""
    result = setup("--format", form.value)
    assert "warning: Keep no statement that allows `kms:*`" in result.stderr
    assert "warning:" not in result.stdout


def test_shared_sessions_are_told() -> None:
    """The installation's own setting decides when revoking takes effect."""
    printed = document(setup(BROKER_STS_REUSE_SECONDS="300"))
    assert [way["seenAs"] for way in printed["revocation"] if "300 seconds" in way["when"]] == ["role_refused"] * 2


def test_without_our_account_it_is_a_wrong_setting() -> None:
    """Exit code 78, and the variable's name."""
    result = setup(BROKER_AWS_ACCOUNT_ID="")
    assert (result.exit_code, "BROKER_AWS_ACCOUNT_ID" in result.stderr, result.stdout) == (78, True, "")


def test_a_wrong_value_is_refused() -> None:
    """Exit code 1, nothing on stdout, the field's name on stderr."""
    result = setup("--external-id", "short")
    assert (result.exit_code, "externalId" in result.stderr, result.stdout) == (1, True, "")


def test_an_unknown_form_is_wrong_usage() -> None:
    """Exit code 2."""
    assert setup("--format", "pulumi").exit_code == 2
