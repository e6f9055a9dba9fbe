"""What a customer asks for is checked before a document is made of it, and the document says what to know."""

from __future__ import annotations

from typing import Any

import pytest

from broker_core.byok_setup import SetupDocument, SetupWish, propose
from broker_core.errors import ConfigurationError, Invalid, KeyState
from broker_core.model import check_connection
from broker_core.setup_documents import Format

OURS, THEIRS = "111111111111", "222222222222"
KEY = f"arn:aws:kms:eu-west-1:{THEIRS}:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
ADMIN = f"arn:aws:iam::{THEIRS}:role/admins"
EXTERNAL_ID = "external-id-0123456789"


def setup(reuse_seconds: int = 0, **wish: Any) -> SetupDocument:
    """The set-up of workspace ``ws_1``."""
    return propose(SetupWish(**{"workspace_id": "ws_1"} | wish), OURS, reuse_seconds=reuse_seconds)


class TestExternalId:
    def test_theirs_is_taken(self) -> None:
        """It is theirs to choose."""
        (statement,) = setup(external_id=EXTERNAL_ID).trust_policy["Statement"]
        assert statement["Condition"] == {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}}

    def test_a_proposed_one_is_256_random_bits(self) -> None:
        """Without one, a random one stands in the document: 32 bytes of the source."""
        asked: list[int] = []

        def random(size: int) -> bytes:
            asked.append(size)
            return bytes(range(size))

        document = propose(SetupWish(workspace_id="ws_1"), OURS, random=random)
        assert (asked, document.plan.external_id) == ([32], f"axiorank-{bytes(range(32)).hex()}")

    def test_two_proposals_differ(self) -> None:
        """By default the source is the system's."""
        assert setup().plan.external_id != setup().plan.external_id

    def test_a_proposed_one_can_be_connected(self) -> None:
        """It passes the check that connecting makes."""
        document = setup(key_arn=KEY)
        check_connection(document.plan.role_arn, KEY, document.plan.external_id)

    def test_it_is_not_in_the_repr(self) -> None:
        """A document that is printed by mistake does not show it."""
        assert EXTERNAL_ID not in repr(setup(external_id=EXTERNAL_ID))


class TestWhereItIs:
    def test_the_key_says_account_partition_and_region(self) -> None:
        """The role is made beside the key."""
        plan = setup(key_arn=KEY.replace("arn:aws:", "arn:aws-us-gov:").replace("eu-west-1", "us-gov-west-1")).plan
        assert (plan.partition, plan.region, plan.account_id) == ("aws-us-gov", "us-gov-west-1", THEIRS)
        assert plan.trust_policy["Statement"][0]["Principal"] == {"AWS": f"arn:aws-us-gov:iam::{OURS}:root"}

    def test_the_administrator_says_the_account_too(self) -> None:
        """Without a key, the administrator's ARN is as good."""
        assert setup(admin_principal=ADMIN).plan.role_arn == f"arn:aws:iam::{THEIRS}:role/axiorank-byok"

    def test_an_unknown_account_is_shown_as_such(self) -> None:
        """The key policy says where the account's id belongs, and a warning says so first."""
        document = setup()
        principals = [statement["Principal"]["AWS"] for statement in document.key_policy["Statement"]]
        assert principals == ["arn:aws:iam::${ACCOUNT_ID}:root", "arn:aws:iam::${ACCOUNT_ID}:role/axiorank-byok"]
        assert "${ACCOUNT_ID}" in document.warnings(Format.JSON)[0]

    def test_empty_fields_count_as_left_out(self) -> None:
        """As a form sends them."""
        empty = {"external_id": "", "key_arn": "", "account_id": "", "partition": "", "admin_principal": ""}
        assert setup(**empty, role_name="").plan.role_arn == setup().plan.role_arn


class TestRefusals:
    def test_without_our_account_nothing_is_made(self) -> None:
        """A trust policy that names nobody, or somebody else, is worse than none."""
        with pytest.raises(ConfigurationError, match="BROKER_AWS_ACCOUNT_ID"):
            propose(SetupWish(workspace_id="ws_1"), None)

    @pytest.mark.parametrize(
        ("field", "wish"),
        [
            ("workspaceId", {"workspace_id": "ws 1"}),
            ("workspaceId", {"workspace_id": "ws_1\n"}),
            ("externalId", {"external_id": "fifteen-letters"}),
            ("externalId", {"external_id": "with a space in it"}),
            ("externalId", {"external_id": "${aws:username}-0123456789"}),
            ("externalId", {"external_id": f"{EXTERNAL_ID}\n"}),
            ("externalId", {"external_id": f"{EXTERNAL_ID}*"}),
            ("roleName", {"role_name": "path/name"}),
            ("roleName", {"role_name": "it's"}),
            ("roleName", {"role_name": "n" * 65}),
            ("keyArn", {"key_arn": "alias/mine"}),
            ("keyArn", {"key_arn": "*"}),
            ("accountId", {"account_id": "2222"}),
            ("accountId", {"account_id": "333333333333", "key_arn": KEY}),
            ("partition", {"partition": "aws-moon"}),
            ("partition", {"partition": "aws-cn", "key_arn": KEY}),
            ("adminPrincipal", {"admin_principal": "somebody"}),
            ("adminPrincipal", {"admin_principal": "*"}),
            ("adminPrincipal", {"admin_principal": f"arn:aws:iam::{THEIRS}:role/*"}),
            ("adminPrincipal", {"admin_principal": f"arn:aws:iam::{THEIRS}:user/${{aws:username}}"}),
            ("adminPrincipal", {"admin_principal": f"arn:aws:iam::{THEIRS}:role/{{{{resolve:ssm:name}}}}/admins"}),
            ("adminPrincipal", {"admin_principal": f"arn:aws:sts::{THEIRS}:assumed-role/admins/me"}),
            ("adminPrincipal", {"admin_principal": "arn:aws:iam::333333333333:role/admins", "key_arn": KEY}),
            ("adminPrincipal", {"admin_principal": f"arn:aws:iam::{THEIRS}:role/axiorank-byok"}),
        ],
    )
    def test_what_cannot_be_connected_is_named(self, field: str, wish: dict[str, str]) -> None:
        """The refusal names the field."""
        with pytest.raises(Invalid) as refused:
            setup(**wish)
        assert list(refused.value.fields) == [field]

    def test_all_fields_are_named_together(self) -> None:
        """One answer says everything that is to be mended."""
        with pytest.raises(Invalid) as refused:
            setup(workspace_id="", role_name="/", account_id="1")
        assert list(refused.value.fields) == ["workspaceId", "roleName", "accountId"]


class TestWarnings:
    @pytest.mark.parametrize("form", Format)
    def test_root_and_kms_star_in_so_many_words(self, form: Format) -> None:
        """Every form carries the warning about AWS's usual key policy."""
        document = setup()
        warning = next(each for each in document.warnings(form) if "`kms:*`" in each)
        assert "`root`" in warning
        assert "still decrypts after you removed the role from the key policy" in warning
        assert "`kms:*` to your account's `root`" in document.text(form)

    def test_a_named_administrator_can_be_lost(self) -> None:
        """Who names one principal learns that a key can become unmanageable."""
        assert any("only AWS Support" in each for each in setup(admin_principal=ADMIN).warnings(Format.JSON))

    def test_the_policy_of_an_existing_key_is_replaced(self) -> None:
        """Who has a key learns that its policy goes, and that a policy does not show grants."""
        (warning,) = [each for each in setup(key_arn=KEY).warnings(Format.CLI) if "replaces the whole policy" in each]
        assert "list-grants" in warning

    def test_a_multi_region_key(self) -> None:
        """Its sentence is the one that connecting has."""
        key = KEY.replace("0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f", f"mrk-{'0' * 32}")
        assert any("multi-Region" in each for each in setup(key_arn=key).warnings(Format.CLI))

    def test_the_strict_variant_is_for_one_workspace(self) -> None:
        """Who shares a key among workspaces learns that strict does not."""
        assert any("ws_1 alone" in each for each in setup(strict=True).warnings(Format.JSON))


class TestRevocation:
    def test_every_way_is_there(self) -> None:
        """Key and role, in the states in which the broker then reports them."""
        assert [way.seen_as for way in setup().revocation] == [
            KeyState.KEY_DISABLED,
            KeyState.ACCESS_DENIED,
            KeyState.ROLE_REFUSED,
            KeyState.ROLE_REFUSED,
            KeyState.KEY_PENDING_DELETION,
        ]

    def test_shared_sessions_delay_the_role_alone(self) -> None:
        """Only what is judged at AssumeRole waits for shared sessions to end; the key is judged at each call."""
        late = [way.seen_as for way in setup(reuse_seconds=600).revocation if "600 seconds" in way.when]
        assert late == [KeyState.ROLE_REFUSED, KeyState.ROLE_REFUSED]

    def test_without_shared_sessions_nothing_is_delayed(self) -> None:
        """The default."""
        assert [way for way in setup().revocation if "BROKER_STS_REUSE_SECONDS" in way.when] == []
