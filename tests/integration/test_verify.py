"""Verifying a connection against AWS's own decisions, over real sockets: each way of getting the set-up wrong fails at
its own step with its own sentence; nothing is enabled, and nothing is left half-done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker_core import advice, policies, verification
from broker_core.adapters import sessions
from broker_core.byok import Verification
from broker_core.dev.aws import CustomerAccount, Fault, fresh_account_id
from broker_core.dev.aws.account import document, statement
from broker_core.errors import Invalid
from broker_core.model import ConnectionStatus, StepOutcome
from broker_core.policies import Action, Extra
from tests.live import OUR_ACCOUNT, Live
from tests.store_setup import age_connection

NAMES = [step.name for step in verification.STEPS]


@dataclass(frozen=True)
class Given:
    """What an owner types in."""

    role_arn: str
    external_id: str
    key_arn: str


Spoil = Callable[[Live, CustomerAccount, Given], Given]


def trust(principal: str, condition: dict[str, Any] | None = None) -> dict[str, Any]:
    more = {"Condition": condition} if condition else {}
    return document(statement("Allow", "sts:AssumeRole", Principal={"AWS": principal}, **more))


def trusting(principal: str, condition: dict[str, Any] | None = None) -> Spoil:
    def spoil(live: Live, customer: CustomerAccount, given: Given) -> Given:
        customer.account.update_trust(customer.role_name, trust(principal, condition))
        return given

    return spoil


def key_allows(*actions: str, condition: dict[str, Any] | None = None) -> Spoil:
    """The role's statement in the key policy has these actions."""

    def spoil(live: Live, customer: CustomerAccount, given: Given) -> Given:
        use = {**customer.use_statement(condition), "Action": list(actions)}
        customer.put_key_policy(customer.key_policy(use, use=False))
        return given

    return spoil


def key_denies(live: Live, customer: CustomerAccount, given: Given) -> Given:
    deny = statement("Deny", "kms:Encrypt", Principal={"AWS": customer.role_arn}, Resource="*")
    customer.put_key_policy(customer.key_policy(deny))
    return given


def role_denies(live: Live, customer: CustomerAccount, given: Given) -> Given:
    customer.account.put_role_policy(customer.role_name, document(statement("Deny", "kms:Decrypt", Resource="*")))
    return given


def narrow_session(live: Live, customer: CustomerAccount, given: Given) -> Given:
    """What AWS says when our own session policy lacks the allow."""
    why = "User: x is not authorized to perform: kms:Encrypt because no session policy allows the kms:Encrypt action"
    live.aws.faults.add(
        Fault(action="kms:Encrypt", key=given.key_arn, error="AccessDeniedException", message=why, count=1)
    )
    return given


def asymmetric(live: Live, customer: CustomerAccount, given: Given) -> Given:
    key = customer.account.create_key(customer.key_policy(), KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")
    return replace(given, key_arn=key)


def done(change: Callable[[CustomerAccount], object]) -> Spoil:
    def spoil(live: Live, customer: CustomerAccount, given: Given) -> Given:
        change(customer)
        return given

    return spoil


def typed(**wrong: Callable[[Given], str]) -> Spoil:
    return lambda live, customer, given: replace(given, **{name: make(given) for name, make in wrong.items()})


ALLOW = "Let the role use {} on this key, in the key's policy."
NO_SUCH_KEY = "AWS knows no such key in the Region that its ARN names"
BOTH = ("kms:Encrypt", "kms:Decrypt")
NOT_FOR_SECRETS = {"Null": {"kms:EncryptionContext:axiorank:secret": "true"}}
ANY_EXTERNAL_ID = {"StringLike": {"sts:ExternalId": "*"}}

#: the case, what is wrong, the steps that fail, AWS's code, and what the owner reads
TABLE: list[tuple[str, Spoil, list[str], str, str]] = [
    (
        "no external id condition",
        trusting(OUR_ACCOUNT),
        [verification.REFUSES_NONE, verification.REFUSES_WRONG],
        "",
        advice.ASSUMED_WITHOUT,
    ),
    (
        "any external id",
        trusting(OUR_ACCOUNT, ANY_EXTERNAL_ID),
        [verification.REFUSES_WRONG],
        "",
        advice.ASSUMED_WITH_WRONG,
    ),
    ("wrong principal", trusting("999999999999"), [verification.ACCEPTS], "AccessDenied", advice.ROLE_DOES_NOT_ACCEPT),
    (
        "another external id",
        done(lambda customer: customer.change_external_id("what-the-owner-did-not-type")),
        [verification.ACCEPTS],
        "AccessDenied",
        "with this external id",
    ),
    ("no role", done(CustomerAccount.delete_role), [verification.ACCEPTS], "AccessDenied", "the role must exist"),
    (
        "no Encrypt",
        key_allows("kms:Decrypt"),
        [verification.ENCRYPT],
        "AccessDeniedException",
        ALLOW.format("kms:Encrypt"),
    ),
    (
        "no Decrypt",
        key_allows("kms:Encrypt"),
        [verification.DECRYPT],
        "AccessDeniedException",
        ALLOW.format("kms:Decrypt"),
    ),
    (
        "key policy denies",
        key_denies,
        [verification.ENCRYPT],
        "AccessDeniedException",
        "The key's policy denies the role",
    ),
    (
        "identity policy denies",
        role_denies,
        [verification.DECRYPT],
        "AccessDeniedException",
        "A policy attached to the role denies kms:Decrypt",
    ),
    ("session policy too narrow", narrow_session, [verification.ENCRYPT], "AccessDeniedException", "fault is ours"),
    ("asymmetric key", asymmetric, [verification.ENCRYPT], "InvalidKeyUsageException", "symmetric encryption key"),
    (
        "another Region",
        typed(key_arn=lambda given: given.key_arn.replace(":eu-west-1:", ":eu-north-1:")),
        [verification.ENCRYPT],
        "NotFoundException",
        NO_SUCH_KEY,
    ),
    (
        "key gone",
        typed(key_arn=lambda given: given.key_arn[:-12] + "0" * 12),
        [verification.ENCRYPT],
        "NotFoundException",
        NO_SUCH_KEY,
    ),
    ("key disabled", done(CustomerAccount.disable_key), [verification.ENCRYPT], "DisabledException", "Enable the key"),
    (
        "key about to be deleted",
        done(CustomerAccount.schedule_deletion),
        [verification.ENCRYPT],
        "KMSInvalidStateException",
        "Cancel the key's deletion",
    ),
    (
        "some contexts only",
        key_allows(*BOTH, condition=NOT_FOR_SECRETS),
        [verification.OTHER_SECRET],
        "AccessDeniedException",
        advice.NOT_OPENED_ELSEWHERE,
    ),
    ("grants", key_allows(*BOTH, "kms:CreateGrant"), ["denies_create_grant"], "", advice.GRANTS_ALLOWED),
    ("everything", key_allows("kms:*"), ["denies_create_grant"], "", advice.GRANTS_ALLOWED),
]


def given_by(customer: CustomerAccount) -> Given:
    return Given(customer.role_arn, customer.external_id, customer.key_arn)


def connect(live: Live, given: Given) -> Verification:
    found: Verification = live.app.byok.connect(live.workspace, given.role_arn, given.external_id, given.key_arn)
    return found


class TestWrongSetUps:
    """The table."""

    @pytest.mark.parametrize(("case", "spoil", "failing", "aws_code", "sentence"), TABLE, ids=[row[0] for row in TABLE])
    def test_fails_at_its_own_step(
        self, live: Live, case: str, spoil: Spoil, failing: list[str], aws_code: str, sentence: str
    ) -> None:
        """With AWS's code and request id, and one sentence on what to do; and it leaves nothing behind."""
        customer = live.customer()
        before = live.app.store.setting(live.workspace)

        found = connect(live, spoil(live, customer, given_by(customer)))

        assert [step.name for step in found.failed()] == failing
        first = found.failed()[0]
        assert first.aws_code == aws_code
        assert first.request_id
        assert sentence in first.what_to_do
        assert [step.name for step in found.steps] + list(found.not_run) == NAMES
        self.assert_nothing_is_left(live, found)
        assert live.app.store.setting(live.workspace) == before

    def test_a_session_of_ours_that_is_too_narrow(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        """The double itself denies what our session's policy leaves out, and the customer is not blamed."""
        right = policies.session_policy
        narrow = {Action.ENCRYPT: Action.DECRYPT}
        monkeypatch.setattr(
            sessions,
            "session_policy",
            lambda action, key_arn, context: right(narrow.get(action, action), key_arn, context),
        )

        found = connect(live, given_by(live.customer()))

        (failed,) = found.failed()
        assert (failed.name, failed.aws_code) == (verification.ENCRYPT, "AccessDeniedException")
        assert "fault is ours" in failed.what_to_do
        self.assert_nothing_is_left(live, found)

    def assert_nothing_is_left(self, live: Live, found: Verification) -> None:
        """Pending, with its steps, unverified; no sweeper touches it, and new values go where they went before."""
        assert not found.is_current
        (view,) = live.app.byok.connections(live.workspace)
        assert (view.id, view.status, view.health) == (found.connection.id, ConnectionStatus.PENDING, "unverified")
        assert (list(view.steps), view.verified_at) == (list(found.steps), None)
        for due in (live.app.store.due_probes(1000, 0, 0), live.app.store.due_refusals(1000, 0)):
            assert found.connection.id not in {getattr(one, "connection", one).id for one in due}
        assert all(use.result is not None for use in live.app.store.uses(live.workspace, limit=200))

    @pytest.mark.parametrize(
        ("spoil", "field", "sentence"),
        [
            (
                typed(key_arn=lambda given: given.key_arn.split(":key/")[0] + ":alias/mine"),
                "keyArn",
                "an alias is refused",
            ),
            (
                typed(role_arn=lambda given: f"arn:aws:iam::{fresh_account_id()}:role/axiorank-byok"),
                "roleArn",
                "another account than the key",
            ),
            (typed(external_id=lambda given: "too-short"), "externalId", "16 to 1224"),
        ],
        ids=["alias", "other account", "short external id"],
    )
    def test_what_cannot_work_is_refused_before_anything_is_asked(
        self, live: Live, spoil: Spoil, field: str, sentence: str
    ) -> None:
        """By the field's name; nothing is written and AWS is not asked."""
        customer = live.customer()
        calls = live.aws.trail.count("sts:AssumeRole")
        with pytest.raises(Invalid) as refused:
            connect(live, spoil(live, customer, given_by(customer)))
        assert sentence in refused.value.fields[field]
        assert (live.aws.trail.count("sts:AssumeRole"), live.app.byok.connections(live.workspace)) == (calls, [])

    def test_every_sentence_is_one_ways_own(self) -> None:
        """Two ways share a sentence only where AWS gives them the same answer at the same step."""
        told = {(tuple(failing), aws_code, sentence) for _, _, failing, aws_code, sentence in TABLE}
        shared = len(TABLE) - len(told)
        assert shared == 2  # a key of another Region and one that is gone; grants alone and with everything else

    def test_a_failed_replacement_keeps_what_is_current(self, live: Live) -> None:
        """Values go on being stored under the old key, and injections go on working."""
        current = live.connect(live.customer(), verified=True)
        worse = live.customer()
        worse.disable_key()
        assert not connect(live, given_by(worse)).is_current
        live.store("github")
        assert live.candidate("github").connection == current


class TestGoodSetUps:
    """What passes."""

    def test_the_promised_policies_pass_every_step(self, live: Live) -> None:
        """All ok; and each request id of AWS's is in the audit log."""
        found = connect(live, given_by(live.customer()))
        assert [(step.name, step.outcome) for step in found.steps] == [(name, StepOutcome.OK) for name in NAMES]
        results = [use.result for use in live.app.store.uses(live.workspace, limit=200) if use.result]
        named = {result.receipt.kms_request_id or result.receipt.assume_request_id for result in results}
        assert {step.request_id for step in found.steps if step.request_id} == named

    def test_the_strict_variant_passes_every_step(self, live: Live) -> None:
        """Where the key policy asks for the workspace, every question carries it."""
        customer = live.customer()
        customer.put_key_policy(policies.key_policy(customer.role_arn, workspace_id=live.workspace))
        found = connect(live, given_by(customer))
        assert {step.outcome for step in found.steps} == {StepOutcome.OK}

    @pytest.mark.parametrize("condition", [None, "the workspace"], ids=["any", "strict"])
    def test_each_thing_more_is_a_warning(self, live: Live, condition: str | None) -> None:
        """Under the strict variant, too: what is allowed for the workspace is allowed to us."""
        extras = [extra for extra in Extra if extra is not Extra.CREATE_GRANT]
        customer = live.customer()
        strict = {"StringEquals": {"kms:EncryptionContext:axiorank:workspace": live.workspace}} if condition else None
        given = key_allows(*BOTH, *(extra.value for extra in extras), condition=strict)(
            live, customer, given_by(customer)
        )
        found = connect(live, given)
        warned = [step.name for step in found.steps if step.outcome is StepOutcome.WARNING]
        assert (warned, found.is_current) == ([f"denies_{extra.name.lower()}" for extra in extras], True)

    def test_sessions_that_only_knock_may_do_nothing_and_are_never_used(self, live: Live) -> None:
        """The four AssumeRole at the beginning have a deny-all policy; whatever came back signs no call."""
        before = len(live.aws.trail.calls)
        connect(live, given_by(live.customer()))
        made = live.aws.trail.calls[before:]
        knocks = [call for call in made if call.action == "sts:AssumeRole"][:4]
        assert {call.parameters["policy"] for call in knocks} == {policies.to_json(policies.deny_all())}
        given = {call.response["credentials"]["accessKeyId"] for call in knocks if call.response}
        assert len(given) == 2
        assert given & {call.access_key for call in made} == set()

    def test_the_customers_trail_tells_each_step(self, live: Live) -> None:
        """Every session is named ``axiorank-verify-<audit id>``, one for each question."""
        customer = live.customer()
        before = len(live.aws.trail.calls)
        connect(live, given_by(customer))
        sessions = [call.session_name for call in live.aws.trail.calls[before:] if call.action == "sts:AssumeRole"]
        audited = [f"axiorank-verify-{use.intent.id}" for use in live.app.store.uses(live.workspace, limit=200)]
        assert sessions == audited
        assert len(set(sessions)) == len(sessions) == 4 + 3 + len(Extra)


class TestLater:
    """The connection, once it is current."""

    def test_a_role_that_stops_refusing_is_flagged_within_a_day(self, live: Live) -> None:
        """Seen by the owner with its step and since when; nothing is affected, and it goes once it is mended."""
        customer = live.customer()
        connection = live.connect(customer, verified=True)
        customer.account.update_trust(customer.role_name, trust(OUR_ACCOUNT))
        age_connection(live.app.store, connection, "next_refusals_at", 1)
        live.app.sweep.refusals(limit=1000)
        (flagged,) = live.app.byok.connections(live.workspace)
        customer.account.update_trust(customer.role_name, customer.trust_policy())
        age_connection(live.app.store, connection, "next_refusals_at", 1)
        live.app.sweep.refusals(limit=1000)
        (mended,) = live.app.byok.connections(live.workspace)
        failed = [step.name for step in flagged.steps if step.outcome is StepOutcome.FAILED]
        assert (flagged.health, failed) == ("flagged", [verification.REFUSES_NONE, verification.REFUSES_WRONG])
        assert flagged.health_since is not None
        assert [step.name for step in flagged.steps] == NAMES
        assert (mended.health, mended.health_since) == ("healthy", None)
        assert live.app.byok.affected(live.workspace).connections == []

    def test_verifying_again_sees_what_has_changed(self, live: Live) -> None:
        """The steps are the new ones, the connection is the old one."""
        customer = live.customer()
        connection = live.connect(customer, verified=True)
        customer.disable_key()
        found = live.app.byok.verify(live.workspace)
        (view,) = live.app.byok.connections(live.workspace)
        assert [(step.name, step.aws_code) for step in found.failed()] == [(verification.ENCRYPT, "DisabledException")]
        assert (view.id, view.status, list(view.steps)) == (connection.id, ConnectionStatus.CURRENT, list(found.steps))

    def test_a_verification_leaves_stored_values_alone(self, live: Live) -> None:
        """It uses a canary of its own: blob and setting are the same before and after."""
        live.connect(live.customer(), verified=True)
        live.store("github")
        before = (live.candidate("github"), live.app.store.setting(live.workspace))
        assert live.app.byok.verify(live.workspace).passed
        assert (live.candidate("github"), live.app.store.setting(live.workspace)) == before


def test_the_guide_names_every_step() -> None:
    """``docs/connecting.md``, in the order that they are taken in."""
    guide = (Path(__file__).parents[2] / "docs" / "connecting.md").read_text()
    table = guide.partition("| step | what must happen |\n|---|---|\n")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert named == NAMES
