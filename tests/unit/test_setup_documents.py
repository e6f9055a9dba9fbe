"""Every form of a set-up holds exactly the two policies, whatever names the customer gives."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_core.byok_setup import SetupDocument, SetupWish, propose
from broker_core.policies import key_policy, trust_policy
from broker_core.setup_documents import Format
from broker_core.setup_documents.notation import hcl
from broker_core.setup_documents.notation import yaml as to_yaml
from tests.setup_readers import ACCOUNT, from_cloudformation, from_shell, from_terraform, option

OURS = "111111111111"
KEY = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/axiorank-byok"
EXTERNAL_ID = "external-id-0123456789"
ADMIN = f"arn:aws:iam::{ACCOUNT}:role/admins"

#: new key or existing one, plain or strict, root or a principal
WISHES = [
    pytest.param(wish, id=name)
    for name, wish in {
        "new": {},
        "strict": {"strict": True},
        "account": {"account_id": ACCOUNT},
        "existing": {"key_arn": KEY},
        "existing-strict": {"key_arn": KEY, "strict": True, "admin_principal": ADMIN},
    }.items()
]
each_wish = pytest.mark.parametrize("wish", WISHES)


def setup(**wish: Any) -> SetupDocument:
    """The set-up of ``ws_1``."""
    return propose(SetupWish(**{"workspace_id": "ws_1", "external_id": EXTERNAL_ID} | wish), OURS)


def policies(wish: dict[str, Any]) -> tuple[Any, Any]:
    """The pure ones that a document must hold: trust, key."""
    workspace = "ws_1" if wish.get("strict") else None
    external_id, role = wish.get("external_id", EXTERNAL_ID), wish.get("role_name", "axiorank-byok")
    arn = f"arn:aws:iam::{ACCOUNT}:role/{role}"
    return (
        trust_policy(OURS, external_id),
        key_policy(arn, workspace_id=workspace, administrators=wish.get("admin_principal")),
    )


class TestJson:
    @each_wish
    def test_it_holds_the_policies(self, wish: dict[str, Any]) -> None:
        """As objects, ready for the console; the account is to be filled in where it is not known."""
        document = json.loads(setup(**wish).text(Format.JSON).replace("${ACCOUNT_ID}", ACCOUNT))
        assert (document["trustPolicy"], document["keyPolicy"]) == policies(wish)
        assert (document["roleArn"], document["keyArn"]) == (ROLE, wish.get("key_arn"))


class TestCloudFormation:
    @each_wish
    def test_it_holds_the_policies(self, wish: dict[str, Any]) -> None:
        """The role has the trust policy and nothing else; the key's policy is the key's, or beside it to be put."""
        template = from_cloudformation(setup(**wish).text(Format.CLOUDFORMATION), ROLE)
        role = template["Resources"]["AxioRankRole"]["Properties"]
        if "key_arn" in wish:
            key = template["Metadata"]["AxioRank"]["KeyPolicy"]
        else:
            key = template["Resources"]["AxioRankKey"]["Properties"]["KeyPolicy"]
        assert (role["AssumeRolePolicyDocument"], key) == policies(wish)
        assert set(role) == {"RoleName", "Description", "AssumeRolePolicyDocument"}
        assert template["Outputs"]["ExternalId"] == {"Value": EXTERNAL_ID}

    @each_wish
    def test_it_is_clean(self, wish: dict[str, Any]) -> None:
        """cfn-lint finds neither an error nor anything to warn about."""
        from cfnlint.api import lint  # here: half a second, which every process that collects the tests would pay

        assert lint(setup(**wish).text(Format.CLOUDFORMATION)) == []

    def test_deleting_the_stack_keeps_the_key(self) -> None:
        """What only the key can read must not go with a stack."""
        template = yaml.safe_load(setup().text(Format.CLOUDFORMATION))
        key = template["Resources"]["AxioRankKey"]
        assert (key["DeletionPolicy"], key["UpdateReplacePolicy"]) == ("Retain", "Retain")

    def test_in_another_partition(self) -> None:
        """The template follows the partition that it is applied in."""
        text = setup().text(Format.CLOUDFORMATION)
        template = from_cloudformation(text, ROLE, partition="aws-cn")
        trust = template["Resources"]["AxioRankRole"]["Properties"]["AssumeRolePolicyDocument"]
        assert trust == trust_policy(OURS, EXTERNAL_ID, partition="aws-cn")


class TestTerraform:
    @each_wish
    def test_it_holds_the_policies(self, wish: dict[str, Any]) -> None:
        """The role has the trust policy and nothing else; the key has the key's policy."""
        found = from_terraform(setup(**wish).text(Format.TERRAFORM), ROLE)
        role = found["aws_iam_role.axiorank"]
        key = found["aws_kms_key_policy.axiorank" if "key_arn" in wish else "aws_kms_key.axiorank"]
        assert (role["assume_role_policy"], key["policy"]) == policies(wish)
        assert set(role) == {"name", "description", "assume_role_policy"}
        assert found["output.external_id"] == EXTERNAL_ID

    @each_wish
    def test_neither_key_nor_policy_goes_with_a_plan(self, wish: dict[str, Any]) -> None:
        """Destroying the policy alone would put AWS's usual one on the key."""
        found = from_terraform(setup(**wish).text(Format.TERRAFORM), ROLE)
        key = found["aws_kms_key_policy.axiorank" if "key_arn" in wish else "aws_kms_key.axiorank"]
        assert key["lifecycle"] == [{"prevent_destroy": True}]


class TestCommands:
    @each_wish
    def test_they_hold_the_policies(self, wish: dict[str, Any]) -> None:
        """Each policy is one word of one command."""
        commands = {" ".join(words[:2]): words for words in from_shell(setup(**wish).text(Format.CLI))}
        create = commands["iam create-role"]
        key = commands["kms put-key-policy" if "key_arn" in wish else "kms create-key"]
        found = json.loads(option(create, "--assume-role-policy-document")), json.loads(option(key, "--policy"))
        assert found == policies(wish)

    def test_the_old_policy_is_kept_before_it_is_replaced(self) -> None:
        """Of a key that exists, get-key-policy comes first, into a file."""
        text = setup(key_arn=KEY).text(Format.CLI)
        names = [words[1] for words in from_shell(text)]
        assert names.index("get-key-policy") < names.index("put-key-policy")
        assert "> key-policy-before.json" in text

    def test_they_are_for_the_keys_region(self) -> None:
        """Each command that names a key names its Region."""
        commands = from_shell(setup(key_arn=KEY).text(Format.CLI))
        assert {option(words, "--region") for words in commands if words[0] == "kms"} == {"eu-west-1"}

    def test_a_failure_ends_the_script(self) -> None:
        """No key is made for a role that could not be."""
        first = next(line for line in setup().text(Format.CLI).splitlines() if line and not line.startswith("#"))
        assert first == "set -eu"


_WORD = string.ascii_letters + string.digits + "_+=,.@-"
_PATH = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "*?$")
a_wish = st.fixed_dictionaries(
    {
        "external_id": st.text(_WORD + ":/", min_size=16, max_size=60),
        "role_name": st.text(_WORD, min_size=1, max_size=64),
        "strict": st.booleans(),
        "admin_principal": st.text(_PATH, min_size=1, max_size=40)
        .filter(lambda path: "{{" not in path)
        .map(lambda path: f"arn:aws:iam::{ACCOUNT}:user/{path}/n"),
    }
)


class TestQuoting:
    """Whatever passes the checks is read back as exactly that value. IAM paths may hold quotes, braces and hashes."""

    @given(wish=a_wish)
    def test_json(self, wish: dict[str, Any]) -> None:
        """JSON."""
        document = json.loads(setup(**wish).text(Format.JSON))
        assert (document["trustPolicy"], document["keyPolicy"]) == policies(wish)
        assert (document["externalId"], document["roleName"]) == (wish["external_id"], wish["role_name"])

    @given(wish=a_wish)
    @settings(max_examples=40)
    def test_cloudformation(self, wish: dict[str, Any]) -> None:
        """YAML."""
        role_arn = f"arn:aws:iam::{ACCOUNT}:role/{wish['role_name']}"
        template = from_cloudformation(setup(**wish).text(Format.CLOUDFORMATION), role_arn)
        role, key = (template["Resources"][name]["Properties"] for name in ("AxioRankRole", "AxioRankKey"))
        assert (role["AssumeRolePolicyDocument"], key["KeyPolicy"]) == policies(wish)
        assert role["RoleName"] == wish["role_name"]
        assert template["Outputs"]["ExternalId"] == {"Value": wish["external_id"]}

    @given(wish=a_wish)
    @settings(max_examples=15)
    def test_terraform(self, wish: dict[str, Any]) -> None:
        """HCL."""
        role_arn = f"arn:aws:iam::{ACCOUNT}:role/{wish['role_name']}"
        found = from_terraform(setup(**wish).text(Format.TERRAFORM), role_arn)
        role, key = found["aws_iam_role.axiorank"], found["aws_kms_key.axiorank"]
        assert (role["assume_role_policy"], key["policy"]) == policies(wish)
        assert (role["name"], found["output.external_id"]) == (wish["role_name"], wish["external_id"])

    @given(wish=a_wish)
    def test_commands(self, wish: dict[str, Any]) -> None:
        """Shell words."""
        commands = {" ".join(words[:2]): words for words in from_shell(setup(**wish).text(Format.CLI))}
        create, key = commands["iam create-role"], commands["kms create-key"]
        found = json.loads(option(create, "--assume-role-policy-document")), json.loads(option(key, "--policy"))
        assert found == policies(wish)
        assert option(create, "--role-name") == wish["role_name"]

    @pytest.mark.parametrize("text", ["true", "1", "null", "a: b", "# x", "- x", "'", '"', "\\", "2012-10-17", "{", ""])
    def test_yaml_takes_no_string_for_something_else(self, text: str) -> None:
        """No string becomes a number, a boolean, a date, a comment or structure."""
        assert yaml.safe_load(to_yaml({"key": text, text or "k": ["x", text]})) == {
            "key": text,
            text or "k": ["x", text],
        }

    def test_hcl_takes_no_string_for_a_template(self) -> None:
        """What would begin a template is escaped."""
        assert hcl("${a}%{b}") == '"$${a}%%{b}"'
