"""The policies say exactly what the customer was promised."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from broker_core.context import for_canary, for_secret
from broker_core.errors import Invalid
from broker_core.policies import (
    SESSION_POLICY_MAX,
    Action,
    Extra,
    deny_all,
    extra_policy,
    key_policy,
    session_policy,
    shared_session_policy,
    to_json,
    trust_policy,
)

KEY = "arn:aws:kms:eu-west-1:222222222222:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
ROLE = "arn:aws:iam::222222222222:role/axiorank"


class TestTrustPolicy:
    def test_it_is_our_account_assuming_with_the_external_id(self) -> None:
        """The trust policy is one statement: our account's root, sts:AssumeRole, the external id."""
        (statement,) = trust_policy("111111111111", "external-id-0123456789")["Statement"]
        assert {key: value for key, value in statement.items() if key != "Sid"} == {
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::111111111111:root"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": "external-id-0123456789"}},
        }

    def test_it_follows_the_partition(self) -> None:
        """In another partition the principal's ARN is of that partition."""
        (statement,) = trust_policy("111111111111", "external-id-0123456789", partition="aws-cn")["Statement"]
        assert statement["Principal"] == {"AWS": "arn:aws-cn:iam::111111111111:root"}

    @pytest.mark.parametrize("account", ["11111111111", "1111111111111", "11111111111a", ""])
    def test_an_account_that_is_none_is_refused(self, account: str) -> None:
        """An account id has twelve digits."""
        with pytest.raises(Invalid):
            trust_policy(account, "external-id-0123456789")

    def test_an_external_id_with_a_variable_is_refused(self) -> None:
        """IAM would expand it, and the condition would compare with something else."""
        with pytest.raises(Invalid):
            trust_policy("111111111111", "${aws:PrincipalAccount}")


class TestKeyPolicy:
    def test_the_role_may_encrypt_and_decrypt_and_nothing_else(self) -> None:
        """The use statement names the role and two actions."""
        _, use = key_policy(ROLE)["Statement"]
        assert (use["Principal"], use["Action"]) == ({"AWS": ROLE}, ["kms:Encrypt", "kms:Decrypt"])
        assert "Condition" not in use

    def test_administrators_cannot_use_the_key_nor_grant_its_use(self) -> None:
        """The administrators' statement has no wildcard and none of the actions that read, make or hand on a use."""
        administrators, _ = key_policy(ROLE)["Statement"]
        assert administrators["Principal"] == {"AWS": "arn:aws:iam::222222222222:root"}
        forbidden = ("*", "Encrypt", "Decrypt", "GenerateDataKey", "CreateGrant", "Replicate")
        assert [action for action in administrators["Action"] if any(word in action for word in forbidden)] == []

    def test_administrators_can_revoke_and_mend(self) -> None:
        """What revoking and mending needs is there: AWS refuses a policy that locks its author out."""
        administrators, _ = key_policy(ROLE)["Statement"]
        assert {"kms:PutKeyPolicy", "kms:DisableKey", "kms:ScheduleKeyDeletion"} <= set(administrators["Action"])

    def test_administrators_can_be_named(self) -> None:
        """A principal in the place of the account's root, with the very same actions."""
        administrators, use = key_policy(ROLE, administrators="arn:aws:iam::222222222222:role/admins")["Statement"]
        by_default, same_use = key_policy(ROLE)["Statement"]
        assert administrators == by_default | {"Principal": {"AWS": "arn:aws:iam::222222222222:role/admins"}}
        assert use == same_use

    def test_an_administrator_with_a_variable_is_refused(self) -> None:
        """IAM would expand it."""
        with pytest.raises(Invalid):
            key_policy(ROLE, administrators="arn:aws:iam::222222222222:role/${aws:username}")

    def test_the_stricter_variant_names_the_workspace(self) -> None:
        """With a workspace, the use is conditioned on its encryption context."""
        _, use = key_policy(ROLE, workspace_id="ws_1")["Statement"]
        assert use["Condition"] == {"StringEquals": {"kms:EncryptionContext:axiorank:workspace": "ws_1"}}


class TestSessionPolicy:
    def test_it_allows_one_action_on_one_key_under_every_pair(self) -> None:
        """A session can do what its one use needs, under that use's whole context."""
        assert session_policy(Action.DECRYPT, KEY, for_secret("ws_1", "db/password", 3)) == {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Action": "kms:Decrypt",
                    "Resource": KEY,
                    "Condition": {
                        "StringEquals": {
                            "kms:EncryptionContext:axiorank:workspace": "ws_1",
                            "kms:EncryptionContext:axiorank:secret": "db/password",
                            "kms:EncryptionContext:axiorank:version": "3",
                        }
                    },
                }
            ],
        }

    def test_a_shared_one_is_conditioned_on_the_workspace_alone(self) -> None:
        """A shared session serves every secret of its workspace, and no other workspace."""
        policy = shared_session_policy(Action.DECRYPT, KEY, for_secret("ws_1", "db/password", 3))
        condition = policy["Statement"][0]["Condition"]
        assert condition == {"StringEquals": {"kms:EncryptionContext:axiorank:workspace": "ws_1"}}

    def test_the_longest_names_fit(self) -> None:
        """With the longest workspace, name, version and key ARN the policy is within what STS takes."""
        key = "arn:aws-us-gov:kms:us-gov-west-1:222222222222:key/mrk-" + "0" * 32
        longest = for_secret("w" * 64, "n" * 128, 2**63 - 1)
        assert len(to_json(session_policy(Action.DECRYPT, key, longest))) < SESSION_POLICY_MAX / 2

    @pytest.mark.parametrize("value", ["a*", "a?", "${aws:username}", "$"])
    def test_a_value_that_iam_reads_as_a_pattern_is_refused(self, value: str) -> None:
        """Names hold no such character; should one get here, no policy is made of it."""
        with pytest.raises(Invalid):
            session_policy(Action.DECRYPT, KEY, for_secret("ws_1", value, 1))

    def test_a_key_that_is_no_key_arn_is_refused(self) -> None:
        """A wildcard for a resource would be every key."""
        with pytest.raises(Invalid):
            session_policy(Action.DECRYPT, "*", for_canary("ws_1", UUID(int=1)))

    def test_deny_all_denies_all(self) -> None:
        """The policy of sessions that only prove that they can be had."""
        assert deny_all()["Statement"] == [{"Effect": "Deny", "Action": "*", "Resource": "*"}]

    def test_json_is_compact(self) -> None:
        """STS counts characters; there are no spaces outside of values."""
        text = to_json(deny_all())
        assert (" " in text, json.loads(text)) == (False, deny_all())


@pytest.mark.parametrize("extra", list(Extra))
def test_a_session_that_asks_for_more_does_not_stand_in_the_way(extra: Extra) -> None:
    """It allows that on the one key, unconditionally: what decides is the customer's policies."""
    (allowed,) = extra_policy(extra, KEY)["Statement"]
    more = ["kms:ReEncryptTo"] if extra is Extra.RE_ENCRYPT_FROM else []
    assert allowed == {"Effect": "Allow", "Action": [extra.value, *more], "Resource": KEY}


def test_an_alias_gets_no_session_that_asks_for_more() -> None:
    """Nor does a pattern: the policy would say more than it seems to."""
    with pytest.raises(Invalid):
        extra_policy(Extra.CREATE_GRANT, "arn:aws:kms:eu-west-1:222222222222:key/*")
