"""What is handed out works: applied to a customer's account on the AWS double, it connects, and no further."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from broker_core.byok_setup import SetupDocument, SetupWish, propose
from broker_core.dev.aws import fresh_account_id
from broker_core.dev.aws.account import Account, document, statement
from broker_core.errors import Denied, KeyState
from broker_core.inject.call import Call
from broker_core.model import StepOutcome
from broker_core.policies import Policy
from broker_core.revocation import not_stopped, ways
from broker_core.setup_documents import Format
from tests.aws_cli import stand_ins
from tests.integration.test_documents import blocks, rows
from tests.live import AGENT, OUR_ACCOUNT, Live

GUIDE = (Path(__file__).parents[2] / "docs" / "connecting.md").read_text()
#: seconds until a command is given up: the machine may be busy
PATIENCE = 120
Shell = Callable[[str], "subprocess.CompletedProcess[str]"]
each_variant = pytest.mark.parametrize("strict", [False, True], ids=["plain", "strict"])


@pytest.fixture
def customer(live: Live) -> Account:
    """A customer's account, empty."""
    return live.aws.account(fresh_account_id())


@pytest.fixture
def shell(live: Live, customer: Account, tmp_path: Path) -> Iterator[Shell]:
    """A shell of the customer's: ``aws`` and ``terraform`` mean their account, ``broker`` this installation."""
    commands = tmp_path / "commands"
    commands.mkdir()
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=live.environment | {"PATH": path, "WORKSPACE": live.workspace},
            timeout=PATIENCE,
            check=False,
        )

    with stand_ins(commands, live.aws.endpoint, customer):
        yield run


def setup(workspace_id: str, account: Account, **wish: Any) -> SetupDocument:
    """The set-up for a customer."""
    return propose(SetupWish(workspace_id=workspace_id, account_id=account.account_id, **wish), OUR_ACCOUNT)


def apply(text: str, account: Account) -> tuple[str, str, str]:
    """Apply a JSON document; gives what connecting takes: role, external id, key."""
    given = json.loads(text)
    role_arn = account.create_role(given["roleName"], given["trustPolicy"])
    return role_arn, given["externalId"], account.create_key(given["keyPolicy"])


def made(account: Account, role_name: str = "axiorank-byok") -> tuple[str, str, str]:
    """The same, as it is found in an account."""
    role = account.iam.get_role(RoleName=role_name)["Role"]
    condition = role["AssumeRolePolicyDocument"]["Statement"][0]["Condition"]["StringEquals"]
    (key,) = account.kms.list_keys()["Keys"]
    return role["Arn"], condition["sts:ExternalId"], key["KeyArn"]


def connect(live: Live, given: tuple[str, str, str]) -> dict[str, str]:
    """Try to connect; gives AWS's code for each step that failed: none means connected."""
    verification = live.app.byok.connect(live.workspace, *given)
    failed = {step.name: step.aws_code for step in verification.failed()}
    assert verification.is_current is not bool(failed)
    return failed


class TestApplied:
    @each_variant
    def test_it_connects(self, live: Live, customer: Account, strict: bool) -> None:
        """The generated JSON, applied as it is, passes every step of connecting, with nothing to warn about."""
        given = apply(setup(live.workspace, customer, strict=strict).text(Format.JSON), customer)
        verification = live.app.byok.connect(live.workspace, *given)
        assert [step for step in verification.steps if step.outcome is not StepOutcome.OK] == []
        assert verification.is_current
        live.store()
        assert [secret.cipher for secret in live.app.store.secrets(live.workspace)] == ["kms"]

    def test_strict_is_for_its_workspace_alone(self, live: Live, customer: Account) -> None:
        """What was made for another workspace, strictly, refuses this one's values at the key."""
        given = apply(setup("ws_other", customer, strict=True).text(Format.JSON), customer)
        assert connect(live, given) == {"encrypt": "AccessDeniedException"}

    def test_plain_is_for_every_workspace(self, live: Live, customer: Account) -> None:
        """The same without ``strict`` is taken: that is the difference."""
        assert connect(live, apply(setup("ws_other", customer).text(Format.JSON), customer)) == {}

    def test_another_external_id_is_refused(self, live: Live, customer: Account) -> None:
        """The trust policy asks for the one that stands in it."""
        role, external_id, key = apply(setup(live.workspace, customer).text(Format.JSON), customer)
        assert connect(live, (role, f"{external_id}-other", key)) == {"role_accepts_external_id": "AccessDenied"}

    def test_whoever_applies_must_be_the_administrator(self, live: Live, customer: Account) -> None:
        """AWS refuses a policy that would lock out who puts it, as the warning says."""
        admin = customer.create_role("admins", setup(live.workspace, customer).trust_policy)
        with pytest.raises(ClientError, match="MalformedPolicyDocument"):
            apply(setup(live.workspace, customer, admin_principal=admin).text(Format.JSON), customer)


class TestRootStatement:
    """What the warning about ``root``, ``kms:*`` says is so."""

    def revoked(self, live: Live, customer: Account, *more: Policy) -> tuple[str, str, str]:
        """The role's statement is gone from the key policy, and an IAM policy of the role allows all of KMS."""
        given = setup(live.workspace, customer)
        role, external_id, key = apply(given.text(Format.JSON), customer)
        customer.put_role_policy(given.plan.role_name, document(statement("Allow", "kms:*", Resource="*")))
        administrators, _ = given.key_policy["Statement"]
        customer.put_key_policy(key, document(administrators, *more))
        return role, external_id, key

    def test_without_it_removing_the_role_is_enough(self, live: Live, customer: Account) -> None:
        """Our administrators' statement does not let the role's IAM policy decide about use."""
        assert connect(live, self.revoked(live, customer)) == {"encrypt": "AccessDeniedException"}

    def test_with_it_the_role_still_decrypts(self, live: Live, customer: Account) -> None:
        """AWS's usual statement does; all that connecting can object to is what more it allows."""
        root = {"AWS": f"arn:aws:iam::{customer.account_id}:root"}
        usual = statement("Allow", "kms:*", Principal=root, Resource="*")
        failed = connect(live, self.revoked(live, customer, usual))
        assert {"encrypt", "decrypt"} & set(failed) == set()


class TestScript:
    @each_variant
    def test_for_a_key_that_exists(self, live: Live, customer: Account, shell: Shell, strict: bool) -> None:
        """The commands make the role, keep the key's old policy in a file, put the new one, and it connects."""
        root = {"AWS": f"arn:aws:iam::{customer.account_id}:root"}
        before = document(statement("Allow", "kms:*", Principal=root, Resource="*"))
        key = customer.create_key(before)
        given = setup(live.workspace, customer, key_arn=key, strict=strict)
        done = shell(f"{given.text(Format.CLI)}\ncat key-policy-before.json >&2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [given.plan.role_arn, key]
        assert json.loads(done.stderr) == before
        assert json.loads(customer.kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]) == given.key_policy
        assert connect(live, made(customer)) == {}

    def test_no_key_is_made_for_a_role_that_is_there(self, customer: Account, live: Live, shell: Shell) -> None:
        """A failure ends the script, and what was there stays as it was."""
        given = setup(live.workspace, customer)
        customer.create_role(given.plan.role_name, given.trust_policy)
        assert shell(given.text(Format.CLI)).returncode != 0
        assert customer.kms.list_keys()["Keys"] == []


def section(heading: str) -> str:
    """A section of the guide."""
    return GUIDE.partition(f"\n### {heading}\n")[2].partition("\n#")[0]


def script(heading: str) -> str:
    """Its commands."""
    (found,) = blocks(section(heading), "sh")
    return found


_MAKING = ["With the AWS CLI", "With CloudFormation", "With Terraform"]
_REVOKING = {
    "Disable the key": KeyState.KEY_DISABLED,
    "Remove the role from the key policy": KeyState.ACCESS_DENIED,
    "Close the role to us": KeyState.ROLE_REFUSED,
    "Delete the role": KeyState.ROLE_REFUSED,
    "Schedule the key's deletion": KeyState.KEY_PENDING_DELETION,
}


class TestGuide:
    """``docs/connecting.md``."""

    @pytest.mark.parametrize("heading", _MAKING)
    def test_making(self, live: Live, customer: Account, shell: Shell, heading: str) -> None:
        """The commands of each way, run as they stand, make what connects."""
        done = shell(script(heading))
        assert done.returncode == 0, done.stderr
        assert connect(live, made(customer)) == {}

    @pytest.mark.parametrize(("heading", "state"), _REVOKING.items(), ids=list(_REVOKING))
    def test_revoking(self, live: Live, customer: Account, shell: Shell, heading: str, state: KeyState) -> None:
        """The commands of each way, run as they stand, end the use of what is stored, as the state that is named."""
        given = apply(setup(live.workspace, customer).text(Format.JSON), customer)
        assert connect(live, given) == {}
        live.store(injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
        call = Call(live.workspace, AGENT, None)
        assert list(live.app.injector.environment(call).variables) == ["TOKEN"]
        done = shell(f"KEY_ARN={given[2]}\n{script(heading)}")
        assert done.returncode == 0, done.stderr
        with pytest.raises(Denied) as refused:
            live.app.injector.environment(call)
        assert refused.value.state is state
        assert f"`{state.value}`" in section(heading)

    def test_every_command_is_run(self) -> None:
        """No block of commands stands outside of these sections."""
        run = [script(heading) for heading in [*_MAKING, *_REVOKING]]
        assert blocks(GUIDE, "sh", "bash", "console") == run

    def test_the_policies(self) -> None:
        """The two policies that are shown are the two that are made."""
        plan = setup("ws_1", _Account(), external_id="the-external-id-you-chose")
        strict = setup("ws_1", _Account(), external_id="the-external-id-you-chose", strict=True)
        trust, key, condition = (json.loads(block) for block in blocks(GUIDE, "json")[:3])
        assert (trust, key) == (plan.trust_policy, plan.key_policy)
        assert condition == {"Condition": strict.key_policy["Statement"][1]["Condition"]}

    def test_ways_of_revoking(self) -> None:
        """The table is the one that the set-up's document holds."""
        described = rows(GUIDE, "way", "stops", "when", "to undo", "seen as")
        assert described == [
            [each.way, each.stops, each.when, each.undo, f"`{each.seen_as.value}`"] for each in ways(0)
        ]

    def test_what_no_way_stops(self) -> None:
        """The list is the document's too."""
        listed = GUIDE.partition("No way of revoking stops:\n\n")[2].partition("\n\n")[0]
        assert tuple(re.sub(r"\s+", " ", line) for line in listed.removeprefix("- ").split("\n- ")) == not_stopped()


class _Account:
    """An account's id is all that a document takes of it."""

    account_id = "222222222222"


#: a directory as of ``terraform providers mirror`` or ``-plugin-dir``, with the AWS provider
PLUGINS = os.environ.get("BROKER_TEST_TERRAFORM_PLUGINS")
if PLUGINS:

    class TestTerraformItself:
        """Terraform's own word, on machines that name its provider: it comes from no Python package."""

        @pytest.mark.parametrize("key", [None, "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"], ids=["new", "existing"])
        @each_variant
        def test_it_is_valid_and_formatted(self, tmp_path: Path, key: str | None, strict: bool) -> None:
            """``terraform validate`` and ``terraform fmt -check`` pass."""
            arn = key and f"arn:aws:kms:eu-west-1:222222222222:key/{key}"
            text = setup("ws_1", _Account(), key_arn=arn, strict=strict).text(Format.TERRAFORM)
            (tmp_path / "main.tf").write_text(text)
            command = shutil.which("terraform") or "terraform"
            for words in (["fmt", "-check"], ["init", "-backend=false", f"-plugin-dir={PLUGINS}"], ["validate"]):
                done = subprocess.run(
                    [command, *words],
                    cwd=tmp_path,
                    env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CHECKPOINT_DISABLE": "1"},
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
