"""The nouns: what is a connection, what a status, and which moves are legal."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import product
from uuid import uuid4

import pytest

from broker_core.errors import Invalid
from broker_core.model import (
    TRANSITIONS,
    WAITING,
    Connection,
    EventState,
    SecretFacts,
    SecretStatus,
    check_connection,
    parse_key_arn,
    rotation_due,
    status_of,
)

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
KEY = f"arn:aws:kms:eu-west-1:222222222222:key/{KEY_ID}"
ROLE = "arn:aws:iam::222222222222:role/axiorank"
EXTERNAL_ID = "external-id-0123"


class TestKeyArn:
    """``parse_key_arn``."""

    @pytest.mark.parametrize(
        ("arn", "partition", "region"),
        [
            (KEY, "aws", "eu-west-1"),
            (f"arn:aws-us-gov:kms:us-gov-west-1:222222222222:key/{KEY_ID}", "aws-us-gov", "us-gov-west-1"),
            (f"arn:aws-cn:kms:cn-north-1:222222222222:key/{KEY_ID}", "aws-cn", "cn-north-1"),
            (f"arn:aws-eusc:kms:eusc-de-east-1:222222222222:key/{KEY_ID}", "aws-eusc", "eusc-de-east-1"),
            (f"arn:aws:kms:ap-southeast-2:222222222222:key/mrk-{'0' * 32}", "aws", "ap-southeast-2"),
        ],
    )
    def test_a_keys_own_arn(self, arn: str, partition: str, region: str) -> None:
        """Its parts, in every partition."""
        key = parse_key_arn(arn)
        assert (key.partition, key.region, key.account) == (partition, region, "222222222222")
        assert arn.endswith(f":key/{key.key_id}")

    @pytest.mark.parametrize(
        "arn",
        [
            "",
            KEY_ID,
            "alias/mine",
            "arn:aws:kms:eu-west-1:222222222222:alias/mine",
            KEY + "\n",
            " " + KEY,
            KEY.upper(),
            KEY.replace(":kms:", ":s3:"),
            KEY.replace("222222222222", "22222222222"),
            KEY.replace("222222222222", "２22222222222"),
            KEY.replace("eu-west-1", ""),
            KEY.replace("eu-west-1", "eu-west-1.evil.example"),
            KEY.replace("arn:aws:", "arn:aws-evil:"),
            KEY + "0",
            KEY[:-1],
            f"arn:aws:kms:eu-west-1:222222222222:key/mrk-{'0' * 31}",
        ],
    )
    def test_anything_else_is_refused(self, arn: str) -> None:
        """With the field's name, and what to give."""
        with pytest.raises(Invalid, match="arn:aws:kms:REGION") as error:
            parse_key_arn(arn)
        assert list(error.value.fields) == ["keyArn"]

    def test_an_alias_is_refused_as_one(self) -> None:
        """What an alias points at can change without us seeing it."""
        with pytest.raises(Invalid, match="alias"):
            parse_key_arn("arn:aws:kms:eu-west-1:222222222222:alias/mine")

    def test_a_multi_region_key_is_known(self) -> None:
        """Disabling one Region's leaves the others."""
        assert parse_key_arn(f"arn:aws:kms:eu-west-1:222222222222:key/mrk-{'0' * 32}").is_multi_region
        assert not parse_key_arn(KEY).is_multi_region


class TestCheckConnection:
    """``check_connection``."""

    @pytest.mark.parametrize(
        ("role", "external_id"),
        [
            (ROLE, EXTERNAL_ID),
            ("arn:aws:iam::222222222222:role/service/path/axiorank+=,.@_-", EXTERNAL_ID),
            (ROLE, "A" * 1224),
            (ROLE, "a+=,.@:/-_012345"),
        ],
    )
    def test_what_belongs_together(self, role: str, external_id: str) -> None:
        """Returns the key's parts."""
        assert check_connection(role, KEY, external_id).key_id == KEY_ID

    @pytest.mark.parametrize(
        ("role", "key", "external_id", "field"),
        [
            (ROLE, "alias/mine", EXTERNAL_ID, "keyArn"),
            (ROLE, KEY.replace("eu-west-1", "cn-north-1"), EXTERNAL_ID, "keyArn"),
            (ROLE, KEY.replace("eu-west-1", "us-gov-west-1"), EXTERNAL_ID, "keyArn"),
            (ROLE, KEY.replace("eu-west-1", "zz-nowhere-1"), EXTERNAL_ID, "keyArn"),
            ("axiorank", KEY, EXTERNAL_ID, "roleArn"),
            (ROLE + "\n", KEY, EXTERNAL_ID, "roleArn"),
            (ROLE.replace("role/", "user/"), KEY, EXTERNAL_ID, "roleArn"),
            (ROLE + "x" * 64, KEY, EXTERNAL_ID, "roleArn"),
            (ROLE.replace("axiorank", "äxiorank"), KEY, EXTERNAL_ID, "roleArn"),
            (ROLE.replace("222222222222", "333333333333"), KEY, EXTERNAL_ID, "roleArn"),
            (ROLE.replace("arn:aws:", "arn:aws-cn:"), KEY, EXTERNAL_ID, "roleArn"),
            (ROLE, KEY, "short", "externalId"),
            (ROLE, KEY, "A" * 1225, "externalId"),
            (ROLE, KEY, "with a space in it", "externalId"),
            (ROLE, KEY, EXTERNAL_ID + "\n", "externalId"),
            (ROLE, KEY, EXTERNAL_ID + "é", "externalId"),
        ],
    )
    def test_what_does_not(self, role: str, key: str, external_id: str, field: str) -> None:
        """Names the field to mend."""
        with pytest.raises(Invalid) as error:
            check_connection(role, key, external_id)
        assert list(error.value.fields) == [field]

    def test_a_connection_knows_its_region(self) -> None:
        """The key's, for both STS and KMS."""
        assert Connection(uuid4(), "ws_1", ROLE, EXTERNAL_ID, KEY).region == "eu-west-1"

    def test_an_external_id_is_not_shown(self) -> None:
        """It is half of what lets one assume the role."""
        assert EXTERNAL_ID not in repr(Connection(uuid4(), "ws_1", ROLE, EXTERNAL_ID, KEY))


class TestTransitions:
    """Legal moves of an event."""

    def test_every_state_has_its_moves(self) -> None:
        """No state is forgotten."""
        assert set(TRANSITIONS) == set(EventState)

    @pytest.mark.parametrize("state", [state for state in EventState if state.is_end])
    def test_an_end_is_final(self, state: EventState) -> None:
        """No way out."""
        assert TRANSITIONS[state] == frozenset()

    @pytest.mark.parametrize("state", sorted(WAITING))
    def test_what_waits_can_reach_every_end(self, state: EventState) -> None:
        """Every accepted event reaches an end (INV-9)."""
        assert {end for end in EventState if end.is_end} <= TRANSITIONS[state]

    def test_a_refusal_is_not_forgotten(self) -> None:
        """``refused`` never goes back to ``accepted`` by itself."""
        assert EventState.ACCEPTED not in TRANSITIONS[EventState.REFUSED]

    def test_two_states_wait(self) -> None:
        """And five are an end."""
        assert {state for state in EventState if not state.is_end} == {EventState.ACCEPTED, EventState.REFUSED}


#: a secret with nothing wrong
FINE = SecretFacts(True, True, False, False, False, False)
STATUSES: list[tuple[dict[str, bool], SecretStatus]] = [
    ({}, SecretStatus.ACTIVE),
    ({"is_waiting": True}, SecretStatus.ACTIVE),
    ({"has_blob": False, "is_waiting": True}, SecretStatus.PENDING),
    ({"has_blob": False, "is_bound": False, "is_waiting": True}, SecretStatus.PENDING),
    ({"has_blob": False}, SecretStatus.NEEDS_REPROVISION),
    ({"has_blob": False, "lost_its_value": True}, SecretStatus.NEEDS_REPROVISION),
    ({"lost_its_value": True}, SecretStatus.NEEDS_REPROVISION),
    ({"is_bound": False}, SecretStatus.UNBOUND),
    ({"failing": True}, SecretStatus.AFFECTED),
    ({"failing": True, "lost_its_value": True}, SecretStatus.AFFECTED),
    ({"failing": True, "is_bound": False}, SecretStatus.AFFECTED),
    ({"failing": True, "healed_unchecked": True}, SecretStatus.AFFECTED),
    ({"failing": True, "has_blob": False, "is_waiting": True}, SecretStatus.PENDING),
    ({"healed_unchecked": True}, SecretStatus.RECHECKING),
    ({"healed_unchecked": True, "lost_its_value": True}, SecretStatus.NEEDS_REPROVISION),
    ({"healed_unchecked": True, "is_bound": False}, SecretStatus.UNBOUND),
]


class TestStatus:
    """``status_of``."""

    @pytest.mark.parametrize(("facts", "status"), STATUSES)
    def test_the_table(self, facts: dict[str, bool], status: SecretStatus) -> None:
        """What needs the owner's action comes first."""
        assert status_of(replace(FINE, **facts)) is status

    @pytest.mark.parametrize("bits", list(product([False, True], repeat=len(fields(SecretFacts)))))
    def test_active_means_usable(self, bits: tuple[bool, ...]) -> None:
        """Whatever the facts: ``active`` has a blob and a binding, and nothing is wrong with it."""
        facts = SecretFacts(*bits)
        if status_of(facts) is SecretStatus.ACTIVE:
            assert facts.has_blob
            assert facts.is_bound
            assert not any((facts.failing, facts.lost_its_value, facts.healed_unchecked))


class TestRotationDue:
    """``rotation_due``."""

    CREATED, ROTATED = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)

    def test_without_a_policy_it_never_is(self) -> None:
        """A policy is a choice."""
        assert rotation_due(None, self.CREATED, self.ROTATED) is None

    def test_it_counts_from_the_last_rotation(self) -> None:
        """Days of 24 hours."""
        assert rotation_due("30d", self.CREATED, self.ROTATED) == datetime(2026, 3, 3, tzinfo=UTC)

    def test_without_one_it_counts_from_the_creation(self) -> None:
        """A value that still waits gets old, too."""
        assert rotation_due("1d", self.CREATED, None) == datetime(2026, 1, 2, tzinfo=UTC)

    def test_the_longest_policy_has_a_date(self) -> None:
        """No overflow."""
        due = rotation_due("9999d", self.CREATED, self.ROTATED)
        assert due is not None
        assert due.year == 2053
